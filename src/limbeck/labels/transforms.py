"""Transforms of label rows: controlled changes that ask what in a soft label teaches.

Every transform maps label rows [N, K] (probabilities, or parts of them) and the owner class of each image [N] to changed rows and the images that stay:
``apply(rows, owners, generator) -> (rows [M, K], kept [M])``, where row m belongs to image ``kept[m]``. Most keep every image and draw nothing. Arithmetic is
float64, results are of the rows' own type.

A transform is written ``name`` or ``name:option=value,option=value``: ``swap:rank=2``, ``top-k:k=32,renormalize=false``, ``remove-label:classes=3+7``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from torch import Tensor

from limbeck.errors import OptionError, nearest
from limbeck.labels import TRANSFORMS
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels

Rows = Float[Tensor, "N K"]
Result = tuple[Float[Tensor, "M K"], Int[Tensor, " M"]]
Center = Literal["owner", "top"]
_BISECTIONS = 60  # halvings of [0, 1]: beyond float64


class Transform(BaseModel, ABC):
    """A change of label rows, with its options as fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @abstractmethod
    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        """The changed rows [M, K] and the images [M] that they belong to; `rows` is not changed. Draws, if any, come from the CPU `generator`."""


class Swap(Transform):
    """The i-th largest entry of every row changes places with the smallest: the label swapping test (Qin, Deng and Alvarez-Melis 2024, arXiv 2406.10485,
    section 4.2 and appendix C.2).

    Ranks count from 1, the largest; ``rank=K`` changes nothing. Sums and sorted entries stay, and where no two entries of a row are equal, swapping twice is the
    identity. Equal entries are ranked by class number.
    """

    rank: int = Field(ge=1, description="which entry, counted from the largest, 1")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        if self.rank > rows.shape[1]:
            raise OptionError(
                f"a swap needs a rank of 1 to {rows.shape[1]} classes, got {self.rank}; use rank={rows.shape[1] - 1} for the last but one"
            )
        order = _ranked(rows)
        pair = order[:, [self.rank - 1, -1]]
        return rows.scatter(1, pair, rows.gather(1, pair.flip(1))), _all(rows)


class TopK(Transform):
    """Keeps the k largest entries of every row and sets the others to zero; without renormalization the row then sums to less than one, as in the paper's
    scaling law (section 4.3)."""

    k: int = Field(ge=1, description="entries that stay")
    renormalize: bool = Field(False, description="scale the kept entries back to the row's sum")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        if self.k > rows.shape[1]:
            raise OptionError(f"top-k needs 1 <= k <= {rows.shape[1]} classes, got k={self.k}; use k={rows.shape[1]} to keep all")
        kept = _ranked(rows)[:, : self.k]
        made = torch.zeros_like(rows).scatter(1, kept, rows.gather(1, kept))
        if self.renormalize:
            made = (made.double() * (rows.double().sum(1, keepdim=True) / made.double().sum(1, keepdim=True))).to(rows.dtype)
        return made, _all(rows)


class _OfClasses(Transform):
    classes: tuple[int, ...] = Field(min_length=1, description="class numbers, joined by +: 3+7")

    @field_validator("classes", mode="before")
    @classmethod
    def _numbers(cls, given: object) -> object:
        return tuple(given.split("+")) if isinstance(given, str) else (given,) if isinstance(given, int) else given

    def _check(self, rows: Rows) -> None:
        wrong = [number for number in self.classes if not 0 <= number < rows.shape[1]]
        if wrong:
            raise OptionError(f"class numbers run from 0 to {rows.shape[1] - 1}, got {wrong[0]}; name another class")


class RemoveImages(_OfClasses):
    """Leaves out every image of the named classes; their entries in the other images' labels stay ("remove image", section 4.3, figure 7)."""

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        self._check(rows)
        kept = torch.nonzero(~torch.isin(owners.long(), torch.tensor(self.classes, device=owners.device)))[:, 0]
        if len(kept) == 0:
            raise OptionError("removing the images of every class leaves none; name fewer classes")
        return rows[kept], kept


class RemoveLabel(_OfClasses):
    """Sets the entry of a named class to zero in the labels of all images of other classes, without renormalization; the class's own images keep their whole
    labels ("remove label", section 4.3, figure 7). Of several named classes, each loses its entries in the images of the others too."""

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        self._check(rows)
        made = rows.clone()
        for number in self.classes:
            made[owners != number, number] = 0
        return made, _all(rows)


class Smoothing(Transform):
    """Label smoothing with the entropy of the soft label, row by row: ``(1 - e) onehot + e / K`` with e such that entropies agree. What a soft label is worth as
    regularization alone: its softness without its structure.

    The entropy grows from 0 at e = 0 to log K at e = 1, so e is found by bisection. Rows must sum to one.
    """

    center: Center = Field("owner", description="which class gets the peak: the image's own (owner) or the label's largest (top)")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        if not bool(torch.isclose(rows.double().sum(1), torch.ones(1, dtype=torch.float64, device=rows.device), atol=1e-3).all()):
            raise OptionError("smoothing matches the entropy of labels that sum to one, got truncated ones; use it before top-k, or renormalize")
        classes = rows.shape[1]
        wanted = torch.special.entr(rows.double()).sum(1)
        low, high = torch.zeros_like(wanted), torch.ones_like(wanted)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            rest = middle / classes
            softer = torch.special.entr(1 - middle + rest) + (classes - 1) * torch.special.entr(rest) < wanted
            low, high = torch.where(softer, middle, low), torch.where(softer, high, middle)
        share = ((low + high) / 2)[:, None]
        return ((1 - share) * _peaks(rows, owners, self.center).double() + share / classes).to(rows.dtype), _all(rows)


class PermuteTail(Transform):
    """Shuffles all but the `keep` largest entries of every row, each row by a permutation of its own: the same entropy and the same sorted entries, but which
    other classes an image resembles is lost."""

    keep: int = Field(1, ge=0, description="largest entries that stay where they are")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        if self.keep >= rows.shape[1]:
            raise OptionError(f"shuffling the tail needs keep < {rows.shape[1]} classes, got {self.keep}; use keep=1")
        tail = _ranked(rows)[:, self.keep :]
        shuffled = tail.gather(1, torch.rand(tail.shape, generator=generator).argsort(1).to(rows.device))
        return rows.scatter(1, tail, rows.gather(1, shuffled)), _all(rows)


class PermuteClasses(Transform):
    """Renames the non-peak classes by one permutation, the same for all images: entries keep their pattern over images, and name the wrong classes.

    The permutation is a random cycle c of all K classes, so none keeps its name. A row whose peak is class t keeps the entry of t, and the others move along the
    cycle with t taken out: the entry of class k goes to ``c(k)``, or to ``c(t)`` where ``c(k) = t``.
    """

    center: Center = Field("top", description="which class keeps its entry: the label's largest (top) or the image's own (owner)")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        classes = rows.shape[1]
        order = torch.randperm(classes, generator=generator)
        cycle = torch.empty_like(order).scatter(0, order, order.roll(-1)).to(rows.device)
        peak = _peaks(rows, owners, self.center).argmax(1, keepdim=True)
        goes_to = cycle.expand(len(rows), classes)
        goes_to = torch.where(goes_to == peak, cycle[peak], goes_to).scatter(1, peak, peak)
        return torch.zeros_like(rows).scatter(1, goes_to, rows), _all(rows)


class Temperature(Transform):
    """``softmax(log y / T)``: for labels that are a softmax of logits, the softmax of the logits over T (Hinton, Vinyals and Dean 2015, arXiv 1503.02531). Entries
    of zero stay zero; rows sum to one afterwards."""

    value: float = Field(gt=0, description="above 1 softens, below 1 sharpens")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        return (rows.double().log() / self.value).softmax(1).to(rows.dtype), _all(rows)


class Quantize(Transform):
    """Rounds the entries to a storage precision and back, as `Labels` stores them: uint8 keeps 255 levels of each row's largest entry."""

    to: Literal["uint8", "float16"] = Field("uint8", description="uint8 or float16")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        return Labels.encode(rows, precision=self.to, sums_to_one=False).dense().to(rows.dtype), _all(rows)


class Noise(Transform):
    """With probability `rate`, the largest entry of a row changes places with that of a class drawn uniformly from the others: on hard labels this is symmetric
    label noise."""

    rate: float = Field(ge=0, le=1, description="fraction of images whose label is wrong")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        count, classes = rows.shape
        # drawn for every image, so that the images hit at a small rate are among those hit at a larger one
        hit = (torch.rand(count, 1, generator=generator) < self.rate).to(rows.device)
        step = torch.randint(1, classes, (count, 1), generator=generator).to(rows.device)
        top = _ranked(rows)[:, :1]
        pair = torch.cat([top, torch.where(hit, (top + step) % classes, top)], 1)
        return rows.scatter(1, pair, rows.gather(1, pair.flip(1))), _all(rows)


class ClassMean(Transform):
    """Every image gets the mean label of its group, so that what is particular to an image is lost and only what is common to a class stays."""

    center: Center = Field("owner", description="groups: images of a class (owner) or with the same largest entry (top)")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        groups = _peaks(rows, owners, self.center).argmax(1)
        sums = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64, device=rows.device).index_add_(0, groups, rows.double())
        sizes = torch.bincount(groups, minlength=rows.shape[1]).clamp_min(1)[:, None]
        return (sums / sizes)[groups].to(rows.dtype), _all(rows)


class Harden(Transform):
    """One-hot labels: the image's own class, or the expert's verdict."""

    center: Center = Field("owner", description="the image's own class (owner) or the label's largest entry (top)")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        return _peaks(rows, owners, self.center), _all(rows)


def parse_transform(text: str) -> Transform:
    """``name`` or ``name:option=value,...`` as the transform; raises `OptionError`, one sentence, for an unknown name, option or value."""
    name, _, tail = text.strip().partition(":")
    kind: type[Transform] = TRANSFORMS[name]
    options: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise OptionError(f"options of {name} are written key=value, got {part.strip()!r}; write for example swap:rank=2")
        if key not in kind.model_fields:
            raise OptionError(
                f"label transform {name} has no option {key!r}; {nearest(key, kind.model_fields) if kind.model_fields else 'it has none'}"
            )
        options[key] = value
    try:
        return kind(**options)
    except ValidationError as error:
        fault = error.errors()[0]
        words = f"{fault['msg'][:1].lower()}{fault['msg'][1:]}"
        got = "nothing" if fault["type"] == "missing" else repr(fault["input"])
        raise OptionError(f"option {fault['loc'][0]} of label transform {name}: {words}, got {got}; see: limbeck explain {name}") from None


def transform_set(dataset: DistilledDataset, transforms: Sequence[str], generator: torch.Generator) -> DistilledDataset:
    """A set with its labels transformed, one transform after the other. The result stores float32 entries, exactly as the last transform left them, and its
    provenance names the transforms. Labels of several views, and logits, can only be replaced (`harden`): the others speak of one distribution for an image."""
    made = dataset
    for text in transforms:
        made = _transformed(made, parse_transform(text), generator)
    told = {**made.provenance, "label_transforms": [*dataset.provenance.get("label_transforms", ()), *transforms]}
    return replace(made, provenance=told)


def _transformed(dataset: DistilledDataset, transform: Transform, generator: torch.Generator) -> DistilledDataset:
    if isinstance(transform, Harden) and transform.center == "owner":
        return dataset.with_hard_labels()
    if dataset.views is not None:
        raise OptionError(
            "label transforms change one label for each image, but this set has a label for each view; make it without views, or use harden"
        )
    if dataset.labels.kind not in ("hard", "probability", "free"):
        raise OptionError(
            f"label transforms need labels that are probabilities, got {dataset.labels.kind!r}; use a set labeled by an expert, or harden"
        )
    rows, kept = transform.apply(dataset.targets(), dataset.owners.long(), generator)
    labels = Labels.encode(rows, sums_to_one=False, temperature=dataset.labels.temperature, expert=dataset.labels.expert)
    provenance = dict(dataset.provenance)
    if "indices" in provenance:
        provenance["indices"] = [provenance["indices"][place] for place in kept.tolist()]
    return replace(dataset, images=dataset.images[kept], owners=dataset.owners[kept], labels=labels, provenance=provenance)


def _all(rows: Rows) -> Int[Tensor, " N"]:
    return torch.arange(len(rows), device=rows.device)


def _ranked(rows: Rows) -> Int[Tensor, "N K"]:
    """Classes of every row from the largest entry to the smallest; equal entries by class number."""
    return torch.sort(rows, dim=1, descending=True, stable=True).indices


def _peaks(rows: Rows, owners: Int[Tensor, " N"], center: Center) -> Rows:
    peak = owners.long() if center == "owner" else _ranked(rows)[:, 0]
    return torch.nn.functional.one_hot(peak, rows.shape[1]).to(rows)

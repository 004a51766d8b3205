"""`Labels`: the soft or hard labels of a distilled set, as stored, with what they mean and what they cost."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int, Num, Shaped
from torch import Tensor

from limbeck.errors import FileFormatError, OptionError

Kind = Literal["hard", "probability", "log-probability", "logit", "centered", "free"]
Precision = Literal["float32", "float16", "uint8"]
_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


def index_dtype(classes: int) -> torch.dtype:
    """The smallest integer type that numbers `classes` classes."""
    return torch.uint8 if classes <= 256 else torch.int16 if classes <= 32768 else torch.int32


@dataclass(frozen=True)
class Labels:
    """Labels of N images over K classes.

    `values` [N, k] holds the kept entries in the storage precision and `indices` [N, k] their classes (None when all K are kept, in order). Hard labels
    keep only `indices` [N, 1]. With uint8 values an entry is ``scale * value / 255`` with `scale` [N, 1]. Labels per view carry a leading view axis on
    values, indices and scale. `temperature` is the one that made the labels (it divided the logits); `expert` is the digest of the snapshot that made them.
    `sums_to_one` says that rows are distributions: decoding renormalizes them, so that rounding never leaves a row that sums to 0.99.
    """

    classes: int
    kind: Kind
    values: Num[Tensor, "*E N k"] | None = None
    indices: Int[Tensor, "*E N k"] | Shaped[Tensor, "*E N k"] | None = None
    scale: Float[Tensor, "*E N 1"] | None = None
    temperature: float = 1.0
    sums_to_one: bool = True
    expert: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise FileFormatError(f"labels of unknown kind {self.kind!r}; known: {', '.join(get_args(Kind))}")
        if self.classes < 2:
            raise OptionError(f"labels need at least 2 classes, got {self.classes}; use data with more classes")
        if self.values is None and self.indices is None:
            raise FileFormatError("labels hold neither values nor class indices; use an intact file")
        if (
            self.indices is not None
            and self.indices.numel()
            and not 0 <= int(self.indices.long().min()) <= int(self.indices.long().max()) < self.classes
        ):
            raise FileFormatError(f"label indices must lie in 0..{self.classes - 1}, got {int(self.indices.long().max())}; use an intact file")
        if self.values is not None:
            width = self.values.shape[-1]
            if (self.indices is None and width != self.classes) or (self.indices is not None and self.indices.shape != self.values.shape):
                raise FileFormatError(f"label values of shape {tuple(self.values.shape)} do not fit {self.classes} classes; use an intact file")
            if self.values.is_floating_point() and not bool(torch.isfinite(self.values).all()):
                raise FileFormatError("label values are not finite; use an intact file")
            if (self.values.dtype == torch.uint8) != (self.scale is not None):
                raise FileFormatError("uint8 label values need a scale for each row, and no others have one; use an intact file")
            if self.scale is not None and (self.scale.shape != (*self.values.shape[:-1], 1) or not bool(torch.isfinite(self.scale).all())):
                raise FileFormatError(f"label scales must be finite and one for each row, got shape {tuple(self.scale.shape)}; use an intact file")
            if self.kind == "probability" and self.sums_to_one and not bool((self._kept().sum(-1) > 0).all()):
                raise FileFormatError("a probability label sums to zero or less; use an intact file")

    @staticmethod
    def hard(owners: Int[Tensor, " N"], classes: int) -> "Labels":
        """One class per image."""
        return Labels(classes, "hard", indices=owners.to(index_dtype(classes))[:, None])

    @staticmethod
    def encode(
        dense: Float[Tensor, "N K"],
        *,
        kind: Kind = "probability",
        top_k: int | None = None,
        precision: Precision = "float32",
        temperature: float = 1.0,
        sums_to_one: bool = True,
        expert: str | None = None,
    ) -> "Labels":
        """Stores dense labels with the `top_k` largest entries of each row, in the given precision.

        uint8 stores ``round(255 * entry / row maximum)`` and the row maximum (float32): the error of an entry is at most ``row maximum / 510``. It needs
        non-negative entries.
        """
        classes = dense.shape[1]
        indices = scale = None
        kept = dense
        if top_k is not None and top_k != classes:
            if not 1 <= top_k <= classes:
                raise OptionError(f"top-k needs 1 <= k <= {classes} classes, got k={top_k}; use k={classes} to keep all")
            # a stable sort breaks ties by class number, so equal labels are stored equally everywhere
            order = torch.sort(dense, dim=1, descending=True, stable=True).indices[:, :top_k]
            kept, indices = dense.gather(1, order), order.to(index_dtype(classes))
        if precision == "uint8":
            if bool((kept < 0).any()):
                raise OptionError(f"uint8 labels need non-negative entries, got a minimum of {float(kept.min()):.3g}; use float16 for {kind} labels")
            scale = kept.amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny).float()
            values = (kept / scale * 255).round().to(torch.uint8)
        elif precision in _DTYPES:
            values = kept.to(_DTYPES[precision])
        else:
            raise OptionError(f"label precision must be one of {', '.join(_DTYPES)}, got {precision!r}")
        return Labels(classes, kind, values, indices, scale, temperature, sums_to_one, expert)

    def __len__(self) -> int:
        return (self.values if self.values is not None else self.indices).shape[-2]  # type: ignore[union-attr]

    def dense(self) -> Float[Tensor, "*E N K"]:
        """All K entries of every row, float32."""
        if self.values is None:
            assert self.indices is not None
            return torch.nn.functional.one_hot(self.indices[..., 0].long(), self.classes).float()
        values = self._kept()
        if self.indices is not None:
            values = torch.zeros(*values.shape[:-1], self.classes).scatter(-1, self.indices.long(), values)
        return values / values.sum(-1, keepdim=True) if self.sums_to_one and self.kind == "probability" else values

    def probabilities(self) -> Float[Tensor, "*E N K"]:
        """The same as distributions where the kind has one: a softmax of logits, exponentials of log-probabilities; the dense entries otherwise."""
        dense = self.dense()
        if self.kind not in ("logit", "log-probability"):
            return dense
        if self.indices is not None:  # an entry that was not kept is one without probability
            dense = torch.full_like(dense, -torch.inf).scatter(-1, self.indices.long(), self._kept())
        return dense.softmax(-1) if self.kind == "logit" else dense.exp()

    def _kept(self) -> Float[Tensor, "*E N k"]:
        assert self.values is not None
        return self.values.float() if self.scale is None else self.values.float() / 255 * self.scale.float()

    @property
    def views(self) -> int | None:
        """The number E of views that have labels of their own; None when an image has one label."""
        parts = self.values if self.values is not None else self.indices
        assert parts is not None
        return parts.shape[0] if parts.ndim == 3 else None

    def of_view(self, number: int, rows: Int[Tensor, " M"]) -> "Labels":
        """The labels [M, k] that some of the images have in view `number`, without touching the other views."""
        return replace(self, **{key: getattr(self, key)[number, rows] for key in ("values", "indices", "scale") if getattr(self, key) is not None})

    @property
    def nbytes(self) -> int:
        """Stored bytes of values, indices and scales."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def select(self, rows: Int[Tensor, " M"]) -> "Labels":
        """The labels of some of the images."""
        picked = {key: getattr(self, key)[..., rows, :] for key in ("values", "indices", "scale") if getattr(self, key) is not None}
        return replace(self, **picked)

    def header(self) -> dict[str, Any]:
        """The JSON part."""
        return {"classes": self.classes, "kind": self.kind, "temperature": self.temperature, "sums_to_one": self.sums_to_one, "expert": self.expert}

    def tensors(self) -> dict[str, Tensor]:
        """The tensor part: ``labels.values``, ``labels.indices``, ``labels.scale``, as far as they exist."""
        return {f"labels.{key}": getattr(self, key) for key in ("values", "indices", "scale") if getattr(self, key) is not None}

    @staticmethod
    def restore(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Labels":
        """Inverse of `header` and `tensors`."""
        parts: dict[str, Any] = {key: tensors.get(f"labels.{key}") for key in ("values", "indices", "scale")}
        try:
            return Labels(**parts, **header)
        except TypeError as problem:
            raise FileFormatError(f"the file's labels are not readable ({problem}); use an intact copy") from None

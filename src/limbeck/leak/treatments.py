"""What can be done to soft labels before a student sees them: a table of label transforms, to ask which part of a label carries a leak and what a defense costs.

Treatments are label transforms (`limbeck.labels.transforms`); those of this file are the ones that only the leak experiments need. A treatment is written
``tail-cut:fraction=0.1`` or, without options, ``within-class``; ``none`` changes nothing.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field, ValidationError
from torch import Tensor

from limbeck.errors import OptionError, nearest
from limbeck.labels.transforms import Result, Rows, Transform
from limbeck.leak.split import within_class
from limbeck.registry import Registry

TREATMENTS = Registry(
    "label treatment",
    {
        "none": "limbeck.leak.treatments:Unchanged",
        "tail-cut": "limbeck.leak.treatments:TailCut",
        "tail-cut-published": "limbeck.leak.treatments:TailCutPublished",
        "top-k": "limbeck.labels.transforms:TopK",
        "zero-class": "limbeck.labels.transforms:RemoveLabel",
        "drop-class": "limbeck.labels.transforms:RemoveImages",
        "within-class": "limbeck.leak.treatments:WithinClass",
        "logit-noise": "limbeck.leak.treatments:LogitNoise",
        "levels": "limbeck.leak.treatments:Levels",
        "hard": "limbeck.labels.transforms:Harden",
    },
)


class Unchanged(Transform):
    """The labels as they are."""

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        return rows, _all(rows)


class TailCut(Transform):
    """Sets the smallest ``int(fraction K)`` entries of every row to zero, without renormalization. Equal entries are cut by class number, larger ones first."""

    fraction: float = Field(ge=0, lt=1, description="of the K entries of every row")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        cut = _cut(self.fraction, rows)
        return rows.scatter(1, _ranked(rows)[:, rows.shape[1] - cut :], 0.0), _all(rows)


class TailCutPublished(Transform):
    """What the public code of Behrens and Zdeborova (2025, arXiv 2506.14457) does where it means to cut the tail, kept so that both can be compared.

    It compares class numbers in order of rank with a count, and uses the outcome as if it stood in order of class: the column j is zeroed when the class of rank j
    has a number below ``int(fraction K)``. As many entries vanish as in the true cut, but nearly random ones, the largest sometimes among them.
    """

    fraction: float = Field(ge=0, lt=1, description="of the K entries of every row")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        return rows.masked_fill(_ranked(rows) < _cut(self.fraction, rows), 0.0), _all(rows)


class WithinClass(Transform):
    """The labels change places at random among the examples of a class: each class keeps its labels, and no label says anything about its own example."""

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        return rows[within_class(owners.cpu().long(), generator).to(rows.device)], _all(rows)


class LogitNoise(Transform):
    """Independent Gaussian noise of standard deviation `scale` on the logarithm of every entry, and renormalization. Entries of zero stay zero."""

    scale: float = Field(ge=0, description="standard deviation, in nats")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows.device)
        return (rows.double().log() + self.scale * noise).softmax(1).to(rows.dtype), _all(rows)


class Levels(Transform):
    """Rounds every entry to a multiple of ``1 / levels`` and scales the row back to its sum. A row that would vanish keeps its largest entry."""

    levels: int = Field(ge=1, description="steps between 0 and 1: 255 for 8 bits")

    def apply(self, rows: Rows, owners: Int[Tensor, " N"], generator: torch.Generator) -> Result:
        rounded = (rows.double() * self.levels).round()
        largest = torch.zeros_like(rounded).scatter(1, rows.argmax(1, keepdim=True), 1.0)
        rounded = torch.where(rounded.sum(1, keepdim=True) > 0, rounded, largest)
        return (rounded * (rows.double().sum(1, keepdim=True) / rounded.sum(1, keepdim=True))).to(rows.dtype), _all(rows)


def parse_treatment(text: str) -> Transform:
    """``name`` or ``name:option=value,...`` of the table; raises `OptionError`, one sentence, for anything else."""
    name, _, tail = text.strip().partition(":")
    kind: type[Transform] = TREATMENTS[name]
    options: dict[str, Any] = {}
    for part in filter(None, tail.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in kind.model_fields or not value:
            known = nearest(key, kind.model_fields) if kind.model_fields else "it has none"
            raise OptionError(f"label treatment {name} takes options as key=value, got {part.strip()!r}; {known}")
        options[key] = value
    try:
        return kind(**options)
    except ValidationError as problem:
        fault = problem.errors()[0]
        got = "nothing" if fault["type"] == "missing" else repr(fault["input"])
        raise OptionError(
            f"option {fault['loc'][0]} of label treatment {name}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, got {got}; see docs/leak/treatments.md"
        ) from None


def _cut(fraction: float, rows: Rows) -> int:
    return int(fraction * rows.shape[1] + 1e-9)


def _ranked(rows: Float[Tensor, "N K"]) -> Int[Tensor, "N K"]:
    """Classes from the largest entry to the smallest; equal entries by class number."""
    return torch.sort(rows, dim=1, descending=True, stable=True).indices


def _all(rows: Rows) -> Int[Tensor, " N"]:
    return torch.arange(len(rows), device=rows.device)

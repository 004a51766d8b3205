"""Which examples of a teacher's training set its student sees, and the control that takes from soft labels what is particular to an example."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from limbeck.errors import OptionError


@dataclass(frozen=True)
class Split:
    """Rows of the teacher's training set: `seen` by the student with the teacher's soft labels, and `held_out`, memorized by the teacher alone."""

    seen: Int[Tensor, " S"]
    held_out: Int[Tensor, " H"]


def share(fraction: float, count: int) -> int:
    """``int(fraction * count)``, where a product that rounding left just below a whole number still counts as that number."""
    return int(fraction * count + 1e-9)


def stratified(labels: Int[Tensor, " N"], fraction: float) -> Split:
    """The student sees the first ``int(fraction n_k)`` of the n_k examples of every class k, in the order of the rows; the rest is held out.

    Raises `OptionError` unless both parts have an example.
    """
    if not 0 < fraction < 1:
        raise OptionError(f"the seen fraction rho needs 0 < rho < 1, got {fraction:g}; use 0.7")
    counts = torch.bincount(labels)
    quota = torch.tensor([share(fraction, count) for count in counts.tolist()])
    order = torch.sort(labels, stable=True).indices
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(labels)) - starts[labels[order]]
    seen = rank < quota[labels]
    split = Split(torch.nonzero(seen)[:, 0], torch.nonzero(~seen)[:, 0])
    if min(len(split.seen), len(split.held_out)) == 0:
        raise OptionError(
            f"a seen fraction of {fraction:g} leaves {len(split.seen)} seen and {len(split.held_out)} held-out examples of {len(labels)}; use more examples"
        )
    return split


def within_class(labels: Int[Tensor, " N"], generator: torch.Generator) -> Int[Tensor, " N"]:
    """A random permutation of the rows that maps every class onto itself: the control "intra-class shuffle". Row i then gets the soft label of row ``p[i]``.

    It keeps each class's multiset of soft labels, so its mean, and destroys what a label says about its own example. It is uniform, so about one row of every
    class stays where it is.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    source = shuffled[torch.sort(labels[shuffled], stable=True).indices]  # rows by class, in random order within each
    target = torch.sort(labels, stable=True).indices
    permutation = torch.empty_like(source)
    permutation[target] = source
    return permutation

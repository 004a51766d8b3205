"""Canaries: training records under labels drawn at random, and matched controls that nothing is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from limbeck.data.tables import ImageTable, Subset, checked_labels
from limbeck.errors import OptionError
from limbeck.streams import Streams


class Relabeled(ImageTable):
    """Another table's images under labels of their own."""

    def __init__(self, table: ImageTable, labels: np.ndarray) -> None:
        self.table = table
        self.classes, self.shape, self.resident, self.decoding = table.classes, table.shape, table.resident, table.decoding
        self.labels = checked_labels(labels, table.classes, len(table))

    def read(self, indices: Sequence[Any] | np.ndarray | Tensor) -> UInt8[Tensor, "B C H W"]:
        return self.table.read(indices)

    def record_digests(self) -> np.ndarray:
        return self.table.record_digests()


@dataclass(frozen=True)
class Plant:
    """`records` [2 m] are indices of `train`: m canaries, then m controls, canary i and control i of the same true class wherever the class had enough records.
    `labels` [2 m] are drawn uniformly from all K classes, independently of everything, so that whoever has not learned them is right with probability 1 / K
    exactly, whatever else is known. `rest` [n] are the indices that stay as they are.

    Records with an exact duplicate in `train` are never drawn: a control must be nowhere else.
    """

    train: ImageTable
    records: np.ndarray
    labels: np.ndarray
    rest: np.ndarray

    @staticmethod
    def draw(train: ImageTable, canaries: int, streams: Streams, *, images: int | None = None) -> "Plant":
        """Draws `canaries` canaries and as many controls from the streams ``canaries``, ``labels`` and ``rest``. With `images`, an expert trains on that
        many records, the canaries included; the rest of `train` takes no part."""
        if canaries < 1:
            raise OptionError(f"an audit needs at least 1 canary, got {canaries}; use --canaries 200")
        _, inverse, counts = np.unique(train.record_digests(), return_inverse=True, return_counts=True)
        eligible = np.flatnonzero(counts[inverse] == 1)
        if 2 * canaries > len(eligible) // 2:
            raise OptionError(
                f"{canaries} canaries and as many controls are more than half of the {len(eligible)} training records that have no duplicate; "
                f"use --canaries {max(1, len(eligible) // 4)} or fewer"
            )
        order = eligible[streams.numpy("canaries").permutation(len(eligible))]
        chosen, waiting = order[:canaries], list(order[canaries:])
        by_class: dict[int, list[int]] = {}
        for index in reversed(waiting):
            by_class.setdefault(int(train.labels[index]), []).append(int(index))
        partners = [by_class[label].pop() if by_class.get(label) else None for label in train.labels[chosen].tolist()]
        taken = {partner for partner in partners if partner is not None}
        spare = iter([index for index in waiting if int(index) not in taken])
        controls = np.array([next(spare) if partner is None else partner for partner in partners], dtype=np.int64)
        records = np.concatenate([chosen, controls])
        labels = streams.numpy("labels").integers(0, len(train.classes), 2 * canaries)
        rest = np.setdiff1d(np.arange(len(train)), records)
        if images is not None:
            if not canaries < images <= len(rest) + canaries:
                raise OptionError(
                    f"the number of training images must lie between the {canaries} canaries and {len(rest) + canaries}, got {images}; "
                    "use another --train-images"
                )
            rest = np.sort(streams.numpy("rest").permutation(rest)[: images - canaries])
        return Plant(train, records.astype(np.int64), labels.astype(np.int64), rest)

    @property
    def canaries(self) -> int:
        """Number of canaries m."""
        return len(self.records) // 2

    @property
    def members(self) -> np.ndarray:
        """bool [2 m]: the canaries."""
        return np.arange(len(self.records)) < self.canaries

    @cached_property
    def clean(self) -> Subset:
        """The records that stay as they are."""
        return Subset(self.train, self.rest)

    @cached_property
    def audited(self) -> Relabeled:
        """All canaries and controls under their drawn labels."""
        return Relabeled(Subset(self.train, self.records), self.labels)

    def planted(self, members: np.ndarray | None = None) -> Relabeled:
        """The clean records followed by the members (bool [2 m]; the canaries unless told otherwise) under their drawn labels."""
        chosen = self.members if members is None else members
        order = np.concatenate([self.rest, self.records[chosen]])
        return Relabeled(Subset(self.train, order), np.concatenate([self.train.labels[self.rest], self.labels[chosen]]))

    def withheld(self, members: np.ndarray | None = None) -> tuple[int, ...]:
        """Positions of the members in `planted`: what a method may learn from but not publish."""
        count = int((self.members if members is None else members).sum())
        return tuple(range(len(self.rest), len(self.rest) + count))

"""Train, validation and test: stratified, disjoint by content, and with a test part that can only measure."""

from dataclasses import dataclass

import numpy as np

from limbeck.data.tables import ImageTable, Source, Subset
from limbeck.errors import OptionError
from limbeck.streams import Streams


class TestHandle:
    """The test part of a source, for measuring only. It is no `ImageTable`: methods and choosing code, which take tables, cannot be given it."""

    __test__ = False  # Keeps pytest from collecting this class by its name.

    def __init__(self, table: ImageTable) -> None:
        self.__table = table

    @property
    def size(self) -> int:
        """Number of records M."""
        return len(self.__table)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.__table.classes

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.__table.shape

    @property
    def digest(self) -> str:
        return self.__table.digest

    def open_for_measurement(self) -> ImageTable:
        """The test records. Only code that reports a measurement may call this; nothing may be chosen by what it returns."""
        return self.__table

    def __repr__(self) -> str:
        return f"TestHandle({self.size} records, measure-only)"


@dataclass(frozen=True)
class Splits:
    """Train and validation tables and the test handle. No record of validation or of a carved test has an exact duplicate left in train."""

    train: ImageTable
    validation: ImageTable
    test: TestHandle
    seed: int
    notes: tuple[str, ...] = ()

    @staticmethod
    def make(source: Source, *, seed: int, validation: float | int = 0.1, test: float | int = 0.2) -> "Splits":
        """Carves the missing parts from ``source.train``.

        Each class gives ``round(fraction * n)`` of its n records, never its last one and none of a single one (see `carve`). Validation is a
        fraction of what the test part leaves; 0 gives an empty table. A source that keeps its own validation or test part is not carved for it.

        Args:
            seed: root of the streams ``split/test`` and ``split/validation``; the split depends on it, the labels and the record digests alone.
            validation: fraction of train, 0 <= f < 1.
            test: fraction of the source when it has no official test part, 0 < f < 1.
        """
        if not 0 <= validation < 1:
            raise OptionError(f"validation needs a fraction 0 <= f < 1 of train, got {validation:g}; use 0.1")
        if not 0 < test < 1:
            raise OptionError(f"test needs a fraction 0 < f < 1 of the source, got {test:g}; use 0.2")
        streams = Streams(seed)["split"]
        train, test_table, notes = source.train, source.test, list(source.notes)
        if test_table is None:
            train, test_table = carve(train, test, streams.seed("test"))
            notes.append(f"{source.name} has no official test part, so {len(test_table)} records were carved from train for it")
        held_out = source.validation
        if held_out is None:
            train, held_out = carve(train, validation, streams.seed("validation"))
        repeated = int(np.isin(train.record_digests(), test_table.record_digests()).sum())
        if repeated:
            notes.append(f"{repeated} of {len(train)} train records have an exact duplicate in test")
        return Splits(train, held_out, TestHandle(test_table), seed, tuple(notes))


def scores(digests: np.ndarray, seed: int) -> np.ndarray:
    """uint64 [N]: a pseudorandom order of records, from their content and a seed alone (the finalizer of SplitMix64, Steele et al. 2014).

    Equal records have equal scores, and adding, dropping or reordering records changes no other record's score.
    """
    mixed = digests ^ np.uint64(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def carve(table: ImageTable, fraction: float | int, seed: int) -> tuple[Subset, Subset]:
    """`table` as (kept, taken), each in the table's order.

    Class by class, records are taken in the order of `scores` until ``round(fraction * n)`` are, n - 1 at most. Exact duplicates go together: a group
    too large for what is left to take stays, and so does one that carries several labels.
    """
    _, group = np.unique(table.record_digests(), return_inverse=True)
    order = scores(table.record_digests(), seed)
    taken = np.zeros(len(table), dtype=bool)
    mixed = _mixed_groups(group, table.labels)
    for label in np.unique(table.labels):
        members = np.flatnonzero(table.labels == label)
        wanted = min(round(fraction * len(members)), len(members) - 1)
        members = members[np.argsort(order[members], kind="stable")]
        starts = np.flatnonzero(np.diff(group[members], prepend=-1))
        for first, end in zip(starts, [*starts[1:], len(members)], strict=True):
            if wanted == 0:
                break
            if end - first <= wanted and not mixed[group[members[first]]]:
                taken[members[first:end]] = True
                wanted -= end - first
    return Subset(table, np.flatnonzero(~taken)), Subset(table, np.flatnonzero(taken))


def _mixed_groups(group: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """bool [G]: groups of equal records whose labels differ."""
    groups = int(group.max()) + 1 if group.size else 0
    lowest, highest = np.full(groups, np.iinfo(np.int64).max), np.full(groups, -1)
    np.minimum.at(lowest, group, labels)
    np.maximum.at(highest, group, labels)
    return lowest != highest

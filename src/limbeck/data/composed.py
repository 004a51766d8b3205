"""A many-class set made from a small-class one: two of its images side by side, and the ordered pair of their classes as the class."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from limbeck.data.opening import SourceOptions, open_source
from limbeck.data.resize import conform
from limbeck.data.splits import carve
from limbeck.data.tables import ArrayTable, ImageTable, Source, as_indices, checked_labels, digest_rows
from limbeck.errors import OptionError
from limbeck.streams import Streams

HALF = 16
VALIDATION, TEST = 0.1, 0.2
STREAMS = Streams(0)["data", "composed"]
CHUNK = 1024


class ComposedTable(ImageTable):
    """Composites [C, h, 2w] put together when they are read; in memory are only the halves [C, h, w], each base image once.

    Class a K + b, named ``"a|b"``, has a base image of class a on the left and one of class b on the right.
    """

    resident = True

    def __init__(self, base: ArrayTable, base_groups: Int[np.ndarray, "N 2"]) -> None:
        self.base = base
        self.base_groups = base_groups
        channels, height, width = base.shape
        names = base.classes
        self.classes = tuple(f"{left}|{right}" for left in names for right in names)
        self.shape = (channels, height, 2 * width)
        pairs = base.labels[base_groups]
        self.labels = checked_labels(pairs[:, 0] * len(names) + pairs[:, 1], self.classes, len(base_groups))

    def read(self, indices: Sequence[Any] | np.ndarray | Tensor) -> UInt8[Tensor, "B C H W"]:
        groups = self.base_groups[as_indices(indices, len(self))]
        return torch.cat([self.base.read(groups[:, 0]), self.base.read(groups[:, 1])], dim=3)

    @cached_property
    def _digests(self) -> np.ndarray:
        return digest_rows(np.ascontiguousarray(self.base.record_digests()[self.base_groups]))

    def record_digests(self) -> np.ndarray:
        return self._digests


def open_composed(target: str, options: SourceOptions) -> Source:
    """``composed:<source>``: train, validation and test composites from disjoint base images.

    The base's train part gives a tenth, stratified, to a validation pool (and first a fifth to a test pool when it has no test part); then each pool
    is composed on its own. Halves larger than 16 pixels on a side are resized to 16x16, or to ``size`` when it is given; smaller ones are kept. There
    are as many composites as the pool's part had base images (train: before validation was taken), rounded down to the same number for each of the
    K^2 classes, at least one. Pairs are drawn without repetition, where there are enough, from fixed streams: they are part of the source's
    definition. Fashion-MNIST: 100 classes of 1x16x32; 600, 60 and 100 composites per class.
    """
    base = open_source(target, **vars(options))
    train: ImageTable = base.train
    test, notes = base.test, list(base.notes)
    if len(train.classes) < 2 or target.startswith("composed:"):
        raise OptionError(f"composed: needs a plain source of 2 or more classes, got {target!r}; name another source")
    if test is None:
        train, test = carve(train, TEST, STREAMS.seed("test"))
    size = (HALF, HALF) if options.size is None and max(train.shape[1:]) > HALF else None
    pool, held_out = (train, base.validation) if base.validation is not None else carve(train, VALIDATION, STREAMS.seed("validation"))
    repeated = int(np.isin(train.record_digests(), test.record_digests()).sum())
    if repeated:
        notes.append(f"{repeated} of {len(train)} base images of train and validation have an exact duplicate in test")
    tables = {
        name: compose(_halves(part, size), records, STREAMS.numpy("pairs", name))
        for name, part, records in (("train", pool, len(train)), ("validation", held_out, len(held_out)), ("test", test, len(test)))
    }
    return Source(f"composed:{base.name}", tables["train"], tables["test"], notes=tuple(notes), validation=tables["validation"])


def _halves(table: ImageTable, size: tuple[int, int] | None) -> ArrayTable:
    """The whole table in memory, resized as it is read."""
    parts = [conform(table.read(range(start, min(start + CHUNK, len(table)))), size, None) for start in range(0, len(table), CHUNK)]
    return ArrayTable(torch.cat(parts), table.labels, table.classes)


def compose(base: ArrayTable, records: int, generator: np.random.Generator) -> ComposedTable:
    """max(1, records // K^2) pairs for each ordered pair of classes that has base images, class by class."""
    count = max(1, records // len(base.classes) ** 2)
    members = [np.flatnonzero(base.labels == label) for label in range(len(base.classes))]
    groups = []
    for left in members:
        for right in members:
            pairs = len(left) * len(right)
            if pairs:
                codes = generator.choice(pairs, size=count, replace=count > pairs)
                groups.append(np.stack([left[codes // len(right)], right[codes % len(right)]], axis=1))
    return ComposedTable(base, np.concatenate(groups))

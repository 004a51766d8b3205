"""Image tables: labeled images behind one small reading interface, in memory or on disk."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from limbeck.errors import DataError


def as_indices(indices: Sequence[Any] | np.ndarray | Tensor, length: int) -> np.ndarray:
    """`indices` as int64 [B], each in 0..length-1; raises `IndexError` otherwise (a mask or fractions are not indices)."""
    given = np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices).reshape(-1)
    if given.size and given.dtype.kind not in "iu":
        raise IndexError(f"record indices need whole numbers, got {given.dtype}")
    array = given.astype(np.int64)
    if array.size and (array.min() < 0 or array.max() >= length):
        raise IndexError(f"record indices need 0 <= i < {length}, got {array.min()}..{array.max()}")
    return array


def digest_rows(rows: Sequence[bytes] | np.ndarray) -> np.ndarray:
    """uint64 [N]: the first 8 bytes of BLAKE2b of each row's bytes."""
    return np.array([int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little") for row in rows], dtype=np.uint64)


class ImageTable(ABC):
    """N labeled images of one shape. `read` returns pixels as stored: uint8, 0 to 255, no normalization."""

    classes: tuple[str, ...]
    """Class names [K]; ``labels`` index them."""
    shape: tuple[int, int, int]
    """Channels, height, width of every image, in pixels."""
    labels: np.ndarray
    """int64 [N], read-only."""
    resident: bool
    """True when the pixels are in memory; False when `read` decodes them from disk."""
    decoding: str = ""
    """What turns stored bytes into pixels beyond `shape` (resize or crop), so that the content digest covers it."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, indices: Sequence[Any] | np.ndarray | Tensor) -> UInt8[Tensor, "B C H W"]:
        """The images at `indices`, in that order; repeats are allowed. Raises `DataError` naming a record that cannot be decoded."""

    @abstractmethod
    def record_digests(self) -> np.ndarray:
        """uint64 [N]: equal for records of equal content (pixel bytes in memory, encoded bytes on disk). Computed once."""

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of class names, shape, decoding rule, labels and record digests: the content, not file names or times."""
        state = hashlib.sha256(repr((self.classes, tuple(self.shape), self.decoding)).encode())
        state.update(np.ascontiguousarray(self.labels, dtype="<i8").tobytes())
        state.update(np.ascontiguousarray(self.record_digests(), dtype="<u8").tobytes())
        return state.hexdigest()


def checked_labels(labels: Any, classes: tuple[str, ...], records: int) -> np.ndarray:
    """A read-only int64 copy of `labels`; raises `DataError` unless there is one label in 0..K-1 per record."""
    array = np.array(labels, dtype=np.int64)
    if array.shape != (records,):
        raise DataError(f"{records} images need {records} labels, got labels of shape {list(array.shape)}; give one label per image")
    if array.size and (array.min() < 0 or array.max() >= len(classes)):
        wrong = array.min() if array.min() < 0 else array.max()
        raise DataError(f"labels need 0 <= label < {len(classes)} classes, got {wrong}; mend the labels or the class names")
    array.setflags(write=False)
    return array


class ArrayTable(ImageTable):
    """Images in memory: uint8 [N, C, H, W]."""

    resident = True

    def __init__(self, images: UInt8[Tensor, "N C H W"], labels: Any, classes: Sequence[str]) -> None:
        self.images = images
        self.classes = tuple(classes)
        self.shape = (images.shape[1], images.shape[2], images.shape[3])
        self.labels = checked_labels(labels, self.classes, len(images))

    def read(self, indices: Sequence[Any] | np.ndarray | Tensor) -> UInt8[Tensor, "B C H W"]:
        return self.images[torch.from_numpy(as_indices(indices, len(self)))]

    @cached_property
    def _digests(self) -> np.ndarray:
        pixels = self.images.contiguous().numpy()
        return digest_rows(pixels.reshape(len(pixels), int(np.prod(self.shape))))

    def record_digests(self) -> np.ndarray:
        return self._digests


class Subset(ImageTable):
    """A view of some records of another table, in the given order."""

    def __init__(self, table: ImageTable, indices: Sequence[Any] | np.ndarray | Tensor) -> None:
        self.table = table
        self.indices = as_indices(indices, len(table))
        self.classes = table.classes
        self.shape = table.shape
        self.labels = checked_labels(table.labels[self.indices], table.classes, len(self.indices))
        self.resident = table.resident
        self.decoding = table.decoding

    def read(self, indices: Sequence[Any] | np.ndarray | Tensor) -> UInt8[Tensor, "B C H W"]:
        return self.table.read(self.indices[as_indices(indices, len(self))])

    def record_digests(self) -> np.ndarray:
        return self.table.record_digests()[self.indices]


@dataclass(frozen=True)
class Source:
    """An opened data source: its official parts, how it was asked for, and what the user should know about it."""

    name: str
    train: ImageTable
    test: ImageTable | None = None
    """None when the source has no official test part; `Splits` then carves one."""
    options: dict[str, Any] = field(default_factory=dict)
    """Plain values for provenance."""
    notes: tuple[str, ...] = ()
    """Warnings, one sentence each, such as the names of skipped images."""
    validation: ImageTable | None = None
    """Given only by sources that must keep validation apart themselves; `Splits` uses it as it is."""


def describe(table: ImageTable) -> dict[str, Any]:
    """Plain facts about a table: records, classes, shape [C, H, W], fewest and most records in a class, residence, digest."""
    counts = np.bincount(table.labels, minlength=len(table.classes))
    return {
        "records": len(table),
        "classes": len(table.classes),
        "shape": list(table.shape),
        "per_class_min": int(counts.min()) if counts.size else 0,
        "per_class_max": int(counts.max()) if counts.size else 0,
        "resident": table.resident,
        "digest": table.digest,
    }

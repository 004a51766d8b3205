"""Tables of encoded images (files, Parquet cells, Arrow cells) that are decoded when they are read.

Opening reads every header: sides, color, and whether there is an image at all. Pixels are decoded at opening too when all parts together hold at most
`VERIFY_BYTES` of encoded data, or when corrupt images are to be skipped; what is larger shows a truncated image when it is first read. Pixels
that were decoded anyway stay in memory when they fit in `KEEP_BYTES`. Otherwise each image is decoded when it is first read and spooled to disk,
unless that would take more room than the source itself.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BufferedIOBase
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from limbeck.data.decode import CorruptImage, Header, decode, in_threads, read_header
from limbeck.data.opening import SourceOptions
from limbeck.data.resize import Size, size_text, target_sides
from limbeck.data.spool import PixelSpool
from limbeck.data.tables import ImageTable, as_indices, checked_labels
from limbeck.errors import DataError

T = TypeVar("T")

VERIFY_BYTES = 512 << 20
KEEP_BYTES = 256 << 20
WHOLE_BYTES = 128 << 10
SAMPLES, SAMPLE_BYTES = 8, 4096
BATCH = 256


def digest_file(file: BufferedIOBase, size: int, whole: bool) -> int:
    """64-bit BLAKE2b of a file's bytes; beyond 128 KiB, unless `whole`, of its size and eight evenly spaced 4 KiB samples, first and last included.

    Compressed images that differ also differ in size or in the checksums and entropy-coded bytes at their end; uncompressed ones are read whole.
    """
    state = hashlib.blake2b(digest_size=8)
    if whole or size <= WHOLE_BYTES:
        while block := file.read(1 << 20):
            state.update(block)
    else:
        state.update(size.to_bytes(8, "little"))
        for step in range(SAMPLES):
            file.seek(step * (size - SAMPLE_BYTES) // (SAMPLES - 1))
            state.update(file.read(SAMPLE_BYTES))
    return int.from_bytes(state.digest(), "little")


class Records(ABC):
    """N encoded images."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What the user calls the image: its path, or its row."""

    @abstractmethod
    def open(self, index: int) -> BufferedIOBase:
        """The encoded bytes. Must be safe to call from several threads."""

    @abstractmethod
    def encoded_bytes(self, index: int) -> int:
        """Encoded size in bytes."""

    def incompressible(self, index: int) -> bool:
        """True for formats that store pixels as they are, which are digested whole."""
        return False


@dataclass(frozen=True)
class Part:
    """Encoded images with their labels [N]."""

    records: Records
    labels: np.ndarray


class EncodedTable(ImageTable):
    """The records `kept` of `records`, decoded on reading to one shape; `pixels` holds them all when they are in memory."""

    def __init__(
        self,
        records: Records,
        kept: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        shape: tuple[int, int, int],
        size: Size | None,
        pixels: UInt8[Tensor, "N C H W"] | None = None,
    ) -> None:
        self.records = records
        self.kept = kept
        self.classes = tuple(classes)
        self.shape = shape
        self.labels = checked_labels(labels, self.classes, len(kept))
        self.size = size
        self.decoding = size_text(size)
        self.pixels = pixels
        self.resident = pixels is not None
        self.spool = None if self.resident or not self._worth_spooling() else PixelSpool(len(kept), shape)

    def _worth_spooling(self) -> bool:
        stored = sum(self.records.encoded_bytes(record) for record in self.kept.tolist())
        return 0 < len(self.kept) * int(np.prod(self.shape)) <= stored

    def read(self, indices: Sequence[Any] | np.ndarray | Tensor) -> UInt8[Tensor, "B C H W"]:
        wanted = as_indices(indices, len(self))
        if self.pixels is not None:
            return self.pixels[torch.from_numpy(wanted)]
        images = np.empty((len(wanted), *self.shape), dtype=np.uint8)
        for position, image in enumerate(in_threads(self._image, wanted.tolist())):
            if isinstance(image, str):
                name = self.records.name(int(self.kept[wanted[position]]))
                raise DataError(f"corrupt image {name!r} ({image}); mend or remove it, or pass --skip-corrupt")
            images[position] = image
        return torch.from_numpy(images)

    def _image(self, index: int) -> np.ndarray | str:
        """The pixels of one record, from the spool or decoded, or the reason why there are none."""
        image: np.ndarray | str | None = self.spool.get(index) if self.spool is not None else None
        if image is None:
            image = decoded(self.records, int(self.kept[index]), self.shape, self.size)
            if self.spool is not None and not isinstance(image, str):
                self.spool.put(index, image)
        return image

    @cached_property
    def _digests(self) -> np.ndarray:
        return np.array(list(in_threads(self._digest_record, self.kept.tolist())), dtype=np.uint64)

    def _digest_record(self, record: int) -> int:
        try:
            with self.records.open(record) as file:
                return digest_file(file, self.records.encoded_bytes(record), self.records.incompressible(record))
        except OSError as error:
            raise DataError(f"image {self.records.name(record)!r} cannot be read ({error.strerror or error}); was it moved?") from None

    def record_digests(self) -> np.ndarray:
        return self._digests


def decoded(records: Records, index: int, shape: tuple[int, int, int], size: Size | None) -> np.ndarray | str:
    """The pixels uint8 [C, H, W], or the reason why there are none."""
    try:
        pixels = decode(lambda: records.open(index), shape[0], size)
    except CorruptImage as problem:
        return str(problem)
    return pixels if pixels.shape == shape else f"its pixels are {pixels.shape[2]} x {pixels.shape[1]}, unlike its header"


def _header(records: Records, index: int) -> Header | str:
    try:
        return read_header(lambda: records.open(index))
    except CorruptImage as problem:
        return str(problem)


class Opening:
    """The steps from encoded parts to tables: scan headers, settle one shape, verify, drop what is corrupt or empty."""

    def __init__(self, where: str, parts: dict[str, Part], classes: Sequence[str], options: SourceOptions, drop_empty: bool) -> None:
        self.where, self.parts, self.classes, self.options, self.drop_empty = where, parts, tuple(classes), options, drop_empty
        self.notes: list[str] = []
        self.corrupt: dict[tuple[str, int], str] = {}
        self.headers = {name: self._scan(name, part.records) for name, part in parts.items()}
        self._stop_at_corrupt()
        self.shape = self._shape()
        self.pixels = self._verify() if self._worth_verifying() else {}
        self._stop_at_corrupt()

    def _scan(self, name: str, records: Records) -> list[Header | None]:
        return self._collect(name, range(len(records)), lambda index: _header(records, index))

    def _collect(self, part: str, indices: Sequence[int], work: Callable[[int], T | str]) -> list[T | None]:
        found: list[T | None] = []
        for index, result in zip(indices, in_threads(work, indices), strict=True):
            if isinstance(result, str):
                self.corrupt[part, index] = result
            found.append(None if isinstance(result, str) else result)
        return found

    def _name(self, key: tuple[str, int]) -> str:
        return self.parts[key[0]].records.name(key[1])

    def _stop_at_corrupt(self) -> None:
        if self.corrupt and not self.options.skip_corrupt:
            raise DataError(f"{self._corrupt_text()}; mend or remove what is corrupt, or pass --skip-corrupt")

    def _corrupt_text(self) -> str:
        shown = [f"{self._name(key)!r} ({reason})" for key, reason in list(self.corrupt.items())[:3]]
        more = f" and {len(self.corrupt) - 3} more" if len(self.corrupt) > 3 else ""
        return f"{len(self.corrupt)} corrupt {'image' if len(self.corrupt) == 1 else 'images'} in {self.where}: {', '.join(shown)}{more}"

    def _shape(self) -> tuple[int, int, int]:
        seen: dict[tuple[int, int], str] = {}
        gray = True
        for part, headers in self.headers.items():
            for index, header in enumerate(headers):
                if header is not None:
                    seen.setdefault((header.height, header.width), self._name((part, index)))
                    gray = gray and header.gray
        if not seen:
            raise DataError(f"{self.where} has no readable image; every one of its {len(self.corrupt)} images is corrupt")
        channels = self.options.channels or (1 if gray else 3)
        if self.options.size is not None:
            return channels, *target_sides(self.options.size)
        if len(seen) > 1:
            (first, first_name), (other, other_name) = list(seen.items())[:2]
            raise DataError(
                f"images differ in size: {first_name!r} is {first[1]} x {first[0]} and {other_name!r} is {other[1]} x {other[0]} (width x height);"
                " bring them to one size with --size, such as --size 64"
            )
        return channels, *next(iter(seen))

    def _worth_verifying(self) -> bool:
        if self.options.skip_corrupt:
            return True
        return sum(part.records.encoded_bytes(index) for part in self.parts.values() for index in range(len(part.records))) <= VERIFY_BYTES

    def _verify(self) -> dict[str, Tensor]:
        """Decodes everything once, `BATCH` images at a time; returns the pixels of all parts when they may stay in memory."""
        records = sum(len(part.records) for part in self.parts.values())
        keep = records * int(np.prod(self.shape)) <= KEEP_BYTES
        pixels: dict[str, Tensor] = {}
        for name, part in self.parts.items():
            store = np.zeros((len(part.records) if keep else 0, *self.shape), dtype=np.uint8)
            good = [index for index, header in enumerate(self.headers[name]) if header is not None]
            for start in range(0, len(good), BATCH):
                batch = good[start : start + BATCH]
                images = self._collect(name, batch, lambda index, own=part.records: decoded(own, index, self.shape, self.options.size))  # type: ignore[misc]
                for index, image in zip(batch, images, strict=True):
                    if keep and image is not None:
                        store[index] = image
            if keep:
                pixels[name] = torch.from_numpy(store)
        return pixels

    def tables(self) -> dict[str, EncodedTable]:
        """One table per part. Appends to `notes` what was left out."""
        if self.corrupt:
            self.notes.append(f"skipped {self._corrupt_text()}")
        kept = {name: self._kept(name, part) for name, part in self.parts.items()}
        present = np.bincount(self.parts["train"].labels[kept["train"]], minlength=len(self.classes)) > 0
        if self.drop_empty and not present.all():
            self._drop_classes(kept, present)
        number = np.cumsum(present) - 1 if self.drop_empty else np.arange(len(self.classes))
        classes = [name for name, here in zip(self.classes, present, strict=True) if here or not self.drop_empty]
        return {name: self._table(name, kept[name], number, classes) for name in self.parts}

    def _kept(self, name: str, part: Part) -> np.ndarray:
        return np.array([index for index in range(len(part.records)) if (name, index) not in self.corrupt], dtype=np.int64)

    def _drop_classes(self, kept: dict[str, np.ndarray], present: np.ndarray) -> None:
        empty = [name for name, here in zip(self.classes, present, strict=True) if not here]
        for part, indices in kept.items():
            strays = indices[~present[self.parts[part].labels[indices]]]
            if len(strays):
                stray = self.classes[self.parts[part].labels[strays[0]]]
                raise DataError(f"{part} of {self.where} has images of class {stray!r}, of which train has none; add some to train or remove them")
        listed = ", ".join(map(repr, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        self.notes.append(f"dropped {len(empty)} {'class' if len(empty) == 1 else 'classes'} without images: {listed}")

    def _table(self, name: str, kept: np.ndarray, number: np.ndarray, classes: Sequence[str]) -> EncodedTable:
        part = self.parts[name]
        pixels = self.pixels.get(name)
        if pixels is not None and len(kept) < len(pixels):
            pixels = pixels[torch.from_numpy(kept)]
        return EncodedTable(part.records, kept, number[part.labels[kept]], classes, self.shape, self.options.size, pixels)

"""A known sub-population in every class: some images are transformed, the same way in train, validation and test, so that analyses can be tried on it."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from limbeck.data.opening import SourceOptions, open_source
from limbeck.data.splits import scores
from limbeck.data.tables import ImageTable, Source, Subset, as_indices, digest_rows
from limbeck.errors import OptionError
from limbeck.streams import Streams

SHARE = 0.25
STREAMS = Streams(0)["data", "planted"]
_TINT = (1.0, 0.8, 0.35)  # of red, green and blue


def invert(images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """Dark becomes bright."""
    return 255 - images


def rotate(images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """A quarter turn; a half turn where images are not square."""
    return torch.rot90(images, 1 if images.shape[2] == images.shape[3] else 2, (2, 3))


def tint(images: UInt8[Tensor, "B C H W"]) -> UInt8[Tensor, "B C H W"]:
    """A yellow cast."""
    return (images * torch.tensor(_TINT).view(3, 1, 1)).round().to(torch.uint8)


TRANSFORMATIONS = {"invert": invert, "rotate": rotate, "tint": tint}


class PlantedTable(ImageTable):
    """A table whose `planted` records [N] are transformed when they are read. Which ones is decided by their content alone."""

    def __init__(self, base: ImageTable, kind: str, share: float) -> None:
        self.base, self.kind = base, kind
        self.classes, self.shape, self.labels, self.resident, self.decoding = base.classes, base.shape, base.labels, base.resident, base.decoding
        order = scores(base.record_digests(), STREAMS.seed("which"))
        self.planted: Bool[np.ndarray, " N"] = order < np.uint64(share * 2**63) * np.uint64(2)

    def read(self, indices: Sequence[Any] | np.ndarray | Tensor) -> UInt8[Tensor, "B C H W"]:
        at = as_indices(indices, len(self))
        images, chosen = self.base.read(at), torch.from_numpy(self.planted[at])
        if bool(chosen.any()):
            images = images.clone()
            images[chosen] = TRANSFORMATIONS[self.kind](images[chosen])
        return images

    @cached_property
    def _digests(self) -> np.ndarray:
        """Of the pixels as they are read, like the base's own, where those are at hand; else derived from the base's."""
        own = self.base.record_digests()
        if not self.resident:
            return np.where(self.planted, scores(own, STREAMS.seed("transformed", self.kind)), own)
        made = own.copy()
        for part in np.array_split(np.flatnonzero(self.planted), max(1, int(self.planted.sum()) // 1000)):
            made[part] = digest_rows(self.read(part).flatten(1).numpy())
        return made

    def record_digests(self) -> np.ndarray:
        return self._digests


def planted_records(table: ImageTable) -> Bool[np.ndarray, " N"] | None:
    """Which records of a table are of the planted sub-population; None where none was planted."""
    if isinstance(table, PlantedTable):
        return table.planted
    if isinstance(table, Subset):
        found = planted_records(table.table)
        return None if found is None else found[table.indices]
    return None


def open_planted(target: str, options: SourceOptions) -> Source:
    """``planted:<transformation>:<source>``, such as ``planted:invert:fashion-mnist`` or, for a tenth instead of a quarter, ``planted:invert=0.1:digits``.

    The transformations are `TRANSFORMATIONS`: invert, rotate, tint. Every record is planted or not by its content, so a quarter is meant on average.
    """
    words, _, base = target.partition(":")
    kind, _, share = words.partition("=")
    try:
        part = float(share) if share else SHARE
    except ValueError:
        part = -1.0
    if kind not in TRANSFORMATIONS or not base or not 0 < part < 1:
        known = ", ".join(TRANSFORMATIONS)
        raise OptionError(f"planted: needs one of {known}, a share 0 < s < 1 if any, and a source, got {target!r}; write planted:invert=0.25:digits")
    source = open_source(base, **vars(options))
    if kind == "tint" and source.train.shape[0] != 3:
        raise OptionError(f"a tint needs color images, got {source.train.shape[0]} channel; use --channels 3")
    made = [None if table is None else PlantedTable(table, kind, part) for table in (source.train, source.test, source.validation)]
    assert made[0] is not None
    return Source(f"planted:{words}:{source.name}", made[0], made[1], notes=source.notes, validation=made[2])

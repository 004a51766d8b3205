"""Attributes of images that need no annotation, and those that a user brings in a CSV file: one number or one yes or no for each test image."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.analyze.subject import NotApplicable
from limbeck.data.planted import planted_records
from limbeck.data.tables import ImageTable
from limbeck.errors import DataError, OptionError, nearest

Score = Callable[[Float[Tensor, "M C H W"]], Float[Tensor, " M"]]
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


def brightness(images: Float[Tensor, "M C H W"]) -> Float[Tensor, " M"]:
    """Mean of all pixels."""
    return images.mean(dim=(1, 2, 3))


def ink(images: Float[Tensor, "M C H W"]) -> Float[Tensor, " M"]:
    """Share of pixels that differ by more than a quarter of the range from the median of the image's border."""
    return (_figure(images) > 0.25).float().mean(dim=(1, 2))


def aspect(images: Float[Tensor, "M C H W"]) -> Float[Tensor, " M"]:
    """Height over width of what differs from the border: the ratio of its standard deviations down and across. 1 where nothing does."""
    mass = _figure(images).double()
    spreads = []
    for axis in (1, 2):
        along = mass.sum(3 - axis)
        place = torch.arange(along.shape[1], dtype=torch.float64)
        total = along.sum(1).clamp_min(1e-12)
        mean = (along * place).sum(1) / total
        spreads.append(((along * (place - mean[:, None]).square()).sum(1) / total).sqrt())
    return torch.where((spreads[0] > 0) & (spreads[1] > 0), spreads[0] / spreads[1].clamp_min(1e-12), 1.0)


def symmetry(images: Float[Tensor, "M C H W"]) -> Float[Tensor, " M"]:
    """Minus the mean difference from the mirror image, left and right exchanged."""
    return -(images - images.flip(3)).abs().mean(dim=(1, 2, 3))


def dominance(channel: int, images: Float[Tensor, "M C H W"]) -> Float[Tensor, " M"]:
    """How much brighter a color's channel is than the mean of the two others; 0 for gray images."""
    if images.shape[1] != 3:
        return torch.zeros(len(images))
    means = images.mean(dim=(2, 3)).double()
    first, second = (means[:, other] for other in range(3) if other != channel)
    return means[:, channel] - (first + second) / 2


SCORES: dict[str, Score] = {
    "brightness": brightness,
    "ink": ink,
    "aspect": aspect,
    "symmetry": symmetry,
    "red": partial(dominance, 0),
    "green": partial(dominance, 1),
    "blue": partial(dominance, 2),
}
_COLORS = ("red", "green", "blue")


def usual(table: ImageTable) -> tuple[str, ...]:
    """The attributes that make sense for these images: colors only where there are any, ``planted`` where something was."""
    built_in = [name for name in SCORES if table.shape[0] == 3 or name not in _COLORS]
    return (*built_in, *(("planted",) if planted_records(table) is not None else ()))


def file_of(name: str) -> Path | None:
    """The file that an attribute is read from, or None for one that needs none."""
    path = name.removeprefix("csv:").rpartition(":")[0]
    return Path(path) if name.startswith("csv:") and path else None


def attribute(name: str, table: ImageTable, rows: np.ndarray, size: int | None = None) -> np.ndarray:
    """1 (has it), 0 (has it not) or NaN (not known) for each image of `table`, which are the `rows` of the whole test table (of `size` images).

    A built-in attribute is a score above the median of the image's own class, so that it says nothing about the class. ``csv:<path>:<column>`` takes a column
    of 0 and 1 (or yes and no) from a CSV file whose column ``index`` holds rows of the test table; rows that it does not list, or leaves empty, are not known.
    ``planted`` is what `limbeck.data.planted` transformed.
    """
    if name == "planted":
        planted = planted_records(table)
        if planted is None:
            raise NotApplicable("the attribute planted needs a source in which something was planted; use a source planted:invert:SOURCE")
        return planted.astype(np.float64)
    if name.startswith("csv:"):
        path = file_of(name)
        if path is None:
            raise OptionError(f"an attribute from a file is written csv:PATH:COLUMN, got {name!r}; name the column")
        known = read_column(path, name.rpartition(":")[2])
        beyond = [] if size is None else [row for row in known if row >= size]
        if beyond:
            raise DataError(f"{str(path)!r} names row {beyond[0]}, and the test table has {size} rows; number rows within the test images")
        return np.array([known.get(int(row), np.nan) for row in rows])
    if name not in SCORES:
        raise OptionError(f"unknown attribute {name!r}, and it is no csv:PATH:COLUMN; {nearest(name, [*SCORES, 'planted'])}")
    values = torch.cat([SCORES[name](table.read(part).float() / 255).double() for part in torch.arange(len(table)).split(512)]).numpy()
    above = np.zeros(len(values))
    for number in np.unique(table.labels):
        members = table.labels == number
        above[members] = values[members] > np.median(values[members])
    return above


def read_column(path: Path, column: str) -> dict[int, float]:
    """A yes-or-no column of a CSV file by its column ``index``."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            names = list(lines.fieldnames or [])
            if "index" not in names or column not in names:
                raise DataError(f"{str(path)!r} needs the columns 'index' and {column!r}, got {', '.join(map(repr, names)) or 'none'}; add them")
            found = {}
            for number, line in enumerate(lines, start=2):
                word = (line[column] or "").strip().lower()
                if not word:
                    continue
                if word not in _YES | _NO or not (line["index"] or "").strip().isdecimal():
                    raise DataError(
                        f"line {number} of {str(path)!r} needs a row number and 0 or 1, got {line['index']!r} and {line[column]!r}; mend it"
                    )
                found[int(line["index"])] = float(word in _YES)
            return found
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise DataError(f"cannot read attributes from {str(path)!r} ({problem}); give a CSV file in UTF-8") from None


def _figure(images: Float[Tensor, "M C H W"]) -> Float[Tensor, "M H W"]:
    """How much each pixel differs from the median of the image's border, averaged over channels."""
    edges = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], 2)
    return (images - edges.median(2).values[:, :, None, None]).abs().mean(1)

"""The distilled images as a page shows them: a bounded number, class by class, each with the largest entries of its label."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from limbeck.report.softness import UNITS, shown_labels
from limbeck.types.distilled import DistilledDataset

MOST_IMAGES = 300
TOP_CLASSES = 10
_EXACT_BYTES = 2_500_000  # base64 adds a third: with the charts and the record the page stays below 5 MB
_THUMBNAIL_SIDE = 128


@dataclass(frozen=True)
class Bar:
    """One entry of a label: class number, name, value, and its length relative to the longest possible bar."""

    number: int
    name: str
    value: float
    length: float
    own: bool


@dataclass(frozen=True)
class Picture:
    """One image: its position in the set, its class, a data URI, and the largest entries of its label.

    `rest` is what all other entries sum to, None where a sum means nothing.
    """

    index: int
    owner: int
    uri: str
    bars: tuple[Bar, ...]
    rest: float | None

    def top(self, most: int) -> "Picture":
        """The same with fewer entries of the label: the others are added to the rest."""
        if len(self.bars) <= most:
            return self
        left_out = sum(bar.value for bar in self.bars[most:])
        return replace(self, bars=self.bars[:most], rest=None if self.rest is None else self.rest + left_out)

    @property
    def spoken(self) -> str:
        """The label's three largest entries as a sentence."""
        return ", ".join(f"{bar.name} {bar.value:.2f}" for bar in self.bars[:3])


@dataclass(frozen=True)
class Group:
    """The shown images of one class, out of `total`."""

    number: int
    name: str
    total: int
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Gallery:
    """What is shown, how large (CSS pixels), whether every stored pixel is there (`exact`) or thumbnails save bytes, and what the labels' numbers are called."""

    groups: tuple[Group, ...]
    shown: int
    total: int
    width: int
    height: int
    exact: bool
    unit: str

    @property
    def pictures(self) -> list[Picture]:
        """All shown images in order."""
        return [picture for group in self.groups for picture in group.pictures]

    def examples(self, most: int) -> list[tuple[Group, Picture]]:
        """The first image of up to `most` classes, evenly spaced over the classes: not picked by hand."""
        filled = [group for group in self.groups if group.pictures]
        take = min(most, len(filled))
        return [(group, group.pictures[0]) for group in (filled[i * len(filled) // take] for i in range(take))]


def make_gallery(dataset: DistilledDataset) -> Gallery:
    """The first images of every class, at most 300 in all (the first 300 classes' when there are more classes)."""
    chosen = _first_per_class(dataset.owners.long())
    part = _part(dataset, chosen)
    sides = part.pil_images()
    uris, exact = _encode(sides)
    labels, owners = shown_labels(part), part.owners.tolist()
    hard = dataset.labels.kind == "hard"
    longest = float(labels.abs().max()) or 1.0  # one scale for all bars, so that labels compare
    pictures = [
        Picture(index, owner, uri, *_bars(label, owner, dataset.classes, longest, hard, dataset.labels.kind in UNITS))
        for index, owner, uri, label in zip(chosen.tolist(), owners, uris, labels, strict=True)
    ]
    totals = torch.bincount(dataset.owners.long(), minlength=len(dataset.classes)).tolist()
    by_class: dict[int, list[Picture]] = {}
    for picture in pictures:
        by_class.setdefault(picture.owner, []).append(picture)
    groups = tuple(Group(number, dataset.classes[number], totals[number], tuple(shown)) for number, shown in sorted(by_class.items()))
    width, height = _display_size(dataset.shape[2], dataset.shape[1])
    return Gallery(groups, len(pictures), len(dataset), width, height, exact, UNITS.get(dataset.labels.kind, "probability"))


def contact_sheet(dataset: DistilledDataset) -> Image.Image:
    """The images that the page shows as one picture, a row per class with its name, or a plain grid when classes have one or two images."""
    chosen = _first_per_class(dataset.owners.long())
    part = _part(dataset, chosen)
    zoom = max(1, round(56 / max(dataset.shape[1:])))
    tiles = [picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST).convert("RGB") for picture in part.pil_images()]
    owners = part.owners.tolist()
    rows: list[list[int]] = [[i for i, owner in enumerate(owners) if owner == number] for number in sorted(set(owners))]
    named = max(map(len, rows)) > 2
    if not named:
        flat, across = [i for row in rows for i in row], max(1, round(len(tiles) ** 0.5 * 1.3))
        rows = [flat[start : start + across] for start in range(0, len(flat), across)]
    gap, (tile_width, tile_height) = 4, tiles[0].size
    font = ImageFont.load_default(14)
    names = [dataset.classes[owners[row[0]]][:28] for row in rows] if named else []
    margin = max((int(font.getlength(name)) for name in names), default=-14) + 24
    sheet = Image.new("RGB", (margin + max(map(len, rows)) * (tile_width + gap) + 6, 10 + len(rows) * (tile_height + gap)), "white")
    pen = ImageDraw.Draw(sheet)
    for line, row in enumerate(rows):
        top = 7 + line * (tile_height + gap)
        if named:
            pen.text((margin - 10, top + tile_height / 2), names[line], fill="black", font=font, anchor="rm")
        for column, i in enumerate(row):
            sheet.paste(tiles[i], (margin + column * (tile_width + gap), top))
    return sheet


def _first_per_class(owners: torch.Tensor) -> torch.Tensor:
    """Positions, class by class, of the first images: all when they fit, otherwise the same number for every class as far as it has them."""
    order = torch.argsort(owners, stable=True)
    counts = torch.bincount(owners)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(owners)) - starts[owners[order]]
    each = max(1, MOST_IMAGES // max(int((counts > 0).sum()), 1)) if len(owners) > MOST_IMAGES else len(owners)
    return order[rank < each][:MOST_IMAGES]


def _part(dataset: DistilledDataset, rows: torch.Tensor) -> DistilledDataset:
    return replace(dataset, images=dataset.images[rows], owners=dataset.owners[rows], labels=dataset.labels.select(rows))


def _bars(
    label: torch.Tensor, owner: int, classes: Sequence[str], longest: float, hard: bool, any_sign: bool
) -> tuple[tuple[Bar, ...], float | None]:
    if hard:
        return (Bar(owner, classes[owner], 1.0, 1.0, True),), None
    values, numbers = torch.sort(label.double(), descending=True, stable=True)
    kept = min(TOP_CLASSES, len(values))
    bars = tuple(
        Bar(number, classes[number], round(value, 4), round(min(abs(value) / longest, 1.0), 4), number == owner)
        for value, number in zip(values[:kept].tolist(), numbers[:kept].tolist(), strict=True)
        if any_sign or value > 0
    )
    return bars, None if any_sign else round(float(values[kept:].sum()), 4)


def _encode(pictures: Sequence[Any]) -> tuple[list[str], bool]:
    """Data URIs: the exact pixels as PNG while they are small enough in all, thumbnails as JPEG otherwise."""
    if max(pictures[0].size) <= _THUMBNAIL_SIDE:
        files = [_bytes(picture, "PNG", optimize=True) for picture in pictures]
        if sum(map(len, files)) <= _EXACT_BYTES:
            return [_uri(file, "png") for file in files], True
    small = []
    for picture in pictures:
        thumbnail = picture.copy()
        thumbnail.thumbnail((_THUMBNAIL_SIDE, _THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
        small.append(_bytes(thumbnail, "JPEG", quality=88))
    return [_uri(file, "jpeg") for file in small], False


def _bytes(picture: Any, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _uri(file: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"


def _display_size(width: int, height: int) -> tuple[int, int]:
    """CSS pixels of an image: a whole multiple near 60 for small images, at most 96 for large ones."""
    side = max(width, height)
    if side > 64:
        return max(1, round(96 * width / side)), max(1, round(96 * height / side))
    zoom = max(1, round(60 / side))
    return width * zoom, height * zoom

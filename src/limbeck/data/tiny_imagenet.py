"""Tiny-ImageNet-200 in its own layout (Y. Le and X. Yang, Stanford CS231n 2015): 100,000 training images of 3x64x64 in 200 classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from limbeck.data.encoded import Opening, Part
from limbeck.data.folder import FileRecords, list_images
from limbeck.data.opening import SourceOptions, places
from limbeck.data.tables import Source
from limbeck.errors import DataError


def open_tiny_imagenet(target: str, options: SourceOptions) -> Source:
    """``wnids.txt``, ``train/<wnid>/images/*.JPEG``, and ``val/`` with ``val_annotations.txt`` as the test part (the official test has no labels).

    Classes are in the order of ``wnids.txt``, named by the first name in ``words.txt`` where that file is there (with the id added when two share
    it). Gray images become RGB.
    """
    searched = places("tiny-imagenet-200", Path(target) if target else options.root, "tiny-imagenet")
    root = next((folder for folder in searched if (folder / "wnids.txt").is_file()), None)
    if root is None:
        raise DataError(f"tiny-imagenet is not here: no wnids.txt in {', '.join(map(str, searched))}; name its folder with --root")
    wnids = (root / "wnids.txt").read_text(encoding="utf-8").split()
    parts = {"train": _train(root, wnids), **_validation(root, wnids)}
    options = replace(options, channels=options.channels or 3)
    opening = Opening(f"tiny-imagenet in {str(root)!r}", parts, _names(root, wnids), options, drop_empty=False)
    tables = opening.tables()
    return Source("tiny-imagenet", tables["train"], tables.get("test"), notes=tuple(opening.notes))


def _train(root: Path, wnids: list[str]) -> Part:
    paths: list[Path] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid
        if not folder.is_dir():
            raise DataError(f"tiny-imagenet in {str(root)!r} lacks the folder train/{wnid} that wnids.txt names; unpack it again")
        found, _ = list_images(folder)
        paths += found
        labels += [label] * len(found)
    return Part(FileRecords(paths), np.array(labels, dtype=np.int64))


def _validation(root: Path, wnids: list[str]) -> dict[str, Part]:
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        return {}
    number = {wnid: label for label, wnid in enumerate(wnids)}
    paths: list[Path] = []
    labels: list[int] = []
    for line in annotations.read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if len(fields) < 2 or fields[1] not in number or "/" in fields[0]:
            raise DataError(f"{str(annotations)!r} has the line {line!r}, wanted a file name and an id from wnids.txt; unpack it again")
        paths.append(root / "val" / "images" / fields[0])
        labels.append(number[fields[1]])
    return {"test": Part(FileRecords(paths), np.array(labels, dtype=np.int64))}


def _names(root: Path, wnids: list[str]) -> list[str]:
    words = root / "words.txt"
    if not words.is_file():
        return wnids
    table = dict(line.split("\t", 1) for line in words.read_text(encoding="utf-8").splitlines() if "\t" in line)
    names = [table.get(wnid, wnid).split(",")[0].strip() for wnid in wnids]
    return [name if names.count(name) == 1 else f"{name} ({wnid})" for name, wnid in zip(names, wnids, strict=True)]

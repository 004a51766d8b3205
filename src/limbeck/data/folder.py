"""Image folders: one sub-folder per class, alone or below ``train/``, ``val/`` and ``test/``."""

import os
from collections.abc import Sequence
from io import BufferedIOBase
from pathlib import Path

import numpy as np

from limbeck.data.decode import SUFFIXES
from limbeck.data.encoded import Opening, Part, Records
from limbeck.data.opening import SourceOptions
from limbeck.data.tables import Source
from limbeck.errors import DataError

UNCOMPRESSED = (".bmp", ".tif", ".tiff")
VALIDATION_NAMES = ("val", "validation", "valid")


class FileRecords(Records):
    """Image files by path."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(map(str, paths))

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def open(self, index: int) -> BufferedIOBase:
        return open(self.paths[index], "rb")

    def encoded_bytes(self, index: int) -> int:
        return os.path.getsize(self.paths[index])

    def incompressible(self, index: int) -> bool:
        return self.paths[index].lower().endswith(UNCOMPRESSED)


def open_folder(target: str, options: SourceOptions) -> Source:
    """An image folder.

    ``target/<class>/**`` is train (no test part), unless ``target/train`` exists: then ``target/train/<class>/**`` is, ``target/test/<class>/**`` is
    test and ``target/val`` is validation, or test when there is no ``test``. Classes are the sub-folders' names, sorted. Hidden files are ignored;
    other files that are no images are ignored and counted in a note. Everything is read lazily; see `limbeck.data.encoded` for what opening checks.
    """
    root = Path(target).expanduser()
    if not root.is_dir():
        raise DataError(f"no folder at {str(root)!r}; check the path")
    if not any(root.iterdir()):
        raise DataError(f"folder {str(root)!r} is empty, wanted one sub-folder of images per class; check the path")
    folders, notes = _part_folders(root)
    classes = _class_names(folders["train"])
    parts, strangers = {}, 0
    for name, folder in folders.items():
        parts[name], ignored = _part(folder, name, classes, str(root))
        strangers += ignored
    if not len(parts["train"].records):
        raise DataError(f"the class folders of {str(folders['train'])!r} hold no image; wanted files such as .png, .jpg, .webp, .tif, .bmp or .gif")
    opening = Opening(f"folder {str(root)!r}", parts, classes, options, drop_empty=True)
    tables = opening.tables()
    if strangers:
        notes.append(f"ignored {strangers} {'file that is' if strangers == 1 else 'files that are'} no image")
    notes += opening.notes
    return Source(root.resolve().name, tables["train"], tables.get("test"), notes=tuple(notes), validation=tables.get("validation"))


def _part_folders(root: Path) -> tuple[dict[str, Path], list[str]]:
    """The folders of train, test and validation, and a note for each such folder that has no class sub-folders."""
    if not (root / "train").is_dir():
        return {"train": root}, []
    usable: dict[str, Path] = {}
    notes = []
    for part, names in {"test": ("test",), "validation": VALIDATION_NAMES}.items():
        for folder in (root / name for name in names if (root / name).is_dir()):
            if part not in usable and _sub_folders(folder):
                usable[part] = folder
            else:
                notes.append(f"ignored {folder.name}/, which has no class sub-folders" if part not in usable else f"ignored {folder.name}/")
    if "test" not in usable and "validation" in usable:
        usable["test"] = usable.pop("validation")
    return {"train": root / "train", **usable}, notes


def _sub_folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _class_names(folder: Path) -> list[str]:
    classes = _sub_folders(folder)
    if not classes:
        raise DataError(f"folder {str(folder)!r} has no sub-folders, wanted one per class; move each class's images into a folder of its own")
    return classes


def _part(folder: Path, part: str, classes: Sequence[str], where: str) -> tuple[Part, int]:
    number = {name: index for index, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    strangers = 0
    for name in _sub_folders(folder):
        if name not in number:
            raise DataError(f"{part} of folder {where!r} has class {name!r}, which train lacks; add it to train or remove it")
        found, ignored = list_images(folder / name)
        paths += found
        labels += [number[name]] * len(found)
        strangers += ignored
    return Part(FileRecords(paths), np.array(labels, dtype=np.int64)), strangers


def list_images(folder: Path) -> tuple[list[Path], int]:
    """Image files below `folder` at any depth, sorted, hidden ones left out; and the number of other files."""
    images: list[Path] = []
    others = 0
    for place, folders, files in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if os.path.splitext(name)[1].lower() in SUFFIXES:
                images.append(Path(place, name))
            else:
                others += 1
    return images, others

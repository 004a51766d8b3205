"""From what the user writes (`digits`, `folder:photos`, `photos.npz`) to an opened source."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from limbeck.data import SOURCES
from limbeck.data.resize import Size, check_size
from limbeck.data.tables import Source
from limbeck.errors import DataError, OptionError, nearest

NEEDS_TARGET = {
    "folder": "<path>",
    "npz": "<path>",
    "parquet": "<path>",
    "hf": "<name or path>",
    "composed": "<source>",
    "planted": "<transformation>:<source>",
}
DATA_VARIABLE = "LIMBECK_DATA"


@dataclass(frozen=True)
class SourceOptions:
    """How to open a source. None means: as the source is."""

    root: Path | None = None
    """The folder that holds a named data set's files."""
    size: Size | None = None
    channels: int | None = None
    """1 (gray) or 3 (RGB)."""
    skip_corrupt: bool = False
    """Leave out images that cannot be decoded, and note their names, instead of stopping."""
    image_column: str | None = None
    label_column: str | None = None

    def plain(self) -> dict[str, Any]:
        """The options that were given, as plain values for provenance."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, False)}
        return {name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def open_source(
    spec: str,
    *,
    root: Path | None = None,
    size: Size | None = None,
    skip_corrupt: bool = False,
    channels: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Source:
    """Opens the source that `spec` names: a table name, ``kind:target``, or a path whose kind is recognized.

    Args:
        spec: ``digits``, ``fashion-mnist``, ``composed:fashion-mnist``, ``hf:<name>``, ``folder:<path>``, ``npz:<path>``, ``parquet:<path>``, or a
            path. ``fashion-mnist:<path>`` is short for ``root``.
        root: folder of a named data set's files.
        size: int n: short side to n and center crop; (height, width): exactly that. Needed when image sizes differ.
        skip_corrupt: leave out unreadable images, with a note, instead of raising.
        channels: 1 or 3; by default 1 only if every image is gray.
        image_column, label_column: column names of Parquet and Hugging Face tables, when they are not the usual ones.

    Raises:
        OptionError: an unknown name or an option out of range.
        DataError: files that are missing or cannot be read as asked.
    """
    check_size(size)
    if channels not in (None, 1, 3):
        raise OptionError(f"channels needs 1 (gray) or 3 (RGB), got {channels}; leave it out to follow the images")
    options = SourceOptions(root, size, channels, skip_corrupt, image_column, label_column)
    kind, target = recognize(spec)
    if kind not in NEEDS_TARGET and target:
        options = replace(options, root=Path(target).expanduser())
    source = SOURCES[kind](target, options)
    return replace(source, options={"source": spec, **options.plain()})


def recognize(spec: str) -> tuple[str, str]:
    """The kind (a key of `SOURCES`) and target of `spec`; reads directory listings at most."""
    kind, _, target = spec.partition(":")
    if kind in SOURCES:
        if kind in NEEDS_TARGET and not target:
            raise OptionError(f"source {kind!r} needs a target, got none; write {kind}:{NEEDS_TARGET[kind]}")
        return kind, target
    path = Path(spec).expanduser()
    if path.is_dir():
        return _folder_kind(path), str(path)
    if path.is_file():
        if path.suffix.lower() in (".npz", ".parquet"):
            return path.suffix.lower()[1:], str(path)
        raise DataError(f"{str(path)!r} is a {path.suffix or 'file without suffix'}, wanted a folder, an .npz or a .parquet file")
    if os.sep in spec or path.suffix or spec.startswith((".", "~")):
        raise DataError(f"no file or folder at {spec!r}; check the path")
    raise OptionError(f"unknown data source {spec!r}, and no file or folder has that name; {nearest(spec, SOURCES)}")


def _folder_kind(path: Path) -> str:
    names = {entry.name for entry in os.scandir(path)}
    if "wnids.txt" in names:
        return "tiny-imagenet"
    if names & {"data_batch_1.bin", "data_batch_1"}:
        return "cifar10"
    if {"train.bin", "test.bin"} <= names or ({"train", "test", "meta"} <= names and (path / "train").is_file()):
        return "cifar100"
    # a distilled set written as a folder keeps its labels in labels.parquet beside the class folders
    tables = {name for name in names if name.lower().endswith(".parquet")}
    if tables - {"labels.parquet"} or (tables and not any(path.glob("*/*.png"))) or any((path / "data").glob("*.parquet")):
        return "parquet"
    return "folder"


def places(name: str, root: Path | None, *also: str) -> list[Path]:
    """Folders to search for a named data set's files: `root`, ``$LIMBECK_DATA``, Debian's package folder, each with its usual sub-folders."""
    bases = [root] if root is not None else []
    if os.environ.get(DATA_VARIABLE):
        bases.append(Path(os.environ[DATA_VARIABLE]))
    bases.append(Path("/usr/share/datasets"))
    found = []
    for base in bases:
        inner = [base / name, *(base / sub for sub in also)]
        found += [base, *inner] if base == root else [*inner, base]
    return [path.expanduser() for path in found]

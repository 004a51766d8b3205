"""Image datasets of the Hugging Face hub, or saved to disk by its `datasets` package (the ``hf`` extra)."""

import io
from collections.abc import Mapping
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from limbeck.data.encoded import Opening, Part, Records
from limbeck.data.labeling import label_array, number_labels
from limbeck.data.opening import SourceOptions
from limbeck.data.parquet import IMAGE_COLUMNS, LABEL_COLUMNS, PART_NAMES, pick_column
from limbeck.data.tables import Source
from limbeck.errors import DataError, OptionError

SIZE_ROWS = 64


class RowRecords(Records):
    """Rows of a `datasets.Dataset` whose image column is cast to undecoded ``{"bytes", "path"}``; the dataset stays memory-mapped."""

    def __init__(self, rows: Any, column: str, where: str) -> None:
        self.rows, self.column, self.where = rows, column, where
        self.sizes = [len(_cell_bytes(cell)) for start in range(0, len(rows), SIZE_ROWS) for cell in rows[start : start + SIZE_ROWS][column]]

    def __len__(self) -> int:
        return len(self.sizes)

    def name(self, index: int) -> str:
        return f"{self.where} row {index}"

    def open(self, index: int) -> BufferedIOBase:
        return io.BytesIO(_cell_bytes(self.rows[index][self.column]))

    def encoded_bytes(self, index: int) -> int:
        return self.sizes[index]


def _cell_bytes(cell: Any) -> bytes:
    """Embedded bytes, or those of the file that the cell names; a gap is empty, and then named or skipped as a corrupt image."""
    if cell and cell.get("bytes"):
        return bytes(cell["bytes"])
    path = Path(cell["path"]) if cell and cell.get("path") else None
    return path.read_bytes() if path is not None and path.is_file() else b""


def open_hf(target: str, options: SourceOptions) -> Source:
    """``hf:<folder>`` of `save_to_disk`, or ``hf:<name>`` / ``hf:<name>:<configuration>`` of the hub, which downloads it unless it is cached.

    Splits named train, validation and test are used; without test, validation serves as test. Opening reads every image once.
    """
    datasets = _package()
    loaded, notes = _load(datasets, target)
    splits = _splits(loaded, target)
    features = splits["train"].features
    where = f"hf:{target}"
    image = _column(features, "image", options.image_column, "Image", IMAGE_COLUMNS, where)
    label = _column(features, "label", options.label_column, "ClassLabel", LABEL_COLUMNS, where)
    labels = {part: label_array(list(rows[label]), f"{where} {part}") for part, rows in splits.items()}
    names = getattr(features[label], "names", None)
    classes, numbers = number_labels(labels, names, where)
    notes += [f"ignored {part}, which has no labels" for part in splits if part not in numbers]
    undecoded = {part: splits[part].cast_column(image, datasets.Image(decode=False)) for part in numbers}
    parts = {part: Part(RowRecords(rows, image, f"{where} {part}"), numbers[part]) for part, rows in undecoded.items()}
    opening = Opening(where, parts, classes, options, drop_empty=True)
    tables = opening.tables()
    validation = tables.get("validation") if "test" in tables else None
    return Source(where, tables["train"], tables.get("test", tables.get("validation")), notes=(*notes, *opening.notes), validation=validation)


def _package() -> Any:
    try:
        import datasets
    except Exception:  # Any failure of an optional import means: not installed.
        raise OptionError("hf: sources need the 'datasets' package, which is not installed; run 'pip install limbeck[hf]'") from None
    return datasets


def _load(datasets: Any, target: str) -> tuple[Any, list[str]]:
    folder = Path(target).expanduser()
    try:
        if folder.is_dir():
            return datasets.load_from_disk(str(folder)), []
        name, _, configuration = target.partition(":")
        note = f"{target!r} is no local folder, so it comes from the Hugging Face hub, downloaded unless it is cached"
        return datasets.load_dataset(name, configuration or None), [note]
    except Exception as error:  # The package raises its own, the network's and the file system's types.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"hf:{target} could not be loaded ({reason}); check the name and the network, or use a saved dataset's folder") from None


def _splits(loaded: Any, target: str) -> dict[str, Any]:
    if not isinstance(loaded, Mapping):
        return {"train": loaded}
    found = {part: loaded[name] for part, names in PART_NAMES.items() for name in reversed(names) if name in loaded}
    if "train" not in found:
        raise DataError(f"hf:{target} has the splits {', '.join(loaded)}, wanted one named train; save it with such a split")
    return found


def _column(features: Mapping[str, Any], kind: str, asked: str | None, feature: str, usual: tuple[str, ...], where: str) -> str:
    """The column asked for, else the first usual name, else the only one of the feature's type."""
    typed = [name for name, value in features.items() if type(value).__name__ == feature]
    if not asked and len(typed) == 1:
        return typed[0]
    return pick_column(kind, asked, usual, list(features), where)

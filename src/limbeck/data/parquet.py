"""Parquet files of encoded images and labels, as the Hugging Face hub stores them."""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from limbeck.cache import default_root
from limbeck.data.encoded import Opening, Part, Records
from limbeck.data.labeling import label_array, number_labels
from limbeck.data.opening import SourceOptions
from limbeck.data.tables import Source
from limbeck.errors import DataError
from limbeck.store import digest_of, write_atomically

IMAGE_COLUMNS = ("image", "img", "images", "picture", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "target", "cls", "y")
PART_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
MEMORY_BYTES = 256 << 20
ROWS = 16
BUFFER_BYTES = 1 << 20  # Read as a stream: mapped pages would count as resident memory.


class CellRecords(Records):
    """Encoded images one after another, in memory or in a spool file that is read at random places without being mapped."""

    def __init__(self, cells: bytes | BufferedIOBase, ends: np.ndarray, where: str) -> None:
        self.cells = cells
        self.starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        self.ends = ends
        self.where = where

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> str:
        return f"{self.where} row {index}"

    def open(self, index: int) -> BufferedIOBase:
        start, end = int(self.starts[index]), int(self.ends[index])
        if isinstance(self.cells, bytes):
            return io.BytesIO(self.cells[start:end])
        return io.BytesIO(os.pread(self.cells.fileno(), end - start, start))

    def encoded_bytes(self, index: int) -> int:
        return int(self.ends[index] - self.starts[index])


def open_parquet(target: str, options: SourceOptions) -> Source:
    """A Parquet file, or a folder of them whose names begin with (or whose sub-folders are) ``train``, ``validation`` or ``test``.

    The image column holds encoded images: binary, or the struct of ``bytes`` and ``path`` of Hugging Face. Labels are names or numbers; the class
    names in the Hugging Face schema are used when they are there. Without a test part, validation serves as test.

    Files are read one row group at a time. Up to 256 MiB of encoded images stay in memory; more are copied once, uncompressed, to a spool file in
    the cache folder, because a shuffled batch would otherwise unpack every row group of the file.
    """
    path = Path(target).expanduser()
    if not path.exists():
        raise DataError(f"no file or folder at {str(path)!r}; check the path")
    files, notes = part_files(path)
    return open_parts(path.resolve().stem, files, options, notes=notes)


def open_parts(
    name: str, files: dict[str, list[Path]], options: SourceOptions, *, names: Sequence[str] | None = None, notes: Sequence[str] = ()
) -> Source:
    """A source from the Parquet files of each part; `names` are the class names when the caller knows them."""
    schema = _file(files["train"][0]).schema_arrow
    image = pick_column("image", options.image_column, IMAGE_COLUMNS, schema.names, str(files["train"][0]))
    label = pick_column("label", options.label_column, LABEL_COLUMNS, schema.names, str(files["train"][0]))
    where = {part: str(paths[0] if len(paths) == 1 else paths[0].parent) for part, paths in files.items()}
    labels = {part: label_array(_labels(paths, label), where[part]) for part, paths in files.items()}
    names = names or _class_names(schema, label)
    classes, numbers = number_labels(labels, names, where["train"])
    parts = {part: Part(_records(files[part], image, where[part]), numbers[part]) for part in numbers}
    unlabeled = [f"ignored {part}, which has no labels" for part in files if part not in numbers]
    opening = Opening(where["train"], parts, classes, options, drop_empty=names is None)
    tables = opening.tables()
    all_notes = (*notes, *unlabeled, *opening.notes)
    if "test" not in tables and "validation" in tables:
        return Source(name, tables["train"], tables["validation"], notes=all_notes)
    return Source(name, tables["train"], tables.get("test"), notes=all_notes, validation=tables.get("validation"))


def part_files(path: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each part; all of them are train when none is named after a part. Notes name files that are left out."""
    if path.is_file():
        return {"train": [path]}, []
    files = sorted(file for file in path.rglob("*.parquet") if file.is_file())
    if not files:
        raise DataError(f"folder {str(path)!r} has no .parquet file; check the path")
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(_part_of(file.relative_to(path)), []).append(file)
    other = parts.pop("", [])
    if not parts:
        return {"train": other}, []
    if "train" not in parts:
        raise DataError(f"folder {str(path)!r} has Parquet files of {', '.join(sorted(parts))} but none named train*; name the training files so")
    return parts, [f"ignored {len(other)} Parquet files named after no part, such as {other[0].name!r}"] if other else []


def _part_of(file: Path) -> str:
    for name in reversed(file.parts):
        for part, prefixes in PART_NAMES.items():
            if name.lower().startswith(prefixes):
                return part
    return ""


def pick_column(kind: str, asked: str | None, usual: Sequence[str], columns: Sequence[str], where: str) -> str:
    """The column asked for, or the first usual one; raises `DataError` naming the columns there are."""
    for name in (asked,) if asked else usual:
        if name in columns:
            return name
    wanted = repr(asked) if asked else f"one of {', '.join(usual)}"
    raise DataError(f"{where!r} has no {kind} column {wanted}; it has {', '.join(columns)}: name one with --{kind}-column")


def _file(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{str(path)!r} is no readable Parquet file ({str(error).splitlines()[0].rstrip('.')}); fetch it again") from None


def _batches(paths: Sequence[Path], column: str, rows: int) -> Iterator[pa.Array]:
    for path in paths:
        try:
            for batch in _file(path).iter_batches(batch_size=rows, columns=[column]):
                yield batch.column(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"column {column!r} of {str(path)!r} cannot be read ({str(error).splitlines()[0].rstrip('.')}); fetch it again") from None


def _labels(paths: Sequence[Path], column: str) -> list[Any]:
    return [label for array in _batches(paths, column, 1 << 16) for label in array.to_pylist()]


def _class_names(schema: pa.Schema, label: str) -> list[str] | None:
    """Names of a ClassLabel feature in the schema's Hugging Face metadata: ``{"info": {"features": {label: {"names": [...]}}}}``."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][label]
        names = feature["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) and names else None


def _cells(paths: Sequence[Path], column: str) -> Iterator[bytes]:
    for array in _batches(paths, column, ROWS):
        kind = array.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            array, kind = array.field("bytes"), array.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(
                f"column {column!r} of {str(paths[0])!r} is {kind}, wanted encoded images (binary, or a struct with bytes); try --image-column"
            )
        for cell in array:
            yield cell.as_py() or b""  # A gap becomes an unreadable image, which is then named or skipped like any other.


def _records(paths: Sequence[Path], column: str, where: str) -> CellRecords:
    if _column_bytes(paths, column) <= MEMORY_BYTES:
        cells = list(_cells(paths, column))
        return CellRecords(b"".join(cells), np.cumsum([len(cell) for cell in cells], dtype=np.int64), where)
    states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    spool = default_root() / "parquet" / f"{digest_of([states, column])[:32]}.spool"
    index = spool.with_suffix(".npy")
    if not (spool.is_file() and index.is_file()):
        write_atomically(spool, lambda temporary: _write_spool(temporary, _cells(paths, column), lambda ends: _write_index(index, ends)))
    return CellRecords(spool.open("rb"), np.load(index, allow_pickle=False), where)


def _column_bytes(paths: Sequence[Path], column: str) -> int:
    total = 0
    for path in paths:
        meta = _file(path).metadata
        for group in range(meta.num_row_groups):
            chunks = (meta.row_group(group).column(number) for number in range(meta.num_columns))
            total += sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    return total


def _write_spool(path: Path, cells: Iterator[bytes], finish: Callable[[np.ndarray], None]) -> None:
    sizes = []
    with path.open("wb") as file:
        for cell in cells:
            sizes.append(file.write(cell))
    finish(np.cumsum(sizes, dtype=np.int64))


def _write_index(path: Path, ends: np.ndarray) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, ends)

    write_atomically(path, write)

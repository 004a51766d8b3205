"""The ledger: one line of JSON for every finished task, forced to the disk before the next; only ever added to, by one process at a time."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from limbeck import store
from limbeck.errors import LimbeckError
from limbeck.study.rows import Damaged, Row, decode, encode
from limbeck.study.spec import Cell

#: What may differ between two runs that agree.
VOLATILE = ("seconds", "finished", "machine")


class Ledger:
    """Rows of finished tasks by key, in a file. Use it as a context manager to write; a second writer is refused.

    A line that was not wholly written (the machine stopped in the middle) is dropped when the ledger is opened for writing, and overlooked when it is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._rows, self._whole = _read(self.path)
        self._file: Any = None

    @property
    def rows(self) -> Mapping[str, Row]:
        """Rows by key, in the order in which they were added."""
        return self._rows

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __enter__(self) -> "Ledger":
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")
        except OSError as error:
            raise LimbeckError(f"cannot write {str(self.path)!r}: {error.strerror or error}; choose another folder with --out") from None
        if not _lock(self._file):
            self._file.close()
            raise LimbeckError(f"another run is writing {str(self.path)!r}; wait for it, or choose another folder with --out")
        self._rows, self._whole = _read(self.path)
        self._file.truncate(self._whole)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):  # every row was forced out by `add`; a part of one that failed, and was told of, would only fail again
            self._file.close()

    def add(self, row: Row) -> None:
        """Adds the row of a finished task unless the ledger has it; it is on the disk when this returns."""
        if row["key"] in self._rows:
            return
        try:
            self._file.write((encode(row) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise LimbeckError(f"cannot write {str(self.path)!r}: {error.strerror or error}; free some space, and run the study again") from None
        self._rows[row["key"]] = row

    def canonical(self, keys: Sequence[str] | None = None) -> str:
        """The rows (of some keys; default: all) sorted by key, one JSON line each, without times and machines: equal for runs that agree."""
        wanted = self._rows if keys is None else set(keys)
        rows = [{name: value for name, value in row.items() if name not in VOLATILE} for key, row in self._rows.items() if key in wanted]
        return "".join(store.canonical_json(row) + "\n" for row in sorted(rows, key=lambda row: str(row["key"])))

    def to_parquet(self, path: Path, cells: Sequence[Cell], keys: Sequence[str], about: Mapping[str, str]) -> None:
        """Writes one row for every measured cell: what `about` says of them all, arm, axes as columns ``axis.NAME``, the settings of the set or memory that was
        measured as ``set.NAME``, the numbers and the snapshot of the experts that labeled it, and the ledger's row with measures as columns of their own."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        axes = list(dict.fromkeys(name for cell in cells for name in cell.coordinates))
        table = [{**about, **self._flat(cell, axes, self._rows[key])} for cell, key in zip(cells, keys, strict=True) if key in self._rows]
        names = list(dict.fromkeys(name for row in table for name in row))
        columns = {name: _column([row.get(name) for row in table]) for name in names}
        written = pa.table(columns).replace_schema_metadata(_for_pandas(columns))
        store.write_atomically(path, lambda temporary: pq.write_table(written, temporary))

    def _flat(self, cell: Cell, axes: Sequence[str], row: Row) -> dict[str, Any]:
        plain = {name: row[name] for name in ("key", "kind", "seconds", "finished")}
        texts = {name: store.canonical_json(row[name]) for name in ("settings", "inputs", "digests", "facts", "versions", "machine")}
        measures = {f"measure.{name}": value for name, value in row["measures"].items()}
        coordinates = {f"axis.{name}": cell.coordinates.get(name) for name in axes}
        return {"arm": cell.arm, **coordinates, **self._origin(row), **measures, **plain, **texts}

    def _origin(self, row: Row) -> dict[str, Any]:
        """What was measured: the set of a row (of a replay: the first of its memories, which differ in their classes alone), and the experts. What the ledger lost
        of these (a line was removed) stays empty."""
        sets = [key for role in ("set", "memory") for key in row["inputs"].get(role, ())]
        made = row if row["kind"] == "set" else self._rows.get(sets[0]) if sets else None
        settings = {} if made is None else {name: value for name, value in made["settings"].items() if name not in ("classes", "data")}
        columns = {f"set.{name}": store.canonical_json(value) if isinstance(value, (dict, list)) else value for name, value in settings.items()}
        if made is not None and made is not row:
            columns |= {"set.key": made["key"], "set.digest": made["digests"].get("set")}
        labeled = made or row
        numbers = [self._rows[key]["settings"].get("index") if key in self._rows else None for key in labeled["inputs"].get("experts", ())]
        experts = None if None in numbers else numbers or settings.get("expert", {}).get("indices")
        return {**columns, "experts": experts, "expert_step": labeled["measures"].get("step")}


def _column(values: list[Any]) -> list[Any]:
    """Values of one type: an axis may have numbers and words ("best") for values, and a measure may be one number in some arms and several in others."""
    if any(isinstance(value, list) for value in values):
        parts = [value if value is None or isinstance(value, list) else [value] for value in values]
        flat = iter(_column([part for value in parts if value is not None for part in value]))
        return [None if value is None else [next(flat) for _ in value] for value in parts]
    if any(isinstance(value, str) for value in values):
        return [None if value is None else str(value) for value in values]
    if any(isinstance(value, float) for value in values):
        return [None if value is None else float(value) for value in values]
    return values


def _for_pandas(columns: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Whole numbers with gaps (an axis that not every arm has) stay whole in pandas, which would otherwise read them as fractions."""
    whole = [name for name, values in columns.items() if None in values and {type(value) for value in values} == {int, type(None)}]
    told = [{"name": name, "field_name": name, "pandas_type": "int64", "numpy_type": "Int64", "metadata": None} for name in whole]
    return {"pandas": json.dumps({"columns": told, "index_columns": [], "column_indexes": []})}


def _read(path: Path) -> tuple[dict[str, Row], int]:
    """The whole rows and how many bytes they take. Raises `LimbeckError` for a damaged line, unless it is the last one and merely torn off."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}, 0
    rows: dict[str, Row] = {}
    position = 0
    while position < len(content):
        end = content.find(b"\n", position)
        line = content[position : end if end >= 0 else len(content)]
        try:
            row = decode(line)
        except Damaged as damage:
            if damage.torn and (end < 0 or not content[end + 1 :].strip()):
                return rows, position
            number = content[:position].count(b"\n") + 1
            raise LimbeckError(
                f"line {number} of {str(path)!r} is damaged ({damage}); remove that line, and `limbeck study resume {path.parent}` "
                "writes it anew from the finished work in the cache"
            ) from None
        if end < 0:  # whole, but perhaps not all of it reached the disk
            return rows, position
        rows[row["key"]] = row
        position = end + 1
    return rows, position


def _lock(file: Any) -> bool:
    """Takes the file for this process until it is closed, however the process ends."""
    try:
        import fcntl
    except ImportError:  # where the system has no such lock
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

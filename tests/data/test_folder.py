from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data import Source, encoded, open_source
from limbeck.errors import DataError


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (6, 5), gray: bool = False) -> np.ndarray:
    """Writes seeded noise of `size` (height, width) to `path`; returns its pixels [C, H, W]."""
    shape = size if gray else (*size, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels[None] if gray else pixels.transpose(2, 0, 1)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder counts as too large to be verified or kept."""
    monkeypatch.setattr(encoded, "VERIFY_BYTES", 0)
    monkeypatch.setattr(encoded, "KEEP_BYTES", 0)


def unbalanced(root: Path) -> dict[str, np.ndarray]:
    return {name: picture(root / name, seed) for seed, name in enumerate(["cat/1.png", "cat/deep/0.png", "ant/z.PNG", "cat/2.bmp"])}


def test_classes_are_the_sorted_sub_folders_and_images_follow_in_order(tmp_path: Path) -> None:
    pixels = unbalanced(tmp_path)
    train = open_source(str(tmp_path)).train
    assert train.classes == ("ant", "cat")
    assert train.shape == (3, 6, 5)
    assert train.labels.tolist() == [0, 1, 1, 1]
    expected = torch.from_numpy(np.stack([pixels[name] for name in ("ant/z.PNG", "cat/1.png", "cat/2.bmp", "cat/deep/0.png")]))
    assert torch.equal(train.read(range(4)), expected)
    assert torch.equal(train.read([3, 0, 3]), expected[[3, 0, 3]])


def test_a_small_folder_is_resident_and_a_large_one_is_read_lazily_with_equal_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbalanced(tmp_path)
    small = open_source(f"folder:{tmp_path}").train
    monkeypatch.setattr(encoded, "VERIFY_BYTES", 0)
    large = open_source(f"folder:{tmp_path}").train
    assert (small.resident, large.resident) == (True, False)
    assert small.digest == large.digest
    assert torch.equal(small.read(range(4)), large.read(range(4)))


def test_digest_depends_on_content_and_size_rule_but_not_on_names_of_files(tmp_path: Path) -> None:
    for root in ("one", "two", "three"):
        picture(tmp_path / root / "a" / f"{root}.png", seed=7)
    picture(tmp_path / "three" / "a" / "three.png", seed=8)
    one, two, three = (open_source(str(tmp_path / root)).train for root in ("one", "two", "three"))
    assert one.digest == two.digest != three.digest
    square, exact = (open_source(str(tmp_path / "one"), size=size).train for size in (4, (4, 4)))
    assert square.shape == exact.shape == (3, 4, 4)
    assert square.digest != exact.digest


def test_channels_follow_the_images_unless_given(tmp_path: Path) -> None:
    gray = picture(tmp_path / "a" / "0.png", gray=True)
    assert open_source(str(tmp_path)).train.shape == (1, 6, 5)
    assert np.array_equal(open_source(str(tmp_path), channels=3).train.read([0])[0].numpy(), np.repeat(gray, 3, axis=0))
    picture(tmp_path / "a" / "1.png", seed=1)
    assert open_source(str(tmp_path)).train.shape == (3, 6, 5)
    assert open_source(str(tmp_path), channels=1).train.shape == (1, 6, 5)


def test_ragged_sizes_need_a_size(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.png", size=(6, 5))
    picture(tmp_path / "a" / "1.png", size=(9, 12))
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert str(caught.value) == (
        f"images differ in size: '{tmp_path}/a/0.png' is 5 x 6 and '{tmp_path}/a/1.png' is 12 x 9 (width x height);"
        " bring them to one size with --size, such as --size 64"
    )
    assert open_source(str(tmp_path), size=4).train.read([0, 1]).shape == (2, 3, 4, 4)


def test_train_val_and_test_folders(tmp_path: Path) -> None:
    for part, names in {"train": ("a/0", "b/0", "b/1"), "val": ("a/2",), "test": ("b/3",)}.items():
        for name in names:
            picture(tmp_path / part / f"{name}.png", seed=sum(map(ord, part + name)))
    source = open_source(str(tmp_path))
    assert [len(table) for table in (source.train, source.validation, source.test) if table is not None] == [3, 1, 1]
    assert source.test is not None
    assert source.test.labels.tolist() == [1]
    assert source.test.classes == ("a", "b")


def test_val_serves_as_test_when_test_has_no_classes(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a" / "0.png")
    picture(tmp_path / "val" / "a" / "1.png", seed=1)
    picture(tmp_path / "test" / "9.png", seed=2)
    source = open_source(str(tmp_path))
    assert source.validation is None
    assert source.test is not None
    assert len(source.test) == 1
    assert source.notes == ("ignored test/, which has no class sub-folders",)


def test_a_test_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a" / "0.png")
    picture(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert str(caught.value) == f"test of folder '{tmp_path}' has class 'b', which train lacks; add it to train or remove it"


def test_other_files_are_counted_hidden_ones_ignored_and_empty_classes_dropped(tmp_path: Path) -> None:
    picture(tmp_path / "b" / "0.png")
    (tmp_path / "b" / "readme.txt").write_text("x")
    (tmp_path / "b" / "._0.png").write_text("x")
    (tmp_path / "a").mkdir()
    (tmp_path / ".cache").mkdir()
    source = open_source(str(tmp_path))
    assert source.train.classes == ("b",)
    assert source.notes == ("ignored 1 file that is no image", "dropped 1 class without images: 'a'")


def test_folders_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert str(caught.value) == f"folder '{tmp_path}' is empty, wanted one sub-folder of images per class; check the path"
    (tmp_path / "loose.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert str(caught.value) == f"folder '{tmp_path}' has no sub-folders, wanted one per class; move each class's images into a folder of its own"
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert str(caught.value) == f"the class folders of '{tmp_path}' hold no image; wanted files such as .png, .jpg, .webp, .tif, .bmp or .gif"
    with pytest.raises(DataError) as caught:
        open_source(f"folder:{tmp_path}/none")
    assert str(caught.value) == f"no folder at '{tmp_path}/none'; check the path"


def corrupted(root: Path) -> None:
    for seed, name in enumerate(["a/0", "a/1", "b/0", "b/1"]):
        picture(root / f"{name}.png", seed, size=(16, 16))
    truncate(root / "a" / "1.png")
    (root / "b" / "0.png").write_bytes(b"no image")


def test_corrupt_images_are_named(tmp_path: Path) -> None:
    corrupted(tmp_path)
    (tmp_path / "b" / "0.png").unlink()
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert str(caught.value) == (
        f"1 corrupt image in folder '{tmp_path}': '{tmp_path}/a/1.png' (image file is truncated);"
        " mend or remove what is corrupt, or pass --skip-corrupt"
    )


def check_skipped(source: Source, root: Path) -> None:
    assert source.train.labels.tolist() == [0, 1]
    assert source.notes == (
        f"skipped 2 corrupt images in folder '{root}': '{root}/b/0.png' (not a readable image), '{root}/a/1.png' (image file is truncated)",
    )
    expected = [np.asarray(Image.open(root / name)).transpose(2, 0, 1) for name in ("a/0.png", "b/1.png")]
    assert np.array_equal(source.train.read([0, 1]).numpy(), np.stack(expected))


def test_corrupt_images_are_skipped_when_asked(tmp_path: Path) -> None:
    corrupted(tmp_path)
    check_skipped(open_source(str(tmp_path), skip_corrupt=True), tmp_path)


def test_skipping_verifies_large_folders_too(tmp_path: Path, on_disk: None) -> None:
    corrupted(tmp_path)
    source = open_source(str(tmp_path), skip_corrupt=True)
    assert not source.train.resident
    check_skipped(source, tmp_path)


def test_a_large_folder_names_a_truncated_image_when_it_is_read(tmp_path: Path, on_disk: None) -> None:
    corrupted(tmp_path)
    picture(tmp_path / "b" / "0.png", size=(16, 16))
    train = open_source(str(tmp_path)).train
    train.read([0, 2, 3])
    with pytest.raises(DataError) as caught:
        train.read([0, 1])
    assert str(caught.value) == f"corrupt image '{tmp_path}/a/1.png' (image file is truncated); mend or remove it, or pass --skip-corrupt"


def test_a_class_whose_images_are_all_corrupt_is_dropped_when_skipping(tmp_path: Path) -> None:
    corrupted(tmp_path)
    (tmp_path / "a" / "0.png").write_bytes(b"")
    source = open_source(str(tmp_path), skip_corrupt=True)
    assert source.train.classes == ("b",)
    assert source.train.labels.tolist() == [0]
    assert source.notes[-1] == "dropped 1 class without images: 'a'"


def test_a_folder_of_only_corrupt_images(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path), skip_corrupt=True)
    assert str(caught.value) == f"folder '{tmp_path}' has no readable image; every one of its 1 images is corrupt"

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from limbeck.data import encoded, open_source, parquet
from limbeck.errors import DataError


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def pixels(seeds: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(Image.open(io.BytesIO(png(seed)))).transpose(2, 0, 1) for seed in seeds]))


def write(
    path: Path, images: Sequence[Any], labels: Sequence[Any], names: Sequence[str] | None = None, columns: tuple[str, str] = ("image", "label")
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({columns[0]: images, columns[1]: labels})
    if names is not None:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=2)


def cells(seeds: Sequence[int]) -> list[dict[str, Any]]:
    return [{"bytes": png(seed), "path": None} for seed in seeds]


@pytest.mark.parametrize("memory", [256 << 20, 0])
def test_hugging_face_file_in_memory_and_spooled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int) -> None:
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(parquet, "MEMORY_BYTES", memory)
    monkeypatch.setattr(encoded, "VERIFY_BYTES", 0)
    write(tmp_path / "x.parquet", cells(range(5)), [0, 1, 1, 2, 0], names=["ant", "bee", "cat", "dog"])
    for _ in range(2):  # The second time finds the spool file.
        source = open_source(str(tmp_path / "x.parquet"))
        assert source.name == "x"
        assert source.train.classes == ("ant", "bee", "cat", "dog")
        assert source.train.labels.tolist() == [0, 1, 1, 2, 0]
        assert not source.train.resident
        assert torch.equal(source.train.read([4, 0, 2]), pixels([4, 0, 2]))
        assert len(list((tmp_path / "cache").rglob("*.spool"))) == (memory == 0)


def test_a_changed_file_is_spooled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MEMORY_BYTES", 0)
    digests = set()
    for seeds in ([0, 1], [2, 3, 4]):
        write(tmp_path / "x.parquet", cells(seeds), ["a"] * len(seeds))
        train = open_source(str(tmp_path / "x.parquet")).train
        assert torch.equal(train.read(range(len(seeds))), pixels(seeds))
        digests.add(train.digest)
    assert len(digests) == 2


def test_folder_with_parts_plain_binary_and_names_as_labels(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", [png(0), png(1)], ["b", "a"], columns=("img", "class"))
    write(tmp_path / "data" / "train-00001-of-00002.parquet", [png(2)], ["b"], columns=("img", "class"))
    write(tmp_path / "data" / "validation-00000.parquet", [png(3)], ["a"], columns=("img", "class"))
    write(tmp_path / "data" / "test-00000.parquet", [png(4)], ["b"], columns=("img", "class"))
    source = open_source(str(tmp_path))
    assert source.train.classes == ("a", "b")
    assert source.train.labels.tolist() == [1, 0, 1]
    assert torch.equal(source.train.read(range(3)), pixels(range(3)))
    assert source.validation is not None
    assert source.validation.labels.tolist() == [0]
    assert source.test is not None
    assert torch.equal(source.test.read([0]), pixels([4]))


def test_an_unlabeled_test_is_ignored(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", cells([0, 1]), [0, 1])
    write(tmp_path / "test.parquet", cells([2]), [-1])
    source = open_source(str(tmp_path))
    assert source.test is None
    assert source.notes == ("ignored test, which has no labels",)


def test_corrupt_rows_are_named_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, [*cells([0]), {"bytes": b"junk", "path": "a.png"}, {"bytes": None, "path": "b.png"}, *cells([3])], ["a", "a", "b", "b"])
    with pytest.raises(DataError) as caught:
        open_source(str(path))
    text = f"2 corrupt images in {path}: '{path} row 1' (not a readable image), '{path} row 2' (not a readable image)"
    assert str(caught.value) == f"{text}; mend or remove what is corrupt, or pass --skip-corrupt"
    source = open_source(str(path), skip_corrupt=True)
    assert source.notes == (f"skipped {text}",)
    assert torch.equal(source.train.read([0, 1]), pixels([0, 3]))


def test_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    write(path, cells([0, 1]), ["a", "b"], columns=("scan", "kind"))
    with pytest.raises(DataError) as caught:
        open_source(str(path))
    usual = "image, img, images, picture, jpg, png, webp"
    assert str(caught.value) == f"'{path}' has no image column one of {usual}; it has scan, kind: name one with --image-column"
    with pytest.raises(DataError) as caught:
        open_source(str(path), image_column="scan", label_column="klass")
    assert str(caught.value) == f"'{path}' has no label column 'klass'; it has scan, kind: name one with --label-column"
    assert open_source(str(path), image_column="scan", label_column="kind").train.classes == ("a", "b")
    with pytest.raises(DataError) as caught:
        open_source(str(path), image_column="kind", label_column="kind")
    wanted = "wanted encoded images (binary, or a struct with bytes); try --image-column"
    assert str(caught.value) == f"column 'kind' of '{path}' is string, {wanted}"


def test_files_that_are_no_parquet_or_are_cut(tmp_path: Path) -> None:
    write(tmp_path / "x.parquet", cells([0, 1]), ["a", "b"])
    whole = (tmp_path / "x.parquet").read_bytes()
    for content in (b"", b"junk", whole[:-20], whole[100:]):
        (tmp_path / "x.parquet").write_bytes(content)
        with pytest.raises(DataError, match=r"x.parquet' (is no readable Parquet file|cannot be read) \(.+\); fetch it again$"):
            open_source(str(tmp_path / "x.parquet"))
    (tmp_path / "x.parquet").rename(tmp_path / "test.parquet")
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path))
    assert str(caught.value) == f"folder '{tmp_path}' has Parquet files of test but none named train*; name the training files so"
    (tmp_path / "test.parquet").unlink()
    with pytest.raises(DataError) as caught:
        open_source(f"parquet:{tmp_path}")
    assert str(caught.value) == f"folder '{tmp_path}' has no .parquet file; check the path"

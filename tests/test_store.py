import hashlib
import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as serialize
from tests.small import flip_byte

from limbeck import store
from limbeck.errors import FileFormatError, LimbeckError

HEADER = {"kind": "thing", "b": [1, 2.5, None], "a": "é"}
TENSORS = {
    "x": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "empty": torch.zeros(0, 4),
    "mask": torch.tensor([True, False]),
    "scalar": torch.tensor(3),
}


def written(path: Path) -> Path:
    store.save(path, HEADER, TENSORS)
    return path


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "thing.safetensors"
    digest = store.save(path, HEADER, TENSORS)
    header, tensors = store.load(path, "thing")
    assert header == HEADER
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {name: (t.dtype, t.shape) for name, t in TENSORS.items()}
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert digest == store.content_digest(header, tensors)
    assert store.load_header(path, "thing") == HEADER


def test_only_the_named_tensors_are_read(tmp_path: Path) -> None:
    assert set(store.load(written(tmp_path / "a"), "thing", names=lambda name: name == "x")[1]) == {"x"}


def test_equal_content_gives_equal_bytes_whatever_its_order_and_layout(tmp_path: Path) -> None:
    turned = {name: TENSORS[name].t().contiguous().t() if name == "x" else TENSORS[name] for name in reversed(TENSORS)}
    first = store.save(tmp_path / "a", HEADER, TENSORS)
    second = store.save(tmp_path / "b", dict(reversed(HEADER.items())), turned)
    assert first == second
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_digest_is_the_documented_hash() -> None:
    sha = hashlib.sha256(b'{"kind":"thing"}')
    sha.update(b"\0n\0torch.int16\0(2, 1)\0" + struct.pack("<2h", -1, 5))
    assert store.content_digest({"kind": "thing"}, {"n": torch.tensor([[-1], [5]], dtype=torch.int16)}) == sha.hexdigest()


def test_the_digest_tells_apart_header_name_dtype_shape_and_bytes() -> None:
    contents = [
        ({}, {"x": torch.zeros(4)}),
        ({"a": 1}, {"x": torch.zeros(4)}),
        ({}, {"y": torch.zeros(4)}),
        ({}, {"x": torch.zeros(4, dtype=torch.int32)}),
        ({}, {"x": torch.zeros(2, 2)}),
        ({}, {"x": torch.tensor([0, 0, 0, -0.0])}),
        ({}, {"x": torch.zeros(2), "y": torch.zeros(2)}),
        ({}, {}),
    ]
    assert len({store.content_digest(header, tensors) for header, tensors in contents}) == len(contents)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
        max_leaves=8,
    )
)
def test_canonical_json_survives_a_round_trip_unchanged(value: object) -> None:
    assert store.canonical_json(json.loads(store.canonical_json(value))) == store.canonical_json(value)


def test_a_file_truncated_anywhere_is_refused_in_one_sentence(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole").read_bytes()
    header_end = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in {0, 1, 7, 8, 9, header_end // 2, header_end - 1, header_end, header_end + 1, len(whole) - 1}:
        cut = tmp_path / "cut"
        cut.write_bytes(whole[:length])
        with pytest.raises(
            FileFormatError, match=r"cut' is not a readable safetensors file \(truncated, foreign or damaged: .*\); use an intact copy$"
        ):
            store.load(cut, "thing")


def test_no_flipped_byte_passes(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole").read_bytes()
    for position in range(0, len(whole), 3):
        path = tmp_path / "flipped"
        path.write_bytes(whole)
        flip_byte(path, position)
        try:
            header, tensors = store.load(path, "thing")
        except FileFormatError:
            continue
        # what is left: bytes whose change does not alter the content, such as padding or the case of an escaped letter
        assert store.content_digest(header, tensors) == store.content_digest(HEADER, TENSORS), position


def test_altered_data_is_named_as_such(tmp_path: Path) -> None:
    path = written(tmp_path / "thing")
    flip_byte(path, -1)
    with pytest.raises(
        FileFormatError, match=r"thing' was altered after it was written \(its content does not match its digest\); use an intact copy$"
    ):
        store.load(path, "thing")
    assert store.load(path, "thing", verify=False)[0] == HEADER


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        b"\xff" * 100,
        pickle.dumps({"a": 1}),
        struct.pack("<Q", 2**63 + 5) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 99) + b"[" * 99,
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 60) + b'{"x":{"dtype":"F32","shape":[9999999999],"data_offsets":[0,4]}}'[:60],
    ],
)
def test_foreign_bytes_are_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"foreign.safetensors' is not a readable safetensors file"):
        store.load(path, "thing")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "x"},
        {"limbeck": "no json"},
        {"limbeck": "[]"},
        {"limbeck": '{"header":{}}'},
        {"limbeck": '{"digest":"","header":[]}'},
        {"limbeck": "[" * 100_000},
    ],
)
def test_safetensors_of_others_are_refused_in_one_sentence(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(serialize({"x": torch.zeros(2)}, metadata=metadata))
    with pytest.raises(
        FileFormatError, match=r"theirs.safetensors' is a safetensors file, but limbeck did not write it; wanted a limbeck thing file$"
    ):
        store.load(path, "thing")


@pytest.mark.parametrize("value", ["NaN", "Infinity", '"\\ud800"', "[" * 900 + "]" * 900])
def test_a_header_that_limbeck_cannot_have_written_is_an_altered_file(tmp_path: Path, value: str) -> None:
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(serialize({}, metadata={"limbeck": f'{{"digest":"","header":{{"kind":"thing","x":{value}}}}}'}))
    with pytest.raises(FileFormatError, match="was altered after it was written"):
        store.load(path, "thing")


def test_missing_files_folders_and_other_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"^no such file: '.*absent'; check the path$"):
        store.load(tmp_path / "absent", "thing")
    with pytest.raises(FileFormatError, match=r" is a folder; wanted a limbeck thing file \(.safetensors\)$"):
        store.load(tmp_path, "thing")
    with pytest.raises(FileFormatError, match=r"a' holds a 'thing'; wanted a limbeck distilled dataset file$"):
        store.load(written(tmp_path / "a"), "distilled dataset")


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    path = written(tmp_path / "thing")
    before = path.read_bytes()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*((Path, "write_bytes") if moment == "write" else (os, "replace")), full)
    with pytest.raises(LimbeckError) as caught:
        store.save(path, {"kind": "thing"}, {})
    assert str(caught.value) == f"cannot write {str(path)!r}: No space left on device; choose another folder with --out or free some space"
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError])
def test_a_write_stopped_by_anything_leaves_no_part_file(tmp_path: Path, stop: type[BaseException]) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise stop

    with pytest.raises(stop):
        store.write_atomically(tmp_path / "thing", write)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LimbeckError, match=r"^cannot write '.*file/deeper/a': Not a directory; choose another folder with --out or free some space$"):
        store.save(tmp_path / "file" / "deeper" / "a", {}, {})


def test_text_and_json_are_written_as_documented(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a.json", {"b": "é", "a": 1})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "a": 1,\n  "b": "é"\n}\n'.encode()
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="Out of range float"):
        store.write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tests.small import as_shipped, distilled, gaussians

from limbeck import store
from limbeck.data.pixels import normalize, zca_mtt
from limbeck.errors import FileFormatError, LimbeckError
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace

TABLE = gaussians(3, classes=3)
SOFT = torch.from_numpy(np.random.default_rng(0).normal(size=(9, 3))).softmax(1).float()
LABELS = {
    "hard": None,
    "float32": Labels.encode(SOFT, temperature=2.0, expert="e" * 64),
    "float16 top 2": Labels.encode(SOFT, top_k=2, precision="float16"),
    "uint8 top 2": Labels.encode(SOFT, top_k=2, precision="uint8", sums_to_one=False),
    "logit": Labels.encode(SOFT.log(), kind="logit", precision="float16"),
}


def full(**changes: Any) -> DistilledDataset:
    given = {
        "labels": LABELS["float32"],
        "pixels": zca_mtt(TABLE),
        "step_size": 0.03,
        "architecture": {"name": "convnet", "options": {"depth": 1}},
        "provenance": {"method": "random-real", "seeds": [1, 2], "indices": list(range(9))},
    }
    return distilled(TABLE, **{**given, **changes})


@pytest.mark.parametrize("labels", LABELS)
def test_a_saved_set_is_loaded_as_it_was(labels: str, tmp_path: Path) -> None:
    made = full(labels=LABELS[labels])
    made = made if LABELS[labels] else made.with_hard_labels()
    digest = made.save(tmp_path / "set.safetensors")
    again = DistilledDataset.load(tmp_path / "set.safetensors")
    assert digest == made.digest == again.digest
    assert torch.equal(again.inputs(), made.inputs())
    assert torch.equal(again.targets(), made.targets())
    assert again.owners.tolist() == made.owners.tolist()
    assert again.labels.header() == made.labels.header()
    for name in ("classes", "recipe", "step_size", "architecture", "provenance", "payload", "bytes", "shape"):
        assert getattr(again, name) == getattr(made, name), name
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "set.safetensors").read_bytes()


def test_images_in_network_space_are_kept_as_floats(tmp_path: Path) -> None:
    raw = full(pixels=normalize(TABLE))
    made = full(images=raw.inputs(), pixels=PixelSpace(raw.pixels.steps, "network"))
    made.save(tmp_path / "set.safetensors")
    assert torch.equal(DistilledDataset.load(tmp_path / "set.safetensors").inputs(), raw.inputs())


@pytest.mark.parametrize("labels", LABELS)
def test_bytes_are_those_of_the_stored_tensors(labels: str, tmp_path: Path) -> None:
    made = full(labels=LABELS[labels]) if LABELS[labels] else full().with_hard_labels()
    made.save(tmp_path / "set.safetensors")
    _, tensors = store.load(tmp_path / "set.safetensors", "distilled dataset")
    sizes = made.bytes
    assert sizes["total"] == sum(tensor.nbytes for tensor in tensors.values())
    assert sizes["images"] == 9 * 64
    assert sizes["decoder"] == 4 * (64 + 64 * 64)
    assert sizes["labels"] == sizes["total"] - sizes["images"] - sizes["decoder"]


def test_the_digest_covers_everything() -> None:
    made = full()
    others = [
        full(images=made.images.flip(0)),
        full(labels=LABELS["logit"]),
        full(pixels=PixelSpace()),
        full(classes=("x", "y", "z")),
        full(recipe=made.recipe.with_(lr=0.5)),
        full(step_size=None),
        full(architecture=None),
        full(provenance={}),
        full(owners=made.owners.flip(0)),
    ]
    assert len({made.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert made.digest == full(owners=made.owners.to(torch.uint8)).digest


class Hostile:
    """A file whose digest is right and whose content is not."""

    def __init__(self, folder: Path) -> None:
        full().save(folder / "good.safetensors")
        self.header, self.tensors = store.load(folder / "good.safetensors", "distilled dataset")
        self.path = folder / "bad.safetensors"

    def sentence(self) -> str:
        store.save(self.path, self.header, self.tensors)
        with pytest.raises(FileFormatError) as caught:
            DistilledDataset.load(self.path)
        text = str(caught.value)
        assert text.startswith(repr(str(self.path)))
        return text


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.full((9, 1, 8, 8), torch.nan)}, "images hold values that are not finite; use an intact file"),
        ({"images": torch.zeros(9, 1, 8, 8, dtype=torch.int32)}, "images must be uint8, float32 or float16, got torch.int32"),
        ({"images": torch.zeros(9, 64, dtype=torch.uint8)}, None),
        (
            {"images": torch.zeros(0, 1, 8, 8, dtype=torch.uint8), "owners": torch.zeros(0, dtype=torch.uint8)},
            "needs images [N, C, H, W] with N >= 1",
        ),
        ({"images": torch.zeros(8, 1, 8, 8, dtype=torch.uint8)}, "8 images but 9 owners and 9 labels"),
        ({"images": torch.zeros(9, 1, 8, 9, dtype=torch.uint8)}, "the pixel space whitens 64 values, but the images have 72"),
        ({"owners": torch.full((9,), 3, dtype=torch.uint8)}, "owner classes must lie in 0..2, got 3"),
        ({"owners": torch.full((9,), -1, dtype=torch.int16)}, "owner classes must lie in 0..2"),
        ({"owners": torch.zeros(9, 1, 1, dtype=torch.uint8)}, "owner classes must be whole numbers [N], got torch.uint8 of shape (9, 1, 1)"),
        ({"owners": torch.zeros(9)}, "owner classes must be whole numbers [N], got torch.float32"),
        ({"owners": torch.zeros((), dtype=torch.uint8)}, None),
        ({"owners": None}, "KeyError: 'owners'"),
        ({"images": None}, "KeyError: 'images'"),
        ({"labels.values": torch.zeros(9, 4)}, "label values of shape (9, 4) do not fit 3 classes"),
        ({"labels.values": torch.full((9, 3), torch.inf)}, "label values are not finite"),
        ({"labels.values": torch.zeros(9)}, None),
        ({"labels.values": None}, "labels hold neither values nor class indices"),
        ({"pixels.0.mean": None}, "the file's pixel space is not readable"),
        ({"pixels.0.matrix": torch.zeros(1, 3, 3)}, None),
        ({"pixels.0.matrix": torch.full((1, 64, 64), torch.nan)}, "the pixel space holds values that are not finite in its step 'whiten'"),
        ({"pixels.0.surprise": torch.zeros(1)}, "the file's pixel space is not readable"),
    ],
)
def test_hostile_tensors_are_one_sentence(tmp_path: Path, change: dict[str, torch.Tensor | None], words: str | None, checked: bool) -> None:
    """With and without the shape checks of the tests: users run without."""
    hostile = Hostile(tmp_path)
    hostile.tensors.update(change)  # type: ignore[arg-type]
    hostile.tensors = {name: tensor for name, tensor in hostile.tensors.items() if tensor is not None}
    if checked:
        hostile.sentence()
    else:
        with as_shipped():
            assert (words or "") in hostile.sentence()


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("format", 3, "has format 3; this version of limbeck reads formats up to 2; upgrade limbeck"),
        ("format", 2, None),
        ("format", None, "has format None"),
        ("payload", "factored", "payload 'factored' is not known to this version of limbeck; upgrade limbeck"),
        ("classes", ["a", "b"], "labels over 3 classes but 2 class names"),
        ("classes", 3, None),
        ("labels", [], None),
        ("labels", {"kind": "fuzzy", "classes": 3}, "labels of unknown kind 'fuzzy'"),
        ("labels", {"kind": "probability", "classes": 1}, "labels need at least 2 classes"),
        ("pixels", {"steps": ["pca"], "stored": "raw"}, "the file's pixel space is not readable ('pca')"),
        ("pixels", "raw", None),
        ("recipe", "no recipe", None),
        ("recipe", {"epochs": 1, "steps": 1}, "a recipe needs exactly one of epochs and steps"),
        ("recipe", {"epochs": 1, "speed": 1}, "speed"),
        ("step_size", "fast", None),
        ("architecture", 5, None),
        ("provenance", [1], None),
    ],
)
def test_hostile_headers_are_one_sentence(tmp_path: Path, key: str, value: object, words: str | None, checked: bool) -> None:
    hostile = Hostile(tmp_path)
    hostile.header[key] = value
    if checked:
        hostile.sentence()
    else:
        with as_shipped():
            assert (words or "") in hostile.sentence()


@pytest.mark.parametrize("key", ["classes", "labels", "pixels", "recipe", "step_size", "architecture", "provenance", "payload", "format"])
def test_a_missing_key_is_one_sentence(tmp_path: Path, key: str) -> None:
    hostile = Hostile(tmp_path)
    del hostile.header[key]
    assert key in hostile.sentence()


def test_torch_gets_pairs_of_input_and_label() -> None:
    made = full()
    pairs = made.to_torch()
    assert len(pairs) == 9
    image, label = pairs[4]
    assert (image.shape, label.shape) == ((1, 8, 8), (3,))
    assert torch.equal(image, made.inputs()[4])
    assert torch.equal(label, made.targets()[4])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_holds_the_stored_pixels_and_a_table_of_labels(tmp_path: Path, channels: int) -> None:
    images = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (9, channels, 8, 8), dtype=np.uint8))
    made = full(images=images, pixels=PixelSpace())
    table = pq.read_table(made.to_folder(tmp_path / "out") / "labels.parquet")
    assert table.column_names == ["file", "owner", "p_0_band 0", "p_1_band 1", "p_2_band 2"]
    assert table["owner"].to_pylist() == [f"band {k}" for k in made.owners.tolist()]
    assert np.array_equal(np.stack([table[name].to_numpy() for name in table.column_names[2:]], 1), made.targets().numpy())
    for file, image in zip(table["file"].to_pylist(), images, strict=True):
        picture = np.asarray(Image.open(tmp_path / "out" / file))
        assert np.array_equal(picture if channels == 1 else picture.transpose(2, 0, 1), image.numpy()[0] if channels == 1 else image.numpy())
    assert len(list((tmp_path / "out").rglob("*.png"))) == 9


NAMES = ("..", "a/b", "../../up", "/etc", "C:\\x", ".", "con\0trol", "plain", "")


def test_class_names_cannot_leave_the_folder_or_run_together(tmp_path: Path) -> None:
    table = gaussians(1, classes=len(NAMES))
    made = distilled(table, classes=NAMES)
    files = pq.read_table(made.to_folder(tmp_path / "deep" / "out") / "labels.parquet")["file"].to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert len({Path(file).parent for file in files}) == len(NAMES)
    assert all(len(Path(file).parts) == 2 and (tmp_path / "deep" / "out" / file).is_file() for file in files)
    assert any(file.startswith("plain/") for file in files)


def test_hugging_face_gets_images_owners_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    fake: Any = ModuleType("datasets")
    fake.Features = dict
    fake.Image = lambda: "image"
    fake.ClassLabel = lambda names: ("class", names)
    fake.Value = lambda dtype: dtype
    fake.Sequence = lambda value, length: (value, length)
    fake.Dataset = type("Dataset", (), {"from_dict": staticmethod(lambda columns, features: (columns, features))})
    monkeypatch.setitem(sys.modules, "datasets", fake)
    made = full(pixels=PixelSpace())
    columns, features = made.to_huggingface()
    assert features == {"image": "image", "owner": ("class", ["band 0", "band 1", "band 2"]), "label": ("float32", 3)}
    assert columns["owner"] == made.owners.tolist()
    assert np.allclose(columns["label"], made.targets().numpy())
    assert np.array_equal(np.stack([np.asarray(picture) for picture in columns["image"]]), made.images[:, 0].numpy())


def test_without_the_extra_the_answer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(LimbeckError, match=r"^to_huggingface needs the 'datasets' package, .*; pip install 'limbeck\[hf\]'$"):
        full().to_huggingface()

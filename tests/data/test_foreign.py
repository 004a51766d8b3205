"""Files of other programs: every form that is read, and what is refused, in one sentence and without running anything."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from limbeck.data import foreign
from limbeck.data.foreign import FORMATS, read_foreign, read_rate
from limbeck.errors import DataError

IMAGES = torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
ROWS = torch.nn.functional.one_hot(LABELS, 3).float() * 0.7 + 0.1


def saved(value: Any, path: Path) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("numpy_accuracies", [False, True])
def test_dc(tmp_path: Path, numpy_accuracies: bool) -> None:
    """The published code saves NumPy numbers beside the images."""
    accuracies = [np.float64(0.44), np.float32(0.45)] if numpy_accuracies else [0.44, 0.45]
    path = saved({"data": [[IMAGES, LABELS], [IMAGES + 1, LABELS]], "accs_all_exps": {"ConvNet": accuracies}}, tmp_path / "res_DC_10ipc.pt")
    found = read_foreign(path)
    assert (found.format, found.files, found.step_size) == ("dc", (path,), None)
    assert torch.equal(found.images, IMAGES)
    assert torch.equal(found.labels, LABELS)
    assert found.notes == ("the file holds 2 sets; number 0 was taken, and --experiment takes another",)
    second = read_foreign(path, "dc", experiment=1)
    assert torch.equal(second.images, IMAGES + 1)
    assert second.notes == ()


def test_numpy_of_another_generation_pickles_its_numbers_under_another_name(tmp_path: Path) -> None:
    before = torch.serialization.get_safe_globals()
    saved({"data": [[IMAGES, LABELS]]}, tmp_path / "a.pt")
    read_foreign(tmp_path / "a.pt")
    for scalar, name in ((foreign._Scalar, "numpy.core.multiarray"), (foreign._NewScalar, "numpy._core.multiarray")):
        assert f"{scalar.__module__}.{scalar.__qualname__}" == f"{name}.scalar"
    assert set(torch.serialization.get_safe_globals()) == set(before)  # they are allowed while a file is read and no longer


@pytest.mark.parametrize("rate", [torch.tensor(0.02), 0.02])
def test_mtt_folder_with_a_learned_rate(tmp_path: Path, rate: Any) -> None:
    saved(IMAGES.requires_grad_(True), tmp_path / "images_best.pt")
    IMAGES.requires_grad_(False)
    saved(LABELS, tmp_path / "labels_best.pt")
    saved(rate, tmp_path / "lr_best.pt")
    saved(IMAGES - 1, tmp_path / "images_5000.pt")
    found = read_foreign(tmp_path)
    assert (found.format, [file.name for file in found.files]) == ("mtt", ["images_best.pt", "labels_best.pt", "lr_best.pt"])
    assert torch.equal(found.images, IMAGES)
    assert not found.images.requires_grad
    assert torch.equal(found.labels, LABELS)
    assert found.step_size == pytest.approx(0.02)


def test_mtt_takes_the_latest_iteration_and_its_own_labels(tmp_path: Path) -> None:
    for number in (100, 1000, 900):
        saved(IMAGES + number, tmp_path / f"images_{number}.pt")
        saved(ROWS, tmp_path / f"labels_{number}.pt")
    saved(IMAGES, tmp_path / "images_zca_1000.pt")
    found = read_foreign(tmp_path)
    assert torch.equal(found.images, IMAGES + 1000)
    assert [file.name for file in found.files] == ["images_1000.pt", "labels_1000.pt"]
    assert found.notes == ("the folder has no images_best.pt; images_1000.pt, its latest, was taken",)
    assert torch.equal(read_foreign(tmp_path / "images_zca_1000.pt").images, IMAGES)
    assert [file.name for file in read_foreign(tmp_path / "images_zca_1000.pt").files] == ["images_zca_1000.pt", "labels_1000.pt"]


def test_a_tensor_alone_and_labels_apart(tmp_path: Path) -> None:
    path = saved(IMAGES, tmp_path / "syn.pt")
    assert read_foreign(path).labels is None
    np.save(tmp_path / "y.npy", LABELS.numpy())
    found = read_foreign(path, labels=tmp_path / "y.npy")
    assert torch.equal(found.labels, LABELS)
    assert found.files == (path, tmp_path / "y.npy")


def pictures(root: Path, names: list[str], side: int = 6) -> Path:
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(2):
            array = np.full((side, side, 3), 20 * number + index, dtype=np.uint8)
            array[0, 0] = (255, 0, 0)
            Image.fromarray(array).save(root / name / f"class{number:03d}_id{index:03d}.png")
    return root


def test_sre2l_takes_class_numbers_from_the_names_of_folders(tmp_path: Path) -> None:
    found = read_foreign(pictures(tmp_path / "a", ["new002", "new000", "new010"]))
    assert (found.format, found.images.dtype, tuple(found.images.shape)) == ("sre2l", torch.uint8, (6, 3, 6, 6))
    assert found.labels.tolist() == [0, 0, 2, 2, 10, 10]  # in the order of folder names
    assert found.images[2, :, 1, 1].tolist() == [0, 0, 0]
    assert found.notes == ()


def test_sre2l_folders_named_after_classes_and_in_order(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a", ["dog", "cat"])
    assert read_foreign(root, classes=("dog", "bird", "cat")).labels.tolist() == [2, 2, 0, 0]
    numbered = read_foreign(pictures(tmp_path / "b", ["n01443537", "n01440764"]))
    assert numbered.labels.tolist() == [0, 0, 1, 1]
    assert numbered.notes == ("class folders were numbered in the order of their names",)


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("x", "y"), ("x_proto", "y_proto")])
def test_tensors_under_the_usual_names(tmp_path: Path, suffix: str, images: str, labels: str) -> None:
    path = tmp_path / f"set{suffix}"
    content = {images: IMAGES, labels: ROWS, "syn_lr": torch.tensor([0.3])}
    match suffix:
        case ".pt":
            torch.save(content, path)
        case ".npz":
            np.savez_compressed(path, **{name: tensor.numpy() for name, tensor in content.items()}, note=np.array("a text"))
        case ".safetensors":
            save_file(content, path)
    found = read_foreign(path)
    assert found.format == "tensor"
    assert torch.equal(found.images, IMAGES)
    assert torch.equal(found.labels, ROWS)
    assert found.step_size == pytest.approx(0.3)


def test_a_pair_and_an_array_alone(tmp_path: Path) -> None:
    assert torch.equal(read_foreign(saved([IMAGES, LABELS], tmp_path / "pair.pt")).labels, LABELS)
    np.save(tmp_path / "images.npy", IMAGES.double().numpy())
    found = read_foreign(tmp_path / "images.npy")
    assert (found.format, found.images.dtype, found.labels) == ("tensor", torch.float32, None)


@pytest.mark.parametrize(
    ("given", "dtype", "shape"),
    [
        (torch.arange(60).reshape(1, 3, 4, 5), torch.uint8, (1, 3, 4, 5)),
        (torch.arange(60.0).reshape(1, 3, 4, 5), torch.uint8, (1, 3, 4, 5)),  # pixels that were saved as floats
        (torch.arange(60.0).reshape(1, 3, 4, 5) - 30, torch.float32, (1, 3, 4, 5)),
        (torch.zeros(2, 7, 7), torch.float32, (2, 1, 7, 7)),
        (torch.zeros(2, 1, 7, 7, dtype=torch.float16), torch.float16, (2, 1, 7, 7)),
        (torch.zeros(2, 1, 7, 7, dtype=torch.bfloat16), torch.float32, (2, 1, 7, 7)),
        (torch.zeros(2, 1, 7, 7).to(torch.float8_e4m3fn), torch.float32, (2, 1, 7, 7)),
        (torch.zeros(2, 1, 7, 7).transpose(2, 3), torch.float32, (2, 1, 7, 7)),
    ],
)
def test_how_images_are_taken(tmp_path: Path, given: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    images = read_foreign(saved({"images": given}, tmp_path / "a.pt")).images
    assert (images.dtype, tuple(images.shape)) == (dtype, shape)
    assert images.is_contiguous()


def test_labels_as_floats_and_columns_number_classes(tmp_path: Path) -> None:
    for labels in (LABELS.float(), LABELS[:, None], LABELS.int()):
        assert torch.equal(read_foreign(saved([IMAGES, labels], tmp_path / "a.pt")).labels, LABELS)


def test_a_rate_from_a_file(tmp_path: Path) -> None:
    assert read_rate(saved({"lr": 0.25}, tmp_path / "a.pt")) == 0.25
    with pytest.raises(DataError, match="the learned learning rate of .* is -0.01, wanted one positive number; check it"):
        read_rate(saved(torch.tensor(-0.01), tmp_path / "b.pt"))


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("place", ["data", "beside", "alone"])
def test_nothing_in_a_file_is_run(tmp_path: Path, place: str) -> None:
    payload = Payload(tmp_path / "owned")
    content = {"data": {"data": [[IMAGES, payload]]}, "beside": {"data": [[IMAGES, LABELS]], "more": payload}, "alone": payload}[place]
    path = saved(content, tmp_path / "bad.pt")
    with pytest.raises(DataError) as raised:
        read_foreign(path)
    assert f"holds objects beyond tensors ({os.mkdir.__module__}.mkdir), and rebuilding those would run code that the file names" in str(raised.value)
    assert str(raised.value).endswith("so it is not read; save plain tensors instead: torch.save({'images': images, 'labels': labels}, 'plain.pt')")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(payload))
    with pytest.raises(DataError):
        read_foreign(tmp_path / "raw.pt")
    np.save(tmp_path / "bad.npy", np.array([payload], dtype=object), allow_pickle=True)
    with pytest.raises(
        DataError, match=r"is no readable NumPy file \(it holds pickled objects, which are not read\); save plain arrays with numpy.savez"
    ):
        read_foreign(tmp_path / "bad.npy")
    assert not (tmp_path / "owned").exists()


def test_numpy_arrays_in_a_torch_file_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds objects beyond tensors \(numpy\._?core\.multiarray\._reconstruct\).*save plain tensors instead"):
        read_foreign(saved({"images": IMAGES.numpy()}, tmp_path / "a.pt"))


@pytest.mark.parametrize("suffix", [".pt", ".npz", ".npy", ".safetensors"])
def test_broken_files_are_one_sentence(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"whole{suffix}"
    match suffix:
        case ".pt":
            torch.save({"images": IMAGES, "labels": LABELS}, whole)
        case ".npz":
            np.savez(whole, images=IMAGES.numpy(), labels=LABELS.numpy())
        case ".npy":
            np.save(whole, IMAGES.numpy())
        case ".safetensors":
            save_file({"images": IMAGES}, whole)
    content = whole.read_bytes()
    for number, broken in enumerate((b"", b"not a file", content[: len(content) // 2], content[:40])):
        path = tmp_path / f"{number}{suffix}"
        path.write_bytes(broken)
        with pytest.raises(DataError) as raised:
            read_foreign(path)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"images": IMAGES.permute(0, 2, 3, 1)}, r"have shape \[6, 4, 5, 3\], which looks like \[N, H, W, C\], wanted \[N, C, H, W\]; permute them"),
        ({"images": IMAGES[0, 0]}, r"have shape \[4, 5\], wanted \[N, C, H, W\] with at least one image; reshape them"),
        ({"images": IMAGES[:0]}, r"have shape \[0, 3, 4, 5\], wanted"),
        ({"images": IMAGES / 0}, "hold values that are not finite; the run that made them diverged: use an earlier one"),
        ({"images": IMAGES.long() - 300}, r"are int64 from -30\d to -29\d, wanted whole numbers 0 to 255, or fractions; rescale them"),
        ({"images": IMAGES > 0}, "are bool from 0 to 1, wanted"),
        ({"images": IMAGES.to(torch.complex64)}, "are no plain dense real tensor"),
        ({"images": IMAGES.to_sparse()}, "are no plain dense real tensor"),
        ({"images": torch.zeros(1).expand(10**9, 3, 32, 32)}, "claim 3072000000000 values but store fewer; save them with .contiguous()"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "has 6 images but 5 labels; give one label for each image"),
        ({"images": IMAGES, "labels": ROWS[None]}, r"labels of .* have shape \[1, 6, 3\], wanted class numbers \[N\] or rows \[N, K\]; reshape them"),
        ({"images": IMAGES, "labels": LABELS + 0.5}, "are float32 that number no classes"),
        ({"images": IMAGES, "labels": ROWS.log() * torch.inf}, "labels of .* hold values that are not finite"),
        ({"images": IMAGES, "labels": "cat"}, "labels of .* have type str, wanted a tensor"),
        ({"pixels": IMAGES}, "holds 'pixels', wanted images under one of the names images, image, "),
        ({"data": [[IMAGES]]}, "is no file of DC, DSA or DM: wanted a dict whose 'data' is a list of"),
        ("text", "images of .* have type str, wanted a tensor"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    path = saved(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match=sentence) as raised:
        read_foreign(path)
    assert "\n" not in str(raised.value)


def test_a_format_that_is_asked_for_and_is_not_there(tmp_path: Path) -> None:
    path = saved(IMAGES, tmp_path / "a.pt")
    for kind, sentence in {
        "dc": "is no file of DC, DSA or DM: ",
        "sre2l": "is a file, wanted a folder with one sub-folder of pictures per class",
        "mmt": "unknown format 'mmt'; did you mean 'mtt'?",
    }.items():
        with pytest.raises(DataError, match=sentence):
            read_foreign(path, kind)
    with pytest.raises(DataError, match="is no images file of MTT: wanted one tensor, got a dict"):
        read_foreign(saved({"images": IMAGES}, tmp_path / "b.pt"), "mtt")
    with pytest.raises(DataError, match="is a folder, wanted one file of tensors"):
        read_foreign(tmp_path, "tensor")
    with pytest.raises(DataError, match="holds 2 experiments, 0 to 1, but --experiment asks for 2; use one of these"):
        read_foreign(saved({"data": [[IMAGES, LABELS]] * 2}, tmp_path / "c.pt"), experiment=2)
    assert set(FORMATS) == {"dc", "mtt", "sre2l", "tensor"}


def test_folders_that_hold_no_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither images_\*.pt nor class folders of pictures; name a file in it"):
        read_foreign(tmp_path)
    with pytest.raises(DataError, match="no file or folder at .*; check the path"):
        read_foreign(tmp_path / "nowhere")
    saved(IMAGES, tmp_path / "images_last.pt")
    with pytest.raises(DataError, match=r"has neither images_best.pt nor images_<iteration>.pt; name the images file itself"):
        read_foreign(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"ends in .txt, wanted .pt, .pth, .bin, .tar, .npz, .npy, .safetensors or a folder"):
        read_foreign(tmp_path / "notes.txt")


def test_pictures_that_do_not_fit_together(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a", ["new0", "new1"])
    Image.fromarray(np.zeros((7, 6, 3), np.uint8)).save(root / "new1" / "z.png")
    with pytest.raises(DataError, match=r"pictures differ in size: .* is 6 x 6 and .*z.png' is 6 x 7 \(width x height\); bring them to one size"):
        read_foreign(root)
    (root / "new1" / "z.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"corrupt picture .*z.png' \(not a readable image\); mend or remove it"):
        read_foreign(root)
    with pytest.raises(DataError, match="two class folders of .* have the same number; merge them, or name each after its class"):
        read_foreign(pictures(tmp_path / "b", ["new1", "new01"]))
    with pytest.raises(DataError, match="has 2 class folders for 3 classes, and their names tell no numbers; name each after its class"):
        read_foreign(pictures(tmp_path / "c", ["x", "y"]), classes=("a", "b", "c"))


def test_a_limbeck_file_needs_no_import(tmp_path: Path) -> None:
    from tests.small import distilled, gaussians

    distilled(gaussians(2)).save(tmp_path / "ours.safetensors")
    with pytest.raises(DataError, match="is a limbeck file already; evaluate it as it is"):
        read_foreign(tmp_path / "ours.safetensors")

"""Sets of other programs become limbeck files that evaluate on real data under exactly the pixel space that they were made in."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.cache import Cache
from limbeck.data.opening import open_source
from limbeck.data.pixels import fit_pixel_space
from limbeck.data.splits import Splits
from limbeck.data.tables import ImageTable
from limbeck.errors import DataError, LimbeckError
from limbeck.progress import Reporter
from limbeck.study.importing import import_set
from limbeck.study.judge import evaluate_file
from limbeck.study.options import EvaluationOptions, ImportOptions
from limbeck.types.distilled import DistilledDataset

OPTIONS = EvaluationOptions(protocol="tiny", students=2)
MEAN, STD = 0.31, 0.37
NETWORK = f"network:mean={MEAN},std={STD}"


class Listening(Reporter):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def note(self, message: str) -> None:
        self.heard.append(message)


@pytest.fixture(scope="module")
def train() -> ImageTable:
    return Splits.make(open_source("digits"), seed=0).train


@pytest.fixture(scope="module")
def real(train: ImageTable) -> tuple[torch.Tensor, torch.Tensor]:
    """Two digits of each class: pixels uint8 and class numbers."""
    chosen = [int(index) for number in range(10) for index in np.flatnonzero(train.labels == number)[:2]]
    return train.read(chosen), torch.from_numpy(train.labels[chosen])


def made(real: tuple[torch.Tensor, torch.Tensor], folder: Path, **options: Any) -> DistilledDataset:
    """The digits as DC would save them, imported."""
    images = (real[0].float() / 255 - MEAN) / STD
    torch.save({"data": [[images, real[1]]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, folder / "res_DC.pt")
    given = {"pixel_space": NETWORK, "source": "digits", "model": "mlp:width=16", "protocol": "tiny"}
    return import_set(folder / "res_DC.pt", ImportOptions(**{**given, **options}), folder / "set.safetensors")


def test_an_imported_set_evaluates_end_to_end_like_the_same_set_of_pixels(real: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    """Students see the same numbers, on train and on test, whether the images were stored as pixels or as network inputs."""
    dataset = made(real, tmp_path)
    assert (dataset.pixels.stored, dataset.pixels.header()["steps"], dataset.labels.kind) == ("network", ["standardize"], "hard")
    torch.save({"images": real[0], "labels": real[1]}, tmp_path / "pixels.pt")
    given = {"pixel_space": NETWORK, "source": "digits", "model": "mlp:width=16", "protocol": "tiny"}
    pixels = import_set(tmp_path / "pixels.pt", ImportOptions(**given), tmp_path / "pixels.safetensors")
    assert (pixels.pixels.stored, pixels.images.dtype) == ("raw", torch.uint8)
    torch.testing.assert_close(pixels.inputs(), dataset.inputs())

    first, second = (evaluate_file(tmp_path / name, OPTIONS, cache=Cache(tmp_path / name[0])) for name in ("set.safetensors", "pixels.safetensors"))
    assert [row["role"] for row in first["evaluations"]] == ["distilled", "random-hard"]
    np.testing.assert_allclose(first["evaluations"][0]["loss"], second["evaluations"][0]["loss"], rtol=1e-4)
    assert first["evaluations"][1]["accuracy"] == second["evaluations"][1]["accuracy"]
    assert first["method"] == "imported (dc)"


def test_the_record_of_where_it_came_from(real: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    dataset = made(real, tmp_path, made_by="DC, digits, 2 images per class")
    again = DistilledDataset.load(tmp_path / "set.safetensors")
    assert again.digest == dataset.digest
    assert again.provenance["method"] == "DC, digits, 2 images per class"
    assert again.provenance["imported"] == {
        "format": "dc",
        "files": {"res_DC.pt": hashlib.sha256((tmp_path / "res_DC.pt").read_bytes()).hexdigest()},
        "experiment": 0,
        "pixel_space": {"spec": NETWORK},
        "labels": "class numbers",
    }
    assert again.architecture == {"name": "mlp", "options": {"width": 16, "depth": 2}}
    assert again.classes == tuple(str(number) for number in range(10))
    assert str(tmp_path) not in str(dict(again.provenance))


def colored(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def imported(content: Any, folder: Path, reporter: Reporter | None = None, **options: Any) -> DistilledDataset:
    folder.mkdir(exist_ok=True)
    torch.save(content, folder / "set.pt")
    given = ImportOptions(**{"pixel_space": "normalize:cifar10", "classes": "cat,dog", **options})
    return import_set(folder / "set.pt", given, folder / "out.safetensors", reporter=reporter or Listening())


def test_published_constants_and_a_learned_rate(tmp_path: Path) -> None:
    dataset = imported({"images": colored(), "labels": torch.tensor([0, 0, 1, 1]), "lr": 0.02}, tmp_path)
    step = dataset.pixels.steps[0]
    assert step.std.tolist() == pytest.approx([0.2023, 0.1994, 0.2010])
    assert "MTT" in dataset.provenance["imported"]["pixel_space"]["used_by"]
    assert dataset.step_size == pytest.approx(0.02)
    assert torch.equal(dataset.images, colored())
    gray = torch.full((1, 3, 8, 8), 128, dtype=torch.uint8)
    assert dataset.pixels(gray)[0, 0, 0, 0].item() == pytest.approx((128 / 255 - 0.4914) / 0.2023, rel=1e-5)
    assert imported(colored(), tmp_path, step_size="0.5").step_size == 0.5
    torch.save(torch.tensor(0.25), tmp_path / "lr_best.pt")
    assert imported(colored(), tmp_path, step_size=str(tmp_path / "lr_best.pt")).step_size == 0.25


def test_images_without_labels_lie_in_the_order_of_classes(tmp_path: Path) -> None:
    reporter = Listening()
    dataset = imported(colored(6), tmp_path, reporter)
    assert dataset.owners.tolist() == [0, 0, 0, 1, 1, 1]
    assert reporter.heard == ["the file has no labels: images were taken to lie in the order of their classes, 3 each"]


def test_soft_labels(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 3.0], [0.0, 0.5]])
    rows = logits.softmax(1)
    dataset = imported([colored(), rows], tmp_path)
    assert dataset.labels.kind == "probability"
    assert dataset.owners.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(dataset.targets(), rows)
    tempered = imported([colored(), logits], tmp_path, label_kind="logit", temperature=2.0)
    torch.testing.assert_close(tempered.targets(), (logits / 2).softmax(1))
    assert (tempered.labels.kind, tempered.labels.temperature) == ("probability", 2.0)
    torch.testing.assert_close(imported([colored(), rows.log()], tmp_path, label_kind="log-probability").targets(), rows)
    free = imported([colored(), 1.7 * rows], tmp_path, label_kind="free")
    assert free.labels.kind == "free"
    torch.testing.assert_close(free.targets(), 1.7 * rows)
    truncated = imported([colored(), rows * (rows > 0.5)], tmp_path, label_kind="probability")
    torch.testing.assert_close(truncated.targets(), rows * (rows > 0.5))
    hard = imported([colored(), (rows > 0.5).float()], tmp_path)
    assert (hard.labels.kind, hard.provenance["imported"]["labels"]) == ("hard", "one-hot rows")


def test_pictures_in_class_folders(tmp_path: Path) -> None:
    for number in (0, 1):
        for index in range(5):
            (tmp_path / "sre" / f"new{number:03d}").mkdir(parents=True, exist_ok=True)
            array = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / "sre" / f"new{number:03d}" / f"class{number:03d}_id{index:03d}.jpg")
    given = ImportOptions(pixel_space="normalize:imagenet", classes="2")
    dataset = import_set(tmp_path / "sre", given, tmp_path / "out.safetensors")
    assert (dataset.images.dtype, dataset.pixels.stored, dataset.owners.tolist()) == (torch.uint8, "raw", [0] * 5 + [1] * 5)
    files = dataset.provenance["imported"]["files"]
    assert files["count"] == 10
    assert len(files["sre"]) == 64


def test_whitening_is_fitted_on_the_users_own_source(train: ImageTable, real: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    everything = Splits.make(open_source("digits"), seed=0, validation=0).train
    space = fit_pixel_space("zca-mtt", everything)
    torch.save([space(real[0]), real[1]], tmp_path / "zca.pt")
    for spec, source in (("zca-mtt:digits", None), ("zca-mtt", "digits")):
        options = ImportOptions(pixel_space=spec, source=source, classes="10")
        dataset = import_set(tmp_path / "zca.pt", options, tmp_path / "out.safetensors")
        assert (dataset.pixels.stored, dataset.pixels.header()["steps"]) == ("network", ["whiten"])
        torch.testing.assert_close(dataset.pixels(real[0]), dataset.images, rtol=1e-4, atol=1e-4)
        assert dataset.provenance["imported"]["pixel_space"]["fitted_on"] == everything.digest
    shown = dataset.pixels.to_pixels(dataset.images)
    torch.testing.assert_close(shown, real[0].float() / 255, rtol=0, atol=1e-3)


def test_pixels_as_fractions(tmp_path: Path) -> None:
    fractions = colored().sigmoid()
    raw = imported(fractions, tmp_path, pixel_space="raw")
    assert (raw.pixels.stored, raw.pixels.steps) == ("raw", ())
    asked = imported(fractions, tmp_path, stored="raw")
    assert asked.pixels.stored == "raw"
    torch.testing.assert_close(asked.inputs()[:, 0], (fractions[:, 0] - 0.4914) / 0.2023)
    reporter = Listening()
    assert imported(fractions, tmp_path, reporter).pixels.stored == "network"
    assert (
        "every value lies in [0, 1], as those of pixels do; if these images are pixels that students should see normalized, add --stored raw"
        in reporter.heard
    )


def test_classes_by_number_file_name_and_source(tmp_path: Path) -> None:
    labels = torch.arange(4) % 2
    (tmp_path / "names.txt").write_text("first one\n\nsecond\n")
    assert imported([colored(), labels], tmp_path, classes="2").classes == ("0", "1")
    assert imported([colored(), labels], tmp_path, classes=str(tmp_path / "names.txt")).classes == ("first one", "second")
    assert imported([colored(), labels], tmp_path, classes="cifar10").classes[9] == "truck"
    reporter = Listening()
    assert imported([colored(), labels], tmp_path, reporter, classes=None).classes == ("0", "1")
    assert "classes were numbered 0 to 1; --classes or --source name them, which evaluating on a source with names needs" in reporter.heard


@pytest.mark.parametrize("text", ["network:mean=0.1,0.2,0.3,std=1,2,3", "network: mean=0.1/0.2/0.3, std=1/2/3", "network:mean=0.1 0.2 0.3;std=1 2 3"])
def test_ways_to_write_a_normalization(tmp_path: Path, text: str) -> None:
    step = imported(colored(), tmp_path, pixel_space=text.replace("network: ", "network:")).pixels.steps[0]
    assert step.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert step.std.tolist() == [1, 2, 3]


LABELS = torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(
    ("content", "options", "sentence"),
    [
        (
            colored(),
            {"pixel_space": None},
            "--pixel-space is needed, since no file of another program says how its images are to be read; use raw, normalize:NAME",
        ),
        (colored(), {"pixel_space": "raw"}, r"the images run from -\S+ to \S+, but pixels \(raw\) lie in \[0, 1\]; name their normalization"),
        (colored(), {"stored": "raw"}, r"but pixels \(--stored raw\) lie in \[0, 1\]"),
        (colored(), {"pixel_space": "normalize:cifar"}, "no published normalization is named 'cifar'; did you mean 'cifar10'?"),
        (colored(), {"pixel_space": "normalize:mnist"}, r"normalize:mnist is for 1 channel\(s\), but the images have 3; use another normalization"),
        (colored(), {"pixel_space": "network:mean=0.5"}, "network: needs a mean and a positive deviation for all 3"),
        (colored(), {"pixel_space": "network:mean=1..2,std=1"}, "network: needs a mean and a positive deviation for all 3"),
        (colored(), {"pixel_space": "network:mean=0.5,std=0"}, "network: needs a mean and a positive deviation for all 3"),
        (colored(), {"pixel_space": "network:mean=0.5,0.5,std=1,1"}, "network: needs a mean and a positive deviation for all 3"),
        (colored(), {"pixel_space": "zca-mtt"}, "zca-mtt is fitted on real images, got none; write zca-mtt:SOURCE, or name the source with --source"),
        (colored(), {"pixel_space": "zca-mtt:digits"}, "the pixel space whitens 64 values, but the images have 192; use images of the same size"),
        (colored(), {"pixel_space": "zca:digits"}, "unknown pixel space 'zca:digits'; "),
        (colored(), {"source": "digits"}, "the set's images are 3x8x8 but those of digits are 1x8x8; name the source that it was made from"),
        (colored().to(torch.uint8), {"stored": "network"}, "--stored network is for fractions, but these images are whole numbers 0 to 255"),
        (
            colored(),
            {"classes": "3"},
            "the file has no labels, and 4 images are no equal number for each of 3 classes; give the labels with --labels FILE",
        ),
        (colored(), {"classes": None}, "neither labels nor the number of classes are known; use --labels FILE, and --classes or --source"),
        (
            [colored(), LABELS + 10**12],
            {"classes": None},
            "labels number 1000000000002 classes, more than 100000; check the labels, or name the classes",
        ),
        (colored(), {"classes": "1000000000000"}, "--classes needs at least 2 names, all different, got '1000000000000'"),
        (colored(), {"classes": "cat"}, "--classes needs at least 2 names, all different, got 'cat'"),
        (colored(), {"classes": "cat,cat"}, "--classes needs at least 2 names, all different, got 'cat,cat'"),
        ([colored(), LABELS * 2], {}, "labels need 0 <= label < 2 classes, got 2; mend --classes or the labels"),
        ([colored(), LABELS - 1], {}, "labels need 0 <= label < 2 classes, got -1; mend --classes or the labels"),
        ([colored(), torch.rand(4, 3)], {}, "label rows have 3 entries but there are 2 classes; mend --classes or the labels"),
        (
            [colored(), torch.full((4, 2), 0.9)],
            {},
            "label rows have entries from 0.9 to 0.9 and sums from 1.8 to 1.8, so they are no probabilities; say what",
        ),
        ([colored(), colored()[:, 0, 0, :2]], {"label_kind": "probability"}, "a label row has the entry -.*, and no probability is negative"),
        (
            colored(),
            {"step_size": "-1"},
            "--step-size needs a positive learning rate or a file that holds one, got '-1'; leave it out if none was learned",
        ),
        (colored(), {"step_size": "missing.pt"}, "no file at 'missing.pt'; check the path"),
        (colored(), {"model": "convnett"}, "unknown model 'convnett'; did you mean 'convnet'?"),
        (colored(), {"protocol": "dcc"}, "unknown protocol 'dcc'; did you mean 'dc'"),
        ({"images": LABELS.bool()}, {}, "wanted"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence_and_writes_nothing(tmp_path: Path, content: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LimbeckError, match=sentence) as raised:
        imported(content, tmp_path, **options)
    assert "\n" not in str(raised.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set.pt"]


def test_the_original_is_never_overwritten(tmp_path: Path) -> None:
    torch.save(colored(), tmp_path / "set.pt")
    before = (tmp_path / "set.pt").read_bytes()
    with pytest.raises(LimbeckError, match="the result would overwrite .* itself; give another place with --out"):
        import_set(tmp_path / "set.pt", ImportOptions(pixel_space="normalize:cifar10", classes="2"), tmp_path / "set.pt")
    assert (tmp_path / "set.pt").read_bytes() == before


def test_pixels_saved_as_floats_are_pixels(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(imported(pixels.float(), tmp_path, pixel_space="raw").images, pixels)
    with pytest.raises(DataError, match=r"run from 0.5 to 24\d, but pixels \(raw\) lie in \[0, 1\]; divide them by 255 if they are pixels$"):
        imported(torch.linspace(0.5, 245, 4 * 192).reshape(4, 3, 8, 8), tmp_path, pixel_space="raw")


def test_images_far_from_what_real_ones_will_be_are_noted(tmp_path: Path) -> None:
    for images, space, noted in (
        (100 * colored(), "network:mean=0,std=1", True),
        (colored(), "normalize:cifar10", False),
        (3 * colored(), "normalize:cifar10", False),
    ):
        heard = Listening()
        imported(images, tmp_path, heard, pixel_space=space)
        assert any("real images will run from" in note for note in heard.heard) == noted

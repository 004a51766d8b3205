"""Views against a reference that takes one image at a time, replayed in every way that a training loop may ask for them; and the crop that they use."""

import math
import random

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.utils.data import DataLoader

from limbeck.data.augment import ResizedCrop, enlarge, parse_augment
from limbeck.data.pixels import normalize
from limbeck.data.views import LabeledViews, ReplayDataset, Views, split_mixing
from limbeck.errors import FileFormatError, OptionError
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels

SHAPE = (2, 9, 6)
TEXTS = [
    "resized_crop+flip+cutmix",
    "crop_flip+cutmix:alpha=0.5",
    "crop_flip:pad=2+mixup:alpha=0.8",
    "cutmix",
    "dsa:siamese=true",
    "resized_crop:scale=0.5",
    "none",
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=seeded(7))


IMAGES = noise(11, *SHAPE)


def views(text: str = TEXTS[0], seed: int = 3, count: int = 11, shape: tuple[int, int, int] = SHAPE) -> Views:
    return Views(text, 5, seed, count, shape)


def shown(made: Views, numbers: list[int], view: int) -> torch.Tensor:
    return made.images(lambda rows: IMAGES[rows], torch.tensor(numbers, dtype=torch.int64), view)


def set_with_views(views_count: int = 3) -> DistilledDataset:
    table = gaussians(6)
    made = Views("resized_crop+flip+cutmix", views_count, 5, len(table), table.shape)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(views_count, len(table), 2))).float()
    return distilled(table, Labels(2, "logit", logits), pixels=normalize(table), views=made.spec)


def reference(made: Views, number: int, view: int) -> torch.Tensor:
    """One image of ``resized_crop+flip+cutmix``, step by step."""
    plain, mixing = made.draw(view)

    def alone(i: int) -> torch.Tensor:
        top, bottom, left, right = plain["0.part"][i].tolist()
        part = F.interpolate(IMAGES[i : i + 1, :, top:bottom, left:right], SHAPE[1:], mode="bilinear", align_corners=False)[0]
        return part.flip(2) if plain["1.flip"][i] else part

    image, partner = alone(number), alone(int(mixing["partner"][number]))
    top, bottom, left, right = mixing["box"][number].tolist()
    image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return image


def test_every_view_is_the_references() -> None:
    made = views()
    for view in range(5):
        for number, image in enumerate(shown(made, list(range(11)), view)):
            torch.testing.assert_close(image, reference(made, number, view), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_batch_size_order_and_repeats_change_nothing(text: str) -> None:
    whole = {view: shown(views(text), list(range(11)), view) for view in range(3)}
    for view in (2, 0, 1):
        alone = views(text)
        for number in (10, 3, 0):
            assert torch.equal(shown(alone, [number], view)[0], whole[view][number])
        assert torch.equal(shown(alone, [4, 9, 9, 1, 4], view), whole[view][[4, 9, 9, 1, 4]])
    assert shown(views(text), [], 0).shape == (0, *SHAPE)


def test_views_and_seeds_differ_and_spare_the_images() -> None:
    before = IMAGES.clone()
    pictures = [shown(views(seed=seed), list(range(11)), view) for seed, view in ((3, 0), (3, 1), (4, 0))]
    assert not any(torch.equal(pictures[a], pictures[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(IMAGES, before)
    assert torch.equal(shown(views("none"), [2, 5], 4), IMAGES[[2, 5]])


def test_partners_are_drawn_from_the_whole_set() -> None:
    made = views("cutmix")
    partners = torch.cat([made.draw(view)[1]["partner"] for view in range(200)])
    counts = torch.bincount(partners, minlength=11).double()
    assert ((counts - 200).abs() < 5 * math.sqrt(200)).all()


def test_the_share_that_is_kept_is_uniform_for_alpha_one_and_beta_otherwise() -> None:
    for text, variance in (("mixup:alpha=1", 1 / 12), ("mixup:alpha=0.5", 1 / 8)):
        lam = views(text, count=4000).draw(0)[1]["lam"]
        assert lam.dtype == torch.float64
        assert abs(lam.mean() - 0.5) < 5 * math.sqrt(variance / 4000)
        assert lam.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / 4000))


def test_views_are_those_that_were_recorded() -> None:
    """Files hold labels of these very pictures, so a change of the draws is a change of the format."""
    assert views().spec.fingerprint == "cda33ea8a3bafa9d"
    assert views("crop_flip+cutmix").spec.fingerprint == "04028d5a75e26e66"


def test_labels_of_other_draws_are_refused() -> None:
    spec = views().spec
    again = Views.of(spec, 11, SHAPE)
    assert torch.equal(shown(again, [1, 8], 4), shown(views(), [1, 8], 4))
    for count, shape in ((12, SHAPE), (11, (2, 9, 7))):
        with pytest.raises(
            FileFormatError, match="^the labels of these views belong to other pictures than limbeck draws here with PyTorch .*versions"
        ):
            Views.of(spec, count, shape)


def test_an_image_is_mixed_once_and_last() -> None:
    assert split_mixing("none") == (None, None)
    assert tuple(map(str, split_mixing("crop+flip+mixup"))) == ("crop+flip", "mixup:alpha=0.8")
    assert tuple(map(str, split_mixing("flip"))) == ("flip", "None")
    for text in ("cutmix+flip", "cutmix+mixup"):
        with pytest.raises(
            OptionError, match=r"^a view mixes images at most once, as its last step, got .*; use for example resized_crop\+flip\+cutmix$"
        ):
            split_mixing(text)


def test_views_differentiate_in_the_images() -> None:
    base = noise(3, 1, 4, 5, dtype=torch.float64).requires_grad_()
    made = views(count=3, shape=(1, 4, 5))
    assert gradcheck(lambda images: made.images(lambda rows: images[rows], torch.arange(3), 1), (base,))


# For plain PyTorch


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_same_pairs_with_any_number_of_workers(workers: int) -> None:
    made = set_with_views()
    labeled = LabeledViews.of(made)
    assert labeled is not None
    inputs = made.inputs()
    for epoch in (1, 4):  # three views: epoch 4 shows view 1 again
        replay = ReplayDataset(made, epoch)
        # the loader's seed comes from a generator of its own, so that the global one stays as it is
        loader = DataLoader(replay, batch_size=5, num_workers=workers, shuffle=True, generator=seeded(epoch))
        order = torch.utils.data.RandomSampler(replay, generator=seeded(epoch))
        images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
        expected = labeled.views.images(lambda rows: inputs[rows], torch.arange(12), 1)
        rows = [next(i for i in range(12) if torch.equal(image, expected[i])) for image in images]
        assert sorted(rows) == list(range(12)) == sorted(order)
        assert torch.equal(labels, made.labels.dense()[1].softmax(1)[rows])


def test_a_replay_is_indexed_like_any_dataset() -> None:
    made = set_with_views()
    replay = ReplayDataset(made, epoch=2)
    image, label = replay[7]
    assert (len(replay), image.shape, label.shape) == (12, (1, 8, 8), (2,))
    assert label.sum().item() == pytest.approx(1)
    pairs = replay.__getitems__([7, 0])
    assert torch.equal(pairs[0][0], image)
    assert torch.equal(pairs[0][1], label)


def test_each_kind_of_set_names_the_other_way_to_torch() -> None:
    made = set_with_views()
    with pytest.raises(
        OptionError, match=r"^this set has a label for each augmented view, .*use limbeck.data.views.ReplayDataset\(dataset, epoch=0\)$"
    ):
        made.to_torch()
    with pytest.raises(OptionError, match=r"^this set has one label for each image and no views to replay; use dataset.to_torch\(\)$"):
        ReplayDataset(made.with_hard_labels())
    assert LabeledViews.of(made.with_hard_labels()) is None


# The crop


def test_the_whole_image_as_its_part_is_the_image_itself() -> None:
    whole = torch.tensor([[0, 9, 0, 6]])
    assert torch.equal(enlarge(IMAGES, whole), IMAGES)
    assert torch.equal(enlarge(IMAGES, whole.expand(11, 4)), IMAGES)


def test_a_part_is_enlarged_as_interpolation_does_and_sees_nothing_outside() -> None:
    crop, images = ResizedCrop(), noise(40, 3, 10, 7, dtype=torch.float64)
    params = crop.draw(40, (3, 10, 7), seeded())
    made = crop.apply(images, params)
    for image, out, (top, bottom, left, right) in zip(images, made, params["part"].tolist(), strict=True):
        expected = F.interpolate(image[None, :, top:bottom, left:right], (10, 7), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        assert out.min() >= image[:, top:bottom, left:right].min() - 1e-12


def reference_parts(count: int, height: int, width: int, scale: float) -> list[list[int]]:
    """One part after the other, each drawn again until it fits."""
    rng, parts = random.Random(0), []
    while len(parts) < count:
        area, ratio = height * width * rng.uniform(scale, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if rows <= height and columns <= width:
            top, left = rng.randint(0, height - rows), rng.randint(0, width - columns)
            parts.append([top, top + rows, left, left + columns])
    return parts


def features(parts: torch.Tensor) -> list[torch.Tensor]:
    """Area, logarithm of the ratio, and place of each part."""
    top, bottom, left, right = parts.unbind(1)
    rows, columns = bottom - top, right - left
    return [rows * columns, (columns / rows).log(), top + bottom, left + right]


@pytest.mark.parametrize(("shape", "scale"), [((3, 32, 32), 0.08), ((1, 60, 100), 0.25), ((1, 8, 8), 0.5)])
def test_parts_have_the_drawn_areas_and_ratios(shape: tuple[int, int, int], scale: float) -> None:
    _, height, width = shape
    parts = ResizedCrop(scale).draw(4000, shape, seeded())["part"].double()
    top, bottom, left, right = parts.unbind(1)
    rows, columns = bottom - top, right - left
    assert (top.min(), left.min(), bottom.max(), right.max()) == (0, 0, height, width)
    # rounding moves a side by up to half a pixel
    assert ((rows + 0.5) * (columns + 0.5) >= scale * height * width).all()
    assert ((columns + 0.5) / (rows - 0.5) >= 3 / 4).all()
    assert ((columns - 0.5) / (rows + 0.5) <= 4 / 3).all()
    expected = torch.tensor(reference_parts(4000, height, width, scale)).double()
    for ours, theirs in zip(features(parts), features(expected), strict=True):
        error = math.sqrt((ours.var() + theirs.var()) / 4000)
        assert abs(ours.mean() - theirs.mean()) < 5 * error
        assert (ours.var() / theirs.var()).item() == pytest.approx(1, abs=0.2)


def test_a_part_that_never_fits_is_the_largest_centered_one_of_an_allowed_ratio() -> None:
    parts = ResizedCrop(1.0).draw(50, (1, 32, 32), seeded())["part"]
    assert parts.unique(dim=0).tolist() == [[0, 32, 0, 32]]
    assert ResizedCrop(0.9).draw(50, (1, 10, 100), seeded())["part"].unique(dim=0).tolist() == [[0, 10, 43, 56]]
    assert ResizedCrop(0.9).draw(50, (1, 100, 10), seeded())["part"].unique(dim=0).tolist() == [[43, 56, 0, 10]]


def test_the_crop_differentiates_twice() -> None:
    images = noise(2, 1, 4, 5, dtype=torch.float64).requires_grad_()
    params = ResizedCrop(0.3).draw(2, (1, 4, 5), seeded(2))
    assert gradcheck(lambda x: ResizedCrop().apply(x, params), (images,))
    assert gradgradcheck(lambda x: ResizedCrop().apply(x, params), (images,), (noise(2, 1, 4, 5, dtype=torch.float64).requires_grad_(),))


def test_the_crop_is_written_as_it_is_read() -> None:
    assert parse_augment("resized_crop") == ResizedCrop(0.08)
    assert str(ResizedCrop(0.08)) == "resized_crop"
    assert parse_augment("resized_crop:scale=0.5+flip").steps[0] == ResizedCrop(0.5)  # type: ignore[union-attr]
    for scale in (0, 1.5):
        with pytest.raises(
            OptionError, match=rf"^resized_crop keeps a share of the area of at least 0 < scale <= 1, got scale={float(scale)}; use for"
        ):
            parse_augment(f"resized_crop:scale={scale}")

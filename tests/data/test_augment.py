"""Augmentations against per-image float64 references, their distributions, and the contract of draw and apply."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from limbeck.data.augment import (
    DSA,
    DSA_STRATEGY,
    Chain,
    CutMix,
    Mixup,
    StandardAugment,
    cut_out,
    dsa_strategy_for,
    jitter_color,
    mirror,
    parse_augment,
    rotate,
    shift,
    stretch,
    suited_to,
)
from limbeck.errors import OptionError

TEXTS = ["dsa", "dsa:color_crop", "dsa:crop_rotate,siamese=true,mode=multiple,align_corners=true", "dsa:siamese=true", "crop_flip", "crop", "flip"]
TEXTS += [
    "crop_flip:pad=4",
    "cutmix:alpha=1.0",
    "mixup:alpha=0.8",
    "crop_flip+mixup:alpha=0.8",
    "dsa:mode=multiple",
    "resized_crop",
    "resized_crop:scale=0.5",
]
OPERATIONS = DSA_STRATEGY.split("_")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=seeded(99))


# References: one image [C][H][W] at a time, with explicit loops where the shape allows.


def reference_color(image: Tensor, brightness: float, saturation: float, contrast: float) -> Tensor:
    image = image + brightness
    gray = sum(image) / len(image)
    image = torch.stack([gray + saturation * (channel - gray) for channel in image])
    mean = image.sum() / image.numel()
    return mean + contrast * (image - mean)


def reference_shift(image: Tensor, rows: int, columns: int) -> Tensor:
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            if 0 <= i + rows < height and 0 <= j + columns < width:
                out[:, i, j] = image[:, i + rows, j + columns]
    return out


def reference_cutout(image: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    out = image.clone()
    out[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = 0
    return out


def reference_warp(image: Tensor, matrix: list[list[float]]) -> Tensor:
    """Bilinear sampling at matrix @ (x, y), pixel coordinates from the image center, zero outside."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for i in range(height):
        for j in range(width):
            x, y = j - (width - 1) / 2, i - (height - 1) / 2
            column = matrix[0][0] * x + matrix[0][1] * y + (width - 1) / 2
            row = matrix[1][0] * x + matrix[1][1] * y + (height - 1) / 2
            for r in (math.floor(row), math.floor(row) + 1):
                for c in (math.floor(column), math.floor(column) + 1):
                    if 0 <= r < height and 0 <= c < width:
                        out[:, i, j] += (1 - abs(row - r)) * (1 - abs(column - c)) * image[:, r, c]
    return out


def test_color():
    images, params = noise(4, 3, 6, 5), torch.tensor([[0.3, 0.2, 1.4], [-0.5, 2.0, 0.5], [0.0, 1.0, 1.0], [0.1, 0.0, 0.7]], dtype=torch.float64)
    expected = torch.stack([reference_color(image, *row) for image, row in zip(images, params.tolist(), strict=True)])
    torch.testing.assert_close(jitter_color(images, params), expected, rtol=1e-12, atol=1e-12)


def test_shift():
    images, params = noise(5, 2, 6, 9), torch.tensor([[0, 0], [2, -3], [-1, 4], [6, 0], [-9, -9]])
    expected = torch.stack([reference_shift(image, *row) for image, row in zip(images, params.tolist(), strict=True)])
    assert torch.equal(shift(images, params), expected)


def test_cut_out():
    images, params = noise(4, 2, 6, 9), torch.tensor([[1, 4, 2, 6], [-1, 2, -2, 2], [5, 8, 7, 11], [0, 6, 0, 9]])
    expected = torch.stack([reference_cutout(image, *row) for image, row in zip(images, params.tolist(), strict=True)])
    assert torch.equal(cut_out(images, params), expected)


def test_mirror():
    images = noise(2, 2, 3, 4)
    assert torch.equal(mirror(images, torch.tensor([True, False])), torch.stack([images[0, :, :, [3, 2, 1, 0]], images[1]]))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", [(1, 7, 7), (2, 6, 9)])
def test_stretch(shape, align_corners):
    """About the center the two conventions agree: pixel distances are multiplied by the factors."""
    images, params = noise(3, *shape), torch.tensor([[1.2, 1 / 1.2], [0.9, 1.1], [1.0, 1.0]], dtype=torch.float64)
    expected = torch.stack([reference_warp(image, [[sx, 0], [0, sy]]) for image, (sx, sy) in zip(images, params.tolist(), strict=True)])
    torch.testing.assert_close(stretch(images, params, align_corners), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("shape", [(1, 7, 7), (2, 6, 9)])
def test_rotate(shape, align_corners):
    images, angles = noise(3, *shape), torch.tensor([0.25, -0.13, 0.0], dtype=torch.float64)
    expected = torch.stack(
        [reference_warp(image, [[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for image, a in zip(images, angles.tolist(), strict=True)]
    )
    torch.testing.assert_close(rotate(images, angles, align_corners), expected, rtol=1e-10, atol=1e-10)


def test_a_quarter_turn_is_exact():
    images = noise(1, 2, 5, 5)
    turned = rotate(images, torch.tensor([math.pi / 2], dtype=torch.float64), False)
    torch.testing.assert_close(turned, images.rot90(1, (2, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_round_trip(text):
    assert str(parse_augment(text)) == text
    assert parse_augment(str(parse_augment(text))) == parse_augment(text)


def test_parsed_values():
    assert parse_augment("none") is None
    assert parse_augment("dsa") == DSA(DSA_STRATEGY, siamese=False, mode="single", align_corners=False)
    assert parse_augment("crop_flip") == StandardAugment(crop=True, flip=True, pad=None)
    assert parse_augment("crop_flip+mixup") == Chain((StandardAugment(), Mixup(0.8)))
    assert parse_augment("cutmix") == CutMix(1.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("dsaa", "unknown augmentation 'dsaa'; did you mean 'dsa'? known: crop, crop_flip, cutmix, dsa, flip, mixup, none, resized_crop"),
        (
            "dsa:colour_crop",
            "unknown operation 'colour' in DSA strategy 'colour_crop'; did you mean 'color'? known: color, crop, cutout, flip, rotate, scale",
        ),
        ("dsa:crop_crop", "DSA strategy 'crop_crop' names an operation twice; name each once"),
        ("dsa:mode=all", "DSA applies a single operation per batch or multiple, got mode='all'; use single or multiple"),
        ("dsa:siamese=perhaps", "option siamese of augmentation dsa is true or false, got 'perhaps'; write dsa:siamese=VALUE"),
        ("crop_flip:pad=x", "option pad of augmentation crop_flip is a whole number, got 'x'; write crop_flip:pad=VALUE"),
        ("crop_flip:pad=-1", "pad is the crop's number of pixels >= 0, got pad=-1 with crop=True; leave it out or use a crop"),
        ("flip:pad=1", "augmentation flip has no option 'pad'; it takes none"),
        ("mixup:alpha=0", "mixup draws its share from Beta(alpha, alpha) with alpha > 0, got alpha=0.0; use for example 1"),
        ("mixup:alpha=1,alpha=2", "augmentation 'mixup:alpha=1,alpha=2' gives alpha twice; give it once"),
    ],
)
def test_unreadable_texts(text, sentence):
    with pytest.raises(OptionError) as raised:
        parse_augment(text)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (5, 3, 16, 32), (2, 1, 28, 28)])
def test_the_generator_alone_determines_the_result(text, shape):
    augment, images = parse_augment(text), noise(*shape, dtype=torch.float32)
    before = torch.get_rng_state()
    first, again = augment(images, seeded(3)), augment(images, seeded(3))
    params = augment.draw(shape[0], shape[1:], seeded(3))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert torch.equal(first, augment.apply(images, params))
    assert first.shape == images.shape
    assert first.dtype == images.dtype
    assert all(value.device.type == "cpu" for value in params.values())


def test_other_seeds_give_other_results():
    images = noise(8, 3, 32, 32, dtype=torch.float32)
    for text in TEXTS:
        assert len({parse_augment(text)(images, seeded(seed)).sum().item() for seed in range(6)}) > 1, text


def test_single_mode_draws_one_operation_uniformly():
    augment, generator = DSA(), seeded()
    counts = dict.fromkeys(OPERATIONS, 0)
    for _ in range(1200):
        (operation,) = augment.draw(2, (1, 8, 8), generator)
        counts[operation] += 1
    # Each count is binomial(1200, 1/6): mean 200, standard deviation 12.9; five of them.
    assert all(abs(count - 200) < 65 for count in counts.values()), counts


def test_multiple_mode_applies_all_in_the_strategys_order():
    images, augment = noise(3, 3, 8, 8), DSA("cutout_color", mode="multiple")
    params = augment.draw(3, (3, 8, 8), seeded())
    assert list(params) == ["cutout", "color"]
    torch.testing.assert_close(augment.apply(images, params), jitter_color(cut_out(images, params["cutout"]), params["color"]))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_siamese_shares_one_set_of_parameters(operation):
    image = noise(1, 3, 16, 16, dtype=torch.float32)
    batch = image.expand(6, -1, -1, -1).contiguous()
    shared = DSA(operation, siamese=True)(batch, seeded(1))
    torch.testing.assert_close(shared, shared[:1].expand_as(shared), rtol=0, atol=1e-6)
    separate = DSA(operation)(batch, seeded(1))
    assert (separate - separate[:1]).abs().max() > 0.01


@pytest.mark.parametrize("operation", OPERATIONS)
def test_shared_parameters_apply_to_batches_of_any_size(operation):
    """The Siamese use: the same draw on a large real and a small synthetic batch."""
    augment, real = DSA(operation, siamese=True), noise(7, 3, 16, 16)
    params = augment.draw(7, (3, 16, 16), seeded(5))
    torch.testing.assert_close(augment.apply(real[:2], params), augment.apply(real, params)[:2], rtol=1e-12, atol=1e-12)


def test_parameters_for_another_batch_size_are_refused():
    params = DSA("flip").draw(3, (1, 4, 4), seeded())
    with pytest.raises(OptionError) as raised:
        DSA("flip").apply(noise(5, 1, 4, 4), params)
    assert str(raised.value) == "parameters of flip were drawn for 3 images, got 5 images; draw them for that many or for 1, to be shared"
    with pytest.raises(OptionError, match=r"^the batch was mixed by a permutation of 3, got 5 rows; draw parameters for that batch size$"):
        Mixup().apply(noise(5, 1, 4, 4), Mixup().draw(3, (1, 4, 4), seeded()))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradients(operation):
    augment, images = DSA(operation), noise(2, 3, 5, 6).requires_grad_()
    params = augment.draw(2, (3, 5, 6), seeded(2))
    assert gradcheck(lambda x: augment.apply(x, params), (images,))
    if operation not in ("scale", "rotate"):
        assert gradgradcheck(lambda x: augment.apply(x, params), (images,), (noise(2, 3, 5, 6).requires_grad_(),))


@pytest.mark.parametrize("text", ["crop_flip", "cutmix", "mixup"])
def test_gradients_of_the_others(text):
    augment, images = parse_augment(text), noise(3, 1, 5, 6).requires_grad_()
    params = augment.draw(3, (1, 5, 6), seeded(2))
    assert gradcheck(lambda x: augment.apply(x, params), (images,))


def drawn(operation: str, shape: tuple[int, int, int] = (3, 32, 16), count: int = 6000) -> Tensor:
    return DSA(operation).draw(count, shape, seeded())[operation]


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    """Range, and mean and variance within five standard errors (the fourth central moment of U(0, 1) is 1/80)."""
    values = (values.double() - low) / (high - low)
    assert values.min() >= 0
    assert values.max() <= 1
    assert abs(values.mean() - 0.5) < 5 * math.sqrt(1 / 12 / len(values))
    assert abs(values.var() - 1 / 12) < 5 * math.sqrt((1 / 80 - 1 / 144) / len(values))


def assert_counts_even(values: Tensor, support: range) -> None:
    counts = torch.stack([(values == value).sum() for value in support]).double()
    assert counts.sum() == len(values)
    expected = len(values) / len(support)
    assert ((counts - expected).abs() < 5 * math.sqrt(expected)).all()


def test_distributions_of_continuous_parameters():
    color, scale, angle = drawn("color"), drawn("scale"), drawn("rotate")
    for column, (low, high) in zip(color.unbind(1), [(-0.5, 0.5), (0, 2), (0.5, 1.5)], strict=True):
        assert_uniform(column, low, high)
    for column in scale.unbind(1):
        assert_uniform(column, 1 / 1.2, 1.2)
    assert_uniform(angle, -math.radians(15), math.radians(15))
    assert abs(torch.corrcoef(scale.T)[0, 1]) < 5 / math.sqrt(len(scale))
    assert abs(drawn("flip").double().mean() - 0.5) < 5 * 0.5 / math.sqrt(6000)


def test_crop_shifts_are_even_integers_up_to_an_eighth_of_each_side():
    rows, columns = drawn("crop").unbind(1)
    assert_counts_even(rows, range(-4, 5))
    assert_counts_even(columns, range(-2, 3))
    assert drawn("crop", (1, 64, 28)).amax(0).tolist() == [8, 4]
    assert drawn("crop", (1, 8, 3)).amax(0).tolist() == [1, 0]


@pytest.mark.parametrize(("side", "length", "starts"), [(8, 4, range(-2, 7)), (7, 4, range(-2, 6)), (6, 3, range(-1, 5)), (32, 16, range(-8, 25))])
def test_cutout_is_half_the_side_with_an_even_center(side, length, starts):
    top, bottom, left, right = drawn("cutout", (1, side, side)).unbind(1)
    assert (bottom - top == length).all()
    assert (right - left == length).all()
    assert_counts_even(top, starts)
    assert_counts_even(left, starts)


def test_standard_augmentation_is_a_window_of_the_padded_image():
    augment, images = StandardAugment(pad=2), noise(40, 2, 5, 7)
    params = augment.draw(40, (2, 5, 7), seeded())
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for out, image, (row, column), flipped in zip(
        augment.apply(images, params), padded, params["crop"].tolist(), params["flip"].tolist(), strict=True
    ):
        window = image[:, 2 + row : 7 + row, 2 + column : 9 + column]
        assert torch.equal(out, window.flip(2) if flipped else window)
    assert sorted(params["crop"].unique().tolist()) == [-2, -1, 0, 1, 2]


def test_cutmix_pastes_a_box_of_the_partner_and_reports_its_area():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 2, 8, 12).contiguous()
    labels = torch.eye(6)
    for seed in range(20):
        params = CutMix().draw(6, (2, 8, 12), seeded(seed))
        top, bottom, left, right = params["box"][0].tolist()
        expected = images.clone()
        expected[:, :, top:bottom, left:right] = images[params["partner"], :, top:bottom, left:right]
        mixed = CutMix().apply(images, params)
        assert torch.equal(mixed, expected)
        assert params["lam"].item() == pytest.approx(1 - (bottom - top) * (right - left) / 96, abs=1e-6)
        # Each image's mean value is the area-weighted mean of the two sources' values, and so is the mixed label's.
        torch.testing.assert_close(CutMix().mix_labels(labels, params) @ torch.arange(6.0), mixed.mean((1, 2, 3)))


def test_mixup_blends_images_and_labels_alike():
    images, labels = noise(5, 1, 3, 3), torch.eye(5, dtype=torch.float64)
    params = Mixup(0.8).draw(5, (1, 3, 3), seeded(4))
    lam, partner = params["lam"].double(), params["partner"]
    torch.testing.assert_close(Mixup().apply(images, params), lam * images + (1 - lam) * images[partner])
    torch.testing.assert_close(Mixup().mix_labels(labels, params), lam * labels + (1 - lam) * labels[partner])


@pytest.mark.parametrize("alpha", [0.8, 1.0, 4.0])
def test_mixing_share_is_beta_distributed(alpha):
    generator, count = seeded(), 2000
    shares = torch.cat([Mixup(alpha).draw(1, (1, 2, 2), generator)["lam"] for _ in range(count)]).double()
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * math.sqrt(variance / count)
    # Beta(a, a) is flatter than a normal distribution, whose variance estimate has relative standard error sqrt(2/n).
    assert shares.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))


def test_labels_stay_where_nothing_is_mixed_and_follow_a_chain():
    labels = torch.eye(4)
    assert torch.equal(DSA().mix_labels(labels, {}), labels)
    chain = parse_augment("crop_flip+mixup")
    params = chain.draw(4, (1, 8, 8), seeded())
    assert sorted(params) == ["0.crop", "0.flip", "1.lam", "1.partner"]
    torch.testing.assert_close(chain.mix_labels(labels, params), Mixup().mix_labels(labels, {"partner": params["1.partner"], "lam": params["1.lam"]}))


def test_dsa_strategy_by_source():
    without = "color_crop_cutout_scale_rotate"
    assert {name: dsa_strategy_for(name) for name in ("mnist", "svhn", "digits", "composed:fashion-mnist")} == dict.fromkeys(
        ("mnist", "svhn", "digits", "composed:fashion-mnist"), without
    )
    assert dsa_strategy_for("fashion-mnist") == dsa_strategy_for("cifar10") == DSA_STRATEGY


@pytest.mark.parametrize("source", ["digits", "planted:invert:digits", "planted:tint=0.1:composed:fashion-mnist"])
def test_what_changes_the_classes_of_a_source_is_left_out_wherever_the_source_is_named(source: str) -> None:
    assert suited_to("dsa:color_flip_crop", source) == suited_to("dsa:color_flip_crop", "digits") != "dsa:color_flip_crop"
    assert suited_to("dsa:color_flip_crop", "planted:invert:fashion-mnist") == "dsa:color_flip_crop"

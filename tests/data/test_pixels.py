"""Each definition of section "ZCA: three incompatible definitions" is recomputed here in dense NumPy float64, from its words."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from limbeck.data.pixels import PIXEL_SPACES, fit_pixel_space, normalize, zca_frepo, zca_kip, zca_mtt
from limbeck.data.tables import ArrayTable
from limbeck.errors import OptionError


def table(count: int = 60, shape: tuple[int, int, int] = (3, 4, 4), seed: int = 0) -> ArrayTable:
    """Correlated pixels: a few smooth patterns, mixed at random, plus noise; bright, so that one-pass variances would cancel."""
    rng = np.random.default_rng(seed)
    patterns = rng.normal(size=(5, *shape)).cumsum(-1).cumsum(-2)
    mixed = 170 + 12 * np.einsum("np,pchw->nchw", rng.normal(size=(count, 5)), patterns) + rng.normal(0, 4, (count, *shape))
    return ArrayTable(torch.from_numpy(np.clip(mixed, 0, 255).astype(np.uint8)), np.arange(count) % 2, ["a", "b"])


def flat(images: ArrayTable) -> np.ndarray:
    return images.images.numpy().reshape(len(images), -1).astype(np.float64)


def root(matrix: np.ndarray, ridge: float) -> np.ndarray:
    """``U (S + ridge)^(-1/2) U'`` by the singular value decomposition."""
    left, values, right = np.linalg.svd(matrix)
    return left @ np.diag(1 / np.sqrt(values + ridge)) @ right


def mtt(images: ArrayTable) -> np.ndarray:
    pixels = flat(images) / 255
    return (pixels - pixels.mean(0)) @ root(np.cov(pixels, rowvar=False, ddof=1), 0.1)


def kip(images: ArrayTable) -> np.ndarray:
    pixels = flat(images)
    pixels = pixels - pixels.mean(1, keepdims=True)
    pixels = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
    second = pixels.T @ pixels / len(pixels)
    return pixels @ root(second, 0.1 * np.linalg.eigvalsh(second).mean())


def frepo(images: ArrayTable) -> np.ndarray:
    channels = images.shape[0]
    pixels = flat(images).reshape(len(images), channels, -1) / 255
    pixels = ((pixels - pixels.mean((0, 2), keepdims=True)) / pixels.std((0, 2), keepdims=True)).reshape(len(images), -1)
    pixels = pixels - pixels.mean(0)
    covariance = pixels.T @ pixels / len(pixels)
    return pixels @ root(covariance + 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance)), 0)


@pytest.mark.parametrize(("name", "reference"), [("zca-mtt", mtt), ("zca-kip", kip), ("zca-frepo", frepo)])
@pytest.mark.parametrize("count", [60, 12])
def test_zca_is_the_dense_float64_reference(name: str, reference: Callable[[ArrayTable], np.ndarray], count: int) -> None:
    """Also with fewer images (12) than pixel values (48), where the covariance is singular."""
    images = table(count)
    expected = reference(images)
    found = fit_pixel_space(name, images)(images.images).flatten(1).numpy()
    # the map is float32: its rounding grows with the largest factor, 1 / sqrt(ridge), and with the inputs' size
    assert np.abs(found - expected).max() <= 2e-5 * max(1, np.abs(expected).max())


def test_the_three_definitions_differ() -> None:
    images = table()
    whitened = [fit_pixel_space(name, images)(images.images) for name in ("zca-mtt", "zca-kip", "zca-frepo")]
    assert all((whitened[i] - whitened[j]).abs().max() > 0.1 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_mtt_leaves_each_direction_with_variance_s_over_s_plus_eps() -> None:
    images = table(200)
    covariance = np.cov(flat(images) / 255, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    whitened = np.cov(zca_mtt(images)(images.images).flatten(1).double().numpy(), rowvar=False)
    assert np.allclose(whitened, vectors @ np.diag(values / (values + 0.1)) @ vectors.T, atol=1e-5)
    almost = zca_mtt(images, eps=1e-9)(images.images).flatten(1).double().numpy()
    assert np.allclose(np.cov(almost, rowvar=False), np.eye(48), atol=1e-2)  # full rank: without eps the covariance is the identity


def test_mtts_eps_is_absolute_and_kips_is_relative() -> None:
    """Halving the contrast around the mean image changes MTT's spectrum by more than the factor; KIP's unit norms make it immaterial."""
    bright = table(100)
    values = bright.images.double()
    halved = ArrayTable(((values - values.mean((1, 2, 3), keepdim=True)) / 2 + 100).round().to(torch.uint8), bright.labels, bright.classes)
    assert (zca_kip(bright)(bright.images) - zca_kip(halved)(halved.images)).abs().max() < 0.25
    spread = [float(zca_mtt(t)(t.images).var()) for t in (bright, halved)]
    assert spread[1] < 0.6 * spread[0]


def test_a_zca_commutes_with_a_permutation_of_the_pixels() -> None:
    images = table()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    moved = ArrayTable(images.images.flatten(2)[:, :, order].reshape(-1, 3, 4, 4).contiguous(), images.labels, images.classes)
    for fit in (zca_mtt, zca_kip, zca_frepo):
        straight = fit(images)(images.images).flatten(2)[:, :, order]
        assert torch.allclose(fit(moved)(moved.images).flatten(2), straight, atol=2e-4)


def test_large_images_are_whitened_in_four_interleaved_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is what FRePo's dense definition gives on the sub-image of its pixels, once the whole image is normalized."""
    monkeypatch.setattr("limbeck.data.pixels._LARGEST_DENSE", 16)
    images = table(80)
    whitened = zca_frepo(images)(images.images).double().numpy()
    pixels = images.images.numpy() / 255
    pixels = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    for i in (0, 1):
        for j in (0, 1):
            part = pixels[:, :, i::2, j::2].reshape(80, -1)
            part = part - part.mean(0)
            covariance = part.T @ part / 80
            expected = part @ root(covariance, 0.1 * np.trace(covariance) / len(covariance))
            assert np.allclose(whitened[:, :, i::2, j::2].reshape(80, -1), expected, atol=1e-4)
    with pytest.raises(OptionError, match="^zca-frepo needs even sides for images above 16 values, got 5x4; resize with --size$"):
        zca_frepo(table(8, (1, 5, 4)))


def test_normalize_is_the_population_form_per_channel() -> None:
    images = table()
    pixels = images.images.numpy() / 255
    space = normalize(images)
    assert np.allclose(space.steps[0].mean.numpy(), pixels.mean((0, 2, 3)), rtol=1e-6)  # type: ignore[union-attr]
    assert np.allclose(space.steps[0].std.numpy(), pixels.std((0, 2, 3)), rtol=1e-6)  # type: ignore[union-attr]
    inputs = space(images.images).double()
    assert inputs.mean((0, 2, 3)).abs().max() < 1e-5
    assert (inputs.var((0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_a_channel_that_never_varies_is_only_centered() -> None:
    images = table()
    images.images[:, 1] = 200
    space = normalize(images)
    assert torch.isfinite(space(images.images)).all()
    assert space(images.images)[:, 1].abs().max() < 1e-6


@pytest.mark.parametrize("name", ["normalize", "zca-mtt", "zca-frepo"])
def test_whitened_images_can_be_shown(name: str) -> None:
    images = table()
    space = fit_pixel_space(name, images)
    shown = type(space)(space.steps, "network").to_pixels(space(images.images))
    assert (shown - images.images / 255).abs().max() < 1e-3


@pytest.mark.parametrize("name", PIXEL_SPACES)
def test_every_space_fits_its_images_alone_and_does_not_depend_on_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = table()
    space = fit_pixel_space(name, images)
    space.check(images.shape)
    chunks = limbeck_chunks(7)
    monkeypatch.setattr("limbeck.data.pixels._chunks", chunks)
    assert torch.allclose(fit_pixel_space(name, images)(images.images), space(images.images), atol=1e-5)


def limbeck_chunks(size: int) -> Callable[[ArrayTable], object]:
    return lambda images: (part.double() / 255 for part in images.images.split(size))


def test_images_too_large_for_a_dense_whitening_are_refused() -> None:
    large = ArrayTable(torch.zeros(2, 1, 65, 64, dtype=torch.uint8), [0, 1], ["a", "b"])
    for name in ("zca-mtt", "zca-kip"):
        with pytest.raises(OptionError, match=f"^{name} whitens at most 4096 values an image, got 4160; use --pixels zca-frepo"):
            fit_pixel_space(name, large)
    with pytest.raises(OptionError, match="^unknown pixel space 'zca'; "):
        fit_pixel_space("zca", large)

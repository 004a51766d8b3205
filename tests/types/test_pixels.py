import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.small import as_shipped

from limbeck.errors import FileFormatError, OptionError
from limbeck.types.pixels import CenterImage, PixelSpace, Scale, Standardize, UnitNormImage, Whiten

SHAPE = (3, 2, 2)
VALUES = math.prod(SHAPE)


def whitening(blocks: bool = False) -> Whiten:
    rng = np.random.default_rng(0)
    size = VALUES // 4 if blocks else VALUES
    roots = rng.normal(size=(4 if blocks else 1, size, size))
    matrix = torch.from_numpy(roots @ roots.transpose(0, 2, 1) + np.eye(size)).float()
    return Whiten(torch.from_numpy(rng.random(VALUES)).float(), matrix, torch.arange(VALUES).reshape(-1, 4).T.contiguous() if blocks else None)


STEPS: dict[str, Callable[[], tuple[object, ...]]] = {
    "raw": tuple,
    "standardize": lambda: (Standardize(torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.1, 0.3])),),
    "gray standardize": lambda: (Standardize(torch.tensor([0.5]), torch.tensor([0.2])),),
    "kip": lambda: (Scale(torch.tensor(255.0)), CenterImage(), UnitNormImage(), whitening()),
    "whiten": lambda: (whitening(),),
    "blocks": lambda: (Standardize(torch.tensor([0.5]), torch.tensor([0.2])), whitening(blocks=True)),
}


def images(count: int = 5) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (count, *SHAPE), dtype=np.uint8))


def dense(name: str, pixels: np.ndarray) -> np.ndarray:
    """The same map in float64, image by image, step by step."""
    out = []
    for image in pixels:
        for step in STEPS[name]():
            if isinstance(step, Scale):
                image = image * 255
            elif isinstance(step, Standardize):
                mean, std = step.mean.double().numpy(), step.std.double().numpy()
                image = np.stack([(image[c] - mean[c % len(mean)]) / std[c % len(std)] for c in range(3)])
            elif isinstance(step, CenterImage):
                image = image - image.mean()
            elif isinstance(step, UnitNormImage):
                image = image / np.sqrt((image**2).sum())
            elif isinstance(step, Whiten):
                flat, result = image.reshape(-1) - step.mean.double().numpy(), np.empty(VALUES)
                blocks = [np.arange(VALUES)] if step.blocks is None else step.blocks.numpy()
                for block, matrix in zip(blocks, step.matrix.double().numpy(), strict=True):
                    result[block] = matrix.T @ flat[block]
                image = result.reshape(SHAPE)
        out.append(image)
    return np.stack(out)


@pytest.mark.parametrize("name", STEPS)
def test_forward_is_the_float64_reference(name: str) -> None:
    space = PixelSpace(STEPS[name]())
    expected = dense(name, images().numpy() / 255)
    for given in (images(), images().float() / 255):
        assert np.allclose(space(given).numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in STEPS if name != "kip"])
def test_network_space_images_are_shown_as_their_pixels(name: str) -> None:
    raw = PixelSpace(STEPS[name]())
    stored = PixelSpace(raw.steps, "network")
    assert stored.invertible
    shown = stored.to_pixels(raw(images()))
    assert torch.allclose(shown, images().float() / 255, atol=1e-4)
    assert torch.equal(stored(raw(images())), raw(images()))
    assert torch.equal((raw.to_pixels(images()) * 255).round().to(torch.uint8), images())


@pytest.mark.parametrize("name", STEPS)
def test_bytes_are_pixels_whatever_the_sets_own_images_are(name: str) -> None:
    """A test image is seen in the same way by students of a set in network space and of one of pixels."""
    raw, stored = PixelSpace(STEPS[name]()), PixelSpace(STEPS[name](), "network")
    assert torch.equal(stored(images()), raw(images()))
    assert torch.equal(stored.to_pixels(images()), images().float() / 255)


def test_per_image_steps_are_not_undone_but_shown_on_the_full_scale() -> None:
    space = PixelSpace(STEPS["kip"](), "network")
    assert not space.invertible
    shown = space.to_pixels(torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(shown.amin((1, 2, 3)), torch.zeros(4))
    assert torch.allclose(shown.amax((1, 2, 3)), torch.ones(4))


def test_a_constant_image_stays_finite() -> None:
    flat = torch.full((2, *SHAPE), 0.25)
    assert torch.equal(UnitNormImage().forward(CenterImage().forward(flat)), torch.zeros(2, *SHAPE))
    assert torch.isfinite(PixelSpace(STEPS["kip"](), "network").to_pixels(flat)).all()


@pytest.mark.parametrize("stored", ["raw", "network"])
@pytest.mark.parametrize("name", STEPS)
def test_header_and_tensors_restore_the_space(name: str, stored: str) -> None:
    space = PixelSpace(STEPS[name](), stored)  # type: ignore[arg-type]
    again = PixelSpace.restore(space.header(), {**space.tensors("p"), "p2.0.mean": torch.zeros(1), "images": images()}, "p")
    assert again.header() == space.header()
    assert again.tensors().keys() == space.tensors().keys()
    assert torch.equal(again(images()), space(images()))
    assert torch.equal(space.to("cpu")(images()), space(images()))


def test_bytes_are_those_of_the_parameters() -> None:
    assert PixelSpace().nbytes == 0
    assert PixelSpace(STEPS["standardize"]()).nbytes == 6 * 4
    assert PixelSpace((whitening(),)).nbytes == 4 * (VALUES + VALUES**2)
    assert PixelSpace((whitening(blocks=True),)).nbytes == 4 * (VALUES + 4 * (VALUES // 4) ** 2) + 8 * VALUES


@pytest.mark.parametrize(
    "header",
    [
        {"steps": ["pca"], "stored": "raw"},
        {"steps": ["standardize"], "stored": "raw"},
        {"steps": [], "stored": "disk"},
        {"steps": [["whiten"]], "stored": "raw"},
        {"steps": None, "stored": "raw"},
        {},
    ],
)
def test_an_unreadable_header_is_one_sentence(header: dict[str, object]) -> None:
    with pytest.raises(
        FileFormatError,
        match=r"^the file's pixel space is not readable \(.*\); known steps: scale, standardize, center-image, unit-norm-image, whiten; use an intact copy$",
    ):
        PixelSpace.restore(header, {})


def test_steps_that_do_not_fit_the_images_are_named() -> None:
    PixelSpace(STEPS["blocks"]()).check(SHAPE)
    PixelSpace(STEPS["kip"]()).check(SHAPE)
    with pytest.raises(OptionError, match="^the pixel space normalizes 3 channels, but the images have 1; use images of the same kind$"):
        PixelSpace(STEPS["standardize"]()).check((1, 8, 8))
    with pytest.raises(OptionError, match="^the pixel space whitens 12 values, but the images have 192; use images of the same size$"):
        PixelSpace(STEPS["whiten"]()).check((3, 8, 8))
    with pytest.raises(OptionError, match="^the pixel space holds values that are not finite in its step 'standardize'"):
        PixelSpace((Standardize(torch.tensor([torch.nan]), torch.tensor([1.0])),)).check(SHAPE)


@pytest.mark.parametrize(
    "step",
    [
        lambda: Standardize(torch.zeros(3), torch.ones(2)),
        lambda: Whiten(torch.zeros(VALUES), torch.zeros(1, 3, 3)),
        lambda: Whiten(torch.zeros(VALUES), torch.zeros(2, VALUES, VALUES)),
        lambda: Whiten(torch.zeros(VALUES), torch.zeros(4, 3, 3), torch.zeros(4, 3, dtype=torch.int64)),
        lambda: Whiten(torch.zeros(VALUES), torch.zeros(4, 3, 3), torch.arange(VALUES).reshape(4, 3) + 1),
        lambda: Scale(torch.ones(2)),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(step: Callable[[], object]) -> None:
    with (
        as_shipped(),
        pytest.raises(OptionError, match="^the tensors of the pixel space's step '.*' do not fit each other; fit it again, or use an intact file$"),
    ):
        PixelSpace((step(),)).check(SHAPE)  # type: ignore[arg-type]

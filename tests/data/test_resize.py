import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.data.resize import check_size, conform, resize, scaled_sides, with_channels
from limbeck.errors import DataError, OptionError


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_halving_averages_with_a_triangle_filter() -> None:
    """At factor 2 the antialiased bilinear weights along a side are 1/8, 3/8, 3/8, 1/8 inside the image."""
    images = noise(1, 1, 8, 8)
    kernel = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    expected = (images[0, 0, 1:5, 1:5].double() * kernel[:, None] * kernel).sum()
    assert abs(resize(images, (4, 4))[0, 0, 1, 1].item() - expected.item()) <= 0.5 + 1e-4


def test_resize_agrees_with_pillow() -> None:
    images = noise(1, 1, 28, 28)
    pillow = np.asarray(Image.fromarray(images[0, 0].numpy()).resize((16, 16), Image.Resampling.BILINEAR))
    assert np.abs(resize(images, (16, 16))[0, 0].numpy().astype(int) - pillow).max() <= 1


def test_a_single_number_scales_the_short_side_and_keeps_the_center() -> None:
    images = noise(2, 3, 6, 10)
    assert scaled_sides(6, 10, 3) == (3, 5)
    assert torch.equal(resize(images, 6), images[:, :, :, 2:8])
    assert resize(images, 3).shape == (2, 3, 3, 3)
    assert torch.equal(resize(images, 3), resize(images, (3, 5))[:, :, :, 1:4])


def test_constant_images_stay_constant() -> None:
    images = torch.full((1, 1, 9, 7), 200, dtype=torch.uint8)
    assert (resize(images, (5, 13)) == 200).all()


def test_luma_agrees_with_pillow() -> None:
    images = noise(1, 3, 16, 16)
    pillow = np.asarray(Image.fromarray(images[0].permute(1, 2, 0).contiguous().numpy()).convert("L"))
    assert np.array_equal(with_channels(images, 1)[0, 0].numpy(), pillow)


def test_gray_to_rgb_and_back_is_the_identity() -> None:
    images = noise(2, 1, 4, 4)
    assert torch.equal(with_channels(with_channels(images, 3), 1), images)


def test_conform_in_chunks_equals_all_at_once_and_leaves_fitting_images_alone() -> None:
    images = noise(7, 3, 6, 6)
    assert torch.equal(conform(images, 4, 1, chunk=2), conform(images, 4, 1))
    assert conform(images, None, 3) is images
    assert conform(images, (6, 6), None) is images


def test_misuse() -> None:
    with pytest.raises(OptionError) as caught:
        check_size((0, 4))
    assert str(caught.value) == "size needs a side of at least 1 pixel, got (0, 4); give one number or height and width"
    with pytest.raises(DataError) as caught:
        with_channels(noise(1, 4, 2, 2), 3)
    assert str(caught.value) == "images of 4 channels cannot become 3; use 1 or 3 channels"

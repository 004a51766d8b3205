"""The field's ConvNet: parameter counts, layers, sizes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.models import build, parse_model
from limbeck.models.convnet import default_depth


def new(text: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    return build(parse_model(text), shape=shape, classes=classes, generator=torch.Generator().manual_seed(0))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("text", "shape", "classes", "count"),
    [
        ("convnet", (1, 28, 28), 10, 317_706),
        ("convnet", (3, 32, 32), 10, 320_010),
        ("convnet", (3, 32, 32), 100, 504_420),
        ("convnet", (3, 64, 64), 200, 857_160),
        ("convnet-d3", (3, 64, 64), 200, 1_938_120),
        ("convnet-d4", (3, 64, 64), 1000, 2_496_360),
    ],
)
def test_published_parameter_counts(text, shape, classes, count):
    assert size(new(text, shape, classes)) == count


def test_tiny_is_the_same_network_with_16_channels():
    tiny, narrow = new("convnet-tiny", (3, 32, 32), 10), new("convnet-w16", (3, 32, 32), 10)
    assert size(tiny) == 7_754
    assert all(map(torch.equal, tiny.state_dict().values(), narrow.state_dict().values()))


def test_default_depths():
    sides = {2: 1, 3: 1, 4: 1, 8: 1, 16: 2, 24: 3, 28: 3, 32: 3, 64: 4, 128: 5, 256: 6}
    assert {side: default_depth(side, side) for side in sides} == sides
    assert default_depth(16, 32) == default_depth(32, 16) == 3
    assert default_depth(2, 64) == 1


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((1, 8, 8), 16 * 16),
        ((1, 28, 28), 16 * 16),
        ((3, 28, 28), 16 * 9),
        ((1, 32, 32), 16 * 16),
        ((1, 16, 32), 16 * 8),
        ((5, 17, 33), 16 * 8),
        ((1, 2, 3), 16),
        ((3, 256, 256), 16 * 16),
    ],
)
def test_any_channels_and_sizes(shape, features):
    model = new("convnet-w16", shape, 7)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    assert model.features(images).shape == (2, features)
    torch.testing.assert_close(model(images), model.head(model.features(images)))
    assert model(images).shape == (2, 7)


def test_forward_is_convolution_normalization_relu_pooling_and_a_linear_map():
    """Against the definition written out in float64, with the instance statistics computed by hand."""
    model = new("convnet-d2-w4", (3, 8, 12), 5).double()
    images = torch.randn(3, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = iter(model.parameters())
    maps = images
    for _ in range(2):
        maps = F.conv2d(maps, next(weights), next(weights), padding=1)
        mean, variance = maps.mean((2, 3), keepdim=True), maps.var((2, 3), unbiased=False, keepdim=True)
        scale, offset = (next(weights)[:, None, None] for _ in range(2))
        maps = ((maps - mean) / (variance + 1e-5).sqrt() * scale + offset).clamp(min=0)
        maps = (maps[..., ::2, ::2] + maps[..., 1::2, ::2] + maps[..., ::2, 1::2] + maps[..., 1::2, 1::2]) / 4
    expected = maps.flatten(1) @ next(weights).T + next(weights)
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "kind", "groups"),
    [("instance", nn.GroupNorm, 8), ("layer", nn.GroupNorm, 1), ("group", nn.GroupNorm, 4), ("batch", nn.BatchNorm2d, None)],
)
def test_normalizations(norm, kind, groups):
    model = new(f"convnet-w8:norm={norm}", (3, 8, 8), 2)
    layer = model.body[0].norm
    assert type(layer) is kind
    assert getattr(layer, "num_groups", None) == groups
    assert layer.eps == 1e-5
    assert layer.weight.shape == layer.bias.shape == (8,)


def test_without_normalization():
    assert size(new("convnet-w8:norm=none", (3, 8, 8), 2)) == (3 * 9 * 8 + 8) + (8 * 16 * 2 + 2)


def test_one_image_in_training_mode():
    assert new("convnet-w8", (1, 8, 8), 3).train()(torch.zeros(1, 1, 8, 8)).isfinite().all()


def test_too_small_images():
    with pytest.raises(OptionError) as raised:
        new("convnet-d5", (3, 16, 32), 10)
    assert str(raised.value) == "a ConvNet of depth 5 needs at least 32 pixels on each side, got 3x16x32; use depth 4 or less, or larger images"
    with pytest.raises(OptionError) as raised:
        new("convnet", (3, 1, 9), 10)
    assert str(raised.value) == (
        "a ConvNet of depth 1 needs at least 2 pixels on each side, got 3x1x9; use larger images, or the mlp or softmax model"
    )
    with pytest.raises(OptionError, match=r"^norm=group splits the channels into 4 groups, got width 6; use a multiple of 4$"):
        new("convnet-w6:norm=group", (3, 8, 8), 2)
    assert new("convnet-d5-w4", (1, 28, 28), 2).depth == 5  # padded to 32x32

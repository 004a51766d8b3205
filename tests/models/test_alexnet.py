"""AlexNet for small images: parameter count, the definition written out, normalization, small images."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.models import build, parse_model


def new(text: str, shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    return build(parse_model(text), shape=shape, classes=classes, generator=torch.Generator().manual_seed(0))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_counts():
    convolutions = (3 * 128 + 128 * 192) * 25 + (192 * 256 + 256 * 192 + 192 * 192) * 9 + 128 + 192 + 256 + 192 + 192
    assert size(new("alexnet", (3, 32, 32))) == convolutions + 3072 * 10 + 10 == 1_872_202
    assert size(new("alexnet", (1, 28, 28))) == 1_872_202 - 2 * 128 * 25
    assert size(new("alexnet:norm=batch", (3, 32, 32))) == 1_872_202 + 2 * (128 + 192 + 256 + 192 + 192)


@pytest.mark.parametrize(("shape", "padding"), [((3, 32, 32), 2), ((1, 28, 28), 4)])
def test_forward_written_out(shape, padding):
    model = new("alexnet", shape, 4).double()
    images = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = iter(model.parameters())
    maps = images
    for around, pool in ((padding, True), (2, True), (1, False), (1, False), (1, True)):
        maps = F.conv2d(maps, next(weights), next(weights), padding=around).relu()
        maps = F.max_pool2d(maps, 2) if pool else maps
    assert maps.shape == (2, 192, 4, 4)
    torch.testing.assert_close(model.features(images), maps.flatten(1))
    torch.testing.assert_close(model(images), maps.flatten(1) @ next(weights).T + next(weights))


def test_normalization_is_asked_for():
    assert not any(isinstance(layer, nn.GroupNorm | nn.BatchNorm2d) for layer in new("alexnet", (3, 32, 32)).modules())
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in new("alexnet:norm=batch", (3, 32, 32)).modules()) == 5


@pytest.mark.parametrize(("shape", "features"), [((1, 8, 8), 192), ((3, 16, 16), 768), ((3, 64, 64), 12288), ((1, 16, 32), 1536)])
def test_other_sizes(shape, features):
    assert new("alexnet", shape).features(torch.zeros(2, *shape)).shape == (2, features)


def test_too_small_images():
    with pytest.raises(
        OptionError, match=r"^alexnet needs at least 8 pixels on each side, got 1x7x9; use larger images, or the convnet, mlp or softmax model$"
    ):
        new("alexnet", (1, 7, 9))

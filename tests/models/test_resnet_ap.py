"""ResNet-18 with average pooling: parameter counts, where the pooling stands, resolutions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.models import build, parse_model


def new(text: str, shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    return build(parse_model(text), shape=shape, classes=classes, generator=torch.Generator().manual_seed(0))


def size(text: str, shape: tuple[int, int, int]) -> int:
    return sum(p.numel() for p in new(text, shape).parameters())


@pytest.mark.parametrize("text", ["resnet18-ap", "resnet18-ap:norm=batch"])
def test_parameter_count_is_that_of_resnet18_with_a_wider_head(text):
    assert size(text, (3, 32, 32)) == 11_250_762 == size("resnet18", (3, 32, 32)) + (512 * 4 * 4 - 512) * 10
    assert size(text, (1, 28, 28)) == size("resnet18", (1, 28, 28)) + (512 * 3 * 3 - 512) * 10


def test_no_convolution_has_a_stride():
    strides = {layer.stride for layer in new("resnet18-ap", (3, 32, 32)).modules() if isinstance(layer, nn.Conv2d)}
    assert strides == {(1, 1)}


def test_a_halving_block_written_out():
    block = new("resnet18-ap:width=2,norm=none", (1, 32, 32)).double().body[2]  # the first of the second stage
    maps = torch.randn(2, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    inner = F.avg_pool2d(F.conv2d(maps, block.first.conv.weight, padding=1).relu(), 2)
    shortcut = F.avg_pool2d(F.conv2d(maps, block.shortcut[0].weight), 2)
    torch.testing.assert_close(block(maps), (F.conv2d(inner, block.second.conv.weight, padding=1) + shortcut).relu())


@pytest.mark.parametrize(
    ("shape", "features"), [((1, 8, 8), 64 * 4), ((3, 16, 16), 64 * 4), ((1, 28, 28), 64 * 9), ((3, 64, 64), 64 * 64), ((1, 1, 9), 64 * 9)]
)
def test_output_depends_on_the_input_at_every_size(shape, features):
    model = new("resnet18-ap-w8", shape).eval()
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    assert model.features(images).shape == (2, features)
    logits = model(images)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_one_pixel_cannot_be_instance_normalized():
    with pytest.raises(OptionError, match=r"^instance normalization needs more than one pixel, got 3x1x1; use norm=batch or the mlp model$"):
        new("resnet18-ap", (3, 1, 1))

"""ResNet-32: the paper's parameter count, shortcuts without parameters, resolutions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.models import build, parse_model


def new(text: str, shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    return build(parse_model(text), shape=shape, classes=classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("text", ["resnet32", "resnet32:norm=batch"])
def test_published_parameter_count(text):
    model = new(text, (3, 32, 32))
    assert sum(p.numel() for p in model.parameters()) == 464_154  # 0.46M in the paper's table 6
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == 32
    assert all(layer.bias is None for layer in model.modules() if isinstance(layer, nn.Conv2d))


def test_a_shortcut_takes_every_second_pixel_and_adds_channels_of_zeros():
    block = new("resnet32:width=2,norm=none", (1, 32, 32)).double().body[5]  # the first of the second stage
    with torch.no_grad():
        block.second.conv.weight.zero_()
    maps = torch.randn(3, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    out = block(maps)
    torch.testing.assert_close(out[:, :2], F.relu(maps[:, :, ::2, ::2]))
    assert not out[:, 2:].any()


def final_map(side: int) -> int:
    model = new("resnet32-w4", (1, side, side))
    seen: list[int] = []
    model.body.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[-1]))
    model(torch.zeros(1, 1, side, side))
    return seen[0]


def test_resolution_is_halved_twice_but_never_below_four_pixels():
    assert {side: final_map(side) for side in (2, 6, 8, 12, 13, 28, 32, 64)} == {2: 2, 6: 6, 8: 4, 12: 6, 13: 4, 28: 7, 32: 8, 64: 16}


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 64, 64), (3, 16, 32)])
def test_output_depends_on_the_input_at_every_size(shape):
    model = new("resnet32-w8", shape).eval()
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    assert model.features(images).shape == (2, 32)
    logits = model(images)
    torch.testing.assert_close(logits, model.head(model.features(images)))
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_one_pixel_cannot_be_instance_normalized():
    with pytest.raises(OptionError, match=r"^instance normalization needs more than one pixel, got 3x1x1; use norm=batch or the mlp model$"):
        new("resnet32", (3, 1, 1))

"""ResNet-18 for small images."""

import pytest
import torch
from torch import nn

from limbeck.errors import OptionError
from limbeck.models import build, parse_model


def new(text, shape, classes=10):
    return build(parse_model(text), shape=shape, classes=classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["resnet18", "resnet18-bn"])
def test_parameter_count(name):
    assert sum(p.numel() for p in new(name, (3, 32, 32)).parameters()) == 11_173_962


def test_layers():
    model = new("resnet18", (3, 32, 32))
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 17 + 3
    assert all(layer.bias is None for layer in convolutions)
    assert all(layer.num_groups == layer.num_channels for layer in model.modules() if isinstance(layer, nn.GroupNorm))
    assert not any(isinstance(layer, nn.GroupNorm) for layer in new("resnet18-bn", (3, 32, 32)).modules())


def final_map(side: int) -> int:
    model = new("resnet18-w4", (1, side, side))
    seen = []
    model.body.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[-1]))
    model(torch.zeros(1, 1, side, side))
    return seen[0]


def test_resolution_is_halved_three_times_but_never_below_four_pixels():
    assert {side: final_map(side) for side in (2, 8, 16, 25, 28, 32, 64)} == {2: 2, 8: 4, 16: 4, 25: 4, 28: 4, 32: 4, 64: 8}


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 32), (1, 28, 28), (3, 128, 128), (1, 1, 9)])
@pytest.mark.parametrize("name", ["resnet18-w8", "resnet18-bn-w8"])
def test_output_depends_on_the_input_at_every_size(name, shape):
    model = new(name, shape).eval()
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    assert model.features(images).shape == (2, 64)
    logits = model(images)
    torch.testing.assert_close(logits, model.head(model.features(images)))
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_one_pixel_cannot_be_instance_normalized():
    with pytest.raises(OptionError, match=r"^instance normalization needs more than one pixel, got 3x1x1; use norm=batch or the mlp model$"):
        new("resnet18", (3, 1, 1))

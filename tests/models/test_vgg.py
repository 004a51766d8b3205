"""VGG-11 for small images: parameter count, layers in order, resolutions."""

import pytest
import torch
from torch import nn

from limbeck.errors import OptionError
from limbeck.models import build, parse_model


def new(text: str, shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    return build(parse_model(text), shape=shape, classes=classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("text", ["vgg11", "vgg11:norm=batch"])
def test_published_parameter_count(text):
    assert sum(p.numel() for p in new(text, (3, 32, 32)).parameters()) == 9_231_114


def test_layers_are_those_of_configuration_a():
    model = new("vgg11", (3, 32, 32))
    assert [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)] == [64, 128, 256, 256, 512, 512, 512, 512]
    norms = [layer for layer in model.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == 8
    assert all(layer.num_groups == layer.num_channels for layer in norms)
    kinds = "".join({nn.Conv2d: "c", nn.GroupNorm: "n", nn.ReLU: "r", nn.MaxPool2d: "m"}[type(layer)] for layer in model.body)
    assert kinds == "cnrm" * 2 + "cnrcnrm" * 3


def maps(side: int, channels: int = 3) -> list[int]:
    """The side of every map that a convolution makes, and of the last one."""
    model = new("vgg11", (channels, side, side))
    seen: list[int] = []
    for layer in model.body:
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[-1]))
    model.body.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[-1]))
    model(torch.zeros(1, channels, side, side))
    return seen


def test_resolutions():
    assert maps(32) == [32, 16, 8, 8, 4, 4, 2, 2, 1]
    assert maps(28, channels=1) == maps(32)
    assert maps(64) == [64, 32, 16, 16, 8, 8, 4, 4, 2]
    assert maps(16) == [16, 8, 4, 4, 2, 2, 2, 2, 1]  # no single-pixel map before the last normalization
    assert maps(8) == [8, 4, 2, 2, 2, 2, 2, 2, 1]


@pytest.mark.parametrize(("shape", "features"), [((1, 8, 8), 512), ((1, 28, 28), 512), ((3, 64, 64), 2048), ((3, 16, 32), 1024)])
def test_output_depends_on_the_input_at_every_size(shape, features):
    model = new("vgg11", shape).eval()
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    assert model.features(images).shape == (2, features)
    logits = model(images)
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_a_single_pixel_is_too_small():
    with pytest.raises(OptionError, match=r"^vgg11 needs at least 2 pixels on each side, got 3x1x9; use larger images, or the mlp model$"):
        new("vgg11", (3, 1, 9))

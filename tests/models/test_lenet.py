"""LeNet: published parameter counts, the definition written out, small images."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.models import build, parse_model


def new(shape: tuple[int, int, int], classes: int = 10) -> nn.Module:
    return build(parse_model("lenet"), shape=shape, classes=classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("shape", "count"), [((1, 28, 28), 61_706), ((3, 32, 32), 62_006)])
def test_published_parameter_counts(shape, count):
    assert sum(p.numel() for p in new(shape).parameters()) == count


def test_forward_written_out():
    model = new((1, 28, 28), 4).double()
    images = torch.randn(3, 1, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = iter(model.parameters())
    maps = F.max_pool2d(F.conv2d(images, next(weights), next(weights), padding=2).relu(), 2)
    maps = F.max_pool2d(F.conv2d(maps, next(weights), next(weights)).relu(), 2)
    hidden = maps.flatten(1)
    for _ in range(2):
        hidden = (hidden @ next(weights).T + next(weights)).relu()
    torch.testing.assert_close(model.features(images), hidden)
    torch.testing.assert_close(model(images), hidden @ next(weights).T + next(weights))


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 8, 8), (3, 15, 15), (3, 16, 16), (3, 64, 64), (1, 16, 32)])
def test_output_depends_on_the_input_at_every_size(shape):
    model = new(shape)
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    assert model.features(images).shape == (2, 84)
    logits = model(images)
    assert (logits[0] - logits[1]).abs().max() > 1e-4


def test_too_small_images():
    with pytest.raises(OptionError) as raised:
        new((3, 3, 9))
    assert str(raised.value) == "lenet needs at least 4 pixels on each side, got 3x3x9; use larger images, or the mlp or softmax model"

"""The multilayer perceptron and softmax regression."""

import torch

from limbeck.models import build, parse_model


def new(text, shape, classes):
    return build(parse_model(text), shape=shape, classes=classes, generator=torch.Generator().manual_seed(0))


def test_default_mlp_is_three_linear_layers():
    model = new("mlp", (1, 28, 28), 10)
    assert sum(p.numel() for p in model.parameters()) == (784 * 128 + 128) + (128 * 128 + 128) + (128 * 10 + 10)


def test_mlp_forward_written_out():
    model = new("mlp-d3-w6", (2, 3, 5), 4).double()
    images = torch.randn(7, 2, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = list(model.parameters())
    hidden = images.flatten(1)
    for weight, bias in zip(weights[0:6:2], weights[1:6:2], strict=True):
        hidden = (hidden @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(model.features(images), hidden)
    torch.testing.assert_close(model(images), hidden @ weights[6].T + weights[7])

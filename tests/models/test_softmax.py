"""Softmax regression."""

import torch

from limbeck.models import build, parse_model


def test_softmax_regression_is_one_linear_map_of_the_pixels():
    model = build(parse_model("softmax"), shape=(2, 3, 5), classes=4, generator=torch.Generator().manual_seed(0))
    images = torch.randn(7, 2, 3, 5, generator=torch.Generator().manual_seed(1))
    assert sum(p.numel() for p in model.parameters()) == 30 * 4 + 4
    assert torch.equal(model.features(images), images.flatten(1))
    torch.testing.assert_close(model(images), images.flatten(1) @ model.head.weight.T + model.head.bias)

"""DP-SGD: clipping against a loop over examples, and what it refuses."""

import pytest
import torch
from tests.small import PLAN, gaussians, network

from limbeck.errors import LimbeckError, OptionError
from limbeck.leak.private_expert import clipped_sum, noise_multiplier, train_private
from limbeck.streams import Streams
from limbeck.train.students import score_logits
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe


def test_the_clipped_sum_agrees_with_one_example_at_a_time() -> None:
    net = network("convnet:depth=2,width=4")
    state = net.init(Streams(0))
    table = gaussians(4)
    images, labels = PixelSpace()(table.images), torch.from_numpy(table.labels.copy())
    found = clipped_sum(net, state, images, labels, clip=0.3)
    expected = {name: torch.zeros_like(state[name]) for name in net.parameter_names}
    for image, label in zip(images, labels, strict=True):
        given = {name: tensor.clone().requires_grad_(name in net.parameter_names) for name, tensor in state.items()}
        loss = torch.nn.functional.cross_entropy(net.forward(given, image[None], training=True), label[None])
        gradients = dict(zip(net.parameter_names, torch.autograd.grad(loss, [given[name] for name in net.parameter_names]), strict=True))
        norm = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum().sqrt()
        for name, gradient in gradients.items():
            expected[name] += gradient * min(1.0, 0.3 / float(norm))
    for name in expected:
        assert torch.allclose(found[name], expected[name], atol=1e-6)


def test_it_learns_with_little_noise_and_repeats_itself() -> None:
    table, net = gaussians(60), network()
    recipe = Recipe(lr=0.5, momentum=0.5, weight_decay=0, batch_size=40, steps=20)
    first = train_private(net, recipe, table, PixelSpace(), Streams(0), PLAN, noise=0.1)
    again = train_private(net, recipe, table, PixelSpace(), Streams(0), PLAN, noise=0.1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    logits = net.forward(first, PixelSpace()(table.images))
    assert score_logits(logits, torch.from_numpy(table.labels.copy())).accuracy > 0.9
    drowned = train_private(net, recipe, table, PixelSpace(), Streams(0), PLAN, noise=1000.0)
    assert float(drowned[net.parameter_names[0]].std()) > 10 * float(first[net.parameter_names[0]].std())


def test_batch_statistics_are_refused() -> None:
    with pytest.raises(OptionError, match="mixes the records of a batch, so their gradients cannot be clipped one by one"):
        train_private(network("convnet:depth=2,width=4,norm=batch"), Recipe(steps=1), gaussians(4), PixelSpace(), Streams(0), PLAN, noise=1.0)


def test_without_opacus_one_sentence_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setitem(sys.modules, "opacus.accountants.utils", None)
    with pytest.raises(LimbeckError, match=r"needs the 'opacus' package; pip install 'limbeck\[privacy\]'"):
        noise_multiplier(2.0, 1e-5, 0.01, 100)


def test_more_privacy_takes_more_noise() -> None:
    pytest.importorskip("opacus")
    assert noise_multiplier(1.0, 1e-5, 0.02, 200) > noise_multiplier(8.0, 1e-5, 0.02, 200) > 0

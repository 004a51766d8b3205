"""Examples with weights: an image of weight 0 is as good as left out, whatever else trains beside it."""

from dataclasses import replace

import pytest
import torch
from tests.small import PLAN, as_shipped, distilled, gaussians, network

from limbeck.data.pixels import normalize
from limbeck.data.tables import Subset
from limbeck.errors import OptionError
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import Job, fit, fit_many
from limbeck.train.losses import make_loss
from limbeck.types.recipe import Recipe

TABLE = gaussians(6)
SPACE = normalize(TABLE)
ALL = Examples.of_table(TABLE, SPACE)
FULL = Recipe(lr=0.05, momentum=0.9, weight_decay=0, batch_size=100, steps=8)


def without(index: int) -> Examples:
    weights = torch.ones(len(ALL))
    weights[index] = 0
    return replace(ALL, weights=weights)


@pytest.mark.parametrize("loss", ["cross-entropy", "kl", "mse"])
@pytest.mark.parametrize("chunk", [0, 5])
def test_weight_zero_leaves_an_image_out(loss: str, chunk: int) -> None:
    net, recipe, plan = network("mlp:width=8,depth=1"), FULL.with_(loss=loss), PLAN.model_copy(update={"chunk": chunk})
    start = net.init(Streams(0))
    rest = [i for i in range(len(ALL)) if i != 3]
    left_out = fit(net, start, Examples.of_table(Subset(TABLE, rest), SPACE), recipe, Streams(0), plan).network
    weighted = fit(net, start, without(3), recipe, Streams(0), plan).network
    whole = fit(net, start, ALL, recipe, Streams(0), plan).network
    for name, tensor in weighted.items():
        torch.testing.assert_close(tensor, left_out[name], rtol=1e-4, atol=2e-6)
    assert max(float((weighted[name] - whole[name]).abs().max()) for name in whole) > 1e-3


def test_equal_weights_change_nothing_and_scale_does_not_matter() -> None:
    net = network()
    plain = fit(net, net.init(Streams(0)), ALL, FULL, Streams(0), PLAN).network
    tripled = fit(net, net.init(Streams(0)), replace(ALL, weights=torch.full((len(ALL),), 3.0)), FULL, Streams(0), PLAN).network
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, tripled[name], rtol=1e-5, atol=1e-6)


def test_a_stack_trains_each_omission_as_it_trains_alone() -> None:
    net, recipe = network("convnet-d1-w8"), FULL.with_(batch_size=5, augment="dsa:crop_flip")
    jobs = [Job(net.init(Streams(0)), without(i), Streams(0)) for i in range(4)] + [Job(net.init(Streams(0)), ALL, Streams(0))]
    together = fit_many(net, jobs, recipe, PLAN.model_copy(update={"models": 8}))
    for job, found in zip(jobs, together, strict=True):
        alone = fit(net, job.state, job.examples, recipe, job.streams, PLAN)
        for name, tensor in alone.network.items():
            torch.testing.assert_close(found.network[name], tensor, rtol=1e-3, atol=2e-5)


def test_a_batch_in_which_nothing_counts_moves_nothing() -> None:
    net = network()
    start = net.init(Streams(0))
    after = fit(net, start, replace(ALL, weights=torch.zeros(len(ALL))), FULL, Streams(0), PLAN).network
    assert all(torch.equal(after[name], start[name]) for name in start)


@pytest.mark.parametrize(("name", "temperature"), [("cross-entropy", 1.0), ("kl", 4.0), ("mse", 1.0)])
def test_weighted_losses_are_weighted_sums_of_the_losses_of_rows(name: str, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 3, generator=generator), torch.rand(5, 3, generator=generator)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0])
    loss = make_loss(name, temperature)
    each = torch.stack([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(loss(logits, labels, weights), each @ weights)
    torch.testing.assert_close(loss(logits, labels, torch.ones(5)), loss(logits, labels))


def test_what_an_omitted_image_would_still_be_seen_through_is_refused() -> None:
    batched = network("convnet:depth=1,width=8,norm=batch")
    with pytest.raises(
        OptionError, match=r"^weights on examples need a network without batch statistics, got convnet:.*; use one with norm=instance$"
    ):
        fit(batched, batched.init(Streams(0)), without(0), FULL, Streams(0), PLAN)
    with pytest.raises(
        OptionError, match=r"^weights on examples need images that are shown one at a time, got the augmentation dsa\+cutmix:alpha=1.0; use"
    ):
        fit(network(), network().init(Streams(0)), without(0), FULL.with_(augment="dsa+cutmix"), Streams(0), PLAN)


def test_weights_must_fit_the_images() -> None:
    message = r"^weights need 12 numbers that are not negative, one for each image, got \[.*\]; mend them$"
    for wrong in (torch.ones(11), -torch.ones(12), torch.full((12,), torch.nan)):
        with as_shipped(), pytest.raises(OptionError, match=message):
            replace(ALL, weights=wrong)
    assert Examples.of_distilled(distilled(TABLE)).weights is None

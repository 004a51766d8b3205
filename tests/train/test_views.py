"""Sets with labels for each view: epoch e of training shows view e under its own labels, in the order of every other set."""

import numpy as np
import pytest
import torch
from tests.small import PLAN, distilled, gaussians, network

from limbeck.data.pixels import normalize
from limbeck.data.views import Views
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import Job, fit_many
from limbeck.types.labels import Labels
from limbeck.types.recipe import Recipe

TABLE = gaussians(6)
RECIPE = Recipe(lr=0.1, momentum=0.0, weight_decay=0.0, batch_size=5, epochs=4, augment="dsa")


def examples(seed: int) -> Examples:
    views = Views("resized_crop+flip+cutmix", 3, 5, len(TABLE), TABLE.shape)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(3, len(TABLE), 2))).float()
    return Examples.of_distilled(distilled(TABLE, Labels(2, "logit", logits), pixels=normalize(TABLE), views=views.spec))


@pytest.mark.parametrize("models", [1, 4])
def test_every_epoch_shows_the_next_view_and_after_the_last_the_first_again(models: int) -> None:
    net, given = network(), [examples(0), examples(1)]
    jobs = [Job(net.init(Streams(index)), each, Streams(index)) for index, each in enumerate(given)]
    trained = fit_many(net, jobs, RECIPE, PLAN.model_copy(update={"models": models}))
    for index, each in enumerate(given):
        state = {name: tensor.double() for name, tensor in net.init(Streams(index)).items()}
        for epoch in range(4):
            for rows in torch.randperm(len(TABLE), generator=Streams(index).torch("order", epoch)).split(5):
                images, labels = each.view_batch(rows, epoch % 3, torch.device("cpu"))
                flat = images.double().flatten(1)
                gap = (flat @ state["head.weight"].T + state["head.bias"]).softmax(1) - labels.double()
                state["head.weight"] = state["head.weight"] - 0.1 * gap.T @ flat / len(rows)
                state["head.bias"] = state["head.bias"] - 0.1 * gap.mean(0)
        assert torch.allclose(trained[index].network["head.weight"].double(), state["head.weight"], atol=1e-5)

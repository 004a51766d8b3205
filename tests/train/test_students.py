import math

import numpy as np
import pytest
import torch
from tests.small import PLAN, gaussians, network

from limbeck.data.pixels import normalize
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.students import score, score_logits, train_student
from limbeck.types.recipe import Recipe


def test_scores_are_counted() -> None:
    logits = torch.tensor([[2.0, 0, 0], [0, 2, 0], [2, 0, 0], [0, 0, 2]])
    result = score_logits(logits, torch.tensor([0, 1, 1, 0]))
    assert result.predictions.tolist() == [0, 1, 0, 2]
    assert result.accuracy == 0.5
    assert result.class_accuracy[:2].tolist() == [0.5, 0.5]
    assert math.isnan(result.class_accuracy[2])
    right, wrong = math.log(2 + math.e**2) - 2, math.log(2 + math.e**2)
    assert result.loss == pytest.approx((2 * right + 2 * wrong) / 4)
    assert result.finite


def test_a_diverged_network_counts_as_the_class_it_names() -> None:
    logits = torch.tensor([[torch.nan, torch.nan], [torch.nan, -1.0], [torch.inf, 0.0]])
    result = score_logits(logits, torch.tensor([0, 1, 0]))
    assert result.predictions.tolist() == [0, 1, 0]
    assert (result.accuracy, result.loss, result.finite) == (1.0, math.inf, False)
    chance = score_logits(torch.full((10, 5), torch.nan), torch.arange(10) % 5)
    assert chance.accuracy == 0.2


def test_adding_a_constant_to_a_row_changes_no_score() -> None:
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4)))
    labels = torch.arange(50) % 4
    one, other = score_logits(logits.float(), labels), score_logits((logits + torch.arange(50)[:, None]).float(), labels)
    assert torch.equal(one.predictions, other.predictions)
    assert one.loss == pytest.approx(other.loss, rel=1e-5)


@pytest.mark.parametrize("model", ["softmax", "mlp:width=16,depth=1", "convnet-d1-w8"])
def test_students_solve_two_gaussians_and_the_seed_decides_them(model: str) -> None:
    train, held_out = gaussians(40), gaussians(200, seed=1)
    examples, net = Examples.of_table(train, normalize(train)), network(model)
    recipe = Recipe(lr=0.05, batch_size=16, epochs=6)
    ticks: list[int] = []
    state = train_student(net, examples, recipe, Streams(0), PLAN, tick=ticks.append)
    assert score(net, state, held_out, examples, PLAN).accuracy > 0.95
    assert sum(ticks) == 30
    again = train_student(net, examples, recipe, Streams(0), PLAN)
    other = train_student(net, examples, recipe, Streams(1), PLAN)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["head.weight"], other["head.weight"])


def test_labels_of_pure_noise_give_chance() -> None:
    train, held_out = gaussians(40), gaussians(500, seed=1)
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (8, 80)))
    net, recipe = network("softmax"), Recipe(lr=0.05, batch_size=16, epochs=3)
    accuracies = []
    for seed, targets in enumerate(noise):
        examples = Examples(train, targets, normalize(train))
        accuracies.append(score(net, train_student(net, examples, recipe, Streams(seed), PLAN), held_out, examples, PLAN).accuracy)
    # students of one noise draw agree with the truth or its opposite by chance: their mean has a standard error of its own spread
    assert abs(np.mean(accuracies) - 0.5) < 3 * np.std(accuracies, ddof=1) / np.sqrt(8)

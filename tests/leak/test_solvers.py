"""Batched softmax regressions: Adam against the one training loop, Newton against closed forms, and verdicts that can be believed."""

import pytest
import torch

from limbeck.data.synthetic import AS_THEY_ARE, VectorTable, gaussian, turns
from limbeck.leak import solvers
from limbeck.leak.recovery import centered
from limbeck.leak.solvers import ROUNDING, TOLERANCE, UNIT, default_start, linear_adam, newton
from limbeck.leak.split import within_class
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import fit
from limbeck.train.network import Network
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

STREAMS = Streams(0)
PLAN = ExecutionPlan(threads=1, chunk=0)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("standardize", [False, True])
def test_adam_agrees_with_the_training_loop(classes, standardize):
    x, labels = gaussian(24, 7, STREAMS.torch("x")), turns(24, classes)
    rows = torch.tensor([24, 12, 18])
    start = default_start(3, 7, classes, STREAMS.torch("start"))
    moments = [torch.std_mean(x[:count], dim=0, correction=0) for count in rows.tolist()]
    means = torch.stack([mean for _, mean in moments]) if standardize else None
    deviations = torch.stack([deviation for deviation, _ in moments]) if standardize else None
    found = linear_adam(x, labels, rows, start, lr=0.01, steps=40, means=means, deviations=deviations)
    network = Network(parse_model("linear"), (1, 1, 7), classes)
    for place, count in enumerate(rows.tolist()):
        inputs = (x[:count] - means[place]) / deviations[place] if means is not None and deviations is not None else x[:count]
        examples = Examples(VectorTable(inputs, labels[:count], classes), labels[:count], AS_THEY_ARE)
        recipe = Recipe(optimizer="adam", lr=0.01, weight_decay=0, batch_size=count, steps=40, shuffle=False)
        trained = fit(network, {"head.weight": start[place].T.contiguous()}, examples, recipe, STREAMS, PLAN).network["head.weight"]
        torch.testing.assert_close(centered(found[place]), centered(trained.T), rtol=1e-3, atol=2e-5)


def test_adam_takes_soft_labels_of_each_problem():
    x = gaussian(20, 5, STREAMS.torch("x"))
    targets = torch.randn(20, 3, 4, generator=STREAMS.torch("y")).softmax(-1)
    start = default_start(3, 5, 4, STREAMS.torch("start"))
    rows = torch.full((3,), 20)
    together = linear_adam(x, targets, rows, start, lr=0.01, steps=20)
    for place in range(3):
        alone = linear_adam(x, targets[:, place], rows[:1], start[place : place + 1], lr=0.01, steps=20)
        torch.testing.assert_close(together[place], alone[0])


@pytest.mark.parametrize(("features", "classes", "rows"), [(12, 2, 30), (8, 4, 25), (15, 3, 9)])
def test_newton_reaches_a_linear_teacher_from_zero(features, classes, rows):
    x = gaussian(rows, features, STREAMS.torch("x")).double()
    logits = x @ torch.randn(features, classes, generator=STREAMS.torch("w"), dtype=torch.float64)
    temperatures = torch.tensor([1.0, 5.0, 50.0], dtype=torch.float64)
    found = newton(x, (logits / temperatures[:, None, None]).log_softmax(-1))
    assert found.converged.all()
    assert found.iterations > 1
    assert float(found.change.max()) <= TOLERANCE
    shortest = torch.linalg.pinv(x) @ centered(logits)
    for place, temperature in enumerate(temperatures):
        torch.testing.assert_close(found.weights[place] * temperature, shortest, rtol=1e-5, atol=1e-6)


def test_newton_agrees_with_a_dense_reference_where_labels_do_not_fit():
    x, labels = gaussian(40, 6, STREAMS.torch("x")).double(), turns(40, 3)
    logits = (x @ torch.randn(6, 3, generator=STREAMS.torch("w"), dtype=torch.float64))[within_class(labels, STREAMS.torch("p"))]
    found = newton(x, logits.log_softmax(-1)[None])
    reference = torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([reference], lr=1, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ reference, logits.softmax(-1))
        value.backward()
        return value

    optimizer.step(loss)
    assert found.converged.all()
    torch.testing.assert_close(found.weights[0], centered(reference.detach()), rtol=1e-5, atol=1e-6)


def test_a_problem_does_not_depend_on_what_is_solved_beside_it():
    x = gaussian(30, 8, STREAMS.torch("x")).double()
    targets = torch.randn(3, 30, 2, generator=STREAMS.torch("y"), dtype=torch.float64).log_softmax(-1)
    together = newton(x, targets)
    for place in range(3):
        torch.testing.assert_close(together.weights[place], newton(x, targets[place : place + 1]).weights[0], rtol=1e-5, atol=1e-7)


def test_hard_labels_that_a_hyperplane_splits_have_no_answer():
    x, labels = gaussian(20, 15, STREAMS.torch("x")).double(), turns(20, 2)
    hard = torch.where(torch.nn.functional.one_hot(labels, 2) == 1, 0.0, -745.0).double()
    found = newton(x, hard[None])
    assert not found.converged.any()
    assert found.iterations < 100  # rounding stopped it


def test_iterations_that_run_out_are_no_answer():
    x = gaussian(20, 5, STREAMS.torch("x")).double()
    logits = 4 * x @ torch.randn(5, 2, generator=STREAMS.torch("w"), dtype=torch.float64)
    assert not newton(x, logits.log_softmax(-1)[None], iterations=2).converged.any()
    assert newton(x, logits.log_softmax(-1)[None]).converged.all()


def _nearly_hard() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and logits of a linear teacher of random labels, whose margins are about 8."""
    x, labels = gaussian(48, 40, STREAMS.torch("x")).double(), turns(48, 2)
    signs = (2.0 * labels - 1) * 8
    teacher = torch.linalg.lstsq(x[:38], signs[:38, None].double()).solution
    return x, torch.cat([-x @ teacher / 2, x @ teacher / 2], 1)


def test_labels_that_are_too_hard_for_float64_have_no_answer():
    x, logits = _nearly_hard()
    temperatures = torch.tensor([0.1, 2.0, 20.0], dtype=torch.float64)
    found = newton(x, (logits / temperatures[:, None, None]).log_softmax(-1))
    assert found.converged.tolist() == [False, True, True]
    assert float(found.rounding[0]) > ROUNDING
    # a gradient below 1e-9 of the first one is reached there as well, far from the teacher
    y = (logits / 0.1).softmax(-1)
    gradient = x.T @ ((x @ found.weights[0]).softmax(-1) - y)
    assert float(gradient.norm() / (x.T @ (0.5 - y)).norm()) < 1e-9
    assert float((found.weights[0] * 0.1 - centered(torch.linalg.lstsq(x, logits).solution)).norm()) > 0.1


def test_the_predicted_effect_of_rounding_is_that_of_labels_that_are_off_by_it(monkeypatch):
    x, logits = _nearly_hard()
    log_targets = (logits / 1.5).log_softmax(-1)
    bound = newton(x, log_targets[None]).rounding
    monkeypatch.setattr(solvers, "PATIENCE", 1)
    exact = newton(x, log_targets[None])
    signs = torch.randint(0, 2, (12, *logits.shape), generator=STREAMS.torch("signs")) * 2.0 - 1
    size = 1e-5 / float(exact.rounding)  # large beside what Newton's method leaves, small beside the weights
    moved = newton(x, log_targets + size * UNIT * signs.double())
    assert exact.converged.all()
    assert moved.converged.all()
    measured = (moved.weights - exact.weights).flatten(1).norm(dim=1).square().mean().sqrt() / exact.weights.norm() / size
    assert 0.3 < float(measured / exact.rounding) < 3
    assert measured < bound


@pytest.mark.parametrize("classes", [2, 3])
def test_factored_systems_and_conjugate_gradients_agree(monkeypatch, classes):
    x = gaussian(30, 8, STREAMS.torch("x")).double()
    logits = 2 * x @ torch.randn(8, classes, generator=STREAMS.torch("w"), dtype=torch.float64)
    targets = torch.stack([logits, logits.roll(1, 0)]).log_softmax(-1)
    iterative = newton(x, targets)
    monkeypatch.setattr(solvers, "PATIENCE", 1)
    factored = newton(x, targets)
    assert iterative.converged.all()
    assert factored.converged.all()
    torch.testing.assert_close(factored.weights, iterative.weights, rtol=1e-6, atol=1e-8)
    # one is a bound, the other a mean over signs
    assert (factored.rounding <= iterative.rounding).all()


def test_uniform_labels_need_no_step():
    found = newton(gaussian(20, 5, STREAMS.torch("x")), torch.full((1, 20, 3), 1 / 3).log().double())
    assert found.converged.all()
    assert found.iterations == 0
    assert float(found.weights.abs().max()) == 0

import numpy as np
import pytest
import torch
from tests.small import SHAPE, network

from limbeck.analyze.approximations import conjugate_gradients, ekfac, influence_functions, tracin
from limbeck.analyze.operators import Curvature
from limbeck.streams import Streams
from limbeck.train.network import State


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_conjugate_gradients_solve_every_row_and_say_when_they_do_not() -> None:
    factor = torch.randn(30, 20, generator=rng(), dtype=torch.float64)
    matrix = factor.T @ factor / 30
    right = torch.randn(4, 20, generator=rng(1), dtype=torch.float64)
    right[2] = 0
    exact = torch.linalg.solve(matrix + 0.1 * torch.eye(20, dtype=torch.float64), right.T).T
    solved = conjugate_gradients(lambda rows: rows @ matrix, right, damping=0.1, tolerance=1e-10, most=60)
    torch.testing.assert_close(solved.rows, exact, rtol=1e-8, atol=1e-10)
    assert solved.residual < 1e-9
    stopped = conjugate_gradients(lambda rows: rows @ matrix, right, damping=0.1, tolerance=1e-10, most=2)
    assert stopped.iterations == 2
    assert stopped.residual > 1e-3


def test_ridge_regression_leaves_one_out_by_the_hat_matrix() -> None:
    """For least squares with a ridge, ``y_j - prediction without j = (y_j - prediction_j) / (1 - h_jj)``, exactly. One solved row a point gives h, and the
    influence function, ``r_j x^T A^-1 x_j``, is the exact change of a prediction times ``1 - h_jj``."""
    generator = rng(3)
    x, y = torch.randn(12, 4, generator=generator, dtype=torch.float64), torch.randn(12, generator=generator, dtype=torch.float64)
    new, ridge = torch.randn(5, 4, generator=generator, dtype=torch.float64), 0.3

    def fitted(rows: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(x[rows].T @ x[rows] + ridge * torch.eye(4, dtype=torch.float64), x[rows].T @ y[rows])

    weights = fitted(torch.arange(12))
    solved = conjugate_gradients(lambda rows: rows @ x.T @ x, x, damping=ridge, tolerance=1e-13, most=50).rows
    leverage, residual = (solved * x).sum(1), y - x @ weights
    change = -(residual[:, None] * (solved @ new.T))  # of the predictions of new points when j is left out, to first order
    for j in range(12):
        without = fitted(torch.tensor([i for i in range(12) if i != j]))
        assert float(y[j] - x[j] @ without) == pytest.approx(float(residual[j] / (1 - leverage[j])), rel=1e-9)
        torch.testing.assert_close(new @ (without - weights), change[j] / (1 - leverage[j]), rtol=1e-8, atol=1e-10)


def problem(model: str) -> tuple[State, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    net, generator = network(model, 3), rng(5)
    state = {k: v.double() + 0.2 * torch.randn(v.shape, generator=generator, dtype=torch.float64) for k, v in net.init(Streams(0)).items()}
    images = torch.randn(16, *SHAPE, generator=generator, dtype=torch.float64)
    labels = torch.nn.functional.one_hot(torch.randint(0, 3, (16,), generator=generator), 3).double()
    return state, images[:6], labels[:6], images[6:], labels[6:]


def gradients(curvature: Curvature) -> torch.Tensor:
    return torch.cat(list(curvature.gradients()))


def test_influence_functions_are_their_dense_definition() -> None:
    state, *data = problem("mlp:width=3,depth=1")
    net = network("mlp:width=3,depth=1", 3)
    training, test = (Curvature(net, state, *pair, chunk=4) for pair in (data[:2], data[2:]))
    points = torch.tensor([4, 0])
    found, solution = influence_functions(training, test, points, damping=0.05, tolerance=1e-12, most=200)
    matrix = training.ggn(torch.eye(training.dimension, dtype=torch.float64)) + 0.05 * torch.eye(training.dimension, dtype=torch.float64)
    wanted = gradients(training)[points] @ torch.linalg.inv(matrix) @ gradients(test).T / 6
    torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-9)
    assert solution.residual < 1e-10


def test_tracin_of_one_small_step_is_what_leaving_out_does() -> None:
    """After one step of size eta from the same weights, the loss without j differs by ``eta/N grad l(x) . grad l_j`` to first order in eta."""
    state, *data = problem("mlp:width=3,depth=1")
    net, rate = network("mlp:width=3,depth=1", 3), 1e-5
    training, test = (Curvature(net, state, *pair) for pair in (data[:2], data[2:]))
    found = tracin([(training, test, rate)], torch.arange(6))
    each = gradients(training) / 6

    def losses(step: torch.Tensor) -> torch.Tensor:
        parts = step.split([state[name].numel() for name in net.parameter_names])
        moved = {name: state[name] - rate * part.view_as(state[name]) for name, part in zip(net.parameter_names, parts, strict=True)}
        return Curvature(net, {**state, **moved}, *data[2:]).losses

    for j in range(6):
        torch.testing.assert_close(losses(each.sum(0) - each[j]) - losses(each.sum(0)), found[j], rtol=1e-3, atol=1e-10)
    halves = tracin([(training, test, rate / 2)] * 2, torch.arange(6))
    torch.testing.assert_close(halves, found)


def test_ekfac_points_where_the_dense_influence_does() -> None:
    pytest.importorskip("kronfluence")
    state, *data = problem("softmax")
    net = network("softmax", 3)
    single = {name: tensor.float() for name, tensor in state.items()}
    data = [tensor.float() for tensor in data]
    before = torch.get_rng_state()
    found = ekfac(net, single, (data[0], data[1]), (data[2], data[3]), torch.tensor([5, 1]), rng(), damping=0.05)
    assert torch.equal(torch.get_rng_state(), before)
    training, test = (Curvature(net, single, *pair) for pair in (data[:2], data[2:]))
    dense, _ = influence_functions(training, test, torch.tensor([5, 1]), damping=0.05, tolerance=1e-6, most=500)
    assert found.shape == dense.shape == (2, 10)
    assert np.corrcoef(found.flatten(), dense.double().flatten())[0, 1] > 0.8  # Kronecker factors of six images are an approximation

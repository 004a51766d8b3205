import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from limbeck.analyze.trace import ESTIMATORS, Product, Trace, hutch_plus_plus, hutchinson, xtrace
from limbeck.errors import OptionError

LIKE = torch.zeros((), dtype=torch.float64)


def symmetric(values: Tensor, seed: int = 0) -> Tensor:
    """A matrix with these eigenvalues and random eigenvectors."""
    turn, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return turn * values.double() @ turn.T


def counted(matrix: Tensor) -> tuple[Product, list[int]]:
    seen: list[int] = []

    def product(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return rows.double() @ matrix

    return product, seen


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_one_rademacher_vector_traces_a_diagonal_matrix_exactly() -> None:
    values = torch.tensor([3.0, -1.0, 0.5, 7.0], dtype=torch.float64)
    assert hutchinson(counted(values.diag())[0], 4, 1, rng(), LIKE).value == pytest.approx(9.5, rel=1e-14)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_products_are_counted(name: str) -> None:
    product, seen = counted(symmetric(torch.linspace(-1, 2, 40)))
    assert ESTIMATORS[name](product, 40, 14, rng(), LIKE).products == sum(seen) == 14


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_are_unbiased_and_their_errors_honest(name: str) -> None:
    """Over 400 repetitions: the mean is within 4 standard errors, and the errors claimed are the spread there is, to a factor of 1.5."""
    values = torch.cat([torch.tensor([50.0, 30.0, 20.0, -15.0]), torch.linspace(-1, 1, 56)])
    product, _ = counted(symmetric(values))
    found = [ESTIMATORS[name](product, 60, 18, rng(seed), LIKE) for seed in range(400)]
    mean, spread = np.mean([t.value for t in found]), np.std([t.value for t in found])
    assert abs(mean - float(values.sum())) < 4 * spread / 20
    claimed = math.sqrt(np.mean([t.standard_error**2 for t in found]))
    assert spread / 1.5 < claimed < 1.5 * spread


@pytest.mark.parametrize("deflating", [hutch_plus_plus, xtrace])
def test_deflation_wins_on_a_few_outliers(deflating: Callable[..., Trace]) -> None:
    values = torch.cat([torch.tensor([1000.0, 500.0, 250.0]), torch.full((97,), 0.1)])
    product, _ = counted(symmetric(values))

    def squared_error(estimator: Callable[..., Trace]) -> float:
        return float(np.mean([(estimator(product, 100, 24, rng(seed), LIKE).value - float(values.sum())) ** 2 for seed in range(30)]))

    assert squared_error(deflating) < 1e-2 * squared_error(hutchinson)


@pytest.mark.parametrize("deflating", [hutch_plus_plus, xtrace])
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_a_matrix_of_low_rank_is_traced_exactly(deflating: Callable[..., Trace], rank: int) -> None:
    product, _ = counted(symmetric(torch.cat([torch.arange(1, rank + 1), torch.zeros(30 - rank)])))
    found = deflating(product, 30, 12, rng(), LIKE)
    assert found.value == pytest.approx(rank * (rank + 1) / 2, abs=1e-9)
    assert found.standard_error == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", ["hutch++", "xtrace"])
def test_more_products_than_dimensions_are_exact(name: str) -> None:
    product, _ = counted(symmetric(torch.tensor([5.0, -2.0, 1.0, 0.5])))
    assert ESTIMATORS[name](product, 4, 24, rng(), LIKE).value == pytest.approx(4.5, abs=1e-9)


def test_too_few_products_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^XTrace needs at least 4 products with the matrix, got 3; use 4 or more$"):
        xtrace(counted(torch.eye(5).double())[0], 5, 3, rng(), LIKE)

import numpy as np
import torch
from torch import Tensor

from limbeck.analyze.lanczos import lanczos, lanczos_runs, spectral_mass
from limbeck.analyze.trace import Product


def operator(values: Tensor) -> Product:
    turn, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    matrix = turn * values.double() @ turn.T
    return lambda rows: rows @ matrix


def start(dimension: int) -> Tensor:
    return torch.randn(dimension, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_outliers_converge_and_no_value_comes_twice() -> None:
    values = torch.cat([torch.linspace(-1, 1, 195), torch.tensor([5.0, 8.0, 13.0, 21.0, 34.0])])
    top, residuals, converged = lanczos(operator(values), start(200), 60).largest(5, 1e-6)
    np.testing.assert_allclose(top, [34, 21, 13, 8, 5], rtol=1e-10)
    assert converged
    assert float(residuals.max()) < 1e-4


def test_a_run_that_did_not_converge_says_so_and_its_residuals_are_true() -> None:
    values = torch.linspace(0, 1, 300)
    run = lanczos(operator(values), start(300), 8)
    _, _, converged = run.largest(5, 1e-3)
    assert not converged
    gaps = (run.values[:, None] - values.double()).abs().amin(1)
    assert bool((gaps <= run.residuals + 1e-12).all())


def test_ends_when_the_space_is_exhausted() -> None:
    run = lanczos(operator(torch.tensor([3.0, 3.0, 3.0, 1.0, 0.0])), start(5), 50)
    np.testing.assert_allclose(run.values, [0, 1, 3], atol=1e-12)  # one copy of a multiple eigenvalue lies in a Krylov space
    top, _, converged = run.largest(4, 1e-6)
    assert converged
    assert torch.isnan(top[3])


def test_moments_of_the_quadrature_are_those_of_the_start() -> None:
    product, v = operator(torch.linspace(-2, 3, 50)), start(50)
    run = lanczos(product, v, 4)
    v, image = v / v.norm(), v / v.norm()
    for power in range(8):  # m nodes integrate polynomials up to degree 2m - 1
        torch.testing.assert_close((run.weights * run.values**power).sum(), v @ image, rtol=1e-10, atol=1e-10)
        image = product(image[None])[0]


def test_the_mass_of_a_spectrum_is_counted() -> None:
    values = torch.cat([torch.full((10,), -1.0), torch.zeros(150), torch.full((40,), 2.0)])
    runs = lanczos_runs(operator(values), 200, 50, 10, torch.Generator().manual_seed(2), torch.zeros((), dtype=torch.float64))
    mass = spectral_mass(runs, torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(mass.sum(1), torch.ones(50, dtype=torch.float64))
    error = mass.std(0) / 50**0.5
    assert bool(((mass.mean(0) - torch.tensor([0.05, 0.75, 0.2])).abs() < 4 * error + 1e-9).all())

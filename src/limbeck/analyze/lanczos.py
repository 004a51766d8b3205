"""The Lanczos process on a matrix known by its products with vectors: outer eigenvalues with residuals, and the density of the whole spectrum."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.analyze.trace import Product, rademacher


@dataclass(frozen=True)
class Ritz:
    """Approximate eigenvalues [m], ascending, of one Lanczos run, with their residuals ``||A x - theta x||`` and weights [m].

    An eigenvalue of A lies within the residual of each value. The weights are squared overlaps with the start and sum to one.
    """

    values: Float[Tensor, " m"]
    residuals: Float[Tensor, " m"]
    weights: Float[Tensor, " m"]

    def largest(self, count: int, tolerance: float) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"], bool]:
        """The `count` largest values, descending, their residuals, and whether every residual is at most `tolerance` times the largest magnitude.

        A run on fewer dimensions than `count` gives NaN for the rest, and has then found all there is.
        """
        values, residuals = (torch.full((count,), torch.nan, dtype=torch.float64) for _ in range(2))
        found = min(count, len(self.values))
        values[:found], residuals[:found] = self.values.flip(0)[:found].cpu(), self.residuals.flip(0)[:found].cpu()
        limit = tolerance * float(self.values.abs().max())
        return values, residuals, bool((residuals[:found] <= limit).all())


def lanczos(product: Product, start: Float[Tensor, " P"], steps: int) -> Ritz:
    """At most `steps` products with a symmetric matrix A, from a start vector that is not zero (Lanczos 1950).

    Every new direction is orthogonalized twice against all earlier ones in float64 (full reorthogonalization; Golub and Van Loan 2013, section 10.3), so
    converged values do not come up again as copies. With A Q = Q T + beta q e_m^T and T = Y diag(theta) Y^T, the residual of theta_j is ``beta |Y_mj|`` and its
    weight ``Y_1j^2``. Ends early when the space is exhausted; residuals are then rounding errors. Keeps `steps` vectors of length P.
    """
    dimension = len(start)
    basis = [start.double() / start.double().norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    largest = 0.0
    for step in range(min(steps, dimension)):
        image = product(basis[-1].to(start.dtype)[None])[0].double()
        diagonal.append(float(basis[-1] @ image))
        largest = max(largest, float(image.norm()))
        known = torch.stack(basis)
        for _ in range(2):
            image = image - known.T @ (known @ image)
        beside.append(float(image.norm()))
        # what is left over is rounding error once the space is exhausted
        if beside[-1] <= 100 * torch.finfo(start.dtype).eps * largest or step + 1 == min(steps, dimension):
            break
        basis.append(image / beside[-1])
    off = torch.tensor(beside[:-1], dtype=torch.float64)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64)) + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    return Ritz(values, beside[-1] * vectors[-1].abs(), vectors[0].square())


def spectral_mass(runs: list[Ritz], edges: Float[Tensor, " E"]) -> Float[Tensor, "runs bins"]:
    """The share of all eigenvalues in each of the E + 1 bins that ascending `edges` cut the line into, as each run estimates it: stochastic Lanczos quadrature.

    For signs v, ``E[v^T f(A) v] = tr f(A)``, and Lanczos from v integrates f with nodes theta_j and weights of sum one (Golub and Welsch 1969; Ubaru, Chen
    and Saad 2017), which gives the mean of f over the spectrum. Bins are closed below.
    """
    mass = torch.zeros(len(runs), len(edges) + 1, dtype=torch.float64)
    for row, run in zip(mass, runs, strict=True):
        row.scatter_add_(0, torch.bucketize(run.values, edges.double(), right=True), run.weights)
    return mass


def lanczos_runs(product: Product, dimension: int, runs: int, steps: int, generator: torch.Generator, like: Tensor) -> list[Ritz]:
    """Runs from independent random signs."""
    return [lanczos(product, rademacher(1, dimension, generator, like)[0], steps) for _ in range(runs)]

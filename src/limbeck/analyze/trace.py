"""Traces of matrices that are known only by their products with vectors: Hutchinson, Hutch++ and XTrace, each with a standard error.

A product takes vectors as rows [R, P] and returns as many rows. Matrices are symmetric. All three estimators are unbiased; the two that deflate first project out
the few large eigenvalues, which carry most of the variance of a Rademacher probe when the spectrum has outliers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import OptionError

Product = Callable[[Float[Tensor, "R P"]], Float[Tensor, "R P"]]
"""Rows times a symmetric P x P matrix."""


@dataclass(frozen=True)
class Trace:
    """An estimated trace, its standard error (0 where the estimator is exact, NaN from a single probe) and the products with vectors that it took."""

    value: float
    standard_error: float
    products: int


def rademacher(count: int, dimension: int, generator: torch.Generator, like: Tensor) -> Float[Tensor, "R P"]:
    """Rows of independent signs, drawn on the CPU, in the dtype and on the device of `like`."""
    signs = torch.randint(0, 2, (count, dimension), generator=generator, dtype=torch.int8)
    return signs.to(like.device, like.dtype).mul_(2).sub_(1)


def mean_trace(samples: Float[Tensor, " R"], products: int) -> Trace:
    """The mean of independent unbiased samples of a trace, with the standard error of a mean."""
    spread = float(samples.double().std()) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return Trace(float(samples.double().mean()), spread, products)


def hutchinson(product: Product, dimension: int, products: int, generator: torch.Generator, like: Tensor) -> Trace:
    """``tr A = E[v^T A v]`` over Rademacher vectors v: the mean of `products` samples (Girard 1989; Hutchinson 1990).

    The variance of one sample is ``2 (||A||_F^2 - sum_i A_ii^2)``, so a diagonal matrix is traced exactly by a single vector.
    """
    _need(products, LEAST["hutchinson"], "Hutchinson's estimator")
    probes = rademacher(products, dimension, generator, like)
    return mean_trace((probes.double() * product(probes)).sum(1), products)


def hutch_plus_plus(product: Product, dimension: int, products: int, generator: torch.Generator, like: Tensor) -> Trace:
    """Hutch++ (Meyer, Musco, Musco and Woodruff 2021, arXiv 2010.09649, algorithm 1): with Q an orthonormal basis of A S for signs S,
    ``tr A = tr(Q^T A Q) + tr((I - QQ^T) A (I - QQ^T))``, the first part exactly and the second by Hutchinson.

    A third of the products makes the basis, a third the exact part, a third the rest. Given Q the estimate is unbiased, and the standard error is that of the
    last third.
    """
    _need(products, LEAST["hutch++"], "Hutch++")
    third = min(products // 3, dimension)
    basis = orthonormal(product(rademacher(third, dimension, generator, like)))
    exact = float((basis * product(basis.to(like.dtype))).sum())
    rest = deflated(product, basis, products - 2 * third, generator, like)
    return Trace(exact + rest.value, rest.standard_error, products)


def deflated(product: Product, basis: Float[Tensor, "K P"], products: int, generator: torch.Generator, like: Tensor) -> Trace:
    """Hutchinson's estimate of ``tr((I - QQ^T) A (I - QQ^T))`` for orthonormal rows Q, which must not depend on the probes."""
    probes = rademacher(products, basis.shape[1], generator, like).double()
    probes -= (probes @ basis.T) @ basis
    samples = (probes * product(probes.to(like.dtype))).sum(1)
    if len(basis) == basis.shape[1]:
        return Trace(0.0, 0.0, products)
    return mean_trace(samples, products)


def xtrace(product: Product, dimension: int, products: int, generator: torch.Generator, like: Tensor) -> Trace:
    """XTrace (Epperly, Tropp and Webber 2024, arXiv 2301.07825, section 2): every test vector is used for the basis and, left out of it, for the rest.

    With test vectors w_1 ... w_r (r = products / 2) on the sphere and Q_i an orthonormal basis of ``{A w_j : j != i}``, the estimate is the mean over i of
    ``tr(Q_i^T A Q_i) + c_i w_i^T (I - Q_i Q_i^T) A (I - Q_i Q_i^T) w_i``, where ``c_i = (P - rank Q_i) / ||(I - Q_i Q_i^T) w_i||^2`` puts what is left
    of the vector back on its sphere. All Q_i come from one QR decomposition: Q_i Q_i^T = Q (I - s_i s_i^T) Q^T, with s_i the normalized column i of
    R^-T. The standard error, ``std_i / sqrt(r)``, is the authors' estimate (the r terms are exchangeable, not independent). Exact when A has rank below r.
    """
    _need(products, LEAST["xtrace"], "XTrace")
    count = min(products // 2, dimension)
    probes = torch.randn(count, dimension, generator=generator, dtype=torch.float64).to(like.device)
    probes *= math.sqrt(dimension) / probes.norm(dim=1, keepdim=True)
    images = product(probes.to(like.dtype)).double()
    left, values, right = torch.linalg.svd(images, full_matrices=False)
    rank = int((values > values.max() * dimension * torch.finfo(like.dtype).eps).sum())
    if rank == 0:
        return Trace(0.0, 0.0, products)
    basis = right[:rank]
    basis_images = product(basis.to(like.dtype)).double()
    core = basis @ basis_images.T
    inside = probes @ basis.T
    # images = (left values) right: the coordinate that only row i has. In lower rank every row is spanned by the others, and nothing is left out
    own = torch.linalg.pinv(left * values).T if rank == count else torch.zeros_like(inside)
    own = own / own.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    exact = core.trace() - ((own @ core) * own).sum(1)
    kept = inside - own * (own * inside).sum(1, keepdim=True)
    rest, rest_images = probes - kept @ basis, images - kept @ basis_images
    freedom = dimension - (rank - 1 if rank == count else rank)
    size = rest.square().sum(1)
    scale = torch.where(size > 1e-12 * dimension, freedom / size, 0.0)
    terms = exact + scale * (rest * rest_images).sum(1)
    return Trace(float(terms.mean()), float(terms.std()) / math.sqrt(count) if count > 1 else math.nan, count + rank)


def orthonormal(rows: Float[Tensor, "R P"]) -> Float[Tensor, "K P"]:
    """An orthonormal basis of the space of the rows, in float64."""
    _, values, right = torch.linalg.svd(rows.double(), full_matrices=False)
    return right[values > values.max() * rows.shape[1] * torch.finfo(rows.dtype).eps]


def _need(products: int, least: int, what: str) -> None:
    if products < least:
        raise OptionError(f"{what} needs at least {least} products with the matrix, got {products}; use {least} or more")


def samples_of(estimator: str, products: int, dimension: int) -> int:
    """How many samples the standard error of an estimator comes from: Student's t has one degree of freedom less."""
    if estimator == "hutch++":
        return products - 2 * min(products // 3, dimension)
    return min(products // 2, dimension) if estimator == "xtrace" else products


#: The fewest products that an estimator works with.
LEAST = {"hutchinson": 1, "hutch++": 3, "xtrace": 4}
ESTIMATORS = {"hutchinson": hutchinson, "hutch++": hutch_plus_plus, "xtrace": xtrace}

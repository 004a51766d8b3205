"""What the influence of a training image is estimated by without training anew: damped influence functions, TracIn, EK-FAC.

All three estimate ``loss(x) without image j - loss(x) with all`` of a network trained on N images under the mean cross-entropy.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.analyze.operators import Curvature
from limbeck.analyze.subject import NotApplicable
from limbeck.analyze.trace import Product
from limbeck.train.network import Network, State

_FACTOR_ROOM = 400_000_000  # numbers: a factor of the Gauss-Newton matrix up to this size is kept in memory


@dataclass(frozen=True)
class Solution:
    """Solutions [R, P] of linear systems, and the largest residual relative to its right-hand side."""

    rows: Float[Tensor, "R P"]
    residual: float
    iterations: int


def conjugate_gradients(product: Product, right: Float[Tensor, "R P"], *, damping: float, tolerance: float, most: int) -> Solution:
    """Solves ``(A + damping I) u = b`` for every row b (Hestenes and Stiefel 1952), until every residual is at most ``tolerance ||b||`` or for `most` steps.

    The matrix must be positive semidefinite. The residual that is returned is computed anew from the solution, not carried along.
    """
    size = right.norm(dim=1, keepdim=True).clamp_min(torch.finfo(right.dtype).tiny)
    solution, rest = torch.zeros_like(right), right.clone()
    direction, square = rest.clone(), rest.square().sum(1, keepdim=True)
    step = 0
    while step < most and bool((square.sqrt() > tolerance * size).any()):
        image = product(direction) + damping * direction
        curved = (direction * image).sum(1, keepdim=True)
        # a solved row stays where it is
        rate = torch.where(curved > 0, square / curved.clamp_min(torch.finfo(right.dtype).tiny), 0.0)
        solution, rest = solution + rate * direction, rest - rate * image
        new = rest.square().sum(1, keepdim=True)
        direction = rest + torch.where(square > 0, new / square.clamp_min(torch.finfo(right.dtype).tiny), 0.0) * direction
        square, step = new, step + 1
    residual = (right - product(solution) - damping * solution).norm(dim=1, keepdim=True) / size
    return Solution(solution, float(residual.max()), step)


def influence_functions(
    training: Curvature, test: Curvature, points: Tensor, *, damping: float, tolerance: float, most: int
) -> tuple[Float[Tensor, "N M"], Solution]:
    """``1/N grad l(x)^T (G + damping I)^-1 grad l_j``: Koh and Liang (2017, arXiv 1703.04730, equation 2), for removal, with the generalized Gauss-Newton
    matrix in place of the Hessian, which is not positive where training stops early."""
    gradients = torch.cat(list(training.gradients()))[points.to(training.like.device)] / len(training)
    product: Product = training.ggn
    if training.factor_size <= _FACTOR_ROOM:
        factor = training.ggn_factor()
        product = lambda rows: (rows @ factor.T) @ factor / len(training)  # noqa: E731
    solution = conjugate_gradients(product, gradients, damping=damping, tolerance=tolerance, most=most)
    return along(test, solution.rows), solution


def tracin(pairs: Sequence[tuple[Curvature, Curvature, float]], points: Tensor) -> Float[Tensor, "N M"]:
    """``sum_c rate_c / N grad l(x; theta_c)^T grad l_j(theta_c)`` over checkpoints c: Pruthi, Liu, Sundararajan and Kale (2020, arXiv 2002.08484, TracInCP).

    `pairs` holds the curvature of the set and of the test images at each checkpoint and the sum of the step sizes that it stands for.
    """
    total: Tensor | None = None
    for training, test, rate in pairs:
        gradients = torch.cat(list(training.gradients()))[points.to(training.like.device)]
        part = along(test, rate / len(training) * gradients)
        total = part if total is None else total + part
    assert total is not None
    return total


def along(test: Curvature, directions: Float[Tensor, "N P"]) -> Float[Tensor, "N M"]:
    """``grad l(x)^T u`` of every test image x for every direction u, for the cost of one gradient of each image."""
    return torch.cat([directions @ gradients.T for gradients in test.gradients()], 1)


def need_kronfluence() -> None:
    """Raises `NotApplicable` where the package is missing, before anything expensive."""
    try:
        import kronfluence.analyzer
        import kronfluence.arguments
        import kronfluence.task  # noqa: F401
    except Exception as problem:  # its own imports may fail too: all are "not installed"
        raise NotApplicable(f"EK-FAC needs the kronfluence package ({problem}); pip install 'limbeck[analysis]'") from None


def ekfac(
    network: Network,
    state: State,
    training: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    points: Tensor,
    generator: torch.Generator,
    damping: float,
) -> Float[Tensor, "N M"]:
    """`influence_functions` with the Fisher matrix approximated layer by layer by eigenvalue-corrected Kronecker factors (George et al. 2018, arXiv
    1806.03884; Grosse et al. 2023, arXiv 2308.03296), by the kronfluence package. Only weights of linear and convolution layers count."""
    need_kronfluence()
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.arguments import FactorArguments, ScoreArguments
    from kronfluence.task import Task

    class Classification(Task):
        def compute_train_loss(self, batch: Any, model: torch.nn.Module, sample: bool = False) -> Tensor:
            logits, labels = model(batch[0]), batch[1]
            if sample:  # labels that the model itself would give, for the true Fisher
                drawn = torch.multinomial(logits.detach().softmax(1).cpu(), 1, generator=generator)[:, 0].to(logits.device)
                labels = torch.nn.functional.one_hot(drawn, logits.shape[1]).to(logits.dtype)
            return -(labels * logits.log_softmax(1)).sum()

        def compute_measurement(self, batch: Any, model: torch.nn.Module) -> Tensor:
            return self.compute_train_loss(batch, model)

    task = Classification()
    model = prepare_model(network.loaded({name: tensor.cpu() for name, tensor in state.items()}), task)
    rows = points.tolist()
    # its data loaders draw from the global random state
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("influence", model, task, cpu=True, disable_tqdm=True, output_dir=folder, log_level=40)
        sets = [torch.utils.data.TensorDataset(*(tensor.cpu() for tensor in given)) for given in (training, test)]
        analyzer.fit_all_factors("factors", sets[0], per_device_batch_size=64, factor_args=FactorArguments(strategy="ekfac"))
        analyzer.compute_pairwise_scores(
            "scores", "factors", sets[1], sets[0], per_device_query_batch_size=64, per_device_train_batch_size=64, train_indices=rows,
            score_args=ScoreArguments(damping_factor=damping),
        )  # fmt: skip
        scores = analyzer.load_pairwise_scores("scores")
    assert scores is not None
    return scores["all_modules"].T.double() / len(training[0])

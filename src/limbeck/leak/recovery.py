"""A linear teacher read off its own soft labels: the exact attack, and how well determined its answer is."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Recovery:
    """What soft labels say about a linear teacher.

    `weights` [D, K], float64, centered over classes, are the shortest weights that fit; `rank` counts the independent directions of the inputs and `condition` is
    the ratio of their largest to their smallest singular value (relative errors of labels grow by at most that factor); `residual` is the root mean square of what
    does not fit, in nats of teacher logit. `determined`: no other centered weights fit, since the rank is D.
    """

    weights: Float[Tensor, "D K"]
    rank: int
    condition: float
    residual: float

    @property
    def determined(self) -> bool:
        return self.rank == len(self.weights)


def centered(logits: Float[Tensor, "*N K"]) -> Float[Tensor, "*N K"]:
    """Minus the mean over classes: what is left of logits when a constant that no softmax shows is taken out."""
    return logits - logits.mean(-1, keepdim=True)


def recover_linear(inputs: Float[Tensor, "N D"], log_probabilities: Float[Tensor, "N K"], temperature: float = 1.0) -> Recovery:
    """Weights of a linear teacher without bias from its soft labels ``y = softmax(x W / T)``, by least squares.

    Centered log-probabilities are linear in the input: ``T (log y - mean_k log y) = x (W - mean_k W)``. So N independent inputs determine the centered weights
    exactly from N >= D on, whatever the temperature, and below it the component of W in the span of the inputs. This is the ancestor of all that the leak
    experiments measure: Phuong and Lampert 2019, arXiv 2105.13093, theorem 1. For a bias, append a feature that is 1.

    Arithmetic is float64, by singular values; directions below ``max(N, D) eps`` times the largest count as absent. Give log-probabilities that were computed as
    such: from rounded probabilities near one nothing can be recovered.
    Cost: one singular value decomposition, about ``14 N D min(N, D)`` operations.
    """
    x, wanted = inputs.double(), centered(log_probabilities.double()) * temperature
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    kept = values > max(x.shape) * torch.finfo(torch.float64).eps * values[0]
    rank = int(kept.sum())
    weights = right[:rank].T @ ((left[:, :rank].T @ wanted) / values[:rank, None])
    residual = (x @ weights - wanted).square().mean().sqrt()
    return Recovery(weights, rank, float(values[0] / values[rank - 1]), float(residual))


class NestedLeastSquares:
    """Shortest least-squares solutions on the first k rows of one set of inputs, for many k and many targets.

    Below D rows ``w = X' (X X')^-1 z`` and the Cholesky factor of the first k rows is a corner of that of all; from D rows on ``(X'X)^-1 X' z``, where ``X'X`` grows
    row by row. So a whole column of a phase diagram costs one pass over the inputs. Squaring the condition number in this way loses nothing that matters here:
    errors stay below 1e-6 relative for Gaussian inputs unless k = D (use `recover_linear` there).
    """

    def __init__(self, inputs: Float[Tensor, "N D"]) -> None:
        self.inputs = inputs.double()
        few = self.inputs[: self.inputs.shape[1] - 1]
        self._small = torch.linalg.cholesky(few @ few.T)
        self._rows, self._gram = 0, torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64)

    def solve(self, rows: int, targets: Float[Tensor, "k T"]) -> Float[Tensor, "D T"]:
        """Solutions on the first `rows` rows, which must not decrease from call to call."""
        features = self.inputs.shape[1]
        x = self.inputs[:rows]
        if rows < features:
            return x.T @ torch.cholesky_solve(targets, self._small[:rows, :rows])
        if rows < self._rows:
            raise ValueError(f"rows must not decrease from call to call, got {rows} after {self._rows}")
        new = self.inputs[self._rows : rows]
        self._gram += new.T @ new
        self._rows = rows
        return torch.cholesky_solve(x.T @ targets, torch.linalg.cholesky(self._gram))

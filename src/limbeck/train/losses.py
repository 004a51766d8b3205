"""Losses on logits [B, K] against label rows [B, K]. Each returns the SUM over the batch, so that a batch can be processed in chunks exactly.

With `weights` [B] each row's loss counts that often.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Loss = Callable[..., Float[Tensor, ""]]
"""``(logits, labels) -> loss`` or ``(logits, labels, weights) -> loss``."""


def soft_cross_entropy(logits: Float[Tensor, "B K"], labels: Float[Tensor, "B K"], weights: Float[Tensor, " B"] | None = None) -> Float[Tensor, ""]:
    """``-sum_i sum_k y_ik log softmax(z_i)_k``. Rows need not sum to one: truncated labels weigh less, as in the label paper's scaling law
    (Qin, Deng and Alvarez-Melis 2024, section 4.3)."""
    return -_total(labels * F.log_softmax(logits, dim=1), weights)


def tempered_kl(temperature: float) -> Loss:
    """``sum_i KL(q_i || softmax(z_i / T))`` with ``q = softmax(log y / T)``, without the factor T^2 (SRe2L; Yin, Xing and Shen 2023).

    A probability row y is a softmax of logits up to a constant, so ``softmax(log y / T)`` equals tempering the expert's own logits.
    """

    def loss(logits: Float[Tensor, "B K"], labels: Float[Tensor, "B K"], weights: Float[Tensor, " B"] | None = None) -> Float[Tensor, ""]:
        # a class whose entry is zero (cut off by top-k, or rounded away) has no weight at any temperature
        # (a row of zeros has no loss; without the ones its softmax would not be finite)
        target = F.log_softmax(torch.where(labels.sum(dim=1, keepdim=True) > 0, labels, 1).log() / temperature, dim=1)
        gap = target.masked_fill(labels == 0, 0) - F.log_softmax(logits / temperature, dim=1)
        return _total(torch.where(labels > 0, target.exp() * gap, 0), weights)

    return loss


def centered_mse(logits: Float[Tensor, "B K"], labels: Float[Tensor, "B K"], weights: Float[Tensor, " B"] | None = None) -> Float[Tensor, ""]:
    """``1/2 sum_i sum_k (z_ik - (y_ik - 1/K))^2`` on centered labels (FRePo; Zhou, Nezhadarya and Ba 2022)."""
    return 0.5 * _total((logits - (labels - 1 / labels.shape[1])).square(), weights)


def make_loss(name: str, temperature: float) -> Loss:
    """The loss of a recipe."""
    return {"cross-entropy": soft_cross_entropy, "kl": tempered_kl(temperature), "mse": centered_mse}[name]


def _total(entries: Float[Tensor, "B K"], weights: Float[Tensor, " B"] | None) -> Float[Tensor, ""]:
    return entries.sum() if weights is None else (entries.sum(1) * weights).sum()

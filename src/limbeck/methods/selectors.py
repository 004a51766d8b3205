"""Which real images to keep. A selector returns training indices of one class in order of preference; the first `count` are used.

So budgets nest: the images chosen at 1 per class are among those chosen at 10.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.methods.problem import Problem

QUANTILES = 10


def random_order(problem: Problem, number: int, count: int, argument: str | None) -> Int[Tensor, " n"]:
    """Uniformly at random without replacement, from the stream ``select/class``."""
    members = problem.candidates(number)
    return members[torch.randperm(len(members), generator=problem.streams.torch("select", number))][:count]


def herding(problem: Problem, number: int, count: int, argument: str | None) -> Int[Tensor, " n"]:
    """Greedy herding (Welling 2009) on the expert's log-probabilities: each next image brings the mean of the chosen ones nearest to the class mean."""
    members, vectors = _vectors(problem, number)
    mean, total, taken = vectors.mean(0), torch.zeros_like(vectors[0]), torch.zeros(len(members), dtype=torch.bool)
    chosen = []
    for size in range(1, count + 1):
        distance = ((total + vectors) / size - mean).square().sum(1)
        best = int(torch.where(taken, torch.inf, distance).argmin())
        taken[best] = True
        total = total + vectors[best]
        chosen.append(best)
    return members[torch.tensor(chosen)]


def k_center(problem: Problem, number: int, count: int, argument: str | None) -> Int[Tensor, " n"]:
    """Greedy k-center (Gonzalez 1985; farthest first) on the expert's log-probabilities, started from the image nearest to the class mean."""
    members, vectors = _vectors(problem, number)
    chosen = [int((vectors - vectors.mean(0)).square().sum(1).argmin())]
    nearest = (vectors - vectors[chosen[0]]).square().sum(1)
    while len(chosen) < count:
        nearest[chosen] = -torch.inf
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (vectors - vectors[chosen[-1]]).square().sum(1))
    return members[torch.tensor(chosen)]


def cross_entropy_quantile(problem: Problem, number: int, count: int, argument: str | None) -> Int[Tensor, " n"]:
    """At random within one of ten equal groups of the class, sorted by the expert's cross-entropy ``-log p(true class)``: 0 easiest ... 9 hardest.

    Qin, Deng and Alvarez-Melis 2024, appendix B. A class too small to fill the quantile adds the images nearest to it in that order.
    """
    try:
        quantile = int(argument if argument is not None else 0)
    except ValueError:
        quantile = -1
    if not 0 <= quantile < QUANTILES:
        raise OptionError(
            f"ce-quantile needs a quantile 0 (easiest) to {QUANTILES - 1} (hardest), got {argument!r}; use for example --selector ce-quantile:0"
        )
    members = problem.candidates(number)
    loss = -problem.expert_logits[members].double().log_softmax(1)[:, number]
    order = torch.sort(loss, stable=True).indices
    first, end = quantile * len(members) // QUANTILES, (quantile + 1) * len(members) // QUANTILES
    inside = first + torch.randperm(end - first, generator=problem.streams.torch("select", number))
    ranks = torch.arange(len(members))
    outside = ranks[(ranks < first) | (ranks >= end)]
    distance = torch.where(outside < first, first - outside, outside - end + 1)
    by_preference = torch.cat([inside, outside[torch.sort(distance, stable=True).indices]])
    return members[order[by_preference[:count]]]


def _vectors(problem: Problem, number: int) -> tuple[Int[Tensor, " n"], Float[Tensor, "n K"]]:
    members = problem.candidates(number)
    return members, problem.expert_logits[members].double().log_softmax(1)

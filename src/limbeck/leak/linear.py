"""Students of linear teachers under three named protocols, for many temperatures at once."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.leak.recovery import NestedLeastSquares, centered
from limbeck.leak.solvers import default_start, linear_adam, newton
from limbeck.leak.split import within_class
from limbeck.progress import Tick
from limbeck.streams import Streams

#: ``authors``: full-batch Adam in float32, the published rate and steps. ``converged``: Newton's method in float64 on the cross-entropy, from zero weights, with an
#: answer only where it converged and rounding of the labels leaves one. ``exact``: least squares on log-probabilities: what can be known of a linear teacher.
Protocol = Literal["authors", "converged", "exact"]
LABELS = ("own", "shuffled")
MEASURES = ("seen", "held_out", "fresh", "weights")


@dataclass(frozen=True)
class Taught:
    """A teacher and what it was trained on: inputs [N, D] float64 (the first `rows` of which students see), labels [N], weights [D, K], and fresh inputs."""

    inputs: Float[Tensor, "N D"]
    labels: Int[Tensor, " N"]
    weights: Float[Tensor, "D K"]
    fresh: Float[Tensor, "M D"]
    rows: int


@dataclass(frozen=True)
class Students:
    """Measures of students [labels own or shuffled, temperatures], each NaN where the protocol has no answer: accuracy on seen and held-out examples against the
    teacher's training labels, agreement with the teacher on fresh inputs, and the relative distance of ``T W`` from the teacher's weights (centered). `change` and
    `rounding` are the largest of `limbeck.leak.solvers.Newton` among the students that converged."""

    measures: dict[str, Float[Tensor, "2 T"]]
    solved: Bool[Tensor, "2 T"]
    change: float = 0.0
    rounding: float = 0.0


def teach(
    taught: Taught,
    temperatures: Float[Tensor, " T"],
    protocol: Protocol,
    streams: Streams,
    *,
    lr: float = 1e-4,
    steps: int = 10_000,
    tick: Tick = lambda units: None,
) -> Students:
    """Trains or solves the students of one teacher at all temperatures, with own labels and with labels shuffled within classes.

    The shuffle and the students' initializations come from `streams`, and are the same for every protocol; a converged student sees nothing but its own labels, and
    starts at zero. Ticks once for every step (Adam) or iteration (Newton)
    of all.
    """
    x = taught.inputs[: taught.rows]
    logits = x @ taught.weights
    order = within_class(taught.labels[: taught.rows].cpu(), streams.torch("shuffle")).to(x.device)
    logits = torch.stack([logits, logits[order]])  # [2, k, K]
    scaled = logits[:, None] / temperatures.to(x)[:, None, None]  # [2, T, k, K]
    count, classes = len(temperatures), logits.shape[2]
    flat = scaled.flatten(0, 1)
    solved, change, rounding = torch.ones(2 * count, dtype=torch.bool), 0.0, 0.0
    if protocol == "authors":
        start = default_start(2 * count, x.shape[1], classes, streams.torch("students")).to(x.device)
        targets = flat.softmax(-1).float().permute(1, 0, 2).contiguous()
        rows = torch.full((2 * count,), taught.rows)
        weights = linear_adam(x.float(), targets, rows, start, lr=lr, steps=steps, tick=tick).double()
    elif protocol == "converged":
        found = newton(x, flat.log_softmax(-1), tick=tick)
        weights, solved = found.weights, found.converged.cpu()
        if bool(solved.any()):
            change, rounding = (float(values[found.converged].max()) for values in (found.change, found.rounding))
    else:
        # what a softmax hides is a constant for each row, so scaling the centered logits is scaling the log-probabilities
        shortest = NestedLeastSquares(x).solve(taught.rows, centered(logits).permute(1, 0, 2).flatten(1))
        shortest = shortest.view(x.shape[1], 2, classes).permute(1, 0, 2)
        weights = (shortest[:, None] / temperatures.to(x)[:, None, None]).flatten(0, 1)
    measures = _measure(taught, weights, temperatures)
    for name, values in measures.items():
        measures[name] = values.masked_fill(~solved, float("nan")).view(2, count)
    return Students(measures, solved.view(2, count), change, rounding)


def capacity(classes: int) -> float:
    """About how many examples per feature, n / d, a linear teacher of random labels can memorize: 2 of two classes (Cover 1965), and ``0.92 K / log K`` of more
    (Behrens and Zdeborova 2025, arXiv 2506.14457, figure 4b)."""
    return 2.0 if classes == 2 else 0.92 * classes / math.log(classes)


def _measure(taught: Taught, weights: Tensor, temperatures: Tensor) -> dict[str, Tensor]:
    every = torch.cat([taught.inputs, taught.fresh])
    columns = weights.permute(1, 0, 2).flatten(1)
    predicted = (every @ columns).view(len(every), *weights.shape[::2]).argmax(2)  # [N + M, problems]
    right = (predicted[: len(taught.inputs)] == taught.labels[:, None]).double()
    agreed = (predicted[len(taught.inputs) :] == (taught.fresh @ taught.weights).argmax(1, keepdim=True)).double()
    true = centered(taught.weights)
    distance = centered(weights) * temperatures.repeat(2).to(weights)[:, None, None] - true
    found = {
        "seen": right[: taught.rows].mean(0),
        "held_out": right[taught.rows :].mean(0),
        "fresh": agreed.mean(0),
        "weights": distance.flatten(1).norm(dim=1) / true.norm(),
    }
    return {name: values.cpu() for name, values in found.items()}

"""What stored labels can hold: how finely they tell logits apart, and how many constraints they put on a student."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from limbeck.train.network import Network
from limbeck.types.labels import Labels

_MANTISSA = {torch.float32: 24, torch.float16: 11}


@dataclass(frozen=True)
class LabelPrecision:
    """What the stored entries of labels can tell apart.

    `bits` is the mean over kept entries of ``log2(1 + spread / step)``: `spread` is the standard deviation over images of an entry's centered log-probability
    times the temperature (that is, of the expert's logits) and `step` how far apart two neighboring storable values are there. `below` is the fraction of
    entries stored as zero, `smallest` the smallest entry that is not, `entropy` the mean entropy of a label in nats, `ratio` the largest ratio of two
    entries of a row.
    """

    bits: float
    below: float
    smallest: float
    entropy: float
    ratio: float
    temperature: float
    storage: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def label_precision(labels: Labels) -> LabelPrecision | None:
    """Of labels that are one distribution an image; None for hard labels, labels of several views, and values that are no probabilities."""
    if labels.values is None or labels.views is not None or labels.kind not in ("probability", "logit", "log-probability"):
        return None
    dense = labels.probabilities().double()
    kept = dense > 0
    logs = torch.where(kept, dense.clamp_min(1e-300).log(), torch.nan)
    centered = (logs - logs.nanmean(1, keepdim=True)) * labels.temperature
    mean = centered.nanmean(0)
    spread = ((centered - mean).square().nanmean(0)).sqrt()
    relative = _relative_step(labels, dense)
    levels = torch.log2(1 + spread / (relative * labels.temperature).clamp_min(1e-300))
    largest = dense.amax(1)
    least = torch.where(kept, dense, torch.inf).amin(1)
    return LabelPrecision(
        bits=float(levels[kept].nan_to_num().mean()),
        below=float((~kept).double().mean()),
        smallest=float(least.min()),
        entropy=float(torch.special.entr(dense).sum(1).mean()),
        ratio=float((largest / least).max()),
        temperature=labels.temperature,
        storage=str(labels.values.dtype).removeprefix("torch."),
        bytes=labels.nbytes,
    )


def _relative_step(labels: Labels, dense: torch.Tensor) -> torch.Tensor:
    """Distance between storable values over the value, which is the step of its logarithm."""
    assert labels.values is not None
    if labels.scale is not None:
        return labels.scale.double() / 255 / dense.clamp_min(1e-300)
    if labels.kind != "probability":  # the logarithm itself is stored
        step = labels.values.double().abs().mean() * 2.0 ** -(_MANTISSA[labels.values.dtype] - 1)
        return torch.full_like(dense, float(step))
    smallest_normal = torch.finfo(labels.values.dtype).tiny
    step = torch.full_like(dense, 2.0 ** -(_MANTISSA[labels.values.dtype] - 1))
    return torch.where(dense < smallest_normal, step * smallest_normal / dense.clamp_min(1e-300), step)


def free_weights(network: Network) -> float:
    """Weights of a network that its labels can tell apart: adding one vector to the rows of all K classes in its linear head changes no softmax, so of the head's
    weights a K-th part is open. A network without such a head counts in full."""
    head = getattr(network.module, "head", None)
    open_ones = sum(part.numel() for part in head.parameters()) / network.classes if isinstance(head, nn.Linear) else 0.0
    return network.parameter_count - open_ones


def identification_ratio(images: int, classes: int, views: int | None, free: float) -> float:
    """``N (K - 1) E / F``: independent numbers in the published labels over a student's `free_weights`. From 1 on the labels could fix every weight of
    a model as large as the student; below 1 they can still give part of it away. For a linear student of D inputs it is ``N E / (D + 1)``, and a linear
    expert is then recovered exactly (Phuong and Lampert 2019, arXiv 2105.13093)."""
    return images * (classes - 1) * (views or 1) / free

"""How far label distributions are from each other.

The Jensen-Shannon distance here is the square root of the Jensen-Shannon divergence with logarithms to base 2: it lies in [0, 1], and is a metric (Endres and
Schindelin 2003). The label paper (Qin, Deng and Alvarez-Melis 2024, arXiv 2406.10485, section 5.2) names the distance without saying root or base.
"""

from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.errors import OptionError


def js_divergence(first: Float[Tensor, "*B K"], second: Float[Tensor, "*B K"]) -> Float[Tensor, " *B"]:
    """``H((p + q) / 2) - (H(p) + H(q)) / 2`` in bits, of rows that sum to one: 0 for equal rows, 1 for rows that share no class. float64."""
    p, q = first.double(), second.double()
    gap = torch.special.entr((p + q) / 2).sum(-1) - (torch.special.entr(p).sum(-1) + torch.special.entr(q).sum(-1)) / 2
    return gap.clamp(0, float(np.log(2))) / float(np.log(2))  # rounding can leave a tiny negative number, of which there is no root


def js_distance(first: Float[Tensor, "*B K"], second: Float[Tensor, "*B K"]) -> Float[Tensor, " *B"]:
    """The root of `js_divergence`: a metric in [0, 1]. float64."""
    return js_divergence(first, second).sqrt()


def distances_over_epochs(labels: Float[Tensor, "N K"], by_epoch: Float[Tensor, "T N K"]) -> Float[Tensor, "T N"]:
    """Jensen-Shannon distance of every image's label to what the expert said of it at each of T snapshots (figure 12)."""
    return js_distance(labels.expand_as(by_epoch), by_epoch)


def min_max(distances: Float[Tensor, "T N"]) -> Float[Tensor, "T N"]:
    """``(d - min) / (max - min)`` over the T snapshots, image by image (appendix D.2, figure 8): 0 where an image's label is nearest. An image whose distance never
    changes has no such scale: its column is NaN."""
    low, high = distances.amin(0), distances.amax(0)
    return torch.where(high > low, (distances - low) / (high - low), torch.nan)


def nearest_snapshot(normalized: Float[Tensor, "T N"]) -> int:
    """Which snapshot has the smallest mean normalized distance over the images; the earliest of equal ones."""
    means = normalized.nanmean(1)
    if bool(means.isnan().all()):
        raise OptionError("no image's distance changes over the snapshots, so none is nearest; give snapshots that differ")
    return int(torch.where(means.isnan(), torch.inf, means).argmin())


def pairwise_distances(labels: Float[Tensor, "E N K"]) -> Float[Tensor, "P N"]:
    """Jensen-Shannon distance between the labels of every pair of E experts, image by image, P = E (E - 1) / 2: how far labels are that differ by nothing but a
    seed, the reference of figure 12."""
    if len(labels) < 2:
        raise OptionError(f"distances between experts need at least 2 of them, got {len(labels)}; train more with --experts 4")
    return torch.stack([js_distance(labels[a], labels[b]) for a, b in combinations(range(len(labels)), 2)])


def entropies(rows: Float[Tensor, "*B K"]) -> Float[Tensor, " *B"]:
    """Shannon entropy of every row, in nats, float64."""
    return torch.special.entr(rows.double()).sum(-1)

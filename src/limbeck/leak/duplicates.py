"""Copies of private images in a published set: exact ones by their pixels, near ones by distances that held-out images of the same distribution calibrate."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

NEIGHBORS = 10
_AT_ONCE = 4096


@dataclass(frozen=True)
class Nearest:
    """For each of N queries: the index of the nearest private record, its distance (root mean square per entry), the mean distance `around` of the next `NEIGHBORS`
    private records, and the first relative to the second. The relative distance is near 1 for a picture that is merely smooth or average, which is about as
    near to many records, and near 0 for a copy, which is near to one."""

    index: Int[Tensor, " N"]
    distance: Float[Tensor, " N"]
    around: Float[Tensor, " N"]
    relative: Float[Tensor, " N"]


def nearest(queries: Float[Tensor, "N D"], private: Float[Tensor, "n D"], own: Int[Tensor, " N"] | None = None) -> Nearest:
    """Exact nearest neighbors; `own` are the private indices of the queries themselves, which then do not count.

    Candidates are found in float32 by ``|a|^2 + |b|^2 - 2 a b``; their distances are then taken from the differences in float64, since that formula cannot
    tell a copy from a near copy. Cost: ``2 N n D`` operations."""
    kept = min(NEIGHBORS + 1, len(private))
    best = torch.full((len(queries), 0), 0.0)
    who = torch.zeros(len(queries), 0, dtype=torch.int64)
    center = private.mean(0)
    moved = queries - center
    for start in range(0, len(private), _AT_ONCE):
        part = private[start : start + _AT_ONCE] - center
        squared = part.square().sum(1) - 2 * moved @ part.T
        if own is not None:
            here = torch.nonzero((own >= start) & (own < start + len(part)))[:, 0]
            squared[here, own[here] - start] = torch.inf
        found = squared.topk(min(kept, len(part)), largest=False)
        best, who = torch.cat([best, found.values], 1), torch.cat([who, found.indices + start], 1)
        chosen = best.topk(min(kept, best.shape[1]), largest=False).indices
        best, who = best.gather(1, chosen), who.gather(1, chosen)
    exact = torch.stack([(private[row].double() - query.double()).square().mean(1).sqrt() for query, row in zip(queries, who, strict=True)])
    exact, order = exact.sort(1)
    rest = exact[:, 1:].mean(1) if kept > 1 else torch.ones(len(queries), dtype=torch.float64)
    relative = exact[:, 0] / rest.clamp_min(torch.finfo(torch.float64).tiny)
    return Nearest(who.gather(1, order)[:, 0], exact[:, 0].float(), rest.float(), torch.where(rest > 0, relative, 0.0).float())


@dataclass(frozen=True)
class NearCopies:
    """How many of N published images lie nearer to a private record than a threshold that held-out images fix, how likely at least as many are by chance, and
    which ones lie so near that even one of them is an answer.

    The threshold is the `rank`-th smallest relative distance of H held-out records. If the published images were further draws of
    the same distribution, the number below it (`flagged`) would follow a beta-binomial distribution with parameters N, rank, H + 1 - rank (order statistics of
    exchangeable values), which gives the p-value exactly. `rate` = rank / (H + 1) is the false-alarm rate of a single image.

    That number does not say how far below. So an image below `bar`, half of the smallest relative distance of all held-out records, counts by itself (`single`).

    `half_level` is the relative distance of a copy under noise of half a gray level. A threshold or a bar that is no larger can tell nothing but exact copies.
    """

    space: str
    flagged: tuple[int, ...]
    threshold: float
    rate: float
    p_value: float
    single: tuple[int, ...]
    bar: float
    half_level: float
    published: int
    controls: int
    smallest: float
    median: float
    control_median: float

    @property
    def calibrated(self) -> bool:
        """Whether the threshold tells a near copy from real images that merely resemble each other."""
        return self.threshold > self.half_level

    @property
    def finds_one(self) -> bool:
        """Whether the bar does."""
        return self.bar > self.half_level

    @property
    def gray_levels(self) -> float:
        """Noise (root mean square) up to which a single copy lies below the bar, about: distances grow in proportion to it."""
        return min(255.0, 0.5 * self.bar / max(self.half_level, 1e-12))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "flagged": list(self.flagged), "single": list(self.single), "gray_levels": self.gray_levels}


def near_copies(published: np.ndarray, controls: np.ndarray, *, space: str, half_level: float, rate: float = 0.01) -> NearCopies:
    """Compares the relative distances of published images [N] with those of held-out controls [H]; `rate` is a single image's false-alarm rate, as far as H
    controls resolve it."""
    from scipy.stats import betabinom

    count = len(controls)
    rank = max(1, int(np.floor(rate * (count + 1))))
    ordered = np.sort(controls)
    threshold, bar = float(ordered[rank - 1]), float(ordered[0]) / 2
    flagged = np.flatnonzero(published < threshold)
    # the sum of the tail keeps its digits where one minus the rest has none left
    tail = betabinom.pmf(np.arange(len(flagged), len(published) + 1), len(published), rank, count + 1 - rank)
    return NearCopies(
        space=space,
        flagged=tuple(flagged.tolist()),
        threshold=threshold,
        rate=rank / (count + 1),
        p_value=min(1.0, float(tail.sum())) if len(flagged) else 1.0,
        single=tuple(np.flatnonzero(published < bar).tolist()),
        bar=bar,
        half_level=half_level,
        published=len(published),
        controls=count,
        smallest=float(published.min()),
        median=float(np.median(published)),
        control_median=float(np.median(controls)),
    )

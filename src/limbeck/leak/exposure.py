"""Exposure: how much better students know the labels of canaries than the labels of controls that nothing saw. Exact tests, no asymptotics.

Labels of canaries and controls are independent and uniform on the K classes. So if a student's predictions do not depend on them, the number of right
predictions has a distribution that is known exactly given the predictions, for any number of students together.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from limbeck.errors import OptionError
from limbeck.types.finding import Verdict


def votes(predictions: np.ndarray, classes: int) -> np.ndarray:
    """int64 [M, K]: how many of the S students (predictions [S, M]) name each class for each record."""
    return np.stack([(predictions == k).sum(0) for k in range(classes)], axis=1).astype(np.int64)


def hits_pmf(counts: np.ndarray) -> np.ndarray:
    """Distribution over 0 ... S M of the number of right predictions when every record's label is redrawn uniformly; `counts` are `votes` [M, K], S students.

    Exact: the convolution of the records' own distributions. With one student it is the binomial distribution with M trials and probability 1 / K.
    """
    records, classes = counts.shape
    students = int(counts[0].sum()) if records else 0
    pmf = np.ones(1)
    for row in counts:
        pmf = np.convolve(pmf, np.bincount(row, minlength=students + 1) / classes)
    return pmf


def upper_tail(pmf: np.ndarray, value: int) -> float:
    """P(X >= value) for X on 0, 1, 2, ..."""
    return float(min(1.0, pmf[max(value, 0) :].sum()))


def difference_pmf(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Distribution of X - Y shifted by the largest Y: index 0 is ``-(len(second) - 1)``."""
    return np.convolve(first, second[::-1])


def newcombe(first: float, n_first: float | int, second: float, n_second: float | int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of two proportions, ``first - second``: Newcombe's hybrid of two Wilson score intervals (Newcombe 1998, Statistics in Medicine
    17, 873-890, method 10). The numbers of records may be effective ones (`effective_records`), not whole."""
    a, b = wilson(first, n_first, level), wilson(second, n_second, level)
    gap = first - second
    return gap - math.hypot(first - a[0], b[1] - second), gap + math.hypot(a[1] - first, second - b[0])


def wilson(proportion: float, n: float | int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + level / 2))
    center = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n))
    return max(0.0, center - half), min(1.0, center + half)


def effective_records(right: np.ndarray) -> float:
    """How many records of one student each would give the mean of `right` [M], fractions of students that are right on each record, its variance: the number for
    which ``p (1 - p) / n`` is the variance of that mean between records. M for one student, more when students err apart, and never below M."""
    p, m = float(right.mean()), len(right)
    variance = float(right.var(ddof=1)) / m if m > 1 else 0.0
    return max(float(m), p * (1 - p) / variance) if variance > 0 else float(m)


@dataclass(frozen=True)
class Exposure:
    """Accuracies on canary and control labels (means over students), their difference with Newcombe's 95 % interval (given the expert and its data: it covers
    the draw of records and labels), and the exact one-sided p-value of the difference under redrawn labels.

    `critical` is the smallest exposure that counts as a leak at level `alpha`, `size` the exact probability that clean data reach it, `redraw_rate` how often
    `redraws` redrawn sets of labels did. `p_chance` is the exact p-value of the canaries alone against chance 1 / K. `detectable` is the exposure that would be
    found with probability 0.8 (normal approximation).
    """

    canary: float
    control: float
    value: float
    low: float
    high: float
    p_value: float
    p_chance: float
    alpha: float
    critical: float
    size: float
    redraw_rate: float
    redraws: int
    detectable: float
    canaries: int
    networks: int
    classes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)

    def verdict(self, tolerance: float) -> Verdict:
        """A leak when the p-value reaches `alpha`; clean when it does not and the interval excludes every exposure of `tolerance` or more."""
        if self.p_value <= self.alpha:
            return "leak"
        return "clean" if self.high < tolerance else "inconclusive"


def exposure(
    predictions: np.ndarray,
    labels: np.ndarray,
    members: np.ndarray,
    classes: int,
    generator: np.random.Generator,
    *,
    alpha: float,
    redraws: int = 10_000,
) -> Exposure:
    """The exposure of S students from their predictions [S, M] on canaries and controls with drawn labels [M]; `members` [M] marks the canaries, half of them."""
    if members.sum() * 2 != len(members) or not len(members):
        raise OptionError(
            f"exposure compares as many canaries as controls, got {int(members.sum())} of {len(members)}; use one control for each canary"
        )
    students, m = len(predictions), int(members.sum())
    counts = votes(predictions, classes)
    right = np.take_along_axis(counts, labels[:, None], axis=1)[:, 0]
    hits, misses = int(right[members].sum()), int(right[~members].sum())
    seen, unseen = hits_pmf(counts[members]), hits_pmf(counts[~members])
    both = difference_pmf(seen, unseen)
    offset = len(unseen) - 1
    tail = np.minimum(1.0, np.cumsum(both[::-1])[::-1])
    # the smallest difference whose tail is at most alpha; one that cannot occur when none is
    reached = np.flatnonzero(tail <= alpha)
    critical = int(reached[0]) - offset if len(reached) else students * m + 1
    drawn = generator.integers(0, classes, (redraws, len(members)))
    redrawn = counts[np.arange(len(members)), drawn]
    differences = redrawn[:, members].sum(1) - redrawn[:, ~members].sum(1)
    canary, control = hits / (students * m), misses / (students * m)
    low, high = newcombe(canary, effective_records(right[members] / students), control, effective_records(right[~members] / students))
    return Exposure(
        canary=canary,
        control=control,
        value=canary - control,
        low=low,
        high=high,
        p_value=float(tail[hits - misses + offset]),
        p_chance=upper_tail(seen, hits),
        alpha=alpha,
        critical=critical / (students * m),
        size=float(tail[reached[0]]) if len(reached) else 0.0,
        redraw_rate=float((differences >= critical).mean()),
        redraws=redraws,
        detectable=_detectable(m, classes, alpha),
        canaries=m,
        networks=students,
        classes=classes,
    )


def _detectable(m: int, classes: int, alpha: float) -> float:
    from scipy.stats import norm

    chance = 1 / classes
    return float((norm.ppf(1 - alpha) + norm.ppf(0.8)) * math.sqrt(2 * chance * (1 - chance) / m))

"""Membership inference: was a record among those that an expert, a student or published labels were made from? LiRA, RMIA, and an attack on labels alone.

W *worlds* are made, each from the clean records and a random half of the R audited records. Every world is attacked in turn with the help of the others (its
shadow models). Which records a world holds is drawn uniformly and independently of the other worlds, so a world's row of the design can be redrawn: if the
outputs do not depend on the design, every redrawn design gives an attack of the same distribution, and the p-value is exact, however few shadows there are.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from limbeck.errors import OptionError
from limbeck.types.finding import Verdict

Attack = Callable[[np.ndarray], np.ndarray]
"""From a design, bool [W, R], to scores [W, R]: the larger, the more likely a member."""

RATES = (0.001, 0.01)
_PER_RECORD_VARIANCE_FROM = 64  # shadows; with fewer, one variance for all records is the better estimate (Carlini and others 2022, section VI)


def draw_design(worlds: int, records: int, generator: np.random.Generator) -> np.ndarray:
    """bool [W, R]: each row a uniformly random half of the records, rows independent. Rows are of one size, so that all worlds train as one program."""
    if worlds < 2 or records < 2:
        raise OptionError(f"membership inference needs at least 2 worlds and 2 records, got {worlds} and {records}; use --shadows 8")
    return generator.permuted(np.tile(np.arange(records) < records // 2, (worlds, 1)), axis=1)


def label_margin(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """LiRA's score ``log p(label) - log(1 - p(label))`` from logits [..., M, K] and labels [M], without the cancellation of the formula as written."""
    z = logits.astype(np.float64)
    own = np.take_along_axis(z, np.broadcast_to(labels[:, None], (*z.shape[:-1], 1)), axis=-1)[..., 0]
    others = z.copy()
    np.put_along_axis(others, np.broadcast_to(labels[:, None], (*z.shape[:-1], 1)), -np.inf, axis=-1)
    top = others.max(-1, keepdims=True)
    return own - (top[..., 0] + np.log(np.exp(others - top).sum(-1)))


def lira(scores: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Log-likelihood ratios [W, R] of "in" against "out" for every world by the others' scores [W, R]: the online attack of Carlini, Chien, Nasr, Song, Terzis
    and Tramer (2022, arXiv 2112.03570), each side a normal distribution.

    One variance for all records on each side, as the paper advises for few shadows, and each record's own from 64 shadows on. The variance of a record's mean
    over its n shadows is added, ``s^2 (1 + 1/n)``, so that records with few shadows on one side do not look like members. A record with none on a side scores 0.
    """
    inside, outside = _side(scores, design), _side(scores, ~design)
    logs = [-0.5 * (np.log(variance) + (scores - mean) ** 2 / variance) for mean, variance in (inside, outside)]
    return np.nan_to_num(logs[0] - logs[1], nan=0.0)


def _side(scores: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and predictive variance [W, R] of the scores that the other worlds on one side have; NaN where there is none."""
    weight = chosen.astype(np.float64)
    n = weight.sum(0) - weight
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = ((weight * scores).sum(0) - weight * scores) / n
        squares = (weight * scores**2).sum(0) - weight * scores**2 - np.where(n > 0, n * mean**2, 0)
        freedom = np.maximum(n - 1, 0)
        shared = (np.maximum(squares, 0).sum(1) / np.maximum(freedom.sum(1), 1))[:, None]
        variance = squares / freedom if len(scores) > _PER_RECORD_VARIANCE_FROM else shared
        floor = 1e-12 * (1 + scores.var())
        return np.where(n > 0, mean, np.nan), np.maximum(variance, floor) * (1 + 1 / n)


def rmia(probabilities: np.ndarray, population: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Scores [W, R] of RMIA (Zarifzadeh, Liu and Shokri 2024, arXiv 2312.03262, equations 2 to 4): the fraction of population records z for which
    ``(p(x | target) / p(x)) / (p(z | target) / p(z)) > 1``.

    `probabilities` [W, R] and `population` [W, Z] are what each world gives to the label of a record. ``p(x)`` is the paper's average of a world with and one
    without x, from the worlds without it: ``((1 + a) q + 1 - a) / 2`` with q their mean. The paper takes its a as given; here the other worlds tell it by least
    squares of ``1 - (mean inside)`` on ``1 - (mean outside)``. Its threshold gamma is 1, which leaves fewest ties.
    """
    weight = (~design).astype(np.float64)
    outside_n = weight.sum(0) - weight
    inside_n = (len(design) - 1) - outside_n
    total = probabilities.sum(0) - probabilities
    with np.errstate(invalid="ignore", divide="ignore"):
        out_sum = (weight * probabilities).sum(0) - weight * probabilities
        outside, inside = out_sum / outside_n, (total - out_sum) / inside_n
        known = (outside_n > 0) & (inside_n > 0)
        gap_out, gap_in = np.where(known, 1 - outside, 0.0), np.where(known, 1 - inside, 0.0)
        slope = np.clip((gap_in * gap_out).sum(1) / np.maximum((gap_out**2).sum(1), 1e-300), 0, 1)[:, None]
        outside = np.where(outside_n > 0, outside, total / (len(design) - 1))
        others = (population.sum(0) - population) / (len(design) - 1)

    def prior(q: np.ndarray) -> np.ndarray:
        return 0.5 * ((1 + slope) * q + 1 - slope)

    tiny = np.finfo(np.float64).tiny
    mine = np.log(probabilities + tiny) - np.log(prior(outside) + tiny)
    theirs = np.sort(np.log(population + tiny) - np.log(prior(others) + tiny), axis=1)
    return np.stack([np.searchsorted(row, x, side="left") / len(row) for row, x in zip(theirs, mine, strict=True)])


class LabelAttack:
    """Membership read off the published labels alone, without a student: labels [W, P] that W worlds gave to the same images, as log-probabilities in a row.

    A record's worlds inside and outside give two mean rows. With the entries' standard deviations over all worlds as the noise, a world's score is the
    log-likelihood ratio of two normal distributions (Fisher's discriminant with a diagonal covariance), less what the noise of the two means adds to it.
    Everything is computed from the W x W inner products.
    """

    def __init__(self, rows: np.ndarray) -> None:
        centered = rows.astype(np.float64) - rows.mean(0)
        spread = centered.std(0)
        moving = spread > 1e-9 * (np.abs(rows).mean() + 1e-300)
        scaled = centered[:, moving] / spread[moving]
        self._entries = int(moving.sum())
        self._products = scaled @ scaled.T

    def __call__(self, design: np.ndarray) -> np.ndarray:
        worlds = len(design)
        scores = np.zeros(design.shape)
        weight = design.astype(np.float64)
        for target in range(worlds):
            others = np.delete(np.arange(worlds), target)
            products, mine = self._products[np.ix_(others, others)], self._products[target, others]
            sides = []
            for chosen in (weight[others], 1 - weight[others]):
                n = chosen.sum(0)
                with np.errstate(invalid="ignore", divide="ignore"):
                    along = (mine @ chosen) / n
                    length = ((products @ chosen) * chosen).sum(0) / n**2 - self._entries / n
                sides.append(along - 0.5 * length)
            scores[target] = np.nan_to_num(sides[0] - sides[1], nan=0.0)
        return scores


@dataclass(frozen=True)
class Rate:
    """A true-positive rate at a small false-positive rate, with its 95 % interval (bootstrap of records), the exact p-value under redrawn designs, and the smallest
    value that leaks."""

    tpr: float
    low: float
    high: float
    p_value: float
    critical: float


@dataclass(frozen=True)
class AttackResult:
    """How an attack did over all worlds: area under the ROC curve and true-positive rates at small false-positive rates, with 95 % intervals from a bootstrap of
    records (all worlds of a record stay together), and exact p-values under redrawn designs.

    A rate f is None when fewer than ``10 / f`` non-members were judged: it cannot be told from so few. Two statistics are tested, each at `level`: the area, and the
    rate at `tested`, the smallest false-positive rate that can be told; where none can, the area alone. An average over all records hides the few that are exposed;
    the rate does not. `critical` is the smallest area that leaks. `curve` holds (false-positive, true-positive) points.
    """

    auc: float
    auc_low: float
    auc_high: float
    p_value: float
    redraws: int
    level: float
    critical: float
    tested: str | None
    rates: Mapping[str, Rate | None]
    members: int
    non_members: int
    records: int
    worlds: int
    curve: tuple[tuple[float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "curve": [list(point) for point in self.curve]}

    def verdict(self, tolerance: float) -> Verdict:
        """A leak when the p-value of area or rate reaches `level`. Clean when neither does, the intervals exclude an area and a rate that lie `tolerance` above
        guessing, and the rate's interval reaches down to the false-positive rate."""
        rate = self.rates[self.tested] if self.tested else None
        if self.p_value <= self.level or (rate is not None and rate.p_value <= self.level):
            return "leak"
        guessed = float(self.tested or 0)
        excluded = self.auc_high < 0.5 + tolerance and (rate is None or (rate.low <= guessed and rate.high < guessed + tolerance))
        return "clean" if excluded else "inconclusive"


def tested_rate(non_members: int) -> float | None:
    """The smallest of `RATES` that so many non-members resolve."""
    return next((rate for rate in RATES if non_members >= 10 / rate), None)


def auc_of(scores: np.ndarray, members: np.ndarray) -> float:
    """Probability that a member outscores a non-member, ties counted half (Mann and Whitney)."""
    _, inverse, counts = np.unique(scores.reshape(-1), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse.reshape(-1)]
    inside = members.reshape(-1)
    n, m = int(inside.sum()), int((~inside).sum())
    return float((ranks[inside].sum() - n * (n + 1) / 2) / (n * m))


def tpr_at(scores: np.ndarray, members: np.ndarray, rate: float) -> float:
    """Fraction of members above the threshold that at most a fraction `rate` of non-members exceeds."""
    outside = np.sort(scores[~members])[::-1]
    allowed = int(np.floor(rate * len(outside) + 1e-9))
    threshold = outside[allowed] if allowed < len(outside) else -np.inf
    return float((scores[members] > threshold).mean())


def judge_attack(
    attack: Attack, design: np.ndarray, generator: np.random.Generator, *, alpha: float, redraws: int = 2000, bootstraps: int = 500
) -> AttackResult:
    """Runs an attack on its design, on `redraws` redrawn ones for the p-values and the critical values, and on `bootstraps` resamples of records. The level `alpha`
    is split equally between the area and the tested rate, where there is one."""
    scores = attack(design)
    members, non_members, records = int(design.sum()), int((~design).sum()), design.shape[1]
    resolved = [rate for rate in RATES if non_members >= 10 / rate]
    tested = tested_rate(non_members)
    level = alpha if tested is None else alpha / 2

    def statistics(scores: np.ndarray, design: np.ndarray) -> list[float]:
        return [auc_of(scores, design), *(tpr_at(scores, design, rate) for rate in resolved)]

    observed = np.array(statistics(scores, design))
    drawn = (draw_design(len(design), records, generator) for _ in range(redraws))
    null = np.array([statistics(attack(other), other) for other in drawn])
    picks = (generator.integers(0, records, records) for _ in range(bootstraps))
    spread = np.array([statistics(scores[:, pick], design[:, pick]) for pick in picks])
    p_values = (1 + (null >= observed).sum(0)) / (1 + redraws)
    low, high = np.quantile(spread, 0.025, axis=0), np.quantile(spread, 0.975, axis=0)
    # the p-value reaches the level only above the k-th largest null value: one step of an area (half a pair), or of a rate (a member), further
    step = np.array([0.5 / (members * non_members), *(1 / members for _ in resolved)])
    critical = np.sort(null, axis=0)[::-1][max(0, int(np.floor(level * (redraws + 1))) - 1)] + step
    known = {f"{rate:g}": Rate(*(float(part[i]) for part in (observed, low, high, p_values, critical))) for i, rate in enumerate(resolved, start=1)}
    return AttackResult(
        auc=float(observed[0]),
        auc_low=float(low[0]),
        auc_high=float(high[0]),
        p_value=float(p_values[0]),
        redraws=redraws,
        level=level,
        critical=float(critical[0]),
        tested=None if tested is None else f"{tested:g}",
        rates={f"{rate:g}": known.get(f"{rate:g}") for rate in RATES},
        members=members,
        non_members=non_members,
        records=records,
        worlds=len(design),
        curve=_curve(scores, design),
    )


def _curve(scores: np.ndarray, design: np.ndarray, points: int = 60) -> tuple[tuple[float, float], ...]:
    outside, inside = np.sort(scores[~design]), np.sort(scores[design])
    rates = np.unique(np.concatenate([[0.0], np.geomspace(1 / len(outside), 1, points)]))
    thresholds = np.concatenate([outside, [np.inf]])[len(outside) - np.floor(rates * len(outside)).astype(int)]
    hits = 1 - np.searchsorted(inside, thresholds, side="left") / len(inside)
    return tuple((float(f), float(t)) for f, t in zip(rates, hits, strict=True))

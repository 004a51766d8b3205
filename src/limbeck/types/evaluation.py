"""`Evaluation`: accuracies over image draws x experts x students, and intervals that say which variance they cover."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from limbeck.errors import FileFormatError


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % confidence interval; `covers` names the sources of variance inside it. `low` and `high` are NaN when nothing was repeated."""

    mean: float
    low: float
    high: float
    covers: str
    n: int

    @property
    def half_width(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def t_interval(values: np.ndarray, covers: str, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent values [n]."""
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), "nothing repeated", n)
    half = _t(level, float(n - 1)) * float(values.std(ddof=1)) / np.sqrt(n)
    return Interval(mean, float(mean - half), float(mean + half), covers, n)


def nested_interval(accuracy: np.ndarray, level: float = 0.95) -> Interval:
    """Interval of the grand mean of ``accuracy [draws D, experts E, students S]`` that covers every factor repeated at least twice.

    Draws and experts are crossed random factors and students are nested in their cells. With mean squares MS of a two-way random-effects layout,
    ``Var(mean) = (MS_D + MS_E - MS_DE) / (D E S)`` when both are repeated (never below either factor's own MS / (D E S)), ``MS_D / (D E S)`` or
    ``MS_E / (D E S)`` when one is, and ``MS_S / (D E S)`` when neither is; degrees of freedom after Satterthwaite (1946). No interval is narrower than that of
    the students within their cells, since means of a few draws may lie close together by chance. A factor that was not repeated is not covered, and the
    interval says so.
    """
    a = np.asarray(accuracy, dtype=np.float64)
    draws, experts, students = a.shape
    if draws == 1 and experts == 1:
        return t_interval(a, "students", level)
    grand, cells = a.mean(), a.mean(axis=2)
    by_draw, by_expert = cells.mean(axis=1), cells.mean(axis=0)
    mean_squares: list[tuple[float, float, int]] = []  # coefficient, mean square, degrees of freedom
    if draws > 1:
        mean_squares.append((1, experts * students * float(((by_draw - grand) ** 2).sum()) / (draws - 1), draws - 1))
    if experts > 1:
        mean_squares.append((1, draws * students * float(((by_expert - grand) ** 2).sum()) / (experts - 1), experts - 1))
    factors = [(square, dof) for _, square, dof in mean_squares]
    if draws > 1 and experts > 1:
        residual = cells - by_draw[:, None] - by_expert[None, :] + grand
        dof = (draws - 1) * (experts - 1)
        mean_squares.append((-1, students * float((residual**2).sum()) / dof, dof))
    variance = sum(sign * square for sign, square, _ in mean_squares)
    largest, largest_dof = max(factors)
    if variance <= largest:
        variance, freedom = largest, float(largest_dof)
    else:
        freedom = variance**2 / sum(square**2 / dof for _, square, dof in mean_squares if square > 0)
    half = _t(level, max(freedom, 1.0)) * np.sqrt(variance / a.size)
    if students > 1:
        freedom = float(draws * experts * (students - 1))
        half = max(half, _t(level, freedom) * np.sqrt(float(((a - cells[..., None]) ** 2).sum()) / freedom / a.size))
    names = [name for name, count in (("image draws", draws), ("experts", experts)) if count > 1]
    covers = " and ".join([*names, "students"])
    return Interval(float(grand), float(grand - half), float(grand + half), covers, a.size)


def paired_difference(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> Interval:
    """Interval of ``mean(first - second)`` over cells [D, E, S] that share draw, expert and student seeds."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    return nested_interval(first - second, level)


def _t(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + level / 2, freedom))


@dataclass(frozen=True)
class Evaluation:
    """How students of one kind of set did on the test split.

    `accuracy`, `loss` and `worst_class` have shape [draws, experts, students]; accuracy is the last epoch's, as a fraction, and loss is in nats.
    `sets` holds the digest of the set of each draw and expert. `seconds` is training and scoring time, 0 for students taken from the cache.
    """

    name: str
    protocol: str
    model: str
    accuracy: np.ndarray
    loss: np.ndarray
    worst_class: np.ndarray
    bytes: Mapping[str, int]
    images: int
    sets: tuple[str, ...]
    test_digest: str
    test_images: int
    plan: Mapping[str, Any]
    recipe: Mapping[str, Any]
    seed: int
    diverged: int = 0
    seconds: float = 0.0

    @property
    def interval(self) -> Interval:
        """Mean accuracy with its 95 % interval over everything that was repeated."""
        return nested_interval(self.accuracy)

    @property
    def worst(self) -> Interval:
        """Mean accuracy on each student's worst class."""
        return nested_interval(self.worst_class)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; intervals are added for readers and ignored by `from_dict`."""
        arrays = {key: getattr(self, key).tolist() for key in ("accuracy", "loss", "worst_class")}
        interval = self.interval
        shown = {
            "mean": interval.mean,
            "low": _number(interval.low),
            "high": _number(interval.high),
            "covers": interval.covers,
            "students": interval.n,
        }
        return {
            **vars(self),
            **arrays,
            "loss": _finite(self.loss),
            "sets": list(self.sets),
            "interval_95": shown,
            "worst_class_mean": self.worst.mean,
        }

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Evaluation":
        """Inverse of `to_dict`."""
        try:
            known = {key: record[key] for key in Evaluation.__dataclass_fields__}
            arrays = {key: np.array(known[key], dtype=np.float64) for key in ("accuracy", "loss", "worst_class")}
            return Evaluation(**{**known, **arrays, "sets": tuple(known["sets"])})
        except (KeyError, TypeError, ValueError) as problem:
            raise FileFormatError(f"not a limbeck evaluation record ({type(problem).__name__}: {problem}); use an intact evaluation.json") from None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _finite(values: np.ndarray) -> list[Any]:
    return np.where(np.isfinite(values), values, 1e30).tolist()  # JSON has no infinity; a diverged student's loss is unbounded

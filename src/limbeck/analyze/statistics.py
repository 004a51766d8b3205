"""What analyses compute from predictions: agreement, error consistency, and intervals over repeats and test images."""

from collections.abc import Sequence

import numpy as np

from limbeck.types.evaluation import t_interval
from limbeck.types.measurement import Quantity


def over_repeats(values: np.ndarray, axes: tuple[str, ...], covers: str, unit: str) -> Quantity:
    """Mean of ``values [..., repeats]`` over the last axis, with Student's t interval where there are at least two; of a fraction, the part within 0 and 1."""
    means = np.asarray(values.mean(-1))
    if values.shape[-1] < 2:
        return Quantity(means, axes, unit)
    low, high = np.empty(means.shape), np.empty(means.shape)
    for index in np.ndindex(means.shape):
        interval = t_interval(values[index], covers)
        low[index], high[index] = interval.low, interval.high
    if unit.startswith("fraction"):
        low, high = low.clip(0, 1), high.clip(0, 1)
    return Quantity(means, axes, unit, low, high, covers)


def agreement(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Fraction of images on which two networks name the same class: ``[..., M]`` against ``[..., M]``, over the last axis."""
    return np.asarray(np.mean(first == second, axis=-1))


def error_consistency(observed: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cohen's kappa of being right, ``(c_obs - c_exp) / (1 - c_exp)`` (Geirhos, Meding and Wichmann 2020, arXiv 2006.16736, equations 1 and 2).

    `observed` is the fraction of images on which both are right or both are wrong; `first` and `second` are the accuracies p and q, of which two networks
    that err independently would give ``c_exp = p q + (1 - p) (1 - q)``. 1 means the same errors, 0 what their accuracies alone explain, below 0 less than
    that. NaN where c_exp is 1: two networks that are always right, or always wrong, have no errors to compare.
    """
    expected = first * second + (1 - first) * (1 - second)
    room = np.asarray(1 - expected, dtype=np.float64)
    return np.divide(observed - expected, room, out=np.full_like(room, np.nan), where=room > 1e-12)


def bootstrap_images(images: int, replicates: int, generator: np.random.Generator) -> np.ndarray:
    """Counts [B, M]: how often each of M images is in each resample of M with replacement (Efron 1979)."""
    draws = generator.integers(0, images, (replicates, images))
    return np.stack([np.bincount(row, minlength=images) for row in draws])


def half_width(resampled: np.ndarray, left_out: Sequence[np.ndarray], level: float = 0.95) -> np.ndarray:
    """Half of Student's interval of an estimate whose variance has independent parts, with Satterthwaite's degrees of freedom ``(sum_k v_k)^2 / sum_k v_k^2 / d_k``.

    `resampled` [B, ...] are bootstrap replicates over test images, whose variance counts as known. Each of `left_out` [n, ...] holds the estimates without one
    of n networks of a kind: their jackknife variance is ``(n - 1) / n sum_i (e_i - mean e)^2`` with n - 1 degrees of freedom (Efron and Stein 1981), which for
    a mean of n values is that of the t interval. Parts without a value count as nothing.
    """
    from scipy.stats import t

    parts = [(np.nan_to_num(np.var(resampled, axis=0, ddof=1)), np.inf)]
    for values in left_out:
        count = len(values)
        parts.append((np.nan_to_num((count - 1) ** 2 / count * np.var(values, axis=0, ddof=1)), count - 1.0))
    total = np.asarray(sum(variance for variance, _ in parts))
    used = np.asarray(sum(variance**2 / freedom for variance, freedom in parts))
    freedom = np.divide(total**2, used, out=np.full(total.shape, 1e9), where=used > 0)
    return np.asarray(np.sqrt(total) * t.ppf(0.5 + level / 2, freedom))


def percentiles(replicates: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """The percentile interval over the first axis, of the replicates that have a value; NaN where none has."""
    known = ~np.isnan(replicates).all(axis=0)
    filled = np.where(known, replicates, 0.0)
    low, high = (np.where(known, np.nanquantile(filled, edge, axis=0), np.nan) for edge in (0.5 - level / 2, 0.5 + level / 2))
    return low, high

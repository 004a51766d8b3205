"""The data-knowledge scaling law: how accuracy grows with images per class, and how many images soft labels are worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from limbeck.errors import OptionError

_GRID_EXPONENTS = np.linspace(-1.5, 1.5, 31)
_GRID_SAVINGS = np.linspace(np.log(1 / 30), np.log(300), 41)
_STEPS, _QUIET = 60, 4  # of Levenberg and Marquardt; it ends after so many steps in which no sample gains
_BOUNDS = ((-np.inf, -np.inf, -3.0, np.log(1e-4)), (np.inf, np.inf, 3.0, np.log(1e4)))


@dataclass(frozen=True)
class Bounded:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ScalingLaw:
    """``accuracy = (n / scale)^exponent + offset`` for hard labels, with n replaced by ``saving * n`` for soft ones.

    `scale` and `offset` are the label paper's form of the curve, and NaN unless the exponent is positive; any exponent is fitted. `saving` is None when only one
    curve was given. `residual` is the root mean squared residual, in the unit of the accuracies.
    """

    exponent: Bounded
    saving: Bounded | None
    scale: float
    offset: float
    residual: float
    parameters: tuple[float, float, float, float]

    def __call__(self, images: Float[np.ndarray, " n"], *, soft: bool = False) -> Float[np.ndarray, " n"]:
        """The fitted accuracy at numbers of images per class."""
        images = np.asarray(images, dtype=np.float64)
        return _curve(np.asarray(self.parameters)[None], np.log(images), np.full(len(images), soft))[0]


def fit_scaling(
    images: Float[np.ndarray, " N"],
    accuracy: Float[np.ndarray, " N"],
    soft: Bool[np.ndarray, " N"],
    *,
    generator: np.random.Generator,
    samples: int = 1000,
    repeats: Sequence[Int[np.ndarray, " N"]] | None = None,
) -> ScalingLaw:
    """Least squares fit of one power law to accuracies under hard labels and under soft ones, which see `saving` times as many images (Qin, Deng and Alvarez-Melis
    2024, arXiv 2406.10485, section 4.3: saving 6.04, exponent 0.077).

    One entry for every student or draw: images per class (above 0), accuracy, and whether labels were soft. With only one kind of label there is no saving to fit.
    The curve is written ``a + b ((s n)^e - 1) / e``, which passes through the logarithm at e = 0, where accuracies over a short range often lie.

    Intervals are percentiles of a wild bootstrap, which allows noise that differs between points and counts misfit as noise. Without `repeats` entries must be
    independent: every residual, scaled up for the fitted parameters, keeps its size and gets a random sign (Wu 1986; Davidson and Flachaire 2008). Entries of one
    image draw are not independent, since images nest along the budgets and both kinds of label share them: `repeats` gives for each repeated factor (draws,
    experts, or students) the number of the one that an entry belongs to, and residuals of one number get one `multipliers` (cluster wild bootstrap; Cameron,
    Gelbach and Miller 2008). Intervals are NaN where `repeats` names no factor.
    """
    images, accuracy, soft = np.asarray(images, dtype=np.float64), np.asarray(accuracy, dtype=np.float64), np.asarray(soft, dtype=bool)
    both = bool(soft.any() and not soft.all())
    free = 4 if both else 3
    if len(images) <= free or len(np.unique(images)) < 3:
        raise OptionError(
            f"a power law with {free} parameters needs more than {free} accuracies at 3 or more budgets, got {len(images)} at {len(np.unique(images))}; "
            "add images per class or students"
        )
    if not bool((images > 0).all() and np.isfinite(accuracy).all()):
        raise OptionError("a power law needs images per class above 0 and finite accuracies; leave out what diverged")
    logs, kind = np.log(images), soft if both else np.zeros_like(soft)
    best = _refine(accuracy[None], _start(accuracy, logs, kind, both)[None], logs, kind, both)
    fitted = _curve(best, logs, kind)[0]
    residual = accuracy - fitted
    signs = generator.integers(0, 2, (samples, len(images))) * 2.0 - 1 if repeats is None else multipliers(repeats, samples, generator)
    worlds = fitted + residual * np.sqrt(len(images) / (len(images) - free)) * signs
    found = _refine(worlds, np.repeat(best, samples, 0), logs, kind, both) if signs.size else np.full((1, 4), np.nan)
    a, b, exponent, saving = (float(value) for value in best[0])
    rising = exponent > 1e-6 and b > 0
    return ScalingLaw(
        exponent=_bounded(exponent, found[:, 2]),
        saving=_bounded(float(np.exp(saving)), np.exp(found[:, 3])) if both else None,
        scale=float(np.exp(-np.log(b / exponent) / exponent)) if rising else float("nan"),
        offset=a - b / exponent if rising else float("nan"),
        residual=float(np.sqrt((residual**2).mean())),
        parameters=(a, b, exponent, saving),
    )


def multipliers(repeats: Sequence[Int[np.ndarray, " N"]], samples: int, generator: np.random.Generator) -> Float[np.ndarray, "B _"]:
    """Random factors for the residuals of repeated measurements: entries with one number of a factor share one, and those of several crossed factors add up.

    They are Gaussian over the root of one chi-squared for each sample, with a degree of freedom less than the fewest numbers of a factor: percentiles of what is
    linear in the entries are then Student's t interval over that factor, also from two draws, where random signs would take four values. Empty (B = 0) without
    a factor.
    """
    if not repeats:
        return np.zeros((0, 1))
    free = min(len(np.unique(numbers)) for numbers in repeats) - 1
    total = np.zeros((samples, len(repeats[0])))
    for numbers in repeats:
        _, place = np.unique(numbers, return_inverse=True)
        count = int(place.max()) + 1
        total += np.sqrt(count / (count - 1)) * generator.standard_normal((samples, count))[:, place]
    scaled: np.ndarray = total / np.sqrt(generator.chisquare(free, (samples, 1)) / free)
    return scaled


def data_saving(
    hard_images: Float[np.ndarray, " H"], hard_accuracy: Float[np.ndarray, " H"], images: Float[np.ndarray, " S"], accuracy: Float[np.ndarray, " S"]
) -> Float[np.ndarray, " S"]:
    """For each soft-label result, how many times its images hard labels need for the same accuracy, read off the measured hard-label curve by interpolation in
    log(images). NaN where the accuracy lies outside that curve, which is first made non-decreasing by a running maximum."""
    order = np.argsort(hard_images)
    curve = np.maximum.accumulate(np.asarray(hard_accuracy, dtype=np.float64)[order])
    logs = np.log(np.asarray(hard_images, dtype=np.float64)[order])
    # where the curve is flat the fewest images count
    first = np.concatenate([[True], np.diff(curve) > 0])
    needed = np.interp(accuracy, curve[first], logs[first], left=np.nan, right=np.nan)
    return np.exp(needed) / np.asarray(images, dtype=np.float64)


def pareto_front(cost: Float[np.ndarray, " N"], value: Float[np.ndarray, " N"]) -> Int[np.ndarray, " F"]:
    """Which entries no other beats: none costs at most as much and is worth more, or costs less and is worth as much. By rising cost; of equal entries the first."""
    cost, value = np.asarray(cost, dtype=np.float64), np.asarray(value, dtype=np.float64)
    order = np.lexsort((np.arange(len(cost)), -value, cost))
    best, front = -np.inf, []
    for index in order:
        if value[index] > best:
            best = value[index]
            front.append(int(index))
    return np.array(front, dtype=np.int64)


def _power(exponent: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """``(n^e - 1) / e`` from log n, the logarithm at e = 0."""
    small = np.abs(exponent) < 1e-8
    safe = np.where(small, 1.0, exponent)
    made: np.ndarray = np.where(small, logs, np.expm1(safe * logs) / safe)
    return made


def _curve(parameters: np.ndarray, logs: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Accuracies [B, N] of parameters [B, 4]: a, b, exponent, log saving."""
    a, b, exponent, saving = (parameters[:, i, None] for i in range(4))
    made: np.ndarray = a + b * _power(exponent, logs + saving * soft)
    return made


def _start(accuracy: np.ndarray, logs: np.ndarray, soft: np.ndarray, both: bool) -> np.ndarray:
    """The best of a grid of exponents and savings; the linear parameters are exact for each."""
    best, least = np.zeros(4), np.inf
    for exponent in _GRID_EXPONENTS:
        for saving in _GRID_SAVINGS if both else (0.0,):
            shape = _power(np.full(1, exponent), logs + saving * soft)
            design = np.stack([np.ones_like(shape), shape], 1)
            solution = np.linalg.lstsq(design, accuracy, rcond=None)[0]
            error = float(((design @ solution - accuracy) ** 2).sum())
            if error < least:
                best, least = np.array([*solution, exponent, saving]), error
    return best


def _refine(accuracy: np.ndarray, start: np.ndarray, logs: np.ndarray, soft: np.ndarray, both: bool) -> np.ndarray:
    """Levenberg-Marquardt for many samples [B, N] at once, each with a damping of its own; parameters stay within wide bounds."""
    current, damping = start.copy(), np.full(len(start), 1e-3)
    error = ((_curve(current, logs, soft) - accuracy) ** 2).sum(1)
    scale = np.array([1.0, 1.0, 1.0, 1.0 if both else 0.0])
    quiet = 0
    for _ in range(_STEPS):
        jacobian = _jacobian(current, logs, soft) * scale
        gap = accuracy - _curve(current, logs, soft)
        normal = np.einsum("bni,bnj->bij", jacobian, jacobian)
        diagonal = np.einsum("bii->bi", normal)
        system = normal + damping[:, None, None] * np.eye(4) * np.maximum(diagonal, 1e-12)[:, None, :] + 1e-14 * np.eye(4)
        move = np.linalg.solve(system, np.einsum("bni,bn->bi", jacobian, gap)[..., None])[..., 0] * scale
        trial = np.clip(current + move, *_BOUNDS)
        reached = ((_curve(trial, logs, soft) - accuracy) ** 2).sum(1)
        better = reached < error
        quiet = 0 if bool((error - reached > 1e-10 * error).any()) else quiet + 1
        current, error = np.where(better[:, None], trial, current), np.where(better, reached, error)
        damping = np.where(better, damping / 5, np.minimum(damping * 5, 1e8))
        if quiet == _QUIET:
            break
    return current


def _jacobian(parameters: np.ndarray, logs: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """Derivatives [B, N, 4] of `_curve`."""
    b, exponent, saving = (parameters[:, i, None] for i in (1, 2, 3))
    x = logs + saving * soft
    power = _power(exponent, x)
    small = np.abs(exponent) < 1e-4
    safe = np.where(small, 1.0, exponent)
    # d/de (exp(e x) - 1) / e; its series where the difference would cancel
    by_exponent = np.where(small, x**2 / 2 + exponent * x**3 / 3, (x * np.exp(safe * x) - power) / safe)
    return np.stack([np.ones_like(power), power, b * by_exponent, b * np.exp(exponent * x) * soft], axis=2)


def _bounded(value: float, found: np.ndarray) -> Bounded:
    low, high = np.quantile(found, [0.025, 0.975])
    return Bounded(value, float(low), float(high))

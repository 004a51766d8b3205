"""Claims: what a study's sentences say in numbers, and whether the measured intervals let them stand.

A check computes an interval and compares it with a threshold: **holds** when the whole interval is on the right side, **fails** when it is on the wrong side,
**undecided** when it covers the threshold or nothing was repeated, **not measured** while a cell is missing. `CHECKS` is the visible table.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.errors import OptionError, nearest
from limbeck.registry import Registry
from limbeck.study.places import Place, problem
from limbeck.study.spec import Claim, Study, matching
from limbeck.study.view import REPEATS, NotMeasured, Selector, View
from limbeck.types.evaluation import Interval, nested_interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from limbeck.types.measurement import Measurement, Quantity

Answer = Literal["holds", "fails", "undecided", "not measured"]
_RESAMPLES = 2000

CHECKS = Registry(
    "check",
    {
        "greater": "limbeck.study.claims:Greater",
        "similar": "limbeck.study.claims:Similar",
        "threshold": "limbeck.study.claims:Threshold",
        "ratio": "limbeck.study.claims:Ratio",
        "monotone": "limbeck.study.claims:Monotone",
        "argmax-grows-with": "limbeck.study.claims:ArgmaxGrowsWith",
        "correlation": "limbeck.study.claims:Correlation",
        "measured": "limbeck.study.claims:Measured",
        "significant": "limbeck.study.claims:Significant",
    },
)


@dataclass(frozen=True)
class Verdict:
    """The answer to a claim: the interval that decided, what it was compared with, and the measurement in words."""

    answer: Answer
    words: str
    interval: Interval | None = None
    threshold: float | None = None
    details: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        shown = None
        if self.interval is not None:
            shown = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in vars(self.interval).items()}
        return {"answer": self.answer, "words": self.words, "interval_95": shown, "threshold": self.threshold, "details": list(self.details)}


class Check(BaseModel):
    """One kind of check, with what it takes as fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str

    @abstractmethod
    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        """The verdict on what is measured so far; `measured` holds the study's analyses by id."""

    @property
    def selectors(self) -> list[tuple[str, Selector]]:
        """The selectors among the fields."""
        return [(name, value) for name, value in self if isinstance(value, Selector)]

    @property
    def axes(self) -> list[tuple[str, str]]:
        """The fields that name an axis: ``[("along", "ipc")]``."""
        return [(name, value) for name in ("along", "argmax", "over") if isinstance(value := getattr(self, name, None), str)]


class Greater(Check):
    """``mean(left) - mean(right) > by``. Paired where both have the same draws, experts and students, which share seeds."""

    left: Selector
    right: Selector
    by: Annotated[float, Field(description="threshold of the difference")] = 0.0

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        gap = difference(view.values(self.left), view.values(self.right))
        return _above(gap, self.by, f"{self.left.words} minus {self.right.words}: {_spoken(gap)}")


class Similar(Check):
    """``|mean(left) - mean(right)| < within``: holds when the whole interval of the difference lies inside, fails when it lies outside."""

    left: Selector
    right: Selector
    within: Annotated[float, Field(gt=0, description="largest difference that counts as none")]

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        gap = difference(view.values(self.left), view.values(self.right))
        inside, outside = -self.within < gap.low and gap.high < self.within, gap.low > self.within or gap.high < -self.within
        return Verdict(
            "holds" if inside else "fails" if outside else "undecided",
            f"{self.left.words} minus {self.right.words}: {_spoken(gap)}",
            gap,
            self.within,
        )


class _Sided(Check):
    """Compared with a threshold on one side."""

    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_side(self) -> "_Sided":
        if (self.above is None) == (self.below is None):
            raise ValueError("a check needs exactly one of above and below")
        return self

    def _verdict(self, interval: Interval, words: str) -> Verdict:
        if self.above is not None:
            return _above(interval, self.above, words)
        assert self.below is not None
        return _above(Interval(-interval.mean, -interval.high, -interval.low, interval.covers, interval.n), -self.below, words, interval, self.below)


class Threshold(_Sided):
    """``mean(of)`` above or below a number."""

    of: Selector

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        interval = nested_interval(view.values(self.of))
        return self._verdict(interval, f"{self.of.words}: {_spoken(interval)}")


class Ratio(_Sided):
    """``mean(left) / mean(right)`` above or below a number; the interval is Fieller's, from paired values where they are paired."""

    left: Selector
    right: Selector

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        interval = ratio(view.values(self.left), view.values(self.right))
        return self._verdict(interval, f"{self.left.words} over {self.right.words}: {_spoken(interval)}")


class Monotone(Check):
    """The mean changes in one direction along an axis: fails when any step goes the other way by more than `slack` for certain, holds when none does and the ends
    differ for certain. Intervals of the steps are widened for their number (Bonferroni)."""

    of: Selector
    along: str
    direction: Literal["increases", "decreases"] = "increases"
    slack: Annotated[float, Field(ge=0, description="a step back that does not count")] = 0.0

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        values = view.along(self.of, self.along)
        if len(values) < 2:
            raise OptionError(f"a trend along {self.along!r} needs two values of it, got {len(values)}; give the axis more")
        sign = 1 if self.direction == "increases" else -1
        arrays = [sign * view.values(self.of.at(**{self.along: value})) for value in values]
        steps = [difference(after, before, 1 - 0.05 / (len(arrays) - 1)) for before, after in itertools.pairwise(arrays)]
        ends = difference(arrays[-1], arrays[0])
        back = [f"from {before} to {after}" for before, after, step in zip(values, values[1:], steps, strict=False) if step.high < -self.slack]
        answer: Answer = "fails" if back or ends.high < 0 else "holds" if ends.low > 0 else "undecided"
        low, high = sorted((sign * ends.low, sign * ends.high))
        shown = Interval(sign * ends.mean, low, high, ends.covers, ends.n)
        words = f"{self.of.words} from {self.along} {values[0]} to {values[-1]}: {_spoken(shown)}" + (
            f"; the other way {', '.join(back)}" if back else ""
        )
        means = tuple(f"{self.along} {value}: {sign * array.mean():.4g}" for value, array in zip(values, arrays, strict=True))
        return Verdict(answer, words, shown, 0.0, means)


class ArgmaxGrowsWith(Check):
    """The value of axis `argmax` at which the mean is largest grows with axis `along`.

    Measured by the least-squares slope of the argmax's place (0, 1, ... in the sorted values) over the place of `along`, with a 95 % bootstrap interval: draws and
    experts are resampled, and students inside them, the same for every value of both axes since those are paired (Efron and Tibshirani 1993). Holds when the
    interval is above 0, fails when it reaches nowhere above 0. This describes a curve measured on the test split; nothing that is evaluated is chosen by it.
    """

    of: Selector
    argmax: str
    along: str
    direction: Literal["grows", "shrinks"] = "grows"

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        from limbeck.streams import Streams

        rows = view.along(self.of, self.along)
        if len(rows) < 2:
            raise OptionError(f"whether an argmax {self.direction} needs two values of {self.along!r}, got {len(rows)}; give the axis more")
        columns = [view.along(self.of.at(**{self.along: row}), self.argmax) for row in rows]
        grid = [
            [view.values(self.of.at(**{self.along: row, self.argmax: column})) for column in places]
            for row, places in zip(rows, columns, strict=True)
        ]
        sizes = {array.shape for line in grid for array in line}
        if len(sizes) != 1:
            raise OptionError(f"{self.of.words} is not repeated equally often everywhere; cross its arm with the same draws, experts and students")
        every = view.along(self.of, self.argmax)
        # the place among all values, so that rows with fewer columns are on the same scale
        places = [np.array([every.index(column) for column in line]) for line in columns]
        stacks = [np.stack(line) for line in grid]  # [columns, D, E, S] of each row
        sign = 1 if self.direction == "grows" else -1

        def slope(pick: tuple[np.ndarray, np.ndarray, np.ndarray] | None) -> float:
            best = []
            for stack, numbers in zip(stacks, places, strict=True):
                means = (stack if pick is None else stack[:, pick[0], pick[1], pick[2]]).reshape(len(stack), -1).mean(1)
                best.append(numbers[int(means.argmax())])
            steps = np.arange(len(best)) - (len(best) - 1) / 2
            return sign * float(steps @ np.array(best, dtype=np.float64) / (steps @ steps))

        draws, experts, students = next(iter(sizes))
        center, found = slope(None), []
        generator = Streams(0)["study", "bootstrap"].numpy(self.argmax, self.along)
        for _ in range(_RESAMPLES if draws * experts * students > 1 else 0):
            shapes = ((draws, 1, 1), (1, experts, 1), (draws, experts, students))
            first, second, third = (
                np.asarray(generator.integers(most, size=size)) for most, size in zip((draws, experts, students), shapes, strict=True)
            )
            found.append(slope((first, second, third)))
        covers = " and ".join([name for name, count in (("image draws", draws), ("experts", experts)) if count > 1] + ["students"])
        low, high = (float(edge) for edge in np.quantile(found, [0.025, 0.975])) if found else (float("nan"), float("nan"))
        interval = Interval(center, low, high, covers if found else "nothing repeated", draws * experts * students)
        best = [line[int(stack.reshape(len(stack), -1).mean(1).argmax())] for line, stack in zip(columns, stacks, strict=True)]
        shown = tuple(f"best {self.argmax} at {self.along} {row}: {column}" for row, column in zip(rows, best, strict=True))
        answer: Answer = "undecided" if not found else "holds" if low > 0 else "fails" if high <= 0 else "undecided"
        return Verdict(answer, f"{', '.join(shown)}; places for each step of {self.along}: {_spoken(interval)}", interval, 0.0, shown)


class Correlation(_Sided):
    """Spearman's rank correlation of the means of two measures over the values of an axis; the interval is by Fisher's z with the standard error
    ``sqrt((1 + r^2 / 2) / (n - 3))`` (Bonett and Wright 2000)."""

    x: Selector
    y: Selector
    over: str

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        values = [value for value in view.along(self.x, self.over) if value in view.along(self.y, self.over)]
        pairs = [[float(view.values(of.at(**{self.over: value})).mean()) for value in values] for of in (self.x, self.y)]
        interval = spearman(*pairs)
        return self._verdict(
            interval, f"rank correlation of {self.x.measure} and {self.y.measure} over {len(values)} values of {self.over}: {_spoken(interval)}"
        )


class _OfAnalysis(Check):
    """About a scalar quantity of one of the study's analyses."""

    analysis: Annotated[str, Field(description="id of an analysis of this study")]
    quantity: Annotated[str, Field(description="name of a scalar quantity of its measurement")]

    def _scalar(self, measured: "Mapping[str, Measurement]") -> "Quantity":
        if self.analysis not in measured:
            raise NotMeasured(f"the analysis {self.analysis!r} has no result yet")
        quantities = measured[self.analysis].quantities
        if self.quantity not in quantities and measured[self.analysis].settings.get("missing"):
            raise NotMeasured(f"{self.quantity!r} of the analysis {self.analysis!r} is not measured yet; run: limbeck study resume")
        if self.quantity not in quantities or quantities[self.quantity].values.ndim:
            scalars = [name for name, quantity in quantities.items() if not quantity.values.ndim]
            raise OptionError(
                f"the analysis {self.analysis!r} has no scalar {self.quantity!r}; {nearest(self.quantity, scalars) if scalars else 'it has none'}"
            )
        return quantities[self.quantity]


class Significant(_OfAnalysis):
    """A p-value at most `level`: holds, or is undecided, since a large p-value shows nothing."""

    level: Annotated[float, Field(gt=0, lt=1, description="largest p-value that counts")] = 0.05

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        value = float(self._scalar(measured).values)
        return Verdict("holds" if value <= self.level else "undecided", f"{self.quantity}: p = {value:.2g}", threshold=self.level)


class Measured(_Sided, _OfAnalysis):
    """A scalar quantity of one of the study's analyses, above or below a number; its interval is the analysis's own."""

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        found = self._scalar(measured)
        low, high = (float("nan") if side is None else float(side) for side in (found.low, found.high))
        interval = Interval(float(found.values), low, high, found.covers or "nothing repeated", 1)
        return self._verdict(interval, f"{self.quantity}: {_spoken(interval)}")


def parse_check(claim: Claim) -> Check:
    """The check of a claim; raises pydantic's `ValidationError` or `OptionError`."""
    kind = str(claim.check.get("kind", ""))
    check: Check = CHECKS[kind](**claim.check)
    return check


def decide(claim: Claim, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
    """The verdict on a claim."""
    check = parse_check(claim)
    try:
        verdict = check.decide(view, measured)
        if verdict.interval is None:
            return verdict
        return replace(verdict, interval=view.named(verdict.interval, *(selector for _, selector in check.selectors)))
    except NotMeasured as missing:
        return Verdict("not measured", str(missing))


def check_claims(study: Study) -> None:
    """Checks kinds, fields and names of every claim against the study, with the place in the file."""
    for number, claim in enumerate(study.file.claims):
        place: Place = ("claims", number, "check")
        try:
            check = parse_check(claim)
        except ValidationError as error:
            raise problem(error, CHECKS[str(claim.check.get("kind"))], study.text, place) from None
        except OptionError as error:
            raise OptionError(f"{error}, at {study.text.words((*place, 'kind'))}") from None
        if isinstance(check, Measured) and check.analysis not in (known := [entry.id for entry in study.file.analyses]):
            hint = nearest(check.analysis, known) if known else "the study has none"
            raise OptionError(f"unknown analysis {check.analysis!r} at {study.text.words((*place, 'analysis'))}; {hint}")
        for scale in claim.scales or study.file.scales:
            _check_names(study, scale, check, place)


def _check_names(study: Study, scale: str, check: Check, place: Place) -> None:
    axes = study.axes(scale)
    for field, axis in check.axes:
        if axis not in axes or axis in REPEATS:
            raise OptionError(
                f"unknown axis {axis!r} at {study.text.words((*place, field))} (scale {scale!r}); {nearest(axis, set(axes) - set(REPEATS))}"
            )
    for field, selector in check.selectors:
        check_selector(study, scale, selector, (*place, field))


def check_selector(study: Study, scale: str, selector: Selector, place: Place) -> None:
    """Raises `OptionError`, with the place in the file, for an arm, axis or value that a scale does not have."""
    axes, where = study.axes(scale), study.text.words(place)
    if selector.arm not in study.arms(scale):
        raise OptionError(f"unknown arm {selector.arm!r} at {where} (scale {scale!r}); {nearest(selector.arm, study.arms(scale))}")
    for name, value in (selector.model_extra or {}).items():
        if name not in axes:
            raise OptionError(f"unknown key {name!r} at {where} (scale {scale!r}); {nearest(name, [*axes, 'arm', 'measure'])}")
        for part in value if isinstance(value, list) else [value]:
            if part not in axes[name]:
                values = ", ".join(map(str, axes[name]))
                raise OptionError(f"axis {name!r} has no value {part!r} at {where} (scale {scale!r}); it has {values}")
    if not matching(study.cells(scale), selector.where):
        raise OptionError(f"{selector.words} at {where} selects no cell of scale {scale!r}; check its values against the arm's `over`")


def difference(left: np.ndarray, right: np.ndarray, level: float = 0.95) -> Interval:
    """Interval of ``mean(left) - mean(right)``: paired for equal shapes, whose entries share seeds; otherwise half-widths add in quadrature."""
    if left.shape == right.shape:
        return nested_interval(left - right, level)
    first, second = nested_interval(left, level), nested_interval(right, level)
    half, gap = math.hypot(first.half_width, second.half_width), first.mean - second.mean
    return Interval(gap, gap - half, gap + half, f"{first.covers} (unpaired)", first.n + second.n)


def ratio(left: np.ndarray, right: np.ndarray) -> Interval:
    """Interval of ``mean(left) / mean(right)`` after Fieller (1954): the ratios r at which the interval of ``left - r right`` covers 0, which may be unbounded."""
    center = float(left.mean() / right.mean())

    def rejects(at: float) -> bool:
        gap = difference(left, at * right)
        return gap.low > 0 or gap.high < 0

    if not math.isfinite(difference(left, center * right).low):
        return Interval(center, float("nan"), float("nan"), "nothing repeated", left.size)
    edges = []
    for sign in (-1, 1):
        inside, outside = center, center + sign * 1e-3 * abs(center)
        while not rejects(outside) and abs(outside - center) < 1e6 * abs(center):
            outside = center + 2 * (outside - center)
        for _ in range(60 if rejects(outside) else 0):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejects(middle) else (middle, outside)
        edges.append(inside if rejects(outside) else sign * math.inf)
    return Interval(center, edges[0], edges[1], difference(left, center * right).covers, left.size)


def spearman(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Rank correlation with its 95 % interval (see `Correlation`); NaN bounds below four pairs."""
    from scipy.stats import rankdata

    count = len(x)
    first, second = (np.asarray(rankdata(side), dtype=np.float64) - (count + 1) / 2 for side in (x, y))
    spread = math.sqrt(float(first @ first) * float(second @ second))
    r = float(first @ second) / spread if spread else float("nan")
    if count < 4 or not math.isfinite(r):
        return Interval(r, float("nan"), float("nan"), "nothing repeated", count)
    z, error = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, r))), math.sqrt((1 + r * r / 2) / (count - 3))
    return Interval(r, math.tanh(z - 1.959964 * error), math.tanh(z + 1.959964 * error), "settings", count)


def _above(interval: Interval, threshold: float, words: str, shown: Interval | None = None, spoken: float | None = None) -> Verdict:
    answer: Answer = "holds" if interval.low > threshold else "fails" if interval.high < threshold else "undecided"
    return Verdict(answer, words, shown or interval, threshold if spoken is None else spoken)


def _spoken(interval: Interval) -> str:
    if not math.isfinite(interval.low) and not math.isfinite(interval.high):
        return f"{interval.mean:.4g} (no interval: {interval.covers})"
    return f"{interval.mean:.4g} [{interval.low:.4g}, {interval.high:.4g}]"

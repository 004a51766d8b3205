"""Claims: what a study's sentences say in numbers, and whether the measured intervals let them stand.

A check computes an interval and compares it with a threshold: **holds** when the whole interval is on the right side, **fails** when it is on the wrong side,
**undecided** when it covers the threshold or nothing was repeated, **not measured** while a cell is missing. `CHECKS` is the visible table.
"""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.errors import OptionError, nearest
from limbeck.registry import Registry
from limbeck.study.pairing import Side, check_pairs, paired
from limbeck.study.places import Place, problem
from limbeck.study.spec import Claim, Number, Scalar, Study, matching
from limbeck.study.view import REPEATS, NotMeasured, Selector, View
from limbeck.types.evaluation import Interval, nested_interval

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from limbeck.types.measurement import Measurement, Quantity

Answer = Literal["holds", "fails", "undecided", "not measured"]
_RESAMPLES = 2000
_SCORES = ("accuracy", "loss", "worst_class")
#: Measures by the task of an arm; those of `analyze` are named after its analyses, and `replay` has some for every group besides.
MEASURES = {
    "evaluate": (*_SCORES, "label_entropy", "images", "bytes"),
    "expert-score": (*_SCORES, "step", "epoch", "validation_accuracy", "entropy"),
    "set": ("images", "bytes", "label_entropy", "top_is_owner", "step"),
    "replay": (*_SCORES, "average", "forgetting", "images", "bytes"),
}
_FRACTIONS = ("accuracy", "worst_class", "validation_accuracy", "top_is_owner", "average", "forgetting")
_NATS = ("loss", "entropy", "label_entropy")

CHECKS = Registry(
    "check",
    {
        "greater": "limbeck.study.claims:Greater",
        "similar": "limbeck.study.claims:Similar",
        "threshold": "limbeck.study.claims:Threshold",
        "ratio": "limbeck.study.claims:Ratio",
        "share-of-gain": "limbeck.study.claims:ShareOfGain",
        "monotone": "limbeck.study.claims:Monotone",
        "argmax-grows-with": "limbeck.study.claims:ArgmaxGrowsWith",
        "correlation": "limbeck.study.claims:Correlation",
        "measured": "limbeck.study.claims:Measured",
        "entries": "limbeck.study.claims:Entries",
        "factor": "limbeck.study.claims:Factor",
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
    def pairs(self) -> tuple[Selector, ...]:
        """The selectors whose measures are compared pair by pair."""
        return ()

    @property
    def scalars(self) -> list[tuple[Place, str, str]]:
        """The scalars of analyses that it is about: the place of the name inside the check, the analysis and the name."""
        return []

    def settings(self, view: View) -> list[tuple[str, Selector]]:
        """The field and the selector of every setting that `decide` looks at. Raises `OptionError` when an axis has too few values."""
        return self.selectors

    @property
    def axes(self) -> list[tuple[str, str]]:
        """The fields that name an axis: ``[("along", "ipc")]``."""
        return [(name, value) for name in ("along", "argmax", "over") if isinstance(value := getattr(self, name, None), str)]


class Greater(Check):
    """``mean(left) - mean(right) > by``, paired on the draws, experts and students that both have (`limbeck.study.pairing.paired`)."""

    left: Selector
    right: Selector
    by: Annotated[Number, Field(description="threshold of the difference")] = 0.0

    @property
    def pairs(self) -> tuple[Selector, ...]:
        return self.left, self.right

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        gap, words = _gap(view, self.left, self.right)
        return _above(gap, self.by, words)


class Similar(Check):
    """``|mean(left) - mean(right)| < within``: holds when the whole interval of the difference lies inside, fails when it lies outside."""

    left: Selector
    right: Selector
    within: Annotated[Number, Field(gt=0, description="largest difference that counts as none")]

    @property
    def pairs(self) -> tuple[Selector, ...]:
        return self.left, self.right

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        gap, words = _gap(view, self.left, self.right)
        inside, outside = -self.within < gap.low and gap.high < self.within, gap.low > self.within or gap.high < -self.within
        asked = f"within ± {words.unit.number(self.within)}"
        return Verdict("holds" if inside else "fails" if outside else "undecided", words.spoken(gap, asked), gap, self.within)


class _Sided(Check):
    """Compared with a threshold on one side."""

    above: Number | None = None
    below: Number | None = None

    @model_validator(mode="after")
    def _one_side(self) -> "_Sided":
        if (self.above is None) == (self.below is None):
            raise ValueError("a check needs exactly one of above and below")
        return self

    def _verdict(self, interval: Interval, words: "_Words") -> Verdict:
        if self.above is not None:
            return _above(interval, self.above, words)
        assert self.below is not None
        answer: Answer = "holds" if interval.high < self.below else "fails" if interval.low > self.below else "undecided"
        return Verdict(answer, words.spoken(interval, f"below {words.unit.number(self.below)}"), interval, self.below)


class Threshold(_Sided):
    """``mean(of)`` above or below a number."""

    of: Selector

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        found = paired(view, self.of)
        return self._verdict(nested_interval(found.arrays[0]), _Words(self.of.words, unit_of(self.of.measure), found.words))


class Ratio(_Sided):
    """``mean(left) / mean(right)`` above or below a number; the interval is Fieller's, from pairs."""

    left: Selector
    right: Selector

    @property
    def pairs(self) -> tuple[Selector, ...]:
        return self.left, self.right

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        found = paired(view, self.left, self.right)
        return self._verdict(
            found.named(ratio(found.arrays[0], found.arrays[1])), _Words(f"{self.left.words} over {self.right.words}", _PLAIN, found.words)
        )


class ShareOfGain(_Sided):
    """``(mean(of) - mean(base)) / (mean(full) - mean(base))`` above or below a number: how much of the way from `base` to `full` the arm `of` goes. The interval
    is Fieller's, from the paired differences, and unbounded where the gain itself is not clearly above 0: no share of a loss holds or fails."""

    of: Selector
    base: Selector
    full: Selector

    @property
    def pairs(self) -> tuple[Selector, ...]:
        return self.of, self.base, self.full

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        found = paired(view, self.of, self.base, self.full)
        of, base, full = found.arrays
        gain, share = nested_interval(full - base), ratio(of - base, full - base)
        if gain.low <= 0:
            share = replace(share, low=-math.inf, high=math.inf)
        words = f"share of the way from {self.base.words} to {self.full.words} that {self.of.words} goes"
        return self._verdict(found.named(share), _Words(words, _PLAIN, found.words))


class Monotone(Check):
    """The mean changes in one direction along an axis: fails when any step goes the other way by more than `slack` for certain, holds when none does and the ends
    differ for certain. Intervals of the steps are widened for their number (Bonferroni)."""

    of: Selector
    along: str
    direction: Literal["increases", "decreases"] = "increases"
    slack: Annotated[Number, Field(ge=0, description="a step back that does not count")] = 0.0

    def settings(self, view: View) -> list[tuple[str, Selector]]:
        values = view.along(self.of, self.along)
        if len(values) < 2:
            raise OptionError(f"a trend along {self.along!r} needs two values of it, got {len(values)}; give the axis more")
        return [("of", self.of.at(**{self.along: value})) for value in values]

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        values = view.along(self.of, self.along)
        sign = 1 if self.direction == "increases" else -1
        arrays = [sign * view.values(self.of.at(**{self.along: value})) for value in values]
        steps = [difference(after, before, 1 - 0.05 / (len(arrays) - 1)) for before, after in itertools.pairwise(arrays)]
        ends = difference(arrays[-1], arrays[0])
        back = [f"from {before} to {after}" for before, after, step in zip(values, values[1:], steps, strict=False) if step.high < -self.slack]
        answer: Answer = "fails" if back or ends.high < 0 else "holds" if ends.low > 0 else "undecided"
        low, high = sorted((sign * ends.low, sign * ends.high))
        shown = Interval(sign * ends.mean, low, high, ends.covers, ends.n)
        unit = unit_of(self.of.measure)
        numbers = Side.of(view, self.of, arrays[0]).numbers + (f"; the other way {', '.join(back)}" if back else "")
        words = _Words(f"{self.of.words} from {self.along} {values[0]} to {values[-1]}", unit.of_differences, numbers)
        means = tuple(f"{self.along} {value}: {unit.number(sign * array.mean())}" for value, array in zip(values, arrays, strict=True))
        return Verdict(answer, words.spoken(shown, f"{'above' if sign > 0 else 'below'} {unit.of_differences.number(0.0)}"), shown, 0.0, means)


class ArgmaxGrowsWith(Check):
    """The value of axis `argmax` at which the mean is largest grows with axis `along`.

    Measured by the least-squares slope of the argmax's place (0, 1, ... in the sorted values) over the place of `along`, with a 95 % bootstrap interval: draws and
    experts are resampled, and students inside them, the same for every value of both axes since those are paired (Efron and Tibshirani 1993). Its percentiles are
    those that n repeats need, ``Phi(-sqrt(n / (n - 1)) t)`` with Student's t of n - 1 degrees of freedom (the expanded percentiles of Hesterberg 2015); n counts
    draws or experts, whichever are fewer, or students where neither is repeated. Below three there is no interval. Holds when the interval is above 0, fails when
    it reaches nowhere above 0. This describes a curve measured on the test split; nothing that is evaluated is chosen by it.
    """

    of: Selector
    argmax: str
    along: str
    direction: Literal["grows", "shrinks"] = "grows"

    def settings(self, view: View) -> list[tuple[str, Selector]]:
        rows = view.along(self.of, self.along)
        if len(rows) < 2:
            raise OptionError(f"whether an argmax {self.direction} needs two values of {self.along!r}, got {len(rows)}; give the axis more")
        lines = [self.of.at(**{self.along: row}) for row in rows]
        if max(len(view.along(line, self.argmax)) for line in lines) < 2:
            raise OptionError(f"an argmax needs two values of {self.argmax!r}, got 1; give the axis more")
        return [("of", line.at(**{self.argmax: column})) for line in lines for column in view.along(line, self.argmax)]

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        from limbeck.streams import Streams

        rows = view.along(self.of, self.along)
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
        repeats = min((count for count in (draws, experts) if count > 1), default=students)
        for _ in range(_RESAMPLES if repeats > 2 else 0):
            shapes = ((draws, 1, 1), (1, experts, 1), (draws, experts, students))
            first, second, third = (
                np.asarray(generator.integers(most, size=size)) for most, size in zip((draws, experts, students), shapes, strict=True)
            )
            found.append(slope((first, second, third)))
        covers = " and ".join([name for name, count in (("image draws", draws), ("experts", experts)) if count > 1] + ["students"])
        tail = _expanded(repeats) if found else math.nan
        low, high = (float(edge) for edge in np.quantile(found, [tail, 1 - tail])) if found else (math.nan, math.nan)
        interval = Interval(center, low, high, covers if found else "fewer than three repeats", draws * experts * students)
        best = [line[int(stack.reshape(len(stack), -1).mean(1).argmax())] for line, stack in zip(columns, stacks, strict=True)]
        shown = tuple(f"best {self.argmax} at {self.along} {row}: {column}" for row, column in zip(rows, best, strict=True))
        answer: Answer = "undecided" if not found else "holds" if low > 0 else "fails" if high <= 0 else "undecided"
        words = _Words(f"{', '.join(shown)}; places for each step of {self.along}", _PLAIN, Side.of(view, self.of, grid[0][0]).numbers)
        return Verdict(answer, words.spoken(interval, "above 0"), interval, 0.0, shown)


def _expanded(repeats: int) -> float:
    """The tail of a bootstrap's percentiles for an interval of 95 %, widened as Student's t and the spread of few repeats are."""
    from scipy.stats import norm, t

    return float(norm.cdf(-math.sqrt(repeats / (repeats - 1)) * t.ppf(0.975, repeats - 1)))


class Correlation(_Sided):
    """Spearman's rank correlation of the means of two measures over the values of an axis; the interval is by Fisher's z with the standard error
    ``sqrt((1 + r^2 / 2) / (n - 3))`` (Bonett and Wright 2000)."""

    x: Selector
    y: Selector
    over: str

    def settings(self, view: View) -> list[tuple[str, Selector]]:
        values = self._values(view)
        if len(values) < 4:
            raise OptionError(f"a rank correlation needs four values of {self.over!r} that both sides have, got {len(values)}; give the axis more")
        return [(name, of.at(**{self.over: value})) for name, of in (("x", self.x), ("y", self.y)) for value in values]

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        values = self._values(view)
        pairs = [[float(view.values(of.at(**{self.over: value})).mean()) for value in values] for of in (self.x, self.y)]
        what = f"rank correlation of {self.x.words} and {self.y.words}, {self.x.measure} and {self.y.measure}"
        return self._verdict(spearman(*pairs), _Words(what, _PLAIN, f"{len(values)} values of {self.over}"))

    def _values(self, view: View) -> list[Scalar]:
        return [value for value in view.along(self.x, self.over) if value in view.along(self.y, self.over)]


class OfAnalysis(Check):
    """About what one of the study's analyses measured."""

    @property
    def analyses(self) -> list[tuple[str, str]]:
        """The fields that name an analysis: ``[("analysis", "law")]``."""
        return [(name, value) for name, value in self if name == "analysis"]


class _OfScalar(OfAnalysis):
    analysis: Annotated[str, Field(description="id of an analysis of this study")]
    quantity: Annotated[str, Field(description="name of a scalar quantity of its measurement")]

    @property
    def scalars(self) -> list[tuple[Place, str, str]]:
        return [(("quantity",), self.analysis, self.quantity)]


class Significant(_OfScalar):
    """A p-value at most `level`: holds, or is undecided, since a large p-value shows nothing."""

    level: Annotated[Number, Field(gt=0, lt=1, description="largest p-value that counts")] = 0.05

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        value = float(_quantity(measured, self.analysis, self.quantity, scalar=True).values)
        words = f"{self.quantity}: p = {value:.2g}; asked: at most {self.level:g}"
        return Verdict("holds" if value <= self.level else "undecided", words, threshold=self.level)


class Measured(_Sided, _OfScalar):
    """A scalar quantity of one of the study's analyses, above or below a number; its interval is the analysis's own."""

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        found = _quantity(measured, self.analysis, self.quantity, scalar=True)
        return self._verdict(_interval(found), _Words(self.quantity, _unit_of_quantity(self.quantity, found), ""))


class Entries(_Sided, OfAnalysis):
    """Two rows of a quantity with axes, compared entry by entry along one of them: ``mean(left) / mean(right)``, with Fieller's interval, or
    ``mean(left - right)``, with Student's; both cover the entries."""

    analysis: Annotated[str, Field(description="id of an analysis of this study")]
    quantity: Annotated[str, Field(description="name of a quantity of its measurement")]
    each: Annotated[str, Field(description="axis of the quantity whose entries are the pairs")]
    left: Annotated[dict[str, Scalar], Field(description="values of the quantity's other axes")]
    right: Annotated[dict[str, Scalar], Field(description="the same of what it is compared with")]
    compare: Annotated[Literal["ratio", "difference"], Field(description="left over right, or left minus right")]

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        found = _quantity(measured, self.analysis, self.quantity)
        axes = measured[self.analysis].axes
        left, right = (self._row(found, axes, side)[None, None] for side in (self.left, self.right))
        interval = ratio(left, right) if self.compare == "ratio" else difference(left, right)
        interval = replace(interval, covers=interval.covers.replace("students", f"values of {self.each}"))
        named = [", ".join(f"{name} {value}" for name, value in side.items()) for side in (self.left, self.right)]
        unit = _PLAIN if self.compare == "ratio" else _POINTS if found.unit == "fraction" else _Unit(1.0, found.unit)
        words = _Words(
            f"{self.quantity} of {named[0]} {'over' if self.compare == 'ratio' else 'minus'} that of {named[1]}",
            unit,
            f"{left.size} values of {self.each}",
        )
        return self._verdict(interval, words)

    def _row(self, found: "Quantity", axes: "Mapping[str, tuple[Any, ...]]", side: "Mapping[str, Scalar]") -> np.ndarray:
        if {*side, self.each} != set(found.axes):
            raise OptionError(
                f"{self.quantity!r} has the axes {', '.join(found.axes)}, got {', '.join((*side, self.each))}; name a value of each but `each`"
            )
        place: list[Any] = [slice(None)] * len(found.axes)
        for axis, value in side.items():
            if value not in axes[axis]:
                raise OptionError(f"axis {axis!r} of {self.quantity!r} has no value {value!r}; it has {', '.join(map(str, axes[axis]))}")
            place[found.axes.index(axis)] = axes[axis].index(value)
        row: np.ndarray = found.values[tuple(place)]
        if not np.isfinite(row).all():
            raise NotMeasured(f"part of {self.quantity!r} of the analysis {self.analysis!r} is not measured yet; run: limbeck study resume")
        return row


class ScalarName(BaseModel):
    """A scalar quantity of an analysis: ``{ analysis = "law", quantity = "saving" }``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    analysis: Annotated[str, Field(description="id of an analysis of this study")]
    quantity: Annotated[str, Field(description="name of a scalar quantity of its measurement")]


class Factor(OfAnalysis):
    """Two positive scalars of analyses are the same up to a factor: holds when the whole interval of ``left / right`` lies between ``1 / within`` and ``within``,
    fails when it lies outside.

    The interval of ``log(left) - log(right)`` combines the scalars' own intervals as if they were independent (Zou and Donner 2008); estimates that share data,
    and so err together, make it too wide, not too narrow.
    """

    left: ScalarName
    right: ScalarName
    within: Annotated[Number, Field(gt=1, description="largest factor that counts as none")]

    @property
    def analyses(self) -> list[tuple[str, str]]:
        return [("left", self.left.analysis), ("right", self.right.analysis)]

    @property
    def scalars(self) -> list[tuple[Place, str, str]]:
        return [((name, "quantity"), side.analysis, side.quantity) for name, side in (("left", self.left), ("right", self.right))]

    def decide(self, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
        first, second = (_interval(_quantity(measured, side.analysis, side.quantity, scalar=True)) for side in (self.left, self.right))
        if min(first.mean, second.mean) <= 0:
            raise OptionError(f"a factor is between numbers above 0, got {first.mean:.4g} and {second.mean:.4g}; use another check")
        with np.errstate(divide="ignore", over="ignore"):
            (x, x_low, x_high), (y, y_low, y_high) = (np.log([side.mean, max(side.low, 0), side.high]) for side in (first, second))
            low, high = np.exp([x - y - np.hypot(x - x_low, y_high - y), x - y + np.hypot(x_high - x, y - y_low)]).tolist()
        covers = " and ".join(dict.fromkeys((first.covers, second.covers)))
        interval = Interval(math.exp(x - y), low, high, covers, 1)
        inside, outside = 1 / self.within < low and high < self.within, low > self.within or high < 1 / self.within
        what = f"{self.left.quantity} of {self.left.analysis} over {self.right.quantity} of {self.right.analysis}"
        words = _Words(what, _PLAIN, f"{first.mean:.4g} and {second.mean:.4g}")
        asked = f"between {1 / self.within:.4g} and {self.within:.4g}"
        return Verdict("holds" if inside else "fails" if outside else "undecided", words.spoken(interval, asked), interval, self.within)


def parse_check(claim: Claim) -> Check:
    """The check of a claim; raises pydantic's `ValidationError` or `OptionError`."""
    kind = str(claim.check.get("kind", ""))
    check: Check = CHECKS[kind](**claim.check)
    return check


def decide(claim: Claim, view: View, measured: "Mapping[str, Measurement]") -> Verdict:
    """The verdict on a claim. What a claim gets wrong makes that claim undecided, with the reason, and leaves the others alone."""
    check = parse_check(claim)
    try:
        verdict = check.decide(view, measured)
    except NotMeasured as missing:
        return Verdict("not measured", str(missing))
    except OptionError as error:
        return Verdict("undecided", f"cannot be decided: {error}")
    if verdict.interval is None:
        return verdict
    return replace(verdict, interval=view.named(verdict.interval, *(selector for _, selector in check.selectors)))


def check_claims(study: Study) -> None:
    """Checks kinds, fields and names of every claim against the study, with the place in the file, and that its cells can be compared."""
    for number, claim in enumerate(study.file.claims):
        place: Place = ("claims", number, "check")
        try:
            check = parse_check(claim)
        except ValidationError as error:
            raise problem(error, CHECKS[str(claim.check.get("kind"))], study.text, place) from None
        except OptionError as error:
            raise OptionError(f"{error}, at {study.text.words((*place, 'kind'))}") from None
        for scale in claim.scales or study.file.scales:
            _check_analyses(study, scale, check, place)
            _check_names(study, scale, check, place)
            _check_settings(study, scale, check, place)


def _check_analyses(study: Study, scale: str, check: Check, place: Place) -> None:
    if not isinstance(check, OfAnalysis):
        return
    known = [entry.id for entry in study.file.analyses if entry.scales is None or scale in entry.scales]
    for field, name in check.analyses:
        if name not in known:
            hint = nearest(name, known) if known else "it has none"
            raise OptionError(f"unknown analysis {name!r} at {study.text.words((*place, field))} (scale {scale!r}); {hint}")


def _check_settings(study: Study, scale: str, check: Check, place: Place) -> None:
    """One setting for each selector as `decide` narrows it, a measure that its task has, and repeats in common."""
    cells = study.cells(scale)
    view = View(study, scale, cells, [str(number) for number in range(len(cells))], {})
    with _placed(study, scale, place):
        settings = check.settings(view)
    for field, selector in settings:
        with _placed(study, scale, (*place, field)):
            _check_measure(view, selector)
            with suppress(NotMeasured):
                view.values(selector)
    with _placed(study, scale, place):
        check_pairs(view, *check.pairs)


@contextmanager
def _placed(study: Study, scale: str, place: Place) -> "Iterator[None]":
    """Adds the place in the file to what goes wrong inside."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"{error}, at {study.text.words(place)} (scale {scale!r})") from None


def _check_measure(view: View, selector: Selector) -> None:
    """Raises `OptionError` for a measure that the arm's task does not have."""
    making = matching(view.cells, selector.where)[0].making
    if making.task == "analyze":
        if not any(selector.measure.startswith(f"{name} ") for name in making.analyses):
            known = ", ".join(f"{name} ..." for name in making.analyses)
            raise OptionError(f"{selector.arm!r} has no measure {selector.measure!r}; its measures begin with the analysis: {known}")
        return
    measures = list(MEASURES[making.task])
    if making.replay is not None:
        measures += [f"accuracy {each} {number + 1}" for each in ("after", "on group") for number in range(making.replay.groups)]
    if selector.measure not in measures:
        raise OptionError(f"{selector.arm!r} has no measure {selector.measure!r}; {nearest(selector.measure, measures)}")


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
    """Interval of ``mean(left) - mean(right)``, measures [draws, experts, students]: paired for equal shapes, whose entries share seeds.

    Otherwise, students of one set on each side are compared by Student's two-sample t, which takes their spread to be equal, and half-widths of anything else
    add in quadrature.
    """
    if left.shape == right.shape:
        return nested_interval(left - right, level)
    if left.shape[:2] == right.shape[:2] == (1, 1):
        from scipy.stats import t

        freedom, gap = left.size + right.size - 2, float(left.mean() - right.mean())
        squares = sum(float(((side - side.mean()) ** 2).sum()) for side in (left, right))
        half = float(t.ppf(0.5 + level / 2, freedom)) * math.sqrt(squares / freedom * (1 / left.size + 1 / right.size))
        return Interval(gap, gap - half, gap + half, "students (unpaired, taken to spread equally)", left.size + right.size)
    first, second = nested_interval(left, level), nested_interval(right, level)
    half, gap = math.hypot(first.half_width, second.half_width), first.mean - second.mean
    return Interval(gap, gap - half, gap + half, f"{first.covers} against {second.covers} (unpaired)", first.n + second.n)


def ratio(left: np.ndarray, right: np.ndarray) -> Interval:
    """Interval of ``mean(left) / mean(right)`` after Fieller (1954): the ratios r at which the interval of ``left - r right`` covers 0. It is unbounded where the
    interval of `right` covers 0."""
    below, right_mean = nested_interval(right), float(right.mean())
    center = float(left.mean()) / right_mean if right_mean else math.nan
    if not math.isfinite(center) or below.low <= 0 <= below.high:
        return Interval(center, -math.inf, math.inf, below.covers, left.size)

    def rejects(at: float) -> bool:
        gap = difference(left, at * right)
        return gap.low > 0 or gap.high < 0

    at_center = difference(left, center * right)
    if not math.isfinite(at_center.low):
        return Interval(center, math.nan, math.nan, "nothing repeated", left.size)
    unit = abs(center) or 1.0
    edges = []
    for sign in (-1, 1):
        inside, outside = center, center + sign * 1e-3 * unit
        while not rejects(outside) and abs(outside - center) < 1e6 * unit:
            outside = center + 2 * (outside - center)
        for _ in range(60 if rejects(outside) else 0):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejects(middle) else (middle, outside)
        edges.append(inside if rejects(outside) else sign * math.inf)
    return Interval(center, edges[0], edges[1], at_center.covers, left.size)


def spearman(x: Sequence[float], y: Sequence[float]) -> Interval:
    """Rank correlation with its 95 % interval (see `Correlation`); NaN bounds below four pairs. Where z has no end, at a perfect order, it is taken half a step of r
    below 1: a swap of two neighbors would give ``1 - 12 / (n (n^2 - 1))``."""
    from scipy.stats import rankdata

    count = len(x)
    first, second = (np.asarray(rankdata(side), dtype=np.float64) - (count + 1) / 2 for side in (x, y))
    spread = math.sqrt(float(first @ first) * float(second @ second))
    r = float(first @ second) / spread if spread else float("nan")
    if count < 4 or not math.isfinite(r):
        return Interval(r, float("nan"), float("nan"), "nothing repeated", count)
    most = 1 - 6 / (count * (count**2 - 1))
    z, error = math.atanh(max(-most, min(most, r))), math.sqrt((1 + r * r / 2) / (count - 3))
    return Interval(r, min(r, math.tanh(z - 1.959964 * error)), max(r, math.tanh(z + 1.959964 * error)), "settings", count)


@dataclass(frozen=True)
class _Unit:
    """How a number is written: times `factor`, with `word` after it."""

    factor: float = 1.0
    word: str = ""
    difference_word: str | None = None

    @property
    def of_differences(self) -> "_Unit":
        """The unit of a difference of two such numbers: points, where each is in %."""
        return self if self.difference_word is None else _Unit(self.factor, self.difference_word)

    def number(self, value: float) -> str:
        """``5.2 %``."""
        return f"{self.factor * value:.4g} {self.word}".strip()


_PLAIN, _PERCENT = _Unit(), _Unit(100.0, "%", "points")
_POINTS = _PERCENT.of_differences


@dataclass(frozen=True)
class _Words:
    """A measurement in words: what was measured, its unit, and how often it was repeated."""

    what: str
    unit: _Unit
    numbers: str

    def spoken(self, interval: Interval, asked: str) -> str:
        """``soft (ipc 1) minus hard (ipc 1): 5.2 points [4.1, 6.3]; asked: above 2 points; 3 draws x 1 student``."""
        factor, mean = self.unit.factor, self.unit.number(interval.mean)
        if math.isfinite(interval.low) or math.isfinite(interval.high):
            found = f"{mean} [{factor * interval.low:.4g}, {factor * interval.high:.4g}]"
        elif math.isinf(interval.low):
            found = f"{mean} (no bounds: what it is divided by is not clearly above 0)"
        else:
            found = f"{mean} (no interval: {interval.covers})"
        return "; ".join(part for part in (f"{self.what}: {found}", f"asked: {asked}", self.numbers) if part)


def unit_of(measure: str) -> _Unit:
    """The unit in which a measure of a task is written."""
    if measure in _FRACTIONS or measure.startswith(("accuracy after ", "accuracy on group ")):
        return _PERCENT
    return _Unit(1.0, "nats") if measure in _NATS else _PLAIN


def _unit_of_quantity(name: str, found: "Quantity") -> _Unit:
    if found.unit.startswith("difference of fractions") or (found.unit == "fraction" and any(word in name for word in ("minus", "gap", "spread"))):
        return _POINTS
    if found.unit.startswith("fraction"):
        return _PERCENT
    return _Unit(1.0, found.unit if len(found.unit) < 25 else "")  # a longer one is a sentence, which the claim says already


def _gap(view: View, left: Selector, right: Selector) -> tuple[Interval, _Words]:
    found = paired(view, left, right)
    unit = unit_of(left.measure).of_differences
    return found.named(difference(found.arrays[0], found.arrays[1])), _Words(f"{left.words} minus {right.words}", unit, found.words)


def _above(interval: Interval, threshold: float, words: _Words) -> Verdict:
    answer: Answer = "holds" if interval.low > threshold else "fails" if interval.high < threshold else "undecided"
    return Verdict(answer, words.spoken(interval, f"above {words.unit.number(threshold)}"), interval, threshold)


def _quantity(measured: "Mapping[str, Measurement]", analysis: str, name: str, *, scalar: bool = False) -> "Quantity":
    """A quantity of an analysis by name; with `scalar`, one without axes."""
    if analysis not in measured:
        raise NotMeasured(f"the analysis {analysis!r} has no result yet")
    found = {key: quantity for key, quantity in measured[analysis].quantities.items() if not (scalar and quantity.values.ndim)}
    if name in found:
        return found[name]
    if measured[analysis].settings.get("missing"):
        raise NotMeasured(f"{name!r} of the analysis {analysis!r} is not measured yet; run: limbeck study resume")
    kind = "scalar" if scalar else "quantity"
    raise OptionError(f"the analysis {analysis!r} has no {kind} {name!r}; {nearest(name, found) if found else 'it has none'}")


def _interval(found: "Quantity") -> Interval:
    low, high = (math.nan if side is None else float(side) for side in (found.low, found.high))
    return Interval(float(found.values), low, high, found.covers or "nothing repeated", 1)

"""Analyses of studies: from measured cells to named quantities and plots. `STUDY_ANALYSES` is the visible table.

An entry is a function ``(view, options, artefacts) -> (measurement, plots)`` whose `options` are annotated with a pydantic model: that model checks a study file. It
raises `NotMeasured` while cells are missing.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from limbeck.analyze.subject import Plot
from limbeck.errors import OptionError, nearest
from limbeck.registry import Registry
from limbeck.study.artefacts import Artefacts
from limbeck.study.places import Place, problem
from limbeck.study.spec import AnalysisEntry, Scalar, Study, matching
from limbeck.study.view import REPEATS, NotMeasured, Selector, View
from limbeck.types.evaluation import Interval, nested_interval
from limbeck.types.measurement import Measurement, Quantity

STUDY_ANALYSES = Registry(
    "study analysis",
    {
        "curves": "limbeck.study.analyses:curves",
        "table": "limbeck.study.analyses:table",
        "relative": "limbeck.study.label_analyses:relative",
        "scaling": "limbeck.study.label_analyses:scaling",
        "front": "limbeck.study.label_analyses:front",
        "removed-class": "limbeck.study.label_analyses:removed_class",
        "label-distance": "limbeck.study.label_analyses:label_distance",
        "class-structure": "limbeck.study.label_analyses:class_structure",
        "label-profile": "limbeck.study.label_analyses:label_profile",
        "seed-spread": "limbeck.study.label_analyses:seed_spread",
        "versus": "limbeck.study.label_analyses:versus",
        "quantities": "limbeck.study.set_analyses:quantities",
        "groups-seen": "limbeck.study.replay_analyses:groups_seen",
        "break-even": "limbeck.study.cost_analyses:break_even",
    },
)

_FRACTIONS = ("accuracy", "worst_class", "validation_accuracy", "top_is_owner")
_NATS = ("loss", "entropy", "label_entropy")
Made = tuple[Measurement, tuple[Plot, ...]]


class StudyAnalysisOptions(BaseModel):
    """Options of an analysis of a study. `scalars` names the numbers without axes in its measurement, unless options or data decide their names; `bare` those of
    them that have no interval, which no claim can be decided from; `drawn` pairs every field that holds selectors with one that names an axis along which their
    cells are drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    scalars: ClassVar[tuple[str, ...] | None] = None
    bare: ClassVar[tuple[str, ...]] = ()
    drawn: ClassVar[tuple[tuple[str, str], ...]] = ()

    title: Annotated[str, Field(description="heading of the figure")]
    reading: Annotated[str, Field(description="how to read it, in a sentence or two")] = ""


class CurvesOptions(StudyAnalysisOptions):
    """A measure along an axis."""

    scalars = ()
    drawn = (("of", "x"), ("of", "color"), ("of", "panel"))

    of: Annotated[Selector, Field(description="the arm, its measure, and values of axes that are not drawn")]
    x: Annotated[str, Field(description="axis across")]
    color: Annotated[str | None, Field(description="axis with a curve for each value")] = None
    panel: Annotated[str | None, Field(description="axis with a drawing for each value")] = None
    log: Annotated[bool, Field(description="space the axis logarithmically")] = False
    unit: Annotated[str, Field(description="unit of the measure")] = ""

    @property
    def axes(self) -> list[str]:
        """The axes that are drawn."""
        return [axis for axis in (self.x, self.color, self.panel) if axis is not None]


class Named(Selector):
    """A selector with a name for the table's row."""

    name: str


class TableOptions(StudyAnalysisOptions):
    """Cells beside each other."""

    scalars = ()

    rows: Annotated[tuple[Named, ...], Field(min_length=1, description="selectors, each with a name")]
    unit: Annotated[str, Field(description="unit of the measure")] = ""

    @model_validator(mode="after")
    def _one_measure(self) -> "TableOptions":
        if len({row.measure for row in self.rows}) > 1:
            raise ValueError("the rows of a table show one measure, so give all of them the same")
        return self


def curves(view: View, options: CurvesOptions, artefacts: Artefacts) -> Made:
    """The mean of a measure with its 95 % interval over draws, experts and students, along `x`, for each value of `color` and `panel`; cells that are not measured
    are left out."""
    coordinates = {axis: tuple(view.along(options.of, axis)) for axis in options.axes}
    grid = np.ndindex(*(len(values) for values in coordinates.values()))
    found: dict[tuple[int, ...], Interval] = {}
    for place in grid:
        at: dict[str, Scalar] = {axis: coordinates[axis][number] for axis, number in zip(options.axes, place, strict=True)}
        try:
            found[place] = view.named(nested_interval(view.values(options.of.at(**at))), options.of)
        except NotMeasured:
            continue
        except OptionError:
            if any(all(setting.get(axis) == value for axis, value in at.items()) for setting in view.settings(options.of)):
                raise
    if not found:
        raise NotMeasured(f"{options.title}: nothing is measured yet; run: limbeck study resume")
    sides = [len(values) for values in coordinates.values()]
    quantity = quantity_of(found, sides, tuple(options.axes), options.unit, options.of.measure)
    if options.color is not None:  # in words, as a legend shows them
        coordinates[options.color] = tuple(f"{options.color} {value}" for value in coordinates[options.color])
    numbers = all(isinstance(value, (int, float)) for value in coordinates[options.x])
    plot = Plot(
        options.of.measure,
        options.title,
        options.x,
        kind="line" if numbers else "dots",
        color=options.color,
        panel=options.panel,
        log=options.log,
        reading=options.reading,
    )
    return Measurement("curves", options.title, {options.of.measure: quantity}, coordinates), (plot,)


def table(view: View, options: TableOptions, artefacts: Artefacts) -> Made:
    """The means of some cells with their 95 % intervals, as dots beside each other."""
    found: dict[tuple[int, ...], Interval] = {
        (place,): view.named(nested_interval(view.values(Selector(arm=row.arm, measure=row.measure, **(row.model_extra or {})))), row)
        for place, row in enumerate(options.rows)
    }
    measure, names = options.rows[0].measure, tuple(row.name for row in options.rows)
    quantity = quantity_of(found, [len(names)], ("row",), options.unit, measure)
    return Measurement("table", options.title, {measure: quantity}, {"row": names}), (
        Plot(measure, options.title, "row", kind="dots", reading=options.reading),
    )


def options_of(entry: AnalysisEntry) -> Any:
    """The checked options of an entry; raises pydantic's `ValidationError`, or `OptionError` for an unknown analysis."""
    model = inspect.signature(STUDY_ANALYSES[entry.name]).parameters["options"].annotation
    return model(**entry.options)


def check_analyses(study: Study) -> None:
    """Checks every analysis of a study, with the place in the file."""
    from limbeck.study.claims import check_selector, parse_check

    for number, entry in enumerate(study.file.analyses):
        place: Place = ("analyses", number)
        try:
            options = options_of(entry)
        except ValidationError as error:
            model = inspect.signature(STUDY_ANALYSES[entry.name]).parameters["options"].annotation
            raise problem(error, model, study.text, (*place, "options")) from None
        except OptionError as error:
            raise OptionError(f"{error}, at {study.text.words((*place, 'name'))}") from None
        for scale in entry.scales or study.file.scales:
            for selector in _selectors(options):
                check_selector(study, scale, selector, (*place, "options"))
            for field, key in options.drawn:
                if (axis := getattr(options, key)) is not None:
                    _check_drawn(study, scale, getattr(options, field), axis, (*place, "options", key))
        for claim_number, claim in enumerate(study.file.claims):
            for inside, analysis, quantity in parse_check(claim).scalars:
                if analysis == entry.id:
                    _check_scalar(options, entry, quantity, study.text.words(("claims", claim_number, "check", *inside)))


def _check_scalar(options: StudyAnalysisOptions, entry: AnalysisEntry, quantity: str, where: str) -> None:
    if options.scalars is not None and quantity not in options.scalars:
        hint = nearest(quantity, options.scalars) if options.scalars else f"{entry.name!r} has none: claim something about cells, by selectors"
        raise OptionError(f"the analysis {entry.id!r} has no scalar {quantity!r}, at {where}; {hint}")
    if quantity in options.bare:
        raise OptionError(
            f"{quantity!r} of {entry.name!r} has no interval, so no claim can be decided from it, at {where}; claim something about another of its quantities"
        )


def _check_drawn(study: Study, scale: str, given: Selector | tuple[Selector, ...], axis: str, place: Place) -> None:
    """Raises `OptionError`, with the place in the file, for an axis that the selected cells do not have, or that repeats them."""
    for selector in given if isinstance(given, tuple) else (given,):
        cells = matching(study.cells(scale), selector.where)
        known = list(dict.fromkeys(name for cell in cells for name in cell.coordinates if name not in REPEATS))
        if axis not in known:
            spoken = f"the axes of {selector.words} are {', '.join(known)}" if known else f"{selector.words} has none"
            near = nearest(axis, known) if known else "give its arm one"
            raise OptionError(f"{axis!r} at {study.text.words(place)} is no axis to draw along (scale {scale!r}): {spoken}; {near}")


def analyze(view: View, artefacts: Artefacts) -> dict[str, Made]:
    """Every analysis of the view's scale that can be computed from what is measured so far, by id."""
    made: dict[str, Made] = {}
    for entry in view.study.file.analyses:
        if entry.scales is None or view.scale in entry.scales:
            try:
                measurement, plots = STUDY_ANALYSES[entry.name](view, options_of(entry), artefacts)
                made[entry.id] = replace(measurement, analysis=entry.id), plots
            except NotMeasured:
                continue
    return made


def _selectors(options: BaseModel) -> list[Selector]:
    found: list[Selector] = []
    for _, value in options:
        found += [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Selector)]
    return found


def quantity_of(found: Mapping[tuple[int, ...], Interval], sides: Sequence[int], axes: tuple[str, ...], unit: str, measure: str) -> Quantity:
    """The intervals as an array with bounds; NaN where nothing is measured."""
    unit = unit or ("fraction" if measure in _FRACTIONS else "nats" if measure in _NATS else "")
    arrays = [np.full(sides, np.nan) for _ in range(3)]
    for place, interval in found.items():
        for array, value in zip(arrays, (interval.mean, interval.low, interval.high), strict=True):
            array[place] = value
    covers = "; ".join(dict.fromkeys(interval.covers for interval in found.values()))
    return Quantity(arrays[0], axes, unit, arrays[1], arrays[2], covers)

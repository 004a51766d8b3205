"""The figure of studies that analyze sets: one quantity of an analysis, for every kind of set beside the others."""

from typing import Annotated, Any

import numpy as np
from pydantic import Field

from limbeck.analyze.subject import Plot
from limbeck.errors import OptionError, nearest
from limbeck.study.analyses import Made, StudyAnalysisOptions
from limbeck.study.analyze_task import measurements_of
from limbeck.study.artefacts import Artefacts
from limbeck.study.spec import Scalar
from limbeck.study.view import NotMeasured, View
from limbeck.types.measurement import Measurement, Quantity


class QuantitiesOptions(StudyAnalysisOptions):
    """One quantity of an analysis, for several sets."""

    arms: Annotated[tuple[str, ...] | None, Field(description='arms with task = "analyze"; default: all of them')] = None
    analysis: Annotated[str, Field(description="the analysis: recognition, mixing, ...")]
    quantity: Annotated[str, Field(description="a quantity of its measurement")]
    along: Annotated[str | None, Field(description="the axis that is kept: across where it holds numbers, in colors where it holds words")] = None
    where: Annotated[dict[str, Scalar], Field(default_factory=dict, description="the coordinate at which each other axis is taken")]
    log: Annotated[bool, Field(description="space the axis logarithmically")] = False


def quantities(view: View, options: QuantitiesOptions, artefacts: Artefacts) -> Made:
    """The quantity with its own 95 % interval, for every set (and coordinate of `along`). A set that is not measured yet, or on which the analysis could not
    work, is left out.

    Scalars: ``SET`` or ``SET COORDINATE``, for claims.
    """
    taken: dict[str, tuple[Quantity, tuple[Any, ...]]] = {}
    missing: list[str] = []
    for cell in view.cells:
        if cell.making.task != "analyze" or (options.arms is not None and cell.arm not in options.arms):
            continue
        try:
            measurement = measurements_of(artefacts, dict(view.row(cell))).get(options.analysis)
        except NotMeasured:
            missing.append(cell.words)
            continue
        if measurement is not None:
            taken[cell.words] = _taken(measurement, options)
    if not taken:
        raise NotMeasured(f"{options.title}: nothing is measured yet; run: limbeck study resume")
    names, (first, across) = tuple(taken), next(iter(taken.values()))
    if any(coordinates != across for _, coordinates in taken.values()):
        raise OptionError(
            f"the sets of {options.title!r} have different coordinates along {options.along!r}; analyze all of them with the same options"
        )
    stacked = {side: np.stack([_side(quantity, side) for quantity, _ in taken.values()]) for side in ("values", "low", "high")}
    axes = ("set",) if options.along is None else ("set", options.along)
    bounded = bool(np.isfinite(stacked["low"]).any())
    whole = Quantity(stacked["values"], axes, first.unit, *((stacked["low"], stacked["high"], first.covers) if bounded else ()))
    found = {options.quantity: whole}
    for row, name in enumerate(names):
        for place in np.ndindex(*whole.values.shape[1:]):
            words = name if not place else f"{name} {across[place[0]]}"
            value, low, high = (None if side is None else np.asarray(side[(row, *place)]) for side in (whole.values, whole.low, whole.high))
            assert value is not None
            found[words] = Quantity(value, (), first.unit, low, high, first.covers)
    coordinates: dict[str, tuple[Any, ...]] = {"set": names}
    if options.along is not None:
        coordinates[options.along] = across
    return Measurement("quantities", options.title, found, coordinates, {"missing": missing} if missing else {}), (_plot(options, across),)


def _plot(options: QuantitiesOptions, across: tuple[Any, ...]) -> Plot:
    if options.along is not None and all(isinstance(value, (int, float)) for value in across):
        return Plot(options.quantity, options.title, options.along, color="set", log=options.log, reading=options.reading)
    return Plot(options.quantity, options.title, "set", kind="dots", color=options.along, reading=options.reading)


def _taken(measurement: Measurement, options: QuantitiesOptions) -> tuple[Quantity, tuple[Any, ...]]:
    """The quantity along one axis or none, and the coordinates of that axis."""
    if options.quantity not in measurement.quantities:
        raise OptionError(f"{options.analysis} measures no {options.quantity!r}; {nearest(options.quantity, measurement.quantities)}")
    quantity = measurement[options.quantity]
    place: list[Any] = []
    for axis in quantity.axes:
        if axis == options.along:
            place.append(slice(None))
        elif axis in options.where:
            place.append(_place(measurement.axes[axis], options.where[axis], axis))
        else:
            raise OptionError(f"{options.quantity!r} has the axis {axis!r} as well; say where = {{ {axis} = ... }}, or draw it along that axis")
    for axis in (*options.where, *((options.along,) if options.along else ())):
        if axis not in quantity.axes:
            raise OptionError(f"{options.quantity!r} has no axis {axis!r}; {nearest(axis, quantity.axes) if quantity.axes else 'it has none'}")
    at = tuple(place)
    value, low, high = (None if side is None else np.asarray(side[at]) for side in (quantity.values, quantity.low, quantity.high))
    assert value is not None
    kept = () if options.along is None else (options.along,)
    across = () if options.along is None else measurement.axes[options.along]
    return Quantity(value, kept, quantity.unit, low, high, quantity.covers), across


def _place(coordinates: tuple[Any, ...], wanted: Scalar, axis: str) -> int:
    if wanted not in coordinates:
        raise OptionError(f"axis {axis!r} has no coordinate {wanted!r}; {nearest(str(wanted), [str(value) for value in coordinates])}")
    return coordinates.index(wanted)


def _side(quantity: Quantity, side: str) -> np.ndarray:
    given = getattr(quantity, side)
    return np.full(quantity.values.shape, np.nan) if given is None else np.asarray(given)

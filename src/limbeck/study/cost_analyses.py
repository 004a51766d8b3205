"""What a set costs and what it saves: from how many networks on it pays to make one."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from limbeck.analyze.subject import Plot
from limbeck.errors import OptionError
from limbeck.study.analyses import Made, StudyAnalysisOptions
from limbeck.study.artefacts import Artefacts
from limbeck.study.graph import Task
from limbeck.study.kinds import KINDS
from limbeck.study.spec import DataFacts, Scalar, matching
from limbeck.study.view import NotMeasured, Selector, View
from limbeck.types.measurement import Measurement, Quantity

_NO_REPEATS = "nothing: it is arithmetic"


class BreakEvenOptions(StudyAnalysisOptions):
    """What making a set costs, against what training on it saves."""

    scalars = ("making", "break even", "times cheaper")

    small: Annotated[Selector, Field(description="networks trained on the set, along `over`")]
    full: Annotated[Selector, Field(description="the same networks trained on all data, along `over`")]
    over: Annotated[str, Field(description="axis of the networks")] = "arch"


def break_even(view: View, options: BreakEvenOptions, artefacts: Artefacts) -> Made:
    """From how many networks on it is cheaper to make a set and to train them on it than to train them on all data.

    Costs are operations by the tasks' own prices (`limbeck.study.pricing`), not seconds: m of everything that the set needs (experts, the choice of a snapshot,
    the set; of one draw), and for each network s of one student on the set and f of one on all data. Scalars: `making`, m; `break even`, the number of
    networks ``m / mean(f - s)``, infinite where all data are no dearer; `times cheaper`, ``sum f / (m + sum s)`` for the networks of this study. They follow
    from the settings alone, so their intervals have no width.
    """
    facts = view.study.scale(view.scale).data
    values = [value for value in view.along(options.small, options.over) if value in view.along(options.full, options.over)]
    if not values:
        raise OptionError(f"{options.title}: {options.small.words} and {options.full.words} have no value of {options.over!r} in common")
    needed: dict[str, float] = {}
    small = np.array([_of_one(view, options.small, {options.over: value}, facts, needed) for value in values])
    full = np.array([_of_one(view, options.full, {options.over: value}, facts, {}) for value in values])
    making, saved = sum(needed.values()), float((full - small).mean())
    quantities = {
        "cost": Quantity(np.stack([small, full], 1), (options.over, "trained on"), "operations"),
        "making": _exact(making, "operations"),
        "break even": _exact(making / saved if saved > 0 else math.inf, "networks"),
        "times cheaper": _exact(float(full.sum() / (making + small.sum())), "times"),
    }
    axes = {options.over: tuple(values), "trained on": ("the set", "all data")}
    plot = Plot("cost", options.title, options.over, kind="dots", color="trained on", reading=options.reading)
    return Measurement("break-even", options.title, quantities, axes), (plot,)


def _of_one(view: View, selector: Selector, where: dict[str, Scalar], facts: DataFacts, needed: dict[str, float]) -> float:
    """Operations of one student of the first cell that is selected; what its task needs goes into `needed`, each task once."""
    cells = matching(view.cells, selector.at(**where).where)
    row = view.row(min(cells, key=lambda cell: [str(cell.coordinates.get(name, 0)) for name in ("draw", "expert")]))
    _gather(view, row, facts, needed)
    return _price(row, facts) / row["settings"].get("students", 1)


def _gather(view: View, row: Mapping[str, Any], facts: DataFacts, needed: dict[str, float]) -> None:
    """Puts the operations of everything that a row builds on into `needed`."""
    for key in (key for keys in row["inputs"].values() for key in keys if key not in needed):
        if key not in view.rows:
            raise NotMeasured(f"task {key} is not finished yet; run: limbeck study resume")
        needed[key] = _price(view.rows[key], facts)
        _gather(view, view.rows[key], facts, needed)


def _price(row: Mapping[str, Any], facts: DataFacts) -> float:
    task = Task(row["kind"], row["key"], row["settings"], {role: tuple(keys) for role, keys in row["inputs"].items()}, "")
    return KINDS[task.kind].price(task, facts).operations


def _exact(value: float, unit: str) -> Quantity:
    known = np.array(value)
    return Quantity(known, (), unit, known, known, _NO_REPEATS)

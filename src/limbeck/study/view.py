"""What a study has measured so far: its cells joined with the ledger's rows, as arrays over image draws, experts and students."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from limbeck.errors import LimbeckError, OptionError, nearest
from limbeck.study.spec import Cell, Scalar, Study, matching
from limbeck.types.evaluation import Interval

#: Axes whose values repeat a measurement instead of setting it: image draws and experts.
REPEATS = ("draw", "expert")


class NotMeasured(LimbeckError):
    """A number that was asked for before its task finished."""


class Selector(BaseModel):
    """Which cells, and which of their measures: ``{arm = "soft", ipc = 10, measure = "accuracy"}``. Other keys are values of axes."""

    model_config = ConfigDict(frozen=True, extra="allow")

    arm: Annotated[str, Field(description="the arm")]
    measure: Annotated[str, Field(description="a measure of the arm's rows")] = "accuracy"

    @property
    def where(self) -> dict[str, Any]:
        """Arm and axes' values."""
        return {"arm": self.arm, **(self.model_extra or {})}

    def at(self, **values: Scalar) -> "Selector":
        """The same cells, narrowed further."""
        return Selector(arm=self.arm, measure=self.measure, **{**(self.model_extra or {}), **values})

    @property
    def words(self) -> str:
        """``soft (ipc 10)``."""
        values = ", ".join(f"{name} {value}" for name, value in (self.model_extra or {}).items())
        return f"{self.arm} ({values})" if values else self.arm


@dataclass(frozen=True)
class View:
    """Cells of one scale, the key of the task that measures each, and the finished rows by key."""

    study: Study
    scale: str
    cells: Sequence[Cell]
    tasks: Sequence[str]
    rows: Mapping[str, Mapping[str, Any]]

    def row(self, cell: Cell) -> Mapping[str, Any]:
        """The ledger's row of a cell."""
        key = self.tasks[self.cells.index(cell)]
        if key not in self.rows:
            raise NotMeasured(f"{cell.words} is not measured yet; run: limbeck study resume")
        return self.rows[key]

    def settings(self, selector: Selector) -> list[dict[str, Scalar]]:
        """The distinct coordinates (repeats left out) of the selected cells, in the file's order."""
        found: list[dict[str, Scalar]] = []
        for cell in matching(self.cells, selector.where):
            setting = {name: value for name, value in cell.coordinates.items() if name not in REPEATS}
            if setting not in found:
                found.append(setting)
        return found

    def along(self, selector: Selector, axis: str) -> list[Scalar]:
        """The values that the selected cells have on an axis, from small to large where they are numbers, in the file's order otherwise."""
        found = list(dict.fromkeys(setting[axis] for setting in self.settings(selector) if axis in setting))
        numbers = all(isinstance(value, (int, float)) for value in found)
        return sorted(found, key=float) if numbers else found

    def values(self, selector: Selector) -> np.ndarray:
        """The measure of the selected cells [draws D, experts E, students S], which must have one setting; raises `NotMeasured` while any is missing."""
        cells = matching(self.cells, selector.where)
        settings = self.settings(selector)
        if len(settings) != 1:
            free = sorted({name for setting in settings for name in setting if len({str(other.get(name)) for other in settings}) > 1})
            raise OptionError(
                f"{selector.words} selects {len(settings)} settings"
                + (f" that differ in {', '.join(free)}; name a value of each" if free else "; check the values")
            )
        self._refuse_copies(selector, cells)
        table = {(cell.coordinates.get("draw", 0), cell.coordinates.get("expert", 0)): self._measure(cell, selector.measure) for cell in cells}
        draws, experts = sorted({key[0] for key in table}), sorted({key[1] for key in table})
        if len(table) != len(draws) * len(experts):
            raise OptionError(f"{selector.words} does not cross its draws and experts; give the arm both axes")
        return np.array([[table[draw, expert] for expert in experts] for draw in draws], dtype=np.float64)

    def _refuse_copies(self, selector: Selector, cells: Sequence[Cell]) -> None:
        """Cells that one task measures are one measurement, whose copies would make an interval of no width."""
        keys = {id(cell): key for cell, key in zip(self.cells, self.tasks, strict=True)}
        first: dict[str, Cell] = {}
        for cell in cells:
            other = first.setdefault(keys[id(cell)], cell)
            if other is not cell:
                raise OptionError(
                    f"{selector.words} counts one measurement twice, as {other.words} and as {cell.words}; "
                    f"leave {_differing(other, cell)} out of the arm's `over`, which does not change what is measured"
                )

    def named(self, interval: Interval, *selectors: Selector) -> Interval:
        """The interval, without students in what it covers where none were trained: an expert's own score has no student."""
        cells = [cell for selector in selectors for cell in matching(self.cells, selector.where)]
        if not cells or any(cell.making.task in ("evaluate", "replay") for cell in cells):
            return interval
        return replace(interval, covers=interval.covers.replace(" and students", ""))

    def losses(self, cell: Cell) -> list[float]:
        """The test losses of a cell's students, NaN where one diverged; none where the task does not measure them."""
        return self._measure(cell, "loss") if "loss" in self.row(cell)["measures"] else []

    def _measure(self, cell: Cell, measure: str) -> list[float]:
        measures = self.row(cell)["measures"]
        if measure not in measures:
            raise OptionError(f"{cell.arm!r} has no measure {measure!r}; {nearest(measure, measures)}")
        value = measures[measure]
        return [float("nan") if part is None else float(part) for part in (value if isinstance(value, list) else [value])]


def _differing(first: Cell, second: Cell) -> str:
    return " and ".join(repr(name) for name in first.coordinates if first.coordinates[name] != second.coordinates.get(name))

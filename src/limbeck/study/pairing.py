"""Pairing: measures of several arms brought to the repeats that they share, so that a comparison is made pair by pair.

Students number 0, 1, ... of an image draw and an expert start alike in every arm, so an entry ``[draw, expert, student]`` of one arm belongs to the same entry of
another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from limbeck.errors import OptionError
from limbeck.study.spec import matching
from limbeck.study.view import Selector, View
from limbeck.types.evaluation import Interval

_TRAINING = ("evaluate", "replay")  # tasks that train students
_OF_THE_SET = ("label_entropy", "images", "bytes")  # their measures that are one number, whatever the students


@dataclass(frozen=True)
class Side:
    """A measure ``[draws D, experts E, students S]`` with the numbers of its draws and experts: None where it does not depend on a draw (an expert's own score)
    or where its arm is not crossed over experts. `students` is False where none were trained; `diverged` of them ended with a loss that is not finite."""

    words: str
    values: np.ndarray
    draws: tuple[Any, ...] | None
    experts: tuple[Any, ...] | None
    students: bool
    diverged: int = 0

    @staticmethod
    def of(view: View, selector: Selector, values: np.ndarray) -> "Side":
        """The selected cells, whose measure is `values`."""
        cells = matching(view.cells, selector.where)
        tasks = {cell.making.task for cell in cells}
        draws = sorted({cell.coordinates.get("draw", cell.making.draw) for cell in cells})
        experts = sorted({cell.coordinates["expert"] for cell in cells if "expert" in cell.coordinates})
        # a draw decides which images a set holds; an expert's own score has none
        drawn = tasks != {"expert-score"} or any("draw" in cell.coordinates for cell in cells)
        students = not tasks.isdisjoint(_TRAINING) and selector.measure not in _OF_THE_SET
        losses = [view.losses(cell) for cell in cells] if students and values.size else []
        diverged = sum(not math.isfinite(loss) for each in losses for loss in each)
        return Side(selector.words, values, tuple(draws) if drawn else None, tuple(experts) or None, students, diverged)

    @property
    def numbers(self) -> str:
        """``2 draws x 2 experts x 3 students``, and how many of the students diverged."""
        counts = zip(("draw", "expert", "student"), self.values.shape, (self.draws is not None, self.experts is not None, self.students), strict=True)
        words = " x ".join(f"{count} {name}{'s' if count > 1 else ''}" for name, count, there in counts if there) or "1 value"
        return f"{words}, {self.diverged} diverged" if self.diverged else words


@dataclass(frozen=True)
class Pairs:
    """Several measures on the same repeats. `numbers` says how often each was repeated, `notes` what was left out or averaged to pair them."""

    arrays: tuple[np.ndarray, ...]
    numbers: str
    notes: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """``3 draws x 2 experts x 1 student against 3 draws x 1 student, experts averaged within each draw``."""
        return ", ".join((self.numbers, *self.notes))

    def named(self, interval: Interval) -> Interval:
        """The interval, with what was averaged said in what it covers."""
        averaged = any(note.startswith("experts averaged") for note in self.notes)
        return replace(interval, covers=f"{interval.covers} (experts averaged)") if averaged else interval


def paired(view: View, *selectors: Selector) -> Pairs:
    """The measures of the selectors on the draws, experts and students that all of them have.

    - Draws: the ones that all have; arms that exist on one draw alone are compared on that draw.
    - Experts: likewise. Where one arm is crossed over experts and another is not, pairs are draws, with experts averaged within each (the interval does not
      cover them then); on a single draw pairs are experts, and the other arm's students meet every one of them.
    - Students: matched by number where all have equally many; averaged within each draw and expert where these are repeated.

    Raises `OptionError` when two arms share no draw, or no expert, and `NotMeasured` while a cell is missing.
    """
    sides = [Side.of(view, selector, view.values(selector)) for selector in selectors]
    notes: list[str] = []
    arrays = [side.values for side in sides]
    for axis, name, numbers in ((0, "draw", [side.draws for side in sides]), (1, "expert", [side.experts for side in sides])):
        shared = _shared(sides, name, numbers)
        if shared is not None and any(known is not None and list(known) != shared for known in numbers):
            notes.append(f"on {name}{'s' if len(shared) > 1 else ''} {', '.join(map(str, shared))}, which all have")
        if axis == 1 and shared is not None and None in numbers and len(shared) > 1 and max(array.shape[0] for array in arrays) > 1:
            arrays = [_chosen(array, known, shared, 1).mean(1, keepdims=True) for array, known in zip(arrays, numbers, strict=True)]
            notes.append("experts averaged within each draw")
            continue
        arrays = [_chosen(array, known, shared, axis) for array, known in zip(arrays, numbers, strict=True)]
    shape = tuple(max(array.shape[axis] for array in arrays) for axis in (0, 1))
    arrays = [np.broadcast_to(array, (*shape, array.shape[2])) for array in arrays]
    counts = {array.shape[2] for array, side in zip(arrays, sides, strict=True) if side.students}
    if len(counts) > 1 and shape != (1, 1):
        arrays = [array.mean(2, keepdims=True) for array in arrays]
        notes.append("students averaged within each")
    elif len(counts) > 1 and len(arrays) > 2:
        arrays = [array[:, :, : min(counts)] if side.students else array for array, side in zip(arrays, sides, strict=True)]
        notes.append(f"on the first {min(counts)} students")
    elif len(counts) > 1:
        notes.append("students unpaired")
    most = max(array.shape[2] for array in arrays)
    arrays = [array if side.students else np.broadcast_to(array, (*shape, most)) for array, side in zip(arrays, sides, strict=True)]
    return Pairs(tuple(arrays), " against ".join(dict.fromkeys(side.numbers for side in sides)), tuple(notes))


def check_pairs(view: View, *selectors: Selector) -> None:
    """Raises `OptionError` when the selectors share no draw, or no expert; looks at no measure."""
    sides = [Side.of(view, selector, np.empty(0)) for selector in selectors]
    _shared(sides, "draw", [side.draws for side in sides])
    _shared(sides, "expert", [side.experts for side in sides])


def _shared(sides: Sequence[Side], name: str, numbers: Sequence[tuple[Any, ...] | None]) -> list[Any] | None:
    """The numbers that all sides have which have any; None where none has."""
    known = [each for each in numbers if each is not None]
    if not known:
        return None
    shared = [number for number in known[0] if all(number in other for other in known)]
    if not shared:
        words = " and ".join(dict.fromkeys(side.words for side in sides))
        raise OptionError(f"{words} share no {name}, so they cannot be compared pair by pair; name one {name} that all have")
    return shared


def _chosen(array: np.ndarray, known: tuple[Any, ...] | None, shared: list[Any] | None, axis: int) -> np.ndarray:
    if known is None or shared is None:
        return array
    return array.take([known.index(number) for number in shared], axis)

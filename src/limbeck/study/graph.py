"""From a study's cells to a graph of tasks with content keys: what must be done, what it builds on, and what is done together."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from limbeck import store
from limbeck.cache import Cache
from limbeck.data.augment import suited_to
from limbeck.errors import LimbeckError, OptionError
from limbeck.evaluate.protocols import Protocol
from limbeck.experts.trajectory import EXPERT_RECIPE
from limbeck.methods import METHODS
from limbeck.methods.driver import Method
from limbeck.methods.parse import parse_method
from limbeck.models import parse_model
from limbeck.study.distill import protocol_for, suited_method
from limbeck.study.kinds import ARM_KINDS, KINDS
from limbeck.study.places import Place, problem
from limbeck.study.spec import Cell, Scale, Study, matching, wants_number
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

#: Students of the largest comparison that a plan is made for: it decides whether compiling pays, and must not depend on how many are asked for.
_STUDENTS = 20
_IMAGES_OF_A_STEP = 1000


@dataclass(frozen=True)
class Task:
    """One piece of work: its kind, its settings (plain JSON, with everything that decides the result), and the keys of what it builds on, by role."""

    kind: str
    key: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, tuple[str, ...]]
    words: str = field(compare=False)

    @property
    def ancestors(self) -> tuple[str, ...]:
        """Keys of the tasks that must be finished first."""
        return tuple(key for keys in self.inputs.values() for key in keys)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**vars(self), "settings": dict(self.settings), "inputs": {role: list(keys) for role, keys in self.inputs.items()}}

    @staticmethod
    def from_dict(record: Mapping[str, Any]) -> "Task":
        """Inverse of `to_dict`."""
        return Task(**{**record, "inputs": {role: tuple(keys) for role, keys in record["inputs"].items()}})


Unit = tuple[Task, ...]
"""Tasks of one kind that are worked on together, by one worker."""


@dataclass(frozen=True)
class Graph:
    """Tasks by key, ancestors first; the cells with the key of the task that measures each; and the units of work. `units` are of the whole scale, so that what
    trains together does not depend on what was asked for or is already done."""

    tasks: Mapping[str, Task]
    cells: tuple[Cell, ...]
    keys: tuple[str, ...]
    units: tuple[Unit, ...]

    def needed(self, cells: Collection[Cell] | None = None) -> list[Unit]:
        """The units that the cells (default: all) need, in order; a unit is needed whole."""
        if cells is None:
            return list(self.units)
        unit_of = {task.key: unit for unit in self.units for task in unit}
        todo = [key for cell, key in zip(self.cells, self.keys, strict=True) if cell in cells]
        wanted: set[str] = set()
        while todo:
            key = todo.pop()
            if key not in wanted:
                members = unit_of[key]
                wanted |= {task.key for task in members}
                todo += [ancestor for task in members for ancestor in task.ancestors]
        return [unit for unit in self.units if unit[0].key in wanted]


def select(cells: Sequence[Cell], only: Iterable[str]) -> list[Cell] | None:
    """The cells that any of the filters names: ``arm=soft,ipc=10``. None when there is no filter."""
    filters = [_filter(text) for text in only]
    if not filters:
        return None
    found = []
    for text, wanted in zip(only, filters, strict=True):
        chosen = matching(cells, {}) if not wanted else [cell for cell in cells if _fits(cell, wanted)]
        if not chosen:
            names = sorted({"arm"} | {name for cell in cells for name in cell.coordinates})
            raise OptionError(f"--only {text!r} selects no cell; filters look like arm=soft,ipc=10 and use {', '.join(names)}")
        found += [cell for cell in chosen if cell not in found]
    return found


def _filter(text: str) -> dict[str, str]:
    wanted = {}
    for part in filter(None, text.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value:
            raise OptionError(f"--only takes filters like arm=soft,ipc=10, got {part.strip()!r}")
        wanted[name] = value
    return wanted


def _fits(cell: Cell, wanted: Mapping[str, str]) -> bool:
    known = {"arm": cell.arm, **cell.coordinates}
    return all(name in known and str(known[name]) == value for name, value in wanted.items())


@dataclass(frozen=True)
class DataKey:
    """Digests of the splits and the pixel space: what of the data decides numbers. Without digests (`unseen`) a graph can be priced but not run."""

    train: str
    validation: str
    test: str
    pixels: str

    @staticmethod
    def unseen(pixels: str) -> "DataKey":
        """Data that were not opened."""
        return DataKey("", "", "", pixels)


class Builder:
    """Makes a scale's graph. Kinds of task (`limbeck.study.kinds`) add themselves and what they build on through `add`."""

    def __init__(
        self,
        study: Study,
        scale: str,
        data: DataKey,
        *,
        device: str = "auto",
        threads: int | None = None,
        plans: Mapping[str, Any] | None = None,
    ) -> None:
        self.study, self.scale_name, self.data = study, scale, data
        self.scale: Scale = study.scale(scale)
        self.plans: dict[str, dict[str, Any]] = dict(plans or {})
        self._device, self._threads = device, threads
        self._tasks: dict[str, Task] = {}
        self._groups: dict[str, list[Task]] = {}
        self._members: dict[str, int] = {}

    def graph(self) -> Graph:
        """The whole graph. Raises `OptionError` with the place in the file for settings that cannot be."""
        cells = self.study.cells(self.scale_name)
        keys = []
        for cell in cells:
            try:
                keys.append(ARM_KINDS[cell.making.task].of_cell(self, cell))
            except _Placed:
                raise
            except LimbeckError as error:
                raise self.fault(cell, str(error)) from None
        return Graph(self._tasks, tuple(cells), tuple(keys), self._units())

    def add(
        self,
        kind: str,
        settings: Mapping[str, Any],
        inputs: Mapping[str, Sequence[str]],
        words: str,
        *,
        together: Any = None,
        at_once: int = 1,
    ) -> str:
        """Adds a task unless the graph has it, and returns its key. Up to `at_once` tasks with equal `together` (plain JSON), on which no other task builds,
        are worked on together."""
        settings = {**settings, "data": store.digest_of(vars(self.data))[:32]}
        given = {role: tuple(keys) for role, keys in inputs.items()}
        content = {"version": KINDS[kind].version, "settings": settings, "inputs": {role: list(keys) for role, keys in given.items()}}
        key = _KEYS.key(f"study {kind}", content)
        if key not in self._tasks:
            task = Task(kind, key, settings, given, words)
            self._tasks[key] = task
            name = key if together is None or at_once < 2 else store.digest_of([kind, together])
            self._groups.setdefault(name, []).append(task)
            self._members[name] = at_once
        return key

    def fault(self, cell: Cell, sentence: str, key: str | None = None) -> LimbeckError:
        """What is wrong with a cell, with the place in the file of its arm, or of a key of the arm."""
        place: Place = ("arms", cell.arm) if key is None else ("arms", cell.arm, key)
        return _Placed(f"{sentence}, at {self.study.text.words(place)} (scale {self.scale_name!r}, cell {cell.words})")

    def task(self, key: str) -> Task:
        """A task that was added."""
        return self._tasks[key]

    def network(self, model: str | None) -> Network:
        """An architecture at the scale's images and classes."""
        return Network(parse_model(model or self.scale.model), self.scale.data.shape, self.scale.data.classes)

    def expert_recipe(self, name: str) -> Recipe:
        """How the scale's experts of that name are trained."""
        settings = self.scale.experts[name]
        place: Place = ("scales", self.scale_name, "experts", name)
        base = EXPERT_RECIPE
        if settings.base != "limbeck":
            found = getattr(METHODS[settings.base], "expert_recipe", None)
            if found is None:
                raise _Placed(
                    f'method {settings.base!r} trains no experts of its own, at {self.study.text.words((*place, "base"))}; use base = "limbeck"'
                )
            base = found
        base = base.with_(augment=suited_to(base.augment, self.scale.source), epochs=settings.epochs)
        return self._changed(base, settings.recipe, (*place, "recipe"))

    def protocol(self, cell: Cell | None = None) -> tuple[Protocol, Recipe]:
        """The protocol of a cell's students (None: the scale's own) and their recipe."""
        named = cell.making.protocol if cell else None
        protocol = protocol_for(named or self.scale.protocol, self.scale.source)
        recipe = self._changed(protocol.recipe, self.scale.recipe, ("scales", self.scale_name, "recipe"))
        return protocol, self._changed(recipe, cell.making.recipe, ("arms", cell.arm, "recipe")) if cell else recipe

    def method(self, text: str) -> Method:
        """A method, suited to the scale's source."""
        return suited_method(parse_method(text), self.scale.source)

    def images(self, cell: Cell) -> int:
        """Number of images of a cell's set. Raises `OptionError` for a set without any."""
        facts, ipc = self.scale.data, cell.making.ipc
        if ipc != "all" and ipc < 1:
            hint = ' (only a memory, of task = "replay", may be empty)' if ipc == 0 else ""
            raise self.fault(cell, f"a set holds at least 1 image of each class, or 'all', got ipc = {ipc}; use ipc = 1 or more{hint}", "ipc")
        return facts.train if ipc == "all" else ipc * facts.classes

    def student_plan(self, network: Network, recipe: Recipe, images: int) -> ExecutionPlan:
        """The plan of students on a set of that many images."""
        batch = min(recipe.batch_size, images)
        return self._plan(f"students on {images} images", network, _STUDENTS * recipe.total_steps(images) * batch, batch, recipe)

    def expert_plan(self, network: Network, recipe: Recipe) -> ExecutionPlan:
        """The plan of an expert's training."""
        images = recipe.total_steps(self.scale.data.train) * recipe.batch_size
        return self._plan("expert", network, images, recipe.batch_size, recipe)

    def method_plan(self, network: Network, steps: int) -> ExecutionPlan:
        """The plan of a method that optimizes."""
        return self._plan("method", network, max(1, steps) * _IMAGES_OF_A_STEP, 256, None)

    def _plan(self, purpose: str, network: Network, images: int, batch: int, recipe: Recipe | None) -> ExecutionPlan:
        name = f"{purpose}: {network.spec}, {images} images in batches of {batch}"
        if name not in self.plans:
            self.plans[name] = plan_for(network, images, batch=batch, device=self._device, threads=self._threads).model_dump()
        return ExecutionPlan(**self.plans[name])

    def _changed(self, recipe: Recipe, changes: Mapping[str, Any], place: Place) -> Recipe:
        for name, value in changes.items():
            if isinstance(value, bool) and name in Recipe.model_fields and wants_number(Recipe.model_fields[name].annotation):
                raise _Placed(f"{self.study.text.words((*place, name))}: a number is wanted, got {str(value).lower()}; write one")
        try:
            return recipe.with_(**changes)
        except ValidationError as error:
            raise _Placed(str(problem(error, Recipe, self.study.text, place))) from None

    def _units(self) -> tuple[Unit, ...]:
        """Groups cut to size; a unit comes after everything that its members build on, since those were added before the last of them."""
        order = {key: place for place, key in enumerate(self._tasks)}
        units = [
            tuple(members[start : start + self._members[name]])
            for name, members in self._groups.items()
            for start in range(0, len(members), self._members[name])
        ]
        return tuple(sorted(units, key=lambda unit: order[unit[-1].key]))


class _Placed(OptionError):
    """A message that already says where."""


_KEYS = Cache(Path())  # a key does not depend on the folder


def describe(task: Task) -> str:
    """``set: soft: ipc=10, epoch=2``, for progress and messages."""
    return f"{task.kind}: {task.words}"

"""`Study`: an experiment as data. A TOML file says what is asked, what is trained on which scale, and what would answer the question."""

import itertools
import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from limbeck.errors import DataError, OptionError, nearest
from limbeck.study.kinds import ARM_KINDS
from limbeck.study.options import OpenOptions, parse_size
from limbeck.study.places import Place, Text, problem, spell

SCALES = ("smoke", "cpu", "paper")
Scalar = int | float | str | bool
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A threshold: finite, and neither a text nor a truth value."""
_SLOT = re.compile(r"\{([\w-]+)\}")
_ONE_TABLE = re.compile(
    r"arms|arms\.[\w-]+(\.(labels|recipe|analyses|replay))?|scales|scales\.\w+(\.(open|data|recipe|axes|values|experts(\.[\w-]+)?))?"
)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_files_are_written(cls, given: Any, info: Any) -> Any:
        """Refuses, in the words of a file, one value where a list is wanted, and true and false where a number is, for which they would pass as 1 and 0."""
        name, wanted = info.field_name, cls.model_fields[info.field_name].annotation
        origins = {get_origin(kind) for kind in _kinds(wanted)}
        if tuple in origins and not isinstance(given, (list, tuple, type(None))):
            remedy = f"[[{name}]] with double brackets" if isinstance(given, dict) else f"{name} = [{json.dumps(given, default=str)}]"
            raise ValueError(f"a list is wanted, got one {'table' if isinstance(given, dict) else 'value'}; write {remedy}")
        if dict in origins and not isinstance(given, (dict, type(None))):
            raise ValueError(f"a table is wanted, got {given!r}; write {name} = {{ ... }}")
        truth = next((part for part in (given if isinstance(given, (list, tuple)) else [given]) if isinstance(part, bool)), None)
        if truth is not None and wants_number(wanted):
            raise ValueError(f"a number is wanted, got {str(truth).lower()}; write one")
        return given

    @model_validator(mode="before")
    @classmethod
    def _is_a_table(cls, given: Any) -> Any:
        if not isinstance(given, (dict, cls)):
            raise ValueError(f"a table is wanted, got {given!r}; write one, such as {{ {next(iter(cls.model_fields))} = ... }}")
        return given


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """The kinds of value that an annotation allows."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def wants_number(annotation: Any) -> bool:
    """Whether a field takes a number, or a list of numbers, and no truth value."""
    kinds = _kinds(annotation)
    return bool not in kinds and any(kind in (int, float) or (get_origin(kind) is tuple and wants_number(get_args(kind)[0])) for kind in kinds)


class DataFacts(_Frozen):
    """What the source holds, stated, so that a study can be priced without opening it; a run checks it against the source."""

    shape: Annotated[tuple[int, int, int], Field(description="channels, height, width of an image")]
    classes: Annotated[int, Field(ge=2, description="number of classes")]
    train: Annotated[int, Field(ge=1, description="images that experts train on (validation set aside)")]
    test: Annotated[int, Field(ge=1, description="test images")]


class ExpertSettings(_Frozen):
    """How a named kind of expert is trained: fields of a recipe on top of a base."""

    base: Annotated[str, Field(description="limbeck (the recipe of `distill`), or a method whose experts are meant: mtt")] = "limbeck"
    model: Annotated[str | None, Field(description="architecture; default: the scale's model")] = None
    epochs: Annotated[int, Field(ge=1, description="passes over the training images; a snapshot is kept after each")]
    recipe: Annotated[dict[str, Any], Field(description="further fields of the recipe, such as lr")] = {}
    workers: Annotated[int, Field(ge=1, description="processes that train one expert together with Ray Train, each on its part of every batch")] = 1


class LabelSettings(_Frozen):
    """How the images of a set are labeled."""

    kind: Annotated[Literal["auto", "soft", "hard"], Field(description="soft: by the expert; hard: the class; auto: as the method is published")] = (
        "auto"
    )
    temperature: Annotated[float, Field(gt=0, description="divides the expert's logits")] = 1.0
    top_k: Annotated[int | None, Field(ge=1, description="keep the k largest entries")] = None
    renormalize: Annotated[bool, Field(description="scale kept entries to sum to one")] = True
    precision: Annotated[Literal["float32", "float16", "uint8"], Field(description="how entries are stored")] = "float32"


class ReplaySettings(_Frozen):
    """How classes arrive when a network learns them group after group."""

    groups: Annotated[int, Field(ge=1, description="groups into which the classes are cut, in an order that the draw decides")]
    alone: Annotated[
        bool, Field(description="after each group a new network learns from the memory alone; without it, one network goes on beside new images")
    ] = False


class Making(_Frozen):
    """What one cell of an arm makes and measures, once the axes have their values."""

    task: Annotated[
        str,
        Field(
            description="evaluate: students on a set; expert-score: the expert itself; set: make the set only; analyze: what a set has learned; "
            "replay: students that learn the classes group after group beside a memory of earlier ones"
        ),
    ] = "evaluate"
    method: Annotated[str, Field(description="how the images (or labels) are made: name, name@recipe, name:option=value")] = "random-real"
    ipc: Annotated[int | Literal["all"], Field(description="images per class, or 'all' training images")] = 1
    draw: Annotated[int, Field(ge=0, description="number of the image draw")] = 0
    expert: Annotated[str, Field(description="which of the scale's experts labels")] = "main"
    experts: Annotated[
        tuple[int, ...], Field(min_length=1, description="numbers of the experts that label; several are an ensemble (mean logits)")
    ] = (0,)
    at: Annotated[
        int | float | str,
        Field(description="the snapshot that labels: an epoch (1, or 0.5, 0.25, ... of the first), 'best' (on validation), 'last', 'step 211'"),
    ] = "best"
    labels: Annotated[LabelSettings, Field(description="how images are labeled")] = LabelSettings()
    transforms: Annotated[tuple[str, ...], Field(description="changes of the labels, in order: swap:rank=2 (see: limbeck ls transforms)")] = ()
    trajectories: Annotated[int, Field(ge=0, description="experts 0, 1, ... whose whole trajectories the method is given (mtt)")] = 0
    made_for: Annotated[str | None, Field(description="architecture that the method works with; default: the scale's model")] = None
    model: Annotated[str | None, Field(description="architecture of the students; default: the scale's model")] = None
    protocol: Annotated[str | None, Field(description="how students are trained; default: the scale's protocol")] = None
    recipe: Annotated[dict[str, Any], Field(description="fields that replace the protocol's, on top of the scale's")] = {}
    students: Annotated[int | None, Field(ge=1, description="students of each set; default: the scale's")] = None
    analyses: Annotated[
        dict[str, dict[str, Any]], Field(description="with task = 'analyze': analyses by name (see: limbeck analyze), each with its options")
    ] = {}
    replay: Annotated[ReplaySettings | None, Field(description="with task = 'replay': how the classes arrive")] = None

    @field_validator("experts")
    @classmethod
    def _each_once(cls, experts: tuple[int, ...]) -> tuple[int, ...]:
        twice = [number for place, number in enumerate(experts) if number in experts[:place]]
        if twice:
            raise ValueError(f"an ensemble has every expert once, got {twice[0]} twice; name each number once")
        return experts


class Arm(_Frozen):
    """One kind of cell: `over` names the axes that it is crossed over; its other keys are those of `Making`, where ``{axis}`` stands for a value."""

    model_config = ConfigDict(frozen=True, extra="allow")

    over: Annotated[tuple[str, ...], Field(description="axes that the arm is crossed over")] = ()
    note: Annotated[str, Field(description="what this arm is, in words, for the report")] = ""


class Scale(_Frozen):
    """What runs on one class of machine."""

    source: Annotated[str, Field(description="the data, as `limbeck distill` takes them")]
    open: Annotated[OpenOptions, Field(description="how the source is opened and split")] = OpenOptions()
    data: Annotated[DataFacts, Field(description="what the source holds")]
    pixels: Annotated[str, Field(description="pixel space")] = "normalize"
    model: Annotated[str, Field(description="architecture of students, and of experts unless they name their own")]
    experts: Annotated[dict[str, ExpertSettings], Field(description="kinds of experts by name; arms use 'main' unless they say otherwise")] = {}
    protocol: Annotated[str, Field(description="how students are trained; see: limbeck ls protocols")]
    recipe: Annotated[dict[str, Any], Field(description="fields that replace the protocol's")] = {}
    students: Annotated[int, Field(ge=1, description="students of each set")]
    seed: Annotated[int, Field(ge=0, description="root of every random stream")] = 0
    axes: Annotated[
        dict[str, list[Scalar | dict[str, Scalar]]], Field(description="values of each axis; a table as a value sets several names at once")
    ] = {}
    values: Annotated[dict[str, Any], Field(description="constants that arms use as {name}")] = {}
    arms: Annotated[tuple[str, ...] | None, Field(description="the arms that this scale runs; default: all")] = None
    cost: Annotated[str, Field(description="what it costs, in words, with the machine")]


class Claim(_Frozen):
    """A sentence of the paper, what is expected, and the check that decides it from measured intervals."""

    id: Annotated[str, Field(pattern=r"^[\w-]+$", description="short name")]
    sentence: Annotated[str, Field(description="what is claimed")]
    expected: Annotated[str, Field(description="what the paper found, with its number")]
    check: Annotated[dict[str, Any], Field(description="kind = ..., and what that kind takes")]
    scales: Annotated[tuple[str, ...] | None, Field(description="scales on which it is checked; default: all")] = None


class AnalysisEntry(_Frozen):
    """Figure data to compute from the ledger: an entry of the table of study analyses, with its options."""

    name: Annotated[str, Field(description="name in the table of study analyses")]
    id: Annotated[str, Field(pattern=r"^[\w-]+$", description="name of the figure")]
    options: Annotated[dict[str, Any], Field(description="what that analysis takes")] = {}
    scales: Annotated[tuple[str, ...] | None, Field(description="scales on which it is computed; default: all")] = None


class StudyFile(_Frozen):
    """The file as a whole."""

    name: Annotated[str, Field(pattern=r"^[\w-]+(/[\w-]+)*$", description="short name, such as label-worth/figure-2")]
    title: Annotated[str, Field(description="one line for the report")]
    question: Annotated[str, Field(description="what is asked")]
    paper: Annotated[str, Field(description="authors, year, arXiv id, table or figure")]
    deviations: Annotated[tuple[str, ...], Field(description="where the study departs from the paper")] = ()
    arms: Annotated[dict[str, Arm], Field(min_length=1)]
    scales: Annotated[dict[Literal["smoke", "cpu", "paper"], Scale], Field(min_length=1)]
    claims: tuple[Claim, ...] = ()
    analyses: tuple[AnalysisEntry, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One combination of an arm's axes: `coordinates` are the axes' values, `making` what is made and measured."""

    arm: str
    coordinates: Mapping[str, Scalar]
    making: Making

    @property
    def words(self) -> str:
        """``soft: ipc=10, epoch=2``."""
        return f"{self.arm}: {', '.join(f'{name}={value}' for name, value in self.coordinates.items())}" if self.coordinates else self.arm


@dataclass(frozen=True)
class Study:
    """A checked study with its text, which says where things stand in the file."""

    file: StudyFile
    text: Text
    content: str = field(repr=False)
    _cells: dict[str, list[Cell]] = field(default_factory=dict, repr=False, compare=False)

    @staticmethod
    def load(path: Path) -> "Study":
        """Reads and checks a study file. Raises `OptionError`, one sentence with the place in the file, or `DataError` when it cannot be read."""
        try:
            content = Path(path).read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"cannot read the study {str(path)!r}: {getattr(error, 'strerror', None) or error}; name a .toml file of studies/"
            ) from None
        return Study.parse(content, Path(path).name)

    @staticmethod
    def parse(content: str, name: str = "study.toml") -> "Study":
        """The study in a file's content."""
        text = Text(name, content)
        try:
            raw = tomllib.loads(content)
        except tomllib.TOMLDecodeError as error:
            raise OptionError(f"{name} is not TOML: {str(error)[:1].lower()}{str(error)[1:]}; mend that place") from None
        _check_values(raw, text)
        try:
            study = Study(StudyFile(**raw), text, content)
        except ValidationError as error:
            raise problem(error, StudyFile, text) from None
        study._check()
        return study

    def scale(self, name: str) -> Scale:
        """A scale by name."""
        scales: dict[str, Scale] = {str(known): scale for known, scale in self.file.scales.items()}
        if name not in scales:
            raise OptionError(f"{self.text.name} has no scale {name!r}; {nearest(name, scales)}")
        return scales[name]

    def arms(self, scale: str) -> dict[str, Arm]:
        """The arms that a scale runs."""
        wanted = self.scale(scale).arms
        return {name: arm for name, arm in self.file.arms.items() if wanted is None or name in wanted}

    def cells(self, scale: str) -> list[Cell]:
        """Every cell of a scale, in the file's order. Raises `OptionError` for a grid that cannot be."""
        if scale not in self._cells:
            self._cells[scale] = [cell for name, arm in self.arms(scale).items() for cell in self._of_arm(scale, name, arm)]
        return self._cells[scale]

    def axes(self, scale: str) -> dict[str, list[Scalar]]:
        """The names by which cells of a scale can be told apart, with their values: axes, and the names inside linked ones."""
        found: dict[str, list[Scalar]] = {}
        for name, values in self.scale(scale).axes.items():
            for value in values:
                for key, part in value.items() if isinstance(value, dict) else ((name, value),):
                    if part not in found.setdefault(key, []):
                        found[key].append(part)
        return found

    def _of_arm(self, scale: str, name: str, arm: Arm) -> Iterator[Cell]:
        axes, values = self.scale(scale).axes, self.scale(scale).values
        for key in arm.model_extra or {}:  # first, since a misspelled `over` makes every slot of the arm unknown
            if key not in Making.model_fields:
                where = self.text.words(("arms", name, key))
                raise OptionError(f"unknown key {key!r} at {where}; {nearest(key, [*Making.model_fields, *Arm.model_fields])}")
        for axis in arm.over:
            if axis not in axes:
                raise OptionError(
                    f"arm {name!r} is crossed over {axis!r}, which scale {scale!r} does not set, at {self.text.words(('arms', name, 'over'))}; "
                    f"add it to {spelled_axes(scale)}, {nearest(axis, axes)}"
                )
        for chosen in itertools.product(*(axes[axis] for axis in arm.over)):
            coordinates: dict[str, Scalar] = {}
            for axis, value in zip(arm.over, chosen, strict=True):
                coordinates |= value if isinstance(value, dict) else {axis: value}
            place: Place = ("arms", name)
            filled = {key: self._filled(given, {**values, **coordinates}, scale, (*place, key)) for key, given in (arm.model_extra or {}).items()}
            try:
                making = Making(**filled)
            except ValidationError as error:
                found = problem(error, Making, self.text, place)
                spoken = ", ".join(f"{axis}={value}" for axis, value in coordinates.items())
                raise OptionError(f"{found} (scale {scale!r}{f', cell {spoken}' if spoken else ''})") from None
            yield Cell(name, coordinates, making)
        for axis in arm.over:  # last, since a misspelled slot is the likelier mistake
            names = {key for value in axes[axis] for key in (value if isinstance(value, dict) else (axis,))}
            if len(axes[axis]) > 1 and not names & _slots(arm.model_extra):
                spoken = " or ".join(f"{{{each}}}" for each in sorted(names))
                raise OptionError(
                    f"arm {name!r} is crossed over {axis!r} but uses no {spoken}, so its values would repeat the same measurement, "
                    f"at {self.text.words(('arms', name, 'over'))}; use it in the arm, or leave {axis!r} out of `over`"
                )

    def _filled(self, given: Any, values: Mapping[str, Any], scale: str, place: Place) -> Any:
        """`given` with every ``{name}`` replaced: by the value itself where it is the whole text, by its words inside a longer one."""
        if isinstance(given, dict):
            return {key: self._filled(part, values, scale, place) for key, part in given.items()}
        if isinstance(given, list):
            return [self._filled(part, values, scale, place) for part in given]
        if not isinstance(given, str):
            return given
        for slot in _SLOT.findall(given):
            if slot not in values:
                hint = nearest(slot, values) if values else "none are set"
                raise OptionError(f"{{{slot}}} at {self.text.words(place)} is no axis of this arm and no value of scale {scale!r}; {hint}")
        whole = _SLOT.fullmatch(given)
        return values[whole[1]] if whole else _SLOT.sub(lambda slot: str(values[slot[1]]), given)

    def _check(self) -> None:
        file, words = self.file, self.text.words
        lists: dict[str, tuple[Claim | AnalysisEntry, ...]] = {"claims": file.claims, "analyses": file.analyses}
        for kind, entries in lists.items():
            for number, entry in enumerate(entries):
                if [other.id for other in entries].index(entry.id) != number:
                    raise OptionError(f"the id {entry.id!r} at {words((kind, number, 'id'))} was used before; choose another")
                for scale in entry.scales or ():
                    if scale not in file.scales:
                        raise OptionError(f"unknown scale {scale!r} at {words((kind, number, 'scales'))}; {nearest(scale, file.scales)}")
        for name, described in file.scales.items():
            self._check_scale(name, described)
        # these modules build on this one
        from limbeck.study.analyses import check_analyses
        from limbeck.study.claims import check_claims

        check_claims(self)
        check_analyses(self)

    def _check_scale(self, name: str, scale: Scale) -> None:
        from limbeck.data.pixels import PIXEL_SPACES  # imports torch

        words, place = self.text.words, ("scales", name)
        try:
            PIXEL_SPACES.check(scale.pixels)
        except OptionError as error:
            raise OptionError(f"{error}, at {words((*place, 'pixels'))}") from None
        try:
            parse_size(scale.open.size)
        except OptionError as error:
            raise OptionError(f"{error}, at {words((*place, 'open', 'size'))}") from None
        if not 0 <= scale.open.validation < 1:
            where = words((*place, "open", "validation"))
            raise OptionError(f"validation needs a fraction 0 <= f < 1 of train, got {scale.open.validation:g}, at {where}; use 0.1")
        for arm in scale.arms or ():
            if arm not in self.file.arms:
                raise OptionError(f"unknown arm {arm!r} at {words((*place, 'arms'))}; {nearest(arm, self.file.arms)}")
        for axis, values in scale.axes.items():
            where = words((*place, "axes", axis))
            if not values:
                raise OptionError(f"axis {axis!r} has no value at {where}; give it at least one")
            if any(values.index(value) != number for number, value in enumerate(values)):
                twice = next(value for number, value in enumerate(values) if values.index(value) != number)
                raise OptionError(f"axis {axis!r} has the value {twice!r} twice at {where}; name each value once")
            if axis in scale.values:
                raise OptionError(f"{axis!r} is an axis and a value as well at {where}; rename one")
            if len({frozenset(value) for value in values if isinstance(value, dict)} | {None for value in values if not isinstance(value, dict)}) > 1:
                raise OptionError(f"the values of the linked axis {axis!r} at {where} set different names; let every table have the same keys")
        for cell in self.cells(name):
            self._check_cell(name, scale, cell)
        for axis in scale.axes:  # after the cells: where `over` has the name misspelled, that is the mistake to tell of
            if not any(axis in arm.over for arm in self.file.arms.values()):
                where = words((*place, "axes", axis))
                raise OptionError(f"axis {axis!r} at {where} is used by no arm; add it to the arm's `over`, or leave it out")

    def _check_cell(self, name: str, scale: Scale, cell: Cell) -> None:
        making, facts = cell.making, scale.data
        place: Place = ("arms", cell.arm)
        suffix = f"(scale {name!r}, cell {cell.words})"
        try:
            ARM_KINDS.check(making.task)
        except OptionError as error:
            raise OptionError(f"{error}, at {self.text.words((*place, 'task'))} {suffix}") from None
        if making.task == "analyze" and not making.analyses:
            raise OptionError(
                f'an arm with task = "analyze" needs analyses, and {cell.arm!r} names none, at {self.text.words(place)}; '
                f"add for example analyses = {{ agreement = {{ seeds = 2 }} }} {suffix}"
            )
        soft = making.task == "expert-score" or making.labels.kind != "hard" or making.trajectories
        if soft and making.expert not in scale.experts:
            raise OptionError(
                f"{cell.arm!r} needs the experts {making.expert!r}, which scale {name!r} does not describe, at {self.text.words((*place, 'expert'))}; "
                + (nearest(making.expert, scale.experts) if scale.experts else f"add [scales.{name}.experts.{making.expert}]")
            )
        if isinstance(making.ipc, int) and making.ipc * facts.classes > facts.train:
            raise OptionError(
                f"{making.ipc} images of each of {facts.classes} classes are more than the {facts.train} training images, at "
                f"{self.text.words((*place, 'ipc'))}; use a smaller ipc {suffix}"
            )
        if making.labels.top_k is not None and making.labels.top_k > facts.classes:
            raise OptionError(
                f"top_k needs 1 <= k <= {facts.classes} classes, got {making.labels.top_k}, at {self.text.words((*place, 'labels'))}; use a smaller k {suffix}"
            )
        if soft:
            try:
                moment(making.at, scale.experts[making.expert].epochs)
            except OptionError as error:
                raise OptionError(f"{error} at {self.text.words((*place, 'at'))} {suffix}") from None


def _check_values(given: Any, text: Text, place: Place = ()) -> None:
    """Raises `OptionError`, with the place, for a number anywhere in a file that is not finite, or that TOML's 64 bits do not hold, and for ``[[arms.soft]]``."""
    if isinstance(given, (dict, list)):
        if isinstance(given, list) and _ONE_TABLE.fullmatch(spell(place)) and any(isinstance(part, dict) for part in given):
            raise OptionError(f"{text.words((*place, 0))}: one table is wanted, got a list of tables; write [{spell(place)}] with single brackets")
        for key, part in given.items() if isinstance(given, dict) else enumerate(given):
            _check_values(part, text, (*place, key))
    elif isinstance(given, float) and not math.isfinite(given):
        raise OptionError(f"{text.words(place)}: a number must be finite, got {given}; write another")
    elif isinstance(given, int) and not -(2**63) <= given < 2**63:
        raise OptionError(f"{text.words(place)}: a whole number must fit into 64 bits, got a longer one; write a smaller one")


def _slots(given: Any) -> set[str]:
    """The names that stand as ``{name}`` anywhere in an arm's keys."""
    if isinstance(given, dict):
        return set().union(*map(_slots, given.values()))
    if isinstance(given, list):
        return set().union(*map(_slots, given))
    return set(_SLOT.findall(given)) if isinstance(given, str) else set()


def spelled_axes(scale: str) -> str:
    """How a scale's table of axes is written."""
    return f"[scales.{scale}.axes]"


def moment(at: int | float | str, epochs: int) -> tuple[Literal["epoch", "step", "best", "last"], float]:
    """What `at` means: ``("epoch", 3)``, ``("step", 211)``, ``("best", 0)`` or ``("last", 0)``; fractions of the first epoch are 1/2, 1/4 ... 1/32."""
    if isinstance(at, str):
        if at in ("best", "last"):
            return at, 0.0  # type: ignore[return-value]
        if written := re.fullmatch(r"step (\d+)", at):
            return "step", float(written[1])
        raise OptionError(f"a snapshot is an epoch, 'best', 'last' or 'step N', got {at!r}; write for example at = 3")
    if at in (2.0**-halving for halving in range(1, 6)):
        return "epoch", float(at)
    if at != int(at) or not 0 <= at <= epochs:
        raise OptionError(
            f"snapshots are kept at epochs 0 to {epochs} and at 1/2, 1/4 ... 1/32 of the first, got {at:g}; use one of these, or more epochs"
        )
    return "epoch", float(at)


def matching(cells: Sequence[Cell], wanted: Mapping[str, Any]) -> list[Cell]:
    """The cells whose arm and coordinates are as `wanted` says; a list as a value allows each of its entries."""

    def fits(cell: Cell) -> bool:
        known = {"arm": cell.arm, **cell.coordinates}
        return all(
            key in known and (known[key] in value if isinstance(value, (list, tuple)) else known[key] == value) for key, value in wanted.items()
        )

    return [cell for cell in cells if fits(cell)]

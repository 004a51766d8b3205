"""What each kind of task adds to a graph, does, and costs. Every random stream is named after the task's settings, so results depend on nothing else."""

import json
import math
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from limbeck import __version__, store
from limbeck.choose.snapshot import successive_halving, trials_as_dicts
from limbeck.data.tables import ImageTable
from limbeck.errors import DataError, OptionError
from limbeck.evaluate.evaluate import evaluate_labeler, score_students, student_streams
from limbeck.experts.expert import Expert, Labeler, labeler_of
from limbeck.experts.trajectory import Trajectory, snapshot_steps, train_expert
from limbeck.labels.rules import LabelRule, label_entropy, make_labels
from limbeck.labels.transforms import parse_transform, transform_set
from limbeck.methods.driver import Method, Size, run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.models import parse_model
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.artefacts import SCORES, Artefacts
from limbeck.study.experts import label_default, uses_labeler
from limbeck.study.graph import Builder, DataKey, Task, Unit
from limbeck.study.options import OpenOptions
from limbeck.study.rows import Row
from limbeck.study.setting import Setting
from limbeck.study.spec import Cell, DataFacts, Making, moment
from limbeck.train.network import Network
from limbeck.train.share import Share
from limbeck.train.students import Score, in_groups, score_logits
from limbeck.types.distilled import DistilledDataset
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

_RUNGS = ((0.25, 1), (0.5, 1), (1.0, 2))  # of the choice of a snapshot, as `distill` makes it


@dataclass(frozen=True)
class Premises:
    """What a worker needs to know to open the same data and the same cache, as plain JSON."""

    source: str
    open: dict[str, Any]
    pixels: str
    seed: int
    cache: str
    url: str | None = None
    digests: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Workplace:
    """Where tasks are done: the opened data, the finished tasks, and whoever is told of progress."""

    premises: Premises
    artefacts: Artefacts
    reporter: Reporter = SILENT

    @cached_property
    def setting(self) -> Setting:
        """The opened source; one for all tasks of a process. Raises `DataError` when it is not what the study was planned on."""
        setting = _opened(store.canonical_json({key: value for key, value in vars(self.premises).items() if key not in ("cache", "url", "digests")}))
        found = vars(data_key(setting, self.premises.pixels))
        if self.premises.digests and found != self.premises.digests:
            raise DataError(f"the data of {self.premises.source!r} are not those that the study was planned on; use the same files on every machine")
        return setting

    def network(self, model: str) -> Network:
        """An architecture at the data's images and classes."""
        return self.setting.network(model)

    def row(self, key: str) -> Row:
        """The row of a finished task."""
        row = self.artefacts.find(key)
        if row is None:
            raise DataError(
                f"task {key} is not in the cache {str(self.artefacts.cache.root)!r}; on several machines, share that folder or use --store"
            )
        return row


@lru_cache(maxsize=2)
def _opened(premises: str) -> Setting:
    given = json.loads(premises)
    return Setting.open(given["source"], OpenOptions(**given["open"]), given["seed"], SILENT, pixels=given["pixels"])


def data_key(setting: Setting, pixels: str) -> DataKey:
    """Digests of an opened source."""
    splits = setting.splits
    return DataKey(splits.train.digest, splits.validation.digest, splits.test.digest, pixels)


def check_facts(setting: Setting, facts: DataFacts, where: str) -> None:
    """Raises `DataError` when a source holds something else than the study states."""
    splits = setting.splits
    found = {"shape": tuple(splits.train.shape), "classes": len(splits.train.classes), "train": len(splits.train), "test": splits.test.size}
    wrong = {name: value for name, value in found.items() if value != getattr(facts, name)}
    if wrong:
        has, states = (
            ", ".join(f"{name} = {_toml(given)}" for name, given in each.items()) for each in (wrong, {name: getattr(facts, name) for name in wrong})
        )
        raise DataError(f"the source {setting.spec!r} has {has}, but {where} states {states}; correct the study")


def _toml(value: Any) -> str:
    return str(list(value) if isinstance(value, tuple) else value)


@dataclass(frozen=True)
class Outcome:
    """What a task found: measures (numbers, or a list with one for each student), digests of what it made, files that it wrote, and further plain facts."""

    measures: Mapping[str, Any]
    digests: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Price:
    """Gradient steps and arithmetic operations of a task."""

    steps: int
    operations: float


class Kind(Protocol):
    """A kind of task. `version` is raised whenever a number could change."""

    version: ClassVar[int]

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """Does the tasks of a unit."""
        ...

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """What a task costs, from its settings alone."""
        ...


class CellKind(Kind, Protocol):
    """A kind of task that an arm may name."""

    @staticmethod
    def of_cell(builder: Builder, cell: Cell) -> str:
        """Adds the task of a cell, and what it builds on, to the graph; returns its key."""
        ...


def run_unit(unit: Unit, work: Workplace) -> list[Row]:
    """Does a unit, keeps the rows of those of its tasks that were not finished, and returns the rows of all."""
    from limbeck.study.kinds import KINDS

    known = [work.artefacts.find(task.key) for task in unit]
    if all(row is not None for row in known):
        return [row for row in known if row is not None]
    started = time.monotonic()
    outcomes = KINDS[unit[0].kind].run(unit, work)
    seconds = (time.monotonic() - started) / len(unit)
    rows = []
    for task, outcome, row in zip(unit, outcomes, known, strict=True):
        if row is None:
            row = _row(task, outcome, seconds)
            work.artefacts.keep(row)
        rows.append(row)
    return rows


def _row(task: Task, outcome: Outcome, seconds: float) -> Row:
    return {
        "key": task.key,
        "kind": task.kind,
        "settings": dict(task.settings),
        "inputs": {role: list(keys) for role, keys in task.inputs.items()},
        "measures": dict(outcome.measures),
        "digests": dict(outcome.digests),
        "files": list(outcome.files),
        "facts": dict(outcome.facts),
        "versions": {"limbeck": __version__, "torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "machine": {"name": platform.node(), "architecture": platform.machine(), "system": platform.system(), "cpu": _cpu()},
        "seconds": seconds,
        "finished": time.time(),
    }


def _cpu() -> str:
    """The processor's model, where the system says it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.processor())
    except OSError:
        return platform.processor()


class ExpertTask:
    """Trains one expert, with a snapshot after every epoch; taken from the cache where `distill` trained the same one."""

    version: ClassVar[int] = 1

    @staticmethod
    def add(builder: Builder, name: str, index: int) -> str:
        """Adds expert number `index` of a kind."""
        recipe = builder.expert_recipe(name)
        network = builder.network(builder.scale.experts[name].model)
        settings = {
            "model": str(network.spec),
            "identity": network.identity,
            "recipe": recipe.model_dump(mode="json"),
            "seed": builder.scale.seed,
            "index": index,
            "plan": builder.expert_plan(network, recipe).model_dump(exclude={"reason"}),
        }
        workers = builder.scale.experts[name].workers
        return builder.add("expert", settings | ({"workers": workers} if workers > 1 else {}), {}, f"{name} {index}")

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """The trajectory, and what validation says of its last snapshot."""
        return [ExpertTask._train(task.settings, work) for task in unit]

    @staticmethod
    def _train(settings: Mapping[str, Any], work: Workplace) -> Outcome:
        if settings.get("workers", 1) > 1:
            from limbeck.study.ray_training import train_together

            trajectory = train_together(settings, work)
        else:
            trajectory = ExpertTask.trajectory(settings, work)
        last = trajectory.last
        names = ["trajectory.json", *(snapshot.file for snapshot in trajectory.snapshots)]
        return Outcome(
            {"validation_accuracy": last.accuracy, "entropy": last.entropy},
            {"trajectory": trajectory.key, "snapshots": [snapshot.digest for snapshot in trajectory.snapshots]},
            [work.artefacts.relative(trajectory.folder / name) for name in names],
            {"snapshots": [vars(snapshot) for snapshot in trajectory.snapshots]},
        )

    @staticmethod
    def trajectory(settings: Mapping[str, Any], work: Workplace, share: Share | None = None) -> Trajectory:
        """Trains the expert, or this process's share of it."""
        splits = work.setting.splits
        return train_expert(
            work.network(settings["model"]),
            Recipe(**settings["recipe"]),
            splits.train,
            splits.validation,
            work.setting.pixels,
            seed=settings["seed"],
            index=settings["index"],
            plan=ExecutionPlan(**settings["plan"]),
            cache=work.artefacts.cache,
            share=share,
            reporter=work.reporter,
        )

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """Training, and a look at validation after every epoch, which is small beside it."""
        recipe = Recipe(**task.settings["recipe"])
        steps = recipe.total_steps(facts.train)
        return Price(steps, 3 * flops_of(task.settings["model"], facts) * steps * min(recipe.batch_size, facts.train))


class ChooseTask:
    """Finds the snapshot whose labels teach best on validation, by successive halving over the snapshots of the first expert (as `distill` does)."""

    version: ClassVar[int] = 1

    @staticmethod
    def add(builder: Builder, cell: Cell, rule: LabelRule) -> str:
        """Adds the choice that a cell with ``at = "best"`` needs: for its number of images, its labels and its students."""
        _, recipe = builder.protocol()
        network = builder.network(None)
        settings = {
            "ipc": cell.making.ipc,
            "rule": rule.model_dump(mode="json"),
            "model": str(network.spec),
            "identity": network.identity,
            "recipe": recipe.model_dump(mode="json"),
            "seed": builder.scale.seed,
            "plan": builder.student_plan(network, recipe, builder.images(cell)).model_dump(exclude={"reason"}),
        }
        # one choice for all draws and experts of a kind: crossing them must not change what is measured
        inputs = {"expert": [ExpertTask.add(builder, cell.making.expert, 0)]}
        return builder.add("choose", settings, inputs, f"snapshot for {builder.images(cell)} images")

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """The chosen step, and every trial."""
        return [ChooseTask._choose(task, work) for task in unit]

    @staticmethod
    def _choose(task: Task, work: Workplace) -> Outcome:
        settings = task.settings
        trajectory = _trajectories(task, "expert", work)[0]
        streams = Streams(settings["seed"])["choose"]
        recipe, plan = Recipe(**settings["recipe"]), ExecutionPlan(**settings["plan"])
        network, method = work.network(settings["model"]), parse_method("random-real")
        problem = Problem(
            train=work.setting.splits.train,
            validation=work.setting.splits.validation,
            network=network,
            pixels=work.setting.pixels,
            counts=_counts(settings["ipc"], work),
            rule=LabelRule(**settings["rule"]),
            recipe=recipe,
            streams=streams,
            plan=plan,
        )
        choice = successive_halving(
            [snapshot.step for snapshot in trajectory.snapshots if snapshot.step > 0],
            lambda step: run_method(method, problem.with_expert(trajectory.at(step))),
            network,
            recipe,
            work.setting.splits.validation,
            streams=streams,
            plan=plan,
            cache=work.artefacts.cache,
            rungs=_RUNGS,
            reporter=work.reporter,
        )
        epoch = next(snapshot.epoch for snapshot in trajectory.snapshots if snapshot.step == choice.best)
        return Outcome(
            {"step": choice.best, "epoch": epoch}, facts={"trials": trials_as_dicts(choice), "validation_images": choice.validation_images}
        )

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """All snapshots for a quarter of the training, a third of them for half, and a ninth, twice, for all of it: of about 25 snapshots."""
        recipe, images = Recipe(**task.settings["recipe"]), _images(task.settings["ipc"], facts)
        steps = round(25 * (0.25 + 0.5 / 3 + 2 / 9) * recipe.total_steps(images))
        return Price(steps, 3 * flops_of(task.settings["model"], facts) * steps * min(recipe.batch_size, images))


def method_settings(builder: Builder, making: Making, method: Method, rule: LabelRule, images: int) -> dict[str, Any]:
    """What a task that makes a set by a method is keyed by, wherever its images come from; `images` are those of the set."""
    network, steps = builder.network(making.made_for), steps_of(method)
    _, recipe = builder.protocol()
    plan = builder.method_plan(network, steps) if steps else builder.student_plan(network, recipe, images)
    return {
        "method": making.method,
        "options": method.options.model_dump(mode="json"),
        "steps": steps,
        "ipc": making.ipc,
        "draw": making.draw,
        "rule": rule.model_dump(mode="json"),
        "model": str(network.spec),
        "identity": network.identity,
        "recipe": recipe.model_dump(mode="json"),
        "seed": builder.scale.seed,
        "source": builder.scale.source,
        "plan": plan.model_dump(exclude={"reason"}),
    }


def problem_of(
    settings: Mapping[str, Any],
    work: Workplace,
    *,
    train: ImageTable,
    validation: ImageTable,
    counts: tuple[int, ...],
    labeler: Labeler | None,
    provenance: Mapping[str, Any],
    trajectories: tuple[Trajectory, ...] = (),
) -> Problem:
    """The problem that `method_settings` describe, on these images; `provenance` says what only the task knows."""
    splits = work.setting.splits
    return Problem(
        train=train,
        validation=validation,
        network=work.network(settings["model"]),
        pixels=work.setting.pixels,
        counts=counts,
        rule=LabelRule(**settings["rule"]),
        recipe=Recipe(**settings["recipe"]),
        streams=Streams(settings["seed"])["draw", settings["draw"]],
        plan=ExecutionPlan(**settings["plan"]),
        expert=labeler,
        trajectories=trajectories,
        provenance={
            "limbeck": __version__,
            "torch": torch.__version__,
            "source": settings["source"],
            "train_digest": splits.train.digest,
            "validation_digest": splits.validation.digest,
            "test_digest": splits.test.digest,
            "method": settings["method"].partition(":")[0],
            "method_options": settings["options"],
            "seed": settings["seed"],
            "draw": settings["draw"],
            "plan": settings["plan"],
            **provenance,
        },
    )


def made_set(task: Task, work: Workplace, method: Method, problem: Problem, transforms: Sequence[str] = ()) -> Outcome:
    """Makes the set of a task, resuming what a stopped run began, and saves it."""
    folder = work.artefacts.file(task.key, "-growing")
    made = run_method(method, problem, work.reporter, folder=folder)
    if transforms:
        made = transform_set(made, transforms, problem.streams.torch("transforms"))
    path = work.artefacts.file(task.key, ".safetensors")
    made.save(path)
    shutil.rmtree(folder, ignore_errors=True)
    digests = {"set": made.digest, "labeler": problem.expert.digest if problem.expert else None}
    return Outcome(describe_set(made), digests, [work.artefacts.relative(path)])


class SetTask:
    """Makes a set by any method, labels it, and transforms its labels."""

    version: ClassVar[int] = 1

    @staticmethod
    def of_cell(builder: Builder, cell: Cell) -> str:
        """The set of a cell, with the experts that it needs."""
        making, images = cell.making, builder.images(cell)
        method = builder.method(making.method)
        rule = rule_of(method, making.labels.model_dump())
        try:
            try_transforms(making.transforms, rule, builder.scale.data.classes)
        except OptionError as error:
            raise builder.fault(cell, str(error), "transforms") from None
        settings = {**method_settings(builder, making, method, rule, images), "transforms": list(making.transforms)}
        inputs: dict[str, list[str]] = {}
        if uses_labeler(method, rule) or getattr(method, "wants_last_snapshot", False):
            inputs["experts"] = [ExpertTask.add(builder, making.expert, index) for index in making.experts]
            at = "last" if making.at == "best" and getattr(method, "wants_last_snapshot", False) else making.at
            settings["step"] = _step(builder, making.expert, at)
            if settings["step"] is None:
                inputs["choice"] = [ChooseTask.add(builder, cell, rule if rule.kind == "soft" else LabelRule())]
        if making.trajectories:
            inputs["trajectories"] = [ExpertTask.add(builder, making.expert, index) for index in range(making.trajectories)]
        elif getattr(method, "expert_recipe", None) is not None and label_default(method) != "soft":
            raise OptionError(f"method {making.method!r} learns from whole trajectories of experts; add for example trajectories = 3")
        return builder.add("set", settings, inputs, cell.words)

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """The set as a file."""
        return [SetTask._make(task, work) for task in unit]

    @staticmethod
    def _make(task: Task, work: Workplace) -> Outcome:
        settings = task.settings
        method = method_of(settings)
        step, labeler = _labeler(task, work) if "experts" in task.inputs else (None, None)
        trajectories = _trajectories(task, "trajectories", work) if "trajectories" in task.inputs else []
        splits = work.setting.splits
        problem = problem_of(
            settings,
            work,
            train=splits.train,
            validation=splits.validation,
            counts=_counts(settings["ipc"], work),
            labeler=labeler,
            trajectories=tuple(trajectories),
            provenance={
                "expert_keys": [key for role in ("experts", "trajectories") for key in task.inputs.get(role, ())],
                "expert_step": step,
            },
        )
        outcome = made_set(task, work, method, problem, settings["transforms"])
        return outcome if step is None else replace(outcome, measures={**outcome.measures, "step": step})

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """What the method says that it takes, and a label for every image."""
        return set_price(task, facts, Size(_images(task.settings["ipc"], facts), facts.classes, facts.train))


class EvaluateTask:
    """Trains students on a set and measures them on the test split, at the last epoch. Students of sets without steps of their own are trained together."""

    version: ClassVar[int] = 1

    @staticmethod
    def of_cell(builder: Builder, cell: Cell) -> str:
        """The students of a cell, and its set."""
        making, scale = cell.making, builder.scale
        made = SetTask.of_cell(builder, cell)
        protocol, recipe = builder.protocol(cell)
        network = builder.network(making.model)
        plan = builder.student_plan(network, recipe, builder.images(cell))
        students = making.students or scale.students
        maker = builder.task(made)
        settings = {
            "protocol": protocol.label,
            "recipe": recipe.model_dump(mode="json"),
            "model": str(network.spec),
            "identity": network.identity,
            "students": students,
            "images": builder.images(cell),
            "seed": scale.seed,
            "draw": making.draw,
            "expert": making.experts[0] if "experts" in maker.inputs else 0,
            "plan": plan.model_dump(exclude={"reason"}),
        }
        # sets that only choose and label images cost little, so a group may ask for all of its members' sets; but not for another's experts
        alike = {name: value for name, value in settings.items() if name not in ("draw", "expert")}
        together = None if maker.settings["steps"] else {**alike, "arm": cell.arm, "experts": list(maker.inputs.get("experts", ()))}
        return builder.add("evaluate", settings, {"set": [made]}, cell.words, together=together, at_once=max(1, plan.models // students))

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """Accuracy, loss and worst class of every student."""
        settings = unit[0].settings
        network, recipe, plan = work.network(settings["model"]), Recipe(**settings["recipe"]), ExecutionPlan(**settings["plan"])
        rows = [work.row(task.inputs["set"][0]) for task in unit]
        sets = [work.artefacts.dataset(row) for row in rows]
        if sets[0].step_size is not None:  # a learned step size belongs to the set: its students train at it
            recipe = recipe.with_(lr=sets[0].step_size)
        count = settings["students"]
        members = [
            (made, student_streams(task.settings["seed"], task.settings["draw"], task.settings["expert"], student))
            for task, made in zip(unit, sets, strict=True)
            for student in range(count)
        ]
        scores: list[Score] = []
        test = work.setting.splits.test.open_for_measurement()
        with work.reporter.task(f"students of {len(unit)} set{'s' if len(unit) > 1 else ''}", len(members)) as tick:
            for group in in_groups(len(members), plan):
                scores += score_students([members[index] for index in group], network, recipe, test, plan, work.artefacts.cache)
                tick(len(group))
        return [
            EvaluateTask._outcome(task, made, row, scores[place * count : (place + 1) * count], recipe, work)
            for place, (task, made, row) in enumerate(zip(unit, sets, rows, strict=True))
        ]

    @staticmethod
    def _outcome(task: Task, made: DistilledDataset, row: Row, scores: list[Score], recipe: Recipe, work: Workplace) -> Outcome:
        known = {name: row["measures"][name] for name in ("images", "bytes", "label_entropy")}
        return Outcome(
            {**score_measures(scores), **known},
            {"set": made.digest, "test": work.setting.splits.test.digest, "predictions": [digest_of_predictions(score) for score in scores]},
            [_save_scores(task, scores, work)],
            {"lr": recipe.lr, "diverged": sum(not score.finite for score in scores)},
        )

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """Training, and one pass over the test images, for every student."""
        settings = task.settings
        recipe, images = Recipe(**settings["recipe"]), settings["images"]
        steps = settings["students"] * recipe.total_steps(images)
        flops = flops_of(settings["model"], facts)
        return Price(steps, flops * (3 * steps * min(recipe.batch_size, images) + settings["students"] * facts.test))


class ExpertScoreTask:
    """Measures a snapshot of an expert, or an ensemble, on the test split, and the softness of its labels on validation."""

    version: ClassVar[int] = 1

    @staticmethod
    def of_cell(builder: Builder, cell: Cell) -> str:
        """The score of a cell's labeler."""
        making = cell.making
        inputs = {"experts": [ExpertTask.add(builder, making.expert, index) for index in making.experts]}
        settings: dict[str, Any] = {"step": _step(builder, making.expert, making.at), "temperature": making.labels.temperature}
        network = builder.network(builder.scale.experts[making.expert].model)
        settings |= {
            "model": str(network.spec),
            "plan": builder.expert_plan(network, builder.expert_recipe(making.expert)).model_dump(exclude={"reason"}),
        }
        if settings["step"] is None:
            inputs["choice"] = [ChooseTask.add(builder, cell, LabelRule(temperature=making.labels.temperature))]
        return builder.add("expert-score", settings, inputs, cell.words)

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """Accuracy and loss on test and validation, mean entropy of the labels on validation."""
        return [ExpertScoreTask._score(task, work) for task in unit]

    @staticmethod
    def _score(task: Task, work: Workplace) -> Outcome:
        step, labeler = _labeler(task, work)
        plan, validation = ExecutionPlan(**task.settings["plan"]), work.setting.splits.validation
        score = evaluate_labeler(labeler, work.setting.splits.test, plan)
        measures = {name: values[0] for name, values in score_measures([score]).items()}
        epoch = next(entry["epoch"] for entry in work.row(task.inputs["experts"][0])["facts"]["snapshots"] if entry["step"] == step)
        measures |= {"step": step, "epoch": epoch, "validation_accuracy": None, "entropy": None}
        if len(validation):
            logits = labeler.logits(validation, plan)
            measures["validation_accuracy"] = score_logits(logits, torch.from_numpy(validation.labels.copy())).accuracy
            measures["entropy"] = label_entropy((logits.double() / task.settings["temperature"]).softmax(1).float())
        digests = {"labeler": labeler.digest, "test": work.setting.splits.test.digest, "predictions": [digest_of_predictions(score)]}
        return Outcome(measures, digests, [_save_scores(task, [score], work)])

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """A pass over test and validation (taken as a tenth of train)."""
        return Price(0, flops_of(task.settings["model"], facts) * (facts.test + facts.train / 9) * len(task.inputs["experts"]))


def rule_of(method: Method, labels: dict[str, Any]) -> LabelRule:
    """How a cell's images are labeled; ``auto`` is as the method is published."""
    if labels["kind"] == "auto":
        labels["kind"] = "soft" if label_default(method) == "soft" else "hard"
    if labels["kind"] == "hard" and (labels["top_k"] is not None or labels["temperature"] != 1):
        raise OptionError('hard labels have no top_k or temperature; leave those out, or use kind = "soft"')
    return LabelRule(**labels)


@lru_cache
def try_transforms(transforms: tuple[str, ...], rule: LabelRule, classes: int) -> None:
    """Changes one made-up label for each class: raises `OptionError` for options that do not suit the labels or the number of classes, before any are made."""
    owners = torch.arange(classes)
    logits = 2 * torch.eye(classes) - torch.arange(classes) / classes if rule.kind == "soft" else None
    rows = make_labels(rule, owners, logits, classes).dense()
    for text in transforms:
        rows, kept = parse_transform(text).apply(rows, owners, torch.Generator().manual_seed(0))
        owners = owners[kept]


def method_of(settings: Mapping[str, Any]) -> Method:
    """The method that a task's settings describe."""
    parsed = parse_method(settings["method"])
    made: Method = type(parsed)(parsed.options.model_validate(settings["options"]))  # type: ignore[call-arg]
    return made


def set_price(task: Task, facts: DataFacts, size: Size) -> Price:
    """What a method takes to make a set of this size, wherever its images come from."""
    return Price(task.settings["steps"], flops_of(task.settings["model"], facts) * (method_of(task.settings).work(size) + size.images))


def steps_of(method: Method) -> int:
    """About how many steps a method takes, as far as its options say: 0 where it only chooses and labels."""
    steps = getattr(method.options, "steps", None) or getattr(method.options, "iterations", None)
    return int(steps or 0)


def _step(builder: Builder, expert: str, at: int | float | str) -> int | None:
    """The optimizer step of a snapshot; None when it is to be chosen."""
    recipe, train = builder.expert_recipe(expert), builder.scale.data.train
    per_epoch, total = recipe.steps_per_epoch(train), recipe.total_steps(train)
    what, value = moment(at, builder.scale.experts[expert].epochs)
    if what == "best":
        return None
    step = total if what == "last" else int(value) if what == "step" else int(value * per_epoch)
    kept = snapshot_steps(per_epoch, total)
    if step not in kept:
        raise OptionError(f"the expert keeps no snapshot at step {step}; kept steps: {', '.join(map(str, kept))}")
    return step


def _trajectories(task: Task, role: str, work: Workplace) -> list[Trajectory]:
    return [work.artefacts.trajectory(work.row(key)) for key in task.inputs[role]]


def _labeler(task: Task, work: Workplace) -> tuple[int, Labeler]:
    step = task.settings["step"]
    if step is None:
        step = work.row(task.inputs["choice"][0])["measures"]["step"]
    experts: list[Expert] = [trajectory.at(step) for trajectory in _trajectories(task, "experts", work)]
    return step, labeler_of(experts)


def _counts(ipc: int | str, work: Workplace) -> tuple[int, ...]:
    train = work.setting.splits.train
    if ipc == "all":
        return tuple(np.bincount(train.labels, minlength=len(train.classes)).tolist())
    return (int(ipc),) * len(train.classes)


def _images(ipc: int | str, facts: DataFacts) -> int:
    return facts.train if ipc == "all" else int(ipc) * facts.classes


def labeler_of_set(row: Row, work: Workplace) -> Labeler | None:
    """The expert, or ensemble, that labeled a set with soft labels."""
    experts = row["inputs"].get("experts")
    if not experts or row["settings"]["rule"]["kind"] == "hard":
        return None
    return labeler_of([work.artefacts.trajectory(work.row(key)).at(row["measures"]["step"]) for key in experts])


def flops_of(model: str, facts: DataFacts) -> float:
    """Operations of a network for one image, forward."""
    return float(Network(parse_model(model), facts.shape, facts.classes).flops())


def describe_set(made: DistilledDataset) -> dict[str, Any]:
    """Measures of a set itself."""
    targets = made.targets()
    entropy = label_entropy(targets) if made.labels.kind in ("hard", "probability") else None
    right = (targets.argmax(1) == made.owners.long()).float().mean()
    return {"images": len(made), "bytes": made.bytes["total"], "label_entropy": entropy, "top_is_owner": float(right)}


def score_measures(scores: Sequence[Score]) -> dict[str, list[float | None]]:
    """Accuracy, loss and worst class of every student, as plain JSON."""
    return {
        "accuracy": [score.accuracy for score in scores],
        "loss": [score.loss if math.isfinite(score.loss) else None for score in scores],
        "worst_class": [float(np.nanmin(score.class_accuracy.numpy())) for score in scores],
    }


def digest_of_predictions(score: Score) -> str:
    """Digest of the predicted classes."""
    return store.content_digest({}, {"predictions": score.predictions.to(torch.int32)})


def _save_scores(task: Task, scores: Sequence[Score], work: Workplace) -> str:
    path = work.artefacts.file(task.key, ".safetensors")
    tensors = {
        "predictions": torch.stack([score.predictions for score in scores]).to(torch.int32),
        "class_accuracy": torch.stack([score.class_accuracy for score in scores]).float(),
    }
    store.save(path, {"kind": SCORES, "task": task.key}, tensors)
    return work.artefacts.relative(path)

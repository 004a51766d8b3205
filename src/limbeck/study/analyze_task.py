"""The task that asks a study's set what it has learned, by any of `limbeck.analyze.ANALYSES`."""

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from limbeck import store
from limbeck.analyze.subject import Analysis, NotApplicable, Size, Subject
from limbeck.errors import OptionError
from limbeck.streams import Streams
from limbeck.study.analyzing import configured, make_subject, measure, options_of
from limbeck.study.artefacts import Artefacts
from limbeck.study.graph import Builder, Task, Unit
from limbeck.study.rows import Row
from limbeck.study.spec import Cell, DataFacts
from limbeck.study.tasks import Outcome, Price, SetTask, Workplace, flops_of, labeler_of_set
from limbeck.types.measurement import Measurement
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


class AnalyzeTask:
    """Measures a set by several analyses, as `limbeck analyze` would measure its file. An analysis that cannot work on the set leaves its sentence instead."""

    version: ClassVar[int] = 1

    @staticmethod
    def of_cell(builder: Builder, cell: Cell) -> str:
        """The measurements of a cell, and its set."""
        making = cell.making
        protocol, recipe = builder.protocol(cell)
        network = builder.network(making.model)
        analyses = {name: configured(name, options) for name, options in making.analyses.items()}
        settings = {
            "analyses": {name: {"version": analysis.version, "options": options_of(analysis)} for name, analysis in analyses.items()},
            "protocol": protocol.label,
            "recipe": recipe.model_dump(mode="json"),
            "model": str(network.spec),
            "identity": network.identity,
            "images": builder.images(cell),
            "seed": builder.scale.seed,
            "plan": builder.student_plan(network, recipe, builder.images(cell)).model_dump(exclude={"reason"}),
        }
        return builder.add("analyze", settings, {"set": [SetTask.of_cell(builder, cell)]}, cell.words)

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """All measurements of a set in one file, and their numbers without axes as measures."""
        return [AnalyzeTask._analyze(task, work) for task in unit]

    @staticmethod
    def _analyze(task: Task, work: Workplace) -> Outcome:
        subject = _subject(task, work)
        measured: dict[str, Any] = {}
        refused: dict[str, str] = {}
        for name, analysis in _analyses(task.settings).items():
            try:
                outcome = measure(name, analysis, subject, work.reporter)
            except NotApplicable as problem:
                refused[name] = str(problem)
                continue
            assert outcome.measurement is not None
            measured[name] = outcome.measurement.to_dict() | {"seconds": 0.0}  # a row's content must not depend on the clock
        path = work.artefacts.file(task.key, "-measurements.json")
        store.write_json(path, measured)
        scalars = {
            f"{name} {quantity}": record["values"]
            for name, found in measured.items()
            for quantity, record in found["quantities"].items()
            if not record["axes"]
        }
        digests = {"set": subject.dataset.digest, "measurements": store.digest_of(measured)}
        return Outcome(scalars, digests, [work.artefacts.relative(path)], {"refused": refused})

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """What each analysis says that it takes; what they share is counted twice, so this is a bound."""
        settings = task.settings
        recipe, images = Recipe(**settings["recipe"]), settings["images"]
        size = Size(images, facts.train, facts.test, recipe.total_steps(images), min(recipe.batch_size, images))
        taken = [
            (images, flops_of(model or settings["model"], facts))
            for analysis in _analyses(settings).values()
            for model, images in analysis.work(size).items()
        ]
        return Price(round(sum(images for images, _ in taken) / recipe.batch_size), sum(3 * images * flops for images, flops in taken))


def measurements_of(artefacts: Artefacts, row: Row) -> dict[str, Measurement]:
    """The measurements of an `analyze` row by analysis."""
    if row["kind"] != "analyze":
        raise OptionError(f'a task of kind {row["kind"]!r} has no measurements; select an arm with task = "analyze"')
    records = json.loads((artefacts.cache.root / row["files"][0]).read_text(encoding="utf-8"))
    return {name: Measurement.from_dict(record) for name, record in records.items()}


def _analyses(settings: Mapping[str, Any]) -> dict[str, Analysis]:
    return {name: configured(name, given["options"]) for name, given in settings["analyses"].items()}


def _subject(task: Task, work: Workplace) -> Subject:
    settings = task.settings
    row = work.row(task.inputs["set"][0])
    plan = ExecutionPlan(**settings["plan"])
    return make_subject(
        work.artefacts.dataset(row),
        work.setting,
        work.network(settings["model"]),
        Recipe(**settings["recipe"]),
        settings["protocol"],
        plan,
        Streams(settings["seed"]),
        work.artefacts.cache,
        labeler=labeler_of_set(row, work),
        device=plan.device,
        threads=plan.threads,
    )

"""Runs a study: opens the data, builds the graph, does what is not finished, writes the ledger. Also what `status`, `resume` and `report` need of a run's folder."""

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from limbeck import store
from limbeck.errors import DataError, LimbeckError, OptionError
from limbeck.progress import SILENT, Reporter
from limbeck.study.analyses import Made, analyze
from limbeck.study.artefacts import Artefacts
from limbeck.study.claims import Verdict, decide
from limbeck.study.executors import Executor, ExecutorOptions, make_executor
from limbeck.study.graph import Builder, DataKey, Graph, Unit, select
from limbeck.study.ledger import Ledger
from limbeck.study.pricing import Estimate, price
from limbeck.study.rows import Row, fault
from limbeck.study.setting import Setting
from limbeck.study.spec import Study
from limbeck.study.study_options import ExecutionOptions, StudyOptions
from limbeck.study.tasks import Premises, check_facts, data_key
from limbeck.study.view import View
from limbeck.types.plan import ExecutionPlan

STUDY, RUN, LEDGER, ROWS = "study.toml", "run.json", "ledger.jsonl", "rows.parquet"


class Described(BaseModel):
    """How a run was asked for and what it met, kept in its folder: a run that goes on reuses the plans."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    scale: Literal["smoke", "cpu", "paper"]
    data: DataKey
    plans: dict[str, ExecutionPlan]
    device: str
    threads: Annotated[int, Field(ge=1)]
    store: str | None
    only: tuple[str, ...] = ()

    def built(self) -> dict[str, Any]:
        """The plans as a `Builder` takes them."""
        return {name: plan.model_dump() for name, plan in self.plans.items()}


@dataclass(frozen=True)
class Findings:
    """What a study says so far: the analyses by id, the verdict on each claim by id, and the scales of each claim that is not asked on this one."""

    view: View
    analyses: Mapping[str, Made]
    verdicts: Mapping[str, Verdict]
    elsewhere: Mapping[str, Sequence[str]]

    def answer(self, claim: str) -> tuple[str, str]:
        """Verdict and measurement in words, of a claim that is not asked on this scale too."""
        if claim in self.elsewhere:
            return "not asked on this scale", f"asked on: {', '.join(self.elsewhere[claim])}"
        return self.verdicts[claim].answer, self.verdicts[claim].words


@dataclass(frozen=True)
class Run:
    """A run's folder with the study, its graph and what is finished."""

    out: Path
    study: Study
    scale: str
    graph: Graph
    ledger: Ledger
    artefacts: Artefacts
    data: DataKey
    done: int = 0
    reused: int = 0

    def counts(self) -> dict[str, tuple[int, int]]:
        """Of each kind of task, how many are finished and how many there are."""
        kinds = dict.fromkeys(task.kind for task in self.graph.tasks.values())
        tasks = {kind: [task for task in self.graph.tasks.values() if task.kind == kind] for kind in kinds}
        return {kind: (sum(task.key in self.ledger for task in members), len(members)) for kind, members in tasks.items()}

    def findings(self) -> Findings:
        """Analyses and verdicts from what is measured so far."""
        view = View(self.study, self.scale, self.graph.cells, self.graph.keys, self.ledger.rows)
        analyses = analyze(view, self.artefacts)
        measured = {name: made[0] for name, made in analyses.items()}
        claims = [claim for claim in self.study.file.claims if claim.scales is None or self.scale in claim.scales]
        elsewhere = {claim.id: claim.scales for claim in self.study.file.claims if claim.scales is not None and claim not in claims}
        return Findings(view, analyses, {claim.id: decide(claim, view, measured) for claim in claims}, elsewhere)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: counts, verdicts, measurements and where files lie."""
        findings = self.findings()
        return {
            "study": self.study.file.name,
            "scale": self.scale,
            "out": str(self.out),
            "ledger": str(self.out / LEDGER),
            "tasks": {kind: {"finished": done, "all": total} for kind, (done, total) in self.counts().items()},
            "done_now": self.done,
            "reused": self.reused,
            "claims": {name: verdict.to_dict() for name, verdict in findings.verdicts.items()},
            "analyses": {name: made[0].to_dict() for name, made in findings.analyses.items()},
        }


def price_study(study: Study, options: StudyOptions) -> Estimate:
    """What a run would cost if nothing were finished; opens no data."""
    scale = study.scale(options.scale)
    graph = Builder(study, options.scale, DataKey.unseen(scale.pixels), device=options.device, threads=options.threads).graph()
    units = graph.needed(select(graph.cells, options.only))
    return price(graph, options.scale, scale, {task.key for unit in units for task in unit}, options.rate)


def default_out(study: Study, scale: str) -> Path:
    """``runs/studies/NAME-SCALE``."""
    return Path("runs/studies") / f"{study.file.name}-{scale}"


def run_study(study: Study, options: StudyOptions, reporter: Reporter = SILENT) -> Run:
    """Does every task that is not finished, and returns the run. Raises `OptionError` or `DataError` before anything expensive is begun; a run that is refused
    leaves the study and the settings of its folder as they were."""
    scale, out = study.scale(options.scale), options.out or default_out(study, options.scale)
    artefacts = Artefacts.at(options.store)
    before = _read_run(out)
    if before and (before.study, before.scale) != (study.file.name, options.scale):
        raise OptionError(f"{str(out)!r} holds a run of {before.study!r} on scale {before.scale!r}; choose another folder with --out")
    try:
        setting = Setting.open(scale.source, scale.open, scale.seed, reporter, pixels=scale.pixels)
    except LimbeckError as error:
        raise type(error)(f"{error}, at {study.text.words(('scales', options.scale, 'source'))}") from None
    data = data_key(setting, scale.pixels)
    try:
        check_facts(setting, scale.data, study.text.words(("scales", options.scale, "data")))
    except DataError as error:
        if before is None or before.data == data:
            raise
        raise DataError(f"{error}, or put back the files of the source, which are not those that the run in {str(out)!r} began with") from None
    same = before if before and before.device == options.device and options.threads in (None, before.threads) else None
    threads = same.threads if same else options.threads or max(1, (os.cpu_count() or 1) // options.workers)
    builder = Builder(study, options.scale, data, device=options.device, threads=threads, plans=same.built() if same else None)
    graph = builder.graph()
    _check_class_sizes(builder, graph, setting)
    units = graph.needed(select(graph.cells, options.only))
    premises = Premises(
        source=scale.source,
        open=scale.open.model_dump(mode="json"),
        pixels=scale.pixels,
        seed=scale.seed,
        cache=str(artefacts.cache.root.resolve()),
        url=artefacts.url,
        digests=vars(data),
    )
    if options.executor == "ray" and not options.gpus and any(plan["device"].startswith("cuda") for plan in builder.plans.values()):
        raise OptionError("the tasks run on a GPU, but Ray was not told how much of one each may take; use --gpus 1, --gpus 0.25 or --device cpu")
    given = ExecutorOptions(options.executor, options.address, options.workers, options.gpus)
    described = Described(
        study=study.file.name,
        scale=options.scale,
        data=data,
        plans=builder.plans,
        device=options.device,
        threads=threads,
        store=options.store,
        only=options.only,
    )
    with Ledger(out / LEDGER) as ledger:
        if _read_run(out) != before:
            raise LimbeckError(f"another run wrote into {str(out)!r} while this one opened the data; run the study again")
        todo = _unfinished(units, graph, ledger, artefacts)
        reused = sum(len(unit) for unit in units) - sum(len(unit) for unit in todo)
        with closing(make_executor(given, premises, artefacts, reporter, threads, todo)) if todo else nullcontext() as executor:
            # nothing refuses this run any more, so the folder becomes its own
            store.write_text(out / STUDY, study.content)
            store.write_json(out / RUN, described.model_dump(mode="json"))
            done = _execute(todo, executor, ledger, reporter, f"{study.file.name}, {options.scale}") if executor else 0
        run = Run(out, study, options.scale, graph, ledger, artefacts, data, done, reused)
        write_rows(run)
    return run


def resume_study(out: Path, options: ExecutionOptions, reporter: Reporter = SILENT) -> Run:
    """Goes on with a run in its folder, as it was last asked for: on the same scale, device and threads, and with the same cells alone."""
    study, before = _stored(out)
    changes = before.model_dump(include={"scale", "device", "threads", "store", "only"})
    return run_study(study, StudyOptions(**options.model_dump(), **changes, out=out), reporter)


def open_run(out: Path) -> Run:
    """What a run's folder holds; opens no data and does no work."""
    study, before = _stored(out)
    builder = Builder(study, before.scale, before.data, device=before.device, threads=before.threads, plans=before.built())
    return Run(Path(out), study, before.scale, builder.graph(), Ledger(Path(out) / LEDGER), Artefacts.at(before.store), before.data)


def write_rows(run: Run) -> None:
    """Writes the ledger as a Parquet table of cells, where any is measured."""
    if any(key in run.ledger for key in run.graph.keys):
        about = {"study": run.study.file.name, "scale": run.scale, "source": run.study.scale(run.scale).source}
        digests = {f"data.{name}": digest for name, digest in vars(run.data).items()}
        run.ledger.to_parquet(run.out / ROWS, run.graph.cells, run.graph.keys, about | digests)


def _check_class_sizes(builder: Builder, graph: Graph, setting: Setting) -> None:
    """Raises `OptionError` for a cell with a set of more images of a class than there are to train on."""
    train = setting.splits.train
    has = np.bincount(train.labels, minlength=len(train.classes)).tolist()
    for cell, key in zip(graph.cells, graph.keys, strict=True):
        for task in (graph.tasks[key], *(graph.tasks[ancestor] for ancestor in graph.tasks[key].ancestors)):
            ipc = task.settings.get("ipc", "all")
            if ipc == "all":
                continue
            rarest = min(task.settings.get("classes", range(len(has))), key=has.__getitem__)
            if has[rarest] < ipc:
                sentence = f"class {train.classes[rarest]!r} has {has[rarest]} training images, fewer than the {ipc} asked for"
                raise builder.fault(cell, f"{sentence}; use ipc = {min(has)} or less", "ipc")


def _execute(todo: list[Unit], executor: Executor, ledger: Ledger, reporter: Reporter, name: str) -> int:
    """Hands out units as what they build on is finished; every row goes to the ledger as it comes. Returns the number of tasks done."""
    missing = {task.key for unit in todo for task in unit}
    waiting, done = list(todo), 0

    def hand_out() -> None:
        for unit in [unit for unit in waiting if not any(key in missing for task in unit for key in task.ancestors)]:
            waiting.remove(unit)
            executor.submit(unit)

    with (SILENT if executor.talks else reporter).task(f"study {name}", len(missing)) as tick:
        hand_out()
        while missing:
            unit, rows = executor.wait()
            for row in rows:
                ledger.add(row)
            missing -= {task.key for task in unit}
            done += len(unit)
            tick(len(unit))
            hand_out()
    return done


def _unfinished(units: Collection[Unit], graph: Graph, ledger: Ledger, artefacts: Artefacts) -> list[Unit]:
    """The units with work to do, in order. Rows of tasks that another study finished are added to the ledger, ancestors first; a finished task whose files are gone
    is done again only when something builds on it."""
    unit_of = {task.key: unit for unit in graph.units for task in unit}
    order = {unit[0].key: place for place, unit in enumerate(graph.units)}
    open_units = [unit for unit in units if not all(task.key in ledger for task in unit)]
    seen: set[str] = set()
    todo: list[Unit] = []
    rows: dict[int, list[Row]] = {}
    while open_units:
        unit = open_units.pop()
        if unit[0].key in seen:
            continue
        seen.add(unit[0].key)
        found = [row for task in unit if (row := artefacts.find(task.key)) is not None]
        if len(found) == len(unit):
            rows[order[unit[0].key]] = found
            continue
        todo.append(unit)
        open_units += [unit_of[key] for task in unit for key in task.ancestors]
    for place in sorted(rows):
        for row in rows[place]:
            ledger.add(row)
    return sorted(todo, key=lambda unit: order[unit[0].key])


def _stored(out: Path) -> tuple[Study, Described]:
    before = _read_run(out)
    if before is None or not (Path(out) / STUDY).is_file():
        raise DataError(f"{str(out)!r} holds no run of a study; name the folder that `limbeck study run` printed")
    return Study.load(Path(out) / STUDY), before


def _read_run(out: Path) -> Described | None:
    """How a folder's run was asked for; None where there is none."""
    path = Path(out) / RUN
    try:
        return Described.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"cannot read {str(path)!r}: {error.strerror or error}; check the path") from None
    except ValidationError as error:
        raise DataError(
            f"{str(path)!r} is damaged ({fault(error)}); remove it, and `limbeck study run {Path(out) / STUDY} --out {out}`, with the options that the run had, "
            "writes it anew and takes finished work from the cache"
        ) from None

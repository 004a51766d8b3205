"""Runs a method: the three verbs in order, with budget, progress, checkpoints and recovery. Methods hold the mathematics; this holds the loop."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import BaseModel
from torch import Tensor

from limbeck import store
from limbeck.errors import FileFormatError, LimbeckError, OptionError
from limbeck.methods.problem import Problem
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.train.plan import threads
from limbeck.types.distilled import DistilledDataset

State = dict[str, Tensor]
"""Everything that decides how a method goes on, as named tensors: images, learned labels, optimizer slots, pools of networks."""

Metrics = Mapping[str, float]
_KIND = "interrupted method"
_FILE = "state.safetensors"
_MOST_HALVINGS = 10
_RATES = ("rate", "step_size")  # options that are step sizes, beside those named ..._lr
_SAVE_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class Turn:
    """One step of a method: its number (from 0), the factor on all its step sizes (halved after a step that was not finite), and its own streams."""

    number: int
    scale: float
    streams: Streams


@dataclass(frozen=True)
class Size:
    """What decides the cost of a set: its images, its classes, and the training images that it is made from. A class counts as an equal share of both."""

    images: int
    classes: int
    train: int

    def real(self, wanted: int) -> float:
        """Training images of all classes together, where `wanted` of each are asked for."""
        return float(min(self.classes * wanted, self.train))


@runtime_checkable
class Method(Protocol):
    """``init(problem) -> state``, ``step(problem, state, turn) -> state and metrics``, ``finish(problem, state) -> set``.

    A method is constructed with its typed options and keeps nothing else: all that changes is in the state. `step` returns a new state and leaves the one
    that it was given as it was; whatever it draws comes from ``turn.streams``. So any step can be repeated, and a stopped run goes on to the same bytes.
    ``work(size)`` is what all steps cost, and what the labels of views do: in forward passes of one image, of which a backward pass counts two.

    A method that not every job can use also has ``check(problem, expert, epochs)``, called before experts are trained: their network (None for a job
    without) and the epochs for which they will be (None where their training is not known). It raises `OptionError` where `init` would. One that makes its
    images group by group has ``unmade(problem, steps)``: how many are not made yet after so many steps. A run with any is never finished.
    """

    options: BaseModel

    def total_steps(self, problem: Problem) -> int: ...

    def work(self, size: Size) -> float: ...

    def init(self, problem: Problem) -> State: ...

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]: ...

    def finish(self, problem: Problem, state: State) -> DistilledDataset: ...


@dataclass
class Progress:
    """How a run went: steps taken, step-size factor, how often a step was not finite, seconds, seconds before the last step, metrics and interim checks at
    recorded steps, and metrics of the last step."""

    step: int = 0
    scale: float = 1.0
    restarts: int = 0
    seconds: float = 0.0
    seconds_before: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)


Check = Callable[[DistilledDataset], float]


def run_method(
    method: Method,
    problem: Problem,
    reporter: Reporter = SILENT,
    *,
    folder: Path | None = None,
    budget_seconds: float | None = None,
    check: Check | None = None,
    checks: int = 0,
) -> DistilledDataset:
    """The distilled set of a method on a problem; how it went is in the set's provenance under ``optimization``.

    With a `folder` the state is saved there every half minute and when the run is interrupted, and a later call with the same arguments goes on from it to the
    same set; the caller names the folder after everything that determines the run but its budget.

    `budget_seconds` ends the run early, between two steps, with a note; the provenance then says after how many steps of how many. What falls along a run (step
    sizes, stages) is where it was at that step: the set is that of a run of so many steps only for a method in which nothing does. A kept run goes on if
    it was within the budget before its last step; where it had gone further, another begins and is kept beside it. Raises `OptionError` when the budget
    ends a run before every image is made.

    A step whose state or metrics are not finite is undone and taken again with all step sizes halved. `check` (a validation accuracy, say) is called on the
    interim set at `checks` equally spaced moments, the end excluded.
    """
    total = method.total_steps(problem)
    file = _file_of(folder, budget_seconds)
    restored = _load(file)
    state, progress = restored if restored is not None else (method.init(problem), Progress())
    state = {name: tensor.to(problem.plan.device) for name, tensor in state.items()}
    moments = {round(total * part / (checks + 1)) for part in range(1, checks + 1)} if check is not None else set()
    started = saved = time.monotonic()
    before = progress.seconds

    def save() -> None:
        if file is not None and total:
            store.save(file, {"kind": _KIND, "progress": vars(progress)}, {name: tensor.cpu() for name, tensor in state.items()})

    if total:
        with reporter.task(f"distilling: {type(method).__name__}", total) as tick:
            tick(progress.step)
            try:
                while progress.step < total and (budget_seconds is None or progress.step == 0 or progress.seconds < budget_seconds):
                    with threads(problem.plan.threads * problem.plan.lanes):
                        state, metrics = _step(method, problem, state, progress, reporter)
                    progress.step += 1
                    progress.seconds_before, progress.seconds = progress.seconds, before + time.monotonic() - started
                    progress.last = {"step": float(progress.step), **metrics}
                    if progress.step in moments or progress.step in _recorded(total):
                        entry = dict(progress.last)
                        if check is not None and progress.step in moments:
                            entry["validation_accuracy"] = check(method.finish(problem, state))
                        progress.curve.append(entry)
                    tick(1)
                    if time.monotonic() - saved > _SAVE_EVERY_SECONDS:
                        save()
                        saved = time.monotonic()
            except KeyboardInterrupt:
                save()
                raise
        save()
    cut = progress.step < total
    if cut:
        _refuse_unmade(method, problem, progress.step, total)
        reporter.note(f"distilling was {stopped_words(progress.step, total)}")
    made = method.finish(problem, state)
    if not total:
        return made
    # seconds are left out: the same work gives the same digest
    about: dict[str, Any] = {"steps": progress.step, "step_scale": progress.scale, "restarts": progress.restarts, "curve": progress.curve}
    if cut:
        recorded = bool(progress.curve) and progress.curve[-1]["step"] == progress.step
        about |= {"total": total, "curve": [*progress.curve, *([] if recorded or not progress.last else [progress.last])]}
    return DistilledDataset(**{**vars(made), "provenance": {**made.provenance, "optimization": about}})


def stopped_words(steps: int, total: int) -> str:
    """``stopped by --budget after 233 of 1,200 steps``."""
    return f"stopped by --budget after {steps:,} of {total:,} steps"


def _refuse_unmade(method: Method, problem: Problem, steps: int, total: int) -> None:
    unmade = method.unmade(problem, steps) if hasattr(method, "unmade") else 0
    if unmade:
        raise OptionError(
            f"distilling was {stopped_words(steps, total)}, when {unmade} of the {sum(problem.counts)} images were not made yet; the steps are kept, so give the "
            "same command a longer --budget or none, or ask for less work in --method"
        )


def _step(method: Method, problem: Problem, state: State, progress: Progress, reporter: Reporter) -> tuple[State, Metrics]:
    for _ in range(_MOST_HALVINGS):
        turn = Turn(progress.step, progress.scale, problem.streams["step", progress.step])
        new, metrics = method.step(problem, state, turn)
        changed = {name: tensor for name, tensor in new.items() if tensor is not state.get(name)}
        if all(math.isfinite(value) for value in metrics.values()) and _finite(changed):
            return new, metrics
        progress.scale /= 2
        progress.restarts += 1
        reporter.note(f"step {progress.step} was not finite; it is taken again with step sizes x {progress.scale:g}")
    raise LimbeckError(
        f"step {progress.step} of {type(method).__name__} is not finite even with step sizes x {progress.scale:g}; use smaller rates in "
        f"--method{_rates_words(method)}"
    )


def _rates_words(method: Method) -> str:
    rates = {name: value for name, value in method.options if name in _RATES or name.endswith("_lr")}
    shown = ", ".join(f"{name}={value:g}" for name, value in rates.items() if isinstance(value, float) and value)
    return f", which are {shown}" if shown else ""


def _finite(state: State) -> bool:
    # one number for each tensor and a single read: a device is waited for once
    return bool(torch.stack([tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point()] or [torch.tensor(True)]).all())


def _recorded(total: int) -> range:
    """Steps whose metrics are kept: about fifty of them, and the last."""
    stride = max(1, total // 50)
    return range(total, 0, -stride)


def seconds_spent(folder: Path, budget_seconds: float | None = None) -> float:
    """How long earlier, interrupted or finished, runs of the same work within the budget took together; 0 when there was none."""
    known = _progress(_file_of(folder, budget_seconds))
    return 0.0 if known is None else known.seconds


def _file_of(folder: Path | None, budget_seconds: float | None) -> Path | None:
    """Where the run is kept: beside the one that has gone further than the budget, if there is one."""
    if folder is None or budget_seconds is None:
        return None if folder is None else folder / _FILE
    known = _progress(folder / _FILE)
    further = known is not None and known.step > 1 and known.seconds_before >= budget_seconds
    return folder / (f"within-{budget_seconds:g}s-{_FILE}" if further else _FILE)


def _progress(file: Path | None) -> Progress | None:
    """What a kept run's header says of it."""
    if file is None:
        return None
    try:
        return _progress_of(store.load_header(file, _KIND))
    except (FileFormatError, KeyError, TypeError):
        return None


def _load(file: Path | None) -> tuple[State, Progress] | None:
    if file is None:
        return None
    try:
        header, tensors = store.load(file, _KIND)
        return tensors, _progress_of(header)
    except (FileFormatError, KeyError, TypeError):
        return None


def _progress_of(header: Mapping[str, Any]) -> Progress:
    about: dict[str, Any] = header["progress"]
    # runs kept by earlier versions do not say when their last step began
    return Progress(**{"seconds_before": about["seconds"] * (1 - 1 / max(1, about["step"])), **about})

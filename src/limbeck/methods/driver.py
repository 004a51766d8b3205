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
from limbeck.errors import FileFormatError, LimbeckError
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
_SAVE_EVERY_SECONDS = 30.0


@dataclass(frozen=True)
class Turn:
    """One step of a method: its number (from 0), the factor on all its step sizes (halved after a step that was not finite), and its own streams."""

    number: int
    scale: float
    streams: Streams


@runtime_checkable
class Method(Protocol):
    """``init(problem) -> state``, ``step(problem, state, turn) -> state and metrics``, ``finish(problem, state) -> set``.

    A method is constructed with its typed options and keeps nothing else: all that changes is in the state. `step` returns a new state and leaves the one
    that it was given as it was; whatever it draws comes from ``turn.streams``. So any step can be repeated, and a stopped run goes on to the same bytes.

    A method that not every job can use also has ``check(problem, expert, epochs)``, called before experts are trained: their network (None for a job
    without) and the epochs for which they will be (None where their training is not known). It raises `OptionError` where `init` would.
    """

    options: BaseModel

    def total_steps(self, problem: Problem) -> int: ...

    def init(self, problem: Problem) -> State: ...

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]: ...

    def finish(self, problem: Problem, state: State) -> DistilledDataset: ...


@dataclass
class Progress:
    """How a run went: steps taken, step-size factor, how often a step was not finite, seconds, metrics and interim checks at recorded steps."""

    step: int = 0
    scale: float = 1.0
    restarts: int = 0
    seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


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
    same set; the caller names the folder after everything that determines the run. `budget_seconds` ends the run early, between two steps; the steps taken are
    recorded, and asking for that many steps gives the same set. A step whose state or metrics are not finite is undone and taken again with all step sizes
    halved. `check` (a validation accuracy, say) is called on the interim set at `checks` equally spaced moments, the end excluded.
    """
    total = method.total_steps(problem)
    file = folder / _FILE if folder is not None else None
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
                    progress.seconds = before + time.monotonic() - started
                    if progress.step in moments or progress.step in _recorded(total):
                        entry = {"step": float(progress.step), **metrics}
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
    made = method.finish(problem, state)
    if not total:
        return made
    # seconds are left out: the same work gives the same digest
    about = {"steps": progress.step, "step_scale": progress.scale, "restarts": progress.restarts, "curve": progress.curve}
    return DistilledDataset(**{**vars(made), "provenance": {**made.provenance, "optimization": about}})


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
        f"step {progress.step} of {type(method).__name__} is not finite even with step sizes x {progress.scale:g}; use smaller rates in --method"
    )


def _finite(state: State) -> bool:
    # one number for each tensor and a single read: a device is waited for once
    return bool(torch.stack([tensor.isfinite().all() for tensor in state.values() if tensor.is_floating_point()] or [torch.tensor(True)]).all())


def _recorded(total: int) -> range:
    """Steps whose metrics are kept: about fifty of them, and the last."""
    stride = max(1, total // 50)
    return range(total, 0, -stride)


def seconds_spent(folder: Path) -> float:
    """How long earlier, interrupted or finished, runs of the same work took together; 0 when there was none."""
    try:
        return float(store.load_header(folder / _FILE, _KIND)["progress"]["seconds"])
    except (FileFormatError, KeyError, TypeError):
        return 0.0


def _load(file: Path | None) -> tuple[State, Progress] | None:
    if file is None:
        return None
    try:
        header, tensors = store.load(file, _KIND)
        known: dict[str, Any] = header["progress"]
        return tensors, Progress(**known)
    except (FileFormatError, KeyError, TypeError):
        return None

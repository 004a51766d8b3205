"""Who does the units of a graph: this process (`InProcess`), or the workers of a Ray cluster (`limbeck.study.ray_executor`)."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from limbeck.progress import Reporter, Tick
from limbeck.study.artefacts import Artefacts
from limbeck.study.graph import Unit
from limbeck.study.rows import Row
from limbeck.study.tasks import Premises, Workplace, run_unit


@dataclass(frozen=True)
class ExecutorOptions:
    """Which executor, and what it may use. `gpus` is the part of a GPU that a task takes; `workers` counts the processes of a local cluster."""

    kind: Literal["in-process", "ray"] = "in-process"
    address: str | None = None
    workers: int = 1
    gpus: float = 0.0


@runtime_checkable
class Executor(Protocol):
    """Takes units whose ancestors are finished, and hands back the rows of one unit at a time, in any order. `talks`: whether it reports progress itself."""

    talks: bool

    def submit(self, unit: Unit) -> None:
        """Takes a unit."""
        ...

    def wait(self) -> tuple[Unit, list[Row]]:
        """The next finished unit. Raises what the unit raised."""
        ...

    def close(self) -> None:
        """Gives up what is under way."""
        ...


class Numbered(Reporter):
    """Says which of the units known so far each task belongs to: ``[3 of 40] expert 1: 16 epochs``."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter, self.number, self.total = reporter, 0, 0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Tick]:
        with self._reporter.task(f"[{self.number} of {self.total}] {description}", total) as tick:
            yield tick

    def note(self, message: str) -> None:
        self._reporter.note(message)


class InProcess:
    """One unit after the other, in this process. Progress is that of the unit at work, with its number."""

    talks = True

    def __init__(self, premises: Premises, artefacts: Artefacts, reporter: Reporter) -> None:
        self._reporter = Numbered(reporter)
        self._work = Workplace(premises, artefacts, self._reporter)
        self._units: deque[Unit] = deque()

    def submit(self, unit: Unit) -> None:
        self._units.append(unit)
        self._reporter.total += 1

    def wait(self) -> tuple[Unit, list[Row]]:
        unit = self._units.popleft()
        self._reporter.number += 1
        return unit, run_unit(unit, self._work)

    def close(self) -> None:
        self._units.clear()


def make_executor(
    options: ExecutorOptions, premises: Premises, artefacts: Artefacts, reporter: Reporter, threads: int, units: Sequence[Unit] = ()
) -> Executor:
    """The executor that the options name; `units` is the work to come. Ray is imported only when it is asked for."""
    if options.kind == "in-process":
        return InProcess(premises, artefacts, reporter)
    from limbeck.study.ray_executor import RayExecutor

    made: Any = RayExecutor(options, premises, reporter, threads, units)
    return made

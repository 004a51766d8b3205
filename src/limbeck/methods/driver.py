"""Runs a method: the three verbs in order, with progress. Methods hold the mathematics; this holds the loop."""

from typing import Any, Protocol, runtime_checkable

from limbeck.methods.problem import Problem
from limbeck.progress import SILENT, Reporter
from limbeck.types.distilled import DistilledDataset


@runtime_checkable
class Method(Protocol):
    """``init(problem) -> state``, ``step(problem, state) -> state``, ``finish(problem, state) -> set``; `total_steps` says how often to step."""

    def total_steps(self, problem: Problem) -> int: ...

    def init(self, problem: Problem) -> Any: ...

    def step(self, problem: Problem, state: Any) -> Any: ...

    def finish(self, problem: Problem, state: Any) -> DistilledDataset: ...


def run_method(method: Method, problem: Problem, reporter: Reporter = SILENT) -> DistilledDataset:
    """The distilled set of a method on a problem."""
    state, total = method.init(problem), method.total_steps(problem)
    if total:
        with reporter.task(type(method).__name__, total) as tick:
            for _ in range(total):
                state = method.step(problem, state)
                tick(1)
    return method.finish(problem, state)

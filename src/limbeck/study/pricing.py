"""What a study costs, from what its file states: no data are opened."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from limbeck.study.graph import Graph
from limbeck.study.kinds import KINDS
from limbeck.study.spec import Scale

#: Assumed rates in operations (multiply-adds counted twice) per second. CPU: two cores of a server running eager float32 convolutions, of the order that
#: docs/results/speed.md measures. GPU: a tenth of what a data-center GPU of 2020-2024 multiplies in bfloat16; small networks do not fill it. Not measured here.
CPU_RATE, GPU_RATE = 1.5e11, 3e13
#: What a gradient step and a task take at least, whatever their arithmetic (CPU; students on a GPU are stacked, so a step of one is shorter).
CPU_STEP, GPU_STEP, TASK = 1e-3, 1e-4, 0.05


@dataclass(frozen=True)
class Line:
    """The tasks of one kind: how many, gradient steps, operations, and seconds at the assumed rate."""

    kind: str
    tasks: int
    steps: int
    operations: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """A scale's price by kind of task. On the paper's scale time is GPU time."""

    scale: str
    lines: tuple[Line, ...]
    rate: float
    gpu: bool
    stated: str

    @property
    def seconds(self) -> float:
        """Of all tasks, one after the other."""
        return sum(line.seconds for line in self.lines)

    @property
    def words(self) -> str:
        """The total and the assumption behind it."""
        amount = f"{self.seconds / 3600:.3g} GPU-hours" if self.gpu else _duration(self.seconds)
        device, step = ("one GPU", GPU_STEP) if self.gpu else ("a CPU", CPU_STEP)
        return f"about {amount} on {device}, assuming {self.rate:.2g} operations a second (--rate sets another) and at least {1e3 * step:g} ms a step"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "seconds": self.seconds, "words": self.words}


def price(graph: Graph, name: str, scale: Scale, keys: set[str], rate: float | None = None) -> Estimate:
    """The price of some of a graph's tasks."""
    gpu = name == "paper"
    assumed = rate or (GPU_RATE if gpu else CPU_RATE)
    lines: Mapping[str, list[float]] = {kind: [0, 0, 0.0, 0.0] for kind in KINDS}
    for task in graph.tasks.values():
        if task.key in keys:
            cost = KINDS[task.kind].price(task, scale.data)
            seconds = TASK + max(cost.operations / assumed, cost.steps * (GPU_STEP if gpu else CPU_STEP))
            for place, amount in enumerate((1, cost.steps, cost.operations, seconds)):
                lines[task.kind][place] += amount
    found = tuple(Line(kind, int(tasks), int(steps), operations, seconds) for kind, (tasks, steps, operations, seconds) in lines.items() if tasks)
    return Estimate(name, found, assumed, gpu, scale.cost)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"

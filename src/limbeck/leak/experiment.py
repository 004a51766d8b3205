"""The interface of the memorization experiments: options by scale, a price before the work, the work, and how its numbers are drawn."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from limbeck import store
from limbeck.cache import Cache
from limbeck.errors import FileFormatError, OptionError, nearest
from limbeck.leak.solvers import default_start, linear_adam
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.train.plan import threads
from limbeck.types.measurement import Measurement, Quantity
from limbeck.types.plan import ExecutionPlan

Scale = Literal["smoke", "cpu", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "cpu", "paper")
_KIND = "part of a leak experiment"


class LeakOptions(BaseModel):
    """Options of an experiment: plain values. Lists are tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    repeats: int = Field(5, ge=1, description="independent repeats: data, labels and initializations")


@dataclass(frozen=True)
class Chart:
    """How to draw one quantity of a measurement, as data; `limbeck.report` draws it.

    - ``heat``: axis `x` across, axis `y` up, the quantity as shade; `curves` (names in the measurement's settings under ``curves``, points [[x, y], ...]) on top;
    - ``lines``: axis `x` across, the quantity up, one line for each coordinate of axis `color`, bands where there are intervals;
    - ``regions``: `x` and `y` span a plane whose class number the quantity gives; the settings' ``points`` are drawn into it.

    `panel` names an axis whose coordinates get a drawing each; `where` fixes axes at a coordinate; other axes are averaged.
    """

    name: str
    title: str
    quantity: str
    kind: Literal["heat", "lines", "regions"]
    x: str
    y: str | None = None
    color: str | None = None
    panel: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    curves: tuple[str, ...] = ()
    log_x: bool = False
    log_y: bool = False
    reading: str = ""


@dataclass(frozen=True)
class Work:
    """What an experiment costs, in floating-point operations by kind: matrix products of float32 Adam on linear models, of float64 Newton, and of networks that
    train through the engine. `steps` counts optimizer steps of networks, whose overhead is what costs while they are small; `cells` students."""

    adam: float | int = 0
    newton: float | int = 0
    network: float | int = 0
    steps: float | int = 0
    cells: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, name) + getattr(other, name) for name in ("adam", "newton", "network", "steps", "cells")))

    def __mul__(self, times: int) -> "Work":
        return Work(*(getattr(self, name) * times for name in ("adam", "newton", "network", "steps", "cells")))


@dataclass(frozen=True)
class Bench:
    """What an experiment runs on: its named random streams, the plan of its arithmetic, where finished parts are kept, and who is told of progress.

    `spent` collects the processor seconds of every part that is used, whenever it was made: a figure that other programs on the machine do not change."""

    streams: Streams
    plan: ExecutionPlan
    cache: Cache
    reporter: Reporter = SILENT
    spent: list[float] = field(default_factory=list)

    def remembered(self, task: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that `make` returns, kept under the streams, the plan and `task` (plain JSON that says all that decides them): a killed run goes on."""
        about = {"streams": [self.streams.root, *self.streams.path], "plan": self.plan.model_dump(exclude={"reason"}), **task}
        path = self.cache.path("leak", self.cache.key("leak", about), ".safetensors")
        try:
            header, made = store.load(path, _KIND)
        except FileFormatError:
            begun = time.process_time()
            made = make()
            header = {"kind": _KIND, "task": dict(task), "cpu_seconds": time.process_time() - begun}
            store.save(path, header, made)
        self.spent.append(float(header["cpu_seconds"]))
        return made

    def within(self, *names: str | int) -> "Bench":
        """The same bench with the streams below a name."""
        return replace(self, streams=self.streams[names])


@dataclass(frozen=True)
class Experiment:
    """One named experiment.

    `run(options, bench)` measures; `work(options)` says what that will take. `headline` names the scalar quantities that the terminal shows. `version` is raised
    whenever a number could change: finished parts are kept under it.
    """

    name: str
    title: str
    question: str
    source: str
    options: type[LeakOptions]
    scales: Mapping[str, LeakOptions]
    run: Callable[[Any, Bench], Measurement]
    work: Callable[[Any], Work]
    charts: tuple[Chart, ...]
    headline: tuple[str, ...] = ()
    version: int = 1

    def configured(self, scale: str, changes: Sequence[str] = ()) -> LeakOptions:
        """The options of a scale, changed by ``key=value`` texts (lists joined by +). Raises `OptionError`, one sentence, for anything that does not fit."""
        if scale not in self.scales:
            raise OptionError(f"experiment {self.name!r} has no scale {scale!r}; {nearest(scale, self.scales)}")
        values = self.scales[scale].model_dump()
        for change in changes:
            key, equals, value = (part.strip() for part in change.partition("="))
            if not equals or key not in values:
                raise OptionError(f"experiment {self.name!r} has no option {key!r}; {nearest(key, values)}, written key=value")
            values[key] = value.split("+") if isinstance(values[key], tuple | list) else value
        try:
            return self.options(**values)
        except ValidationError as problem:
            fault = problem.errors()[0]
            raise OptionError(
                f"option {fault['loc'][0]} of experiment {self.name!r}: {fault['msg'][:1].lower()}{fault['msg'][1:]}, got {fault['input']!r}"
            ) from None

    def measure(self, options: LeakOptions, bench: Bench) -> Measurement:
        """Runs, and adds to the measurement what it ran with and how long it took (parts from the cache take no time)."""
        begun = time.perf_counter()
        with threads(bench.plan.threads):
            made = self.run(options, bench.within(self.name))
        settings = {
            "options": options.model_dump(mode="json"),
            "seed": bench.streams.root,
            "plan": bench.plan.model_dump(),
            "version": self.version,
            "source": self.source,
            "cpu_seconds": sum(bench.spent),
            **made.settings,
        }
        return replace(made, settings=settings, seconds=time.perf_counter() - begun)


def seconds_for(work: Work, plan: ExecutionPlan) -> float:
    """About how long a piece of work takes on this machine, from short probes of its three kinds (half a second). Good to a factor of about two: sizes differ in
    how well they fill the cache, and other programs may want the cores."""
    with threads(plan.threads):
        device = torch.device(plan.device)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1000, 200, generator=generator).to(device)
        start = default_start(16, 200, 2, generator).to(device)
        labels = torch.arange(1000, device=device) % 2

        def adam() -> None:
            linear_adam(x, labels, torch.full((16,), 1000), start, lr=1e-3, steps=5)

        double = x.double()
        tall, wide = double.new_ones(200, 32), double.new_ones(1000, 32)

        def products() -> None:
            double @ tall, double.T @ wide

        matrix, hidden = torch.randn(512, 256, generator=generator).to(device), torch.randn(256, 256, generator=generator).to(device)

        def layer() -> None:
            torch.relu(matrix @ hidden) @ hidden.T

        small = torch.zeros(64, device=device)

        def operation() -> None:
            small + small

        rates = (
            4.0 * 1000 * 200 * 16 * 5 / _timed(adam, 10, device),
            # Newton does as much beside its products as in them
            0.5 * 4.0 * 1000 * 200 * 32 / _timed(products, 20, device),
            # measured on the MLPs and transformers here: a third of a bare product's speed in a training step
            0.33 * 4.0 * 512 * 256 * 256 / _timed(layer, 20, device),
        )
        # measured: a step of a small stack takes as long as 900 bare operations, with autograd, vmap and the update
        step = 900 * _timed(operation, 200, device)
    return work.adam / rates[0] + work.newton / rates[1] + work.network / rates[2] + work.steps * step


def _timed(function: Callable[[], None], times: int, device: torch.device) -> float:
    """The shortest of several timings: what other programs on the machine disturb least."""
    function()
    best = math.inf
    for _ in range(times):
        begun = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best


def over_repeats(values: np.ndarray | Tensor, axes: tuple[str, ...], unit: str = "fraction") -> Quantity:
    """The mean over the first side with a 95 % Student interval over repeats. NaN (a cell that was not identifiable or did not converge) stays NaN for all."""
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    count = len(array)
    mean = np.asarray(array.mean(0))
    if count < 2:
        return Quantity(mean, axes, unit)
    half = float(t.ppf(0.975, count - 1)) * array.std(0, ddof=1) / count**0.5
    return Quantity(mean, axes, unit, np.asarray(mean - half), np.asarray(mean + half), "repeats (data, labels, initializations)")


def crossing(x: np.ndarray, y: np.ndarray, level: float, *, rising: bool) -> float:
    """Where y (linear between its points, NaN left out) first rises to `level` along x, or first falls below it; NaN where it never does.

    At a start already beyond the level nothing was crossed, so the answer is NaN as well: the place is not known.
    """
    known = ~np.isnan(y)
    x, y = np.asarray(x, dtype=np.float64)[known], np.asarray(y, dtype=np.float64)[known]
    beyond = y >= level if rising else y < level
    places = np.flatnonzero(beyond)
    if len(places) == 0 or places[0] == 0:
        return float("nan")
    after = int(places[0])
    before = after - 1
    return float(x[before] + (level - y[before]) / (y[after] - y[before]) * (x[after] - x[before]))

"""Runs a memorization experiment by name: options, price, plan, measurement, record."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from limbeck import store
from limbeck.cache import Cache
from limbeck.errors import FileFormatError, OptionError
from limbeck.leak import EXPERIMENTS
from limbeck.leak.experiment import Bench, Experiment, LeakOptions, Work, seconds_for
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.types.measurement import Measurement
from limbeck.types.plan import ExecutionPlan

RECORD = "measurement.json"


@dataclass(frozen=True)
class Prepared:
    """An experiment with its options, what it will cost, and the plan of its arithmetic."""

    experiment: Experiment
    options: LeakOptions
    plan: ExecutionPlan
    seed: int

    @property
    def work(self) -> Work:
        """Operations by kind, and students."""
        return self.experiment.work(self.options)

    @property
    def seconds(self) -> float:
        """About how long it takes here when nothing is cached: see `limbeck.leak.experiment.seconds_for`."""
        return seconds_for(self.work, self.plan)


def prepare(
    name: str, scale: str = "cpu", changes: Sequence[str] = (), *, seed: int = 0, device: str = "auto", threads: int | None = None
) -> Prepared:
    """Checks everything before any work is done; raises `OptionError`, one sentence."""
    experiment: Experiment = EXPERIMENTS[name]
    options = experiment.configured(scale, changes)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise OptionError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise OptionError("device 'cuda' was asked for, but this machine has no usable GPU; use --device cpu")
    return Prepared(experiment, options, ExecutionPlan(device=device, threads=threads or torch.get_num_threads(), chunk=0), seed)


def run(prepared: Prepared, out: Path | None = None, *, cache: Cache | None = None, reporter: Reporter = SILENT) -> Measurement:
    """Measures; finished parts come from the cache, so that the same command goes on where it was stopped. Writes ``out/measurement.json``."""
    bench = Bench(Streams(prepared.seed)["leak"], prepared.plan, cache or Cache(), reporter)
    measurement = prepared.experiment.measure(prepared.options, bench)
    if out is not None:
        store.write_json(out / RECORD, measurement.to_dict())
    return measurement


def read(path: Path) -> Measurement:
    """A measurement that `run` wrote; raises `FileFormatError` for anything else."""
    try:
        return Measurement.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as problem:
        raise FileFormatError(f"{str(path)!r} cannot be read ({problem}); use an intact {RECORD}") from None

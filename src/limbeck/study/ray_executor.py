"""The same graph on a Ray cluster (Moritz et al. 2018, arXiv 1712.05889): one Ray task for each unit, tried again when its worker dies."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.cache import Cache
from limbeck.errors import LimbeckError, OptionError
from limbeck.progress import Reporter
from limbeck.study.artefacts import Artefacts
from limbeck.study.executors import ExecutorOptions
from limbeck.study.graph import Task, Unit
from limbeck.study.ray_training import lacking, needs, start
from limbeck.study.rows import Row
from limbeck.study.tasks import Premises, Workplace, run_unit

_RETRIES = 5


class RayExecutor:
    """Units as Ray tasks. Workers open the data themselves and write artefacts where `premises` says; only their rows travel back.

    Without an address a local Ray is started, and stopped again by `close`. It does ``options.workers`` units at once, and has room for the workers of any expert of
    the `units` to come that several train together. A task whose worker dies is tried again, up to five times; one that fails for a reason of its own is not, since
    it would fail again.
    """

    talks = False

    def __init__(self, options: ExecutorOptions, premises: Premises, reporter: Reporter, threads: int, units: Sequence[Unit] = ()) -> None:
        try:
            import ray
        except Exception:
            raise OptionError("--executor ray needs the 'ray' package, which is not installed; pip install 'limbeck[ray]'") from None
        self._ray = ray
        self._premises = vars(premises)
        self._units: dict[Any, Unit] = {}
        self._own = not ray.is_initialized()
        wanted = _most(units)
        # on a local cluster the number of workers says how many units run at once; elsewhere each takes as many cores as its plan has threads
        cores = threads if options.address is not None else max(1, math.ceil(wanted.get("CPU", 0) / options.workers))
        if self._own:
            _connect(ray, options, cores, reporter)
        try:
            _check_room(ray, options, wanted, reporter)
        except OptionError:
            self.close()
            raise
        remote = ray.remote(num_cpus=cores, num_gpus=options.gpus, max_retries=_RETRIES, retry_exceptions=False)
        self._work = remote(_work)

    def submit(self, unit: Unit) -> None:
        """Takes a unit. One that is itself trained by several workers only waits for them, so it takes no core."""
        work = self._work.options(num_cpus=0, num_gpus=0) if any(task.settings.get("workers", 1) > 1 for task in unit) else self._work
        self._units[work.remote([task.to_dict() for task in unit], self._premises)] = unit

    def wait(self) -> tuple[Unit, list[Row]]:
        """The next finished unit."""
        (ready,), _ = self._ray.wait(list(self._units), num_returns=1)
        unit = self._units.pop(ready)
        try:
            answer: dict[str, Any] = self._ray.get(ready)
        except self._ray.exceptions.WorkerCrashedError:
            raise LimbeckError(
                f"the worker of {unit[0].kind} {unit[0].words} died {_RETRIES + 1} times; look for a lack of memory, and resume"
            ) from None
        except self._ray.exceptions.RayError as error:
            raise LimbeckError(
                f"{unit[0].kind} {unit[0].words} failed on Ray: {str(error).strip().splitlines()[-1]}; mend that, and resume"
            ) from None
        if "problem" in answer:
            raise LimbeckError(answer["problem"])
        rows: list[Row] = answer["rows"]
        return unit, rows

    def close(self) -> None:
        """Gives up what is under way, and stops the local Ray that this started."""
        for reference in self._units:
            self._ray.cancel(reference, force=True)
        self._units.clear()
        if self._own:
            self._ray.shutdown()


def _most(units: Sequence[Unit]) -> dict[str, int]:
    """What the most demanding expert that several workers train together takes; nothing where there is none."""
    each = [needs(task.settings) for unit in units for task in unit if task.settings.get("workers", 1) > 1]
    return {resource: max(taken.get(resource, 0) for taken in each) for resource in sorted({name for taken in each for name in taken})}


def _check_room(ray: Any, options: ExecutorOptions, wanted: Mapping[str, int], reporter: Reporter) -> None:
    """A local Ray that lacks what an expert's workers need would wait for ever; a cluster may grow, so there it is only told."""
    if words := lacking(ray, wanted):
        if options.address is None:
            raise OptionError(f"an expert that several workers train together needs {words} here; use fewer workers in the study, or --address")
        reporter.note(f"an expert that several workers train together needs {words} in the cluster now; it waits until the cluster grows")


def _connect(ray: Any, options: ExecutorOptions, cores: int, reporter: Reporter) -> None:
    if options.address is not None:
        try:
            start(ray, address=options.address)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise OptionError(
                f"no Ray cluster at {options.address!r} ({reason}); start one with `ray start --head`, or leave --address out"
            ) from None
        return
    reporter.note(f"no --address was given: a local Ray with {options.workers} workers is started for this run")
    gpus = {} if options.gpus else {"num_gpus": 0}
    start(ray, address="local", num_cpus=options.workers * cores, include_dashboard=False, **gpus)


def _work(tasks: list[dict[str, Any]], premises: dict[str, Any]) -> dict[str, Any]:
    """What a worker does: a unit, and its rows, or the sentence of a problem, as the answer."""
    given = Premises(**premises)
    artefacts = Artefacts(Cache(Path(given.cache)), given.url)
    try:
        return {"rows": run_unit(tuple(Task.from_dict(task) for task in tasks), Workplace(given, artefacts))}
    except LimbeckError as problem:
        return {"problem": str(problem)}

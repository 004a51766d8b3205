"""Leave-one-out through the engine against one model after another: seconds of the whole job, on the same threads.

    python -m benchmarks.influence [--points 100] [--job-steps 300] [--measured-steps 4] [--models 2] [--rounds 3] [--threads 1] [--processor-time]

Both sides train N + 1 networks (ConvNet of width 32, full batches of N images at 28x28, SGD with momentum, float32) and take turns in one process. The plain side
is an eager loop over a module and `torch.optim.SGD` that takes the omitted image out of the batch. Step times are measured over a few steps of a few models and
scaled to the job: compiling, which the engine does once, is counted once. `--processor-time` counts seconds of processor time, children included, instead of
seconds of the clock: for a machine that others use at the same time, with one thread (and TORCHINDUCTOR_COMPILE_THREADS=1, so that compilers are children).
``benchmarks/results/influence.json`` holds what it printed with `--processor-time`.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.speed import usual_allocator
from limbeck.analyze.leave_one_out import LeaveOneOutOptions, without
from limbeck.data.tables import ArrayTable
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import Job, fit_many
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.types.pixels import PixelSpace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("points", 100), ("job-steps", 300), ("measured-steps", 4), ("models", 2), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--processor-time", action="store_true")
    print(json.dumps(measure(parser.parse_args()), indent=2))


def measure(given: argparse.Namespace) -> dict[str, object]:
    torch.set_num_threads(given.threads)
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (given.points, 1, 28, 28), dtype=np.uint8))
    table = ArrayTable(images, np.arange(given.points) % 10, [str(k) for k in range(10)])
    network, examples = Network(parse_model("convnet:width=32"), (1, 28, 28), 10), Examples.of_table(table, PixelSpace())
    total = given.points + 1
    plan = plan_for(network, given.points * given.job_steps * total, batch=given.points, threads=given.threads)
    plan = plan.model_copy(update={"precision": "float32"})
    start = network.init(Streams(0))
    options = LeaveOneOutOptions(steps=given.measured_steps)
    inputs, labels = images.float() / 255, torch.from_numpy(table.labels.copy())
    models = min(given.models, given.points)

    def ours(steps: int) -> None:
        jobs = [Job(start, without(examples, point), Streams(0)) for point in range(models)]
        fit_many(network, jobs, options.recipe.with_(batch_size=given.points, steps=steps), plan)

    def plain(steps: int) -> None:
        for point in range(models):
            module, kept = network.loaded(start).train(), torch.arange(given.points) != point
            rest, wanted = inputs[kept], labels[kept]
            optimizer = torch.optim.SGD(module.parameters(), lr=options.lr, momentum=options.momentum)
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(module(rest), wanted).backward()
                optimizer.step()

    clock = processor_time if given.processor_time else time.perf_counter
    warm = timed(lambda: ours(1), clock)
    timed(lambda: plain(1), clock)
    own, theirs = [], []
    for _ in range(given.rounds):
        with usual_allocator():
            theirs.append(timed(lambda: plain(given.measured_steps), clock) / given.measured_steps / models)
        own.append(timed(lambda: ours(given.measured_steps), clock) / given.measured_steps / models)
    step, plain_step = statistics.median(own), statistics.median(theirs)
    extra = max(0.0, warm - models * step)
    job, plain_job = extra + total * given.job_steps * step, total * given.job_steps * plain_step
    return {
        "what": f"leave-one-out of {given.points} images, {given.job_steps} full-batch steps, ConvNet of width 32, 28x28",
        "plain_step_ms": 1e3 * plain_step,
        "step_ms": 1e3 * step,
        "ratios_of_steps": [a / b for a, b in zip(theirs, own, strict=True)],
        "warm_up_s": extra,
        "plain_job_s": plain_job,
        "job_s": job,
        "ratio": plain_job / job,
        "plan": plan.model_dump(),
        "threads": given.threads,
        "clock": "processor time" if given.processor_time else "wall",
        "rounds": given.rounds,
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }


def timed(work: Callable[[], None], clock: Callable[[], float]) -> float:
    started = clock()
    work()
    return clock() - started


def processor_time() -> float:
    """Seconds of processor time of this process and of its finished children."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


if __name__ == "__main__":
    main()

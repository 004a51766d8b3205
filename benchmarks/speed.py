"""Speed of training and scoring against the plain reference, on any device: cases, alternating rounds, ratios, memory, distance to the machine's limit.

Both sides run in one process and take turns. On a CPU the reference runs with the C library's usual allocator settings, which limbeck changes for itself.
A job's time counts compiling: ``warm-up + students x steps x step time``, from step times measured over a few steps; only such a sum is scaled.
"""

import ctypes
import gc
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import reference
from limbeck.data.tables import ArrayTable
from limbeck.evaluate.protocols import DSA_ALL
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import Job, fit_many, predict
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

SHAPES = {"28x28x1": (1, 28, 28), "32x32x3": (3, 32, 32)}
DSA_EPOCHS = 1000


@dataclass(frozen=True)
class Case:
    """What is trained: images per class (0: real data in large batches), image shape, students at once, and steps of one measured round."""

    name: str
    shape: str
    images: int
    batch: int
    students: int
    steps: int
    job_steps: int
    augmented: bool = True


def cases(students: tuple[int, ...], steps: Callable[[int], int]) -> list[Case]:
    """Evaluation of `students` students at 1, 10 and 50 images per class, and one expert epoch; `steps` of a measured round by batch size."""
    found = []
    for shape in SHAPES:
        for ipc in (1, 10, 50):
            images = 10 * ipc
            batch = min(images, 256)
            job = DSA_EPOCHS * -(-images // 256)
            found += [Case(f"{count} students, IPC {ipc}, {shape}", shape, images, batch, count, steps(batch), job) for count in students]
    found += [Case(f"expert epoch, {shape}", shape, 2560, 256, 1, steps(256), 235, augmented=False) for shape in SHAPES]
    return found


def measure(case: Case, device: str, rounds: int, plan: ExecutionPlan | None = None) -> dict[str, Any]:
    """Seconds of both sides round by round, and what follows from them."""
    shape = SHAPES[case.shape]
    network, table = Network(parse_model("convnet"), shape, 10), _table(shape, case.images)
    recipe = Recipe(batch_size=256, steps=case.steps, augment=DSA_ALL if case.augmented else "none")
    # as a job plans it: some twenty students, or the five epochs of an expert
    plan = plan or plan_for(network, case.job_steps * case.batch * (20 if case.augmented else 5), batch=case.batch, device=device)
    examples = Examples.of_table(table, PixelSpace())
    images, labels = table.images.to(device).float() / 255, F.one_hot(torch.from_numpy(table.labels.copy()), 10).float().to(device)
    rng = np.random.default_rng(0)

    def ours(steps: int, students: int) -> None:
        jobs = [Job(network.init(Streams(s)), examples, Streams(s)) for s in range(students)]
        fit_many(network, jobs, recipe.with_(steps=steps), plan)

    def plain(steps: int) -> None:
        reference.train(images, labels, steps=steps, batch_size=256, augmented=case.augmented, rng=rng)

    # models that train at once are measured together; one after another, one is measured
    together = min(case.students, plan.models)
    warm = _timed(lambda: ours(5, together), device)[0]
    _timed(lambda: plain(2), device)
    theirs, own, memory = [], [], {"reference": 0.0, "limbeck": 0.0}
    for _ in range(rounds):
        with usual_allocator():
            seconds, peak = _timed(lambda: plain(case.steps), device)
        theirs.append(seconds / case.steps)
        memory["reference"] = max(memory["reference"], peak)
        seconds, peak = _timed(lambda: ours(case.steps, together), device)
        own.append(seconds / case.steps / together)
        memory["limbeck"] = max(memory["limbeck"], peak)
    ratios = [a / b for a, b in zip(theirs, own, strict=True)]
    step, plain_step = statistics.median(own), statistics.median(theirs)
    extra = max(0.0, warm - 5 * step * together)
    job, plain_job = extra + case.students * case.job_steps * step, case.students * case.job_steps * plain_step
    return {
        "case": case.name,
        "reference_ms": 1e3 * plain_step,
        "limbeck_ms": 1e3 * step,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "warm_up_s": extra,
        "job_s": job,
        "reference_job_s": plain_job,
        "job_ratio": plain_job / job,
        "peak_mb": {side: value / 1e6 for side, value in memory.items()},
        "tflops": 3 * network.flops() * case.batch / step / 1e12,
        "plan": plan.model_dump(),
    }


def measure_scoring(shape: str, device: str, rounds: int, *, images: int, states: int = 1) -> dict[str, Any]:
    """Forward passes alone: `states` networks over `images` images (labeling a training set, scoring snapshots)."""
    network, table = Network(parse_model("convnet"), SHAPES[shape], 10), _table(SHAPES[shape], images)
    plan = plan_for(network, images * states, device=device)
    state, plain_net = network.init(Streams(0)), reference.PlainConvNet(SHAPES[shape][0]).to(device)
    inputs = table.images.to(device).float() / 255

    def ours() -> None:
        for _ in range(states):
            predict(network, state, table, PixelSpace(), plan)

    def plain() -> None:
        for _ in range(states):
            reference.predict(plain_net, inputs)

    _timed(ours, device)
    _timed(plain, device)
    ratios, own, memory = [], [], {"reference": 0.0, "limbeck": 0.0}
    for _ in range(rounds):
        with usual_allocator():
            theirs, peak = _timed(plain, device)
        memory["reference"] = max(memory["reference"], peak)
        seconds, peak = _timed(ours, device)
        memory["limbeck"] = max(memory["limbeck"], peak)
        own.append(seconds)
        ratios.append(theirs / seconds)
    rate = images * states / statistics.median(own)
    return {
        "case": f"{'label' if states == 1 else f'score {states} snapshots,'} {images:,} images, {shape}",
        "images_per_second": rate,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "peak_mb": {side: value / 1e6 for side, value in memory.items()},
        "tflops": network.flops() * rate / 1e12,
        "plan": plan.model_dump(),
    }


def limits(device: str, precision: torch.dtype) -> dict[str, float]:
    """What the machine can do, measured: TFLOP/s of a large matrix product, and of the ConvNet's three convolutions alone, forward and backward (28x28x1)."""
    size = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=precision) for _ in range(2))
    with torch.no_grad():
        matmul = min(_timed(lambda: a @ b, device)[0] for _ in range(5))
    batch = 32 if device == "cpu" else 2048
    seconds, operations = 0.0, 0.0
    for channels, side, first in ((1, 32, True), (128, 16, False), (128, 8, False)):
        x = torch.randn(batch, channels, side, side, device=device, dtype=precision).contiguous(memory_format=torch.channels_last)
        w = torch.randn(128, channels, 3, 3, device=device, dtype=precision).contiguous(memory_format=torch.channels_last)
        out = F.conv2d(x, w, padding=1)
        wanted = [False, True, False] if first else [True, True, False]

        def both(x: torch.Tensor = x, w: torch.Tensor = w, out: torch.Tensor = out, wanted: list[bool] = wanted) -> None:
            F.conv2d(x, w, padding=1)
            torch.ops.aten.convolution_backward(out, x, w, [0], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted)

        both()
        seconds += min(_timed(both, device)[0] for _ in range(10))
        operations += (1 + sum(wanted)) * 2 * 9 * channels * 128 * side * side * batch
    return {
        "matmul_tflops": 2 * size**3 / matmul / 1e12,
        "convolution_tflops": operations / seconds / 1e12,
        "convolution_ms_per_image": 1e3 * seconds / batch,
    }


def machine(device: str) -> str:
    """One line that says what was measured."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{name}; torch {torch.__version__}; {platform.system()} {platform.machine()}; {time.strftime('%Y-%m-%d')}"


def table_of(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'case':38} {'reference':>10} {'limbeck':>9} {'ratio':>6}  {'spread':>11} {'whole job':>9} {'compile':>8} {'TFLOP/s':>8} {'peak MB':>13}"
    ]
    for row in rows:
        spread = f"{min(row['ratios']):.1f}-{max(row['ratios']):.1f}"
        memory = f"{row['peak_mb']['reference']:.0f} / {row['peak_mb']['limbeck']:.0f}"
        if "job_ratio" in row:
            times = f"{row['reference_ms']:7.1f} ms {row['limbeck_ms']:6.1f} ms"
            job = f"{row['job_ratio']:8.1f}x {row['warm_up_s']:6.1f} s"
        else:
            times, job = f"{row['images_per_second']:13,.0f} img/s", f"{'-':>9} {'-':>8}"
        lines.append(f"{row['case']:38} {times:>20} {row['ratio']:5.1f}x  {spread:>11} {job} {row['tflops']:8.2f} {memory:>13}")
    return "\n".join(lines)


@contextmanager
def usual_allocator() -> Iterator[None]:
    """glibc's allocator as a program has it that sets nothing: large blocks go back to the system (its dynamic threshold ends at 32 MB)."""
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 << 20), libc.mallopt(-1, 64 << 20)
        libc.malloc_trim(0)
    except (OSError, AttributeError):
        libc = None
    try:
        yield
    finally:
        if libc is not None:
            libc.mallopt(-3, 1 << 30), libc.mallopt(-1, (1 << 31) - 1)


def _timed(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds, and peak memory in bytes above what was held before (of the device, or of the process)."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, started = torch.cuda.memory_allocated(), time.perf_counter()
        work()
        torch.cuda.synchronize()
        return time.perf_counter() - started, float(torch.cuda.max_memory_allocated() - before)
    done, highest, before = threading.Event(), [0], _resident()

    def watch() -> None:
        while not done.wait(0.05):
            highest[0] = max(highest[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, float(max(0, highest[0] - before))


def _resident() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _table(shape: tuple[int, int, int], images: int) -> ArrayTable:
    pixels = torch.randint(0, 256, (images, *shape), dtype=torch.uint8, generator=Streams(0).torch("pixels"))
    return ArrayTable(pixels, [i % 10 for i in range(images)], [str(i) for i in range(10)])

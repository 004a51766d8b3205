"""How long a step of back-propagation through training (bptt) takes on this machine's CPU, and how its memory grows with the length of the unroll, at 10 images
per class on 28x28 gray images with the ConvNet: ``python -m benchmarks.methods.unrolling`` (under three minutes on two quiet cores) prints a table and writes
``benchmarks/results/methods-unrolling.json``.

The plain step is the usual one, as with the `higher` library: ordinary eager float32 training up to the window, then a window whose every step is taken with
``create_graph=True`` on the whole batch, then one backward pass through all of it. Limbeck's is the method's own, under the plan that is chosen for a long job;
compiling is timed apart. Both take W = 10 of T = 20 steps of Adam, and 256 real images. They alternate, each in a process of its own, since limbeck's allocator
setting (`limbeck.train.plan`) holds for a whole process; the ratio under the same allocator is that of one plain step in limbeck's process. Memory is the peak
of a fresh process that takes one eager step, for a growing T under the same W.
"""

import argparse
import json
import platform
import statistics
import time
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peak import peak_megabytes
from limbeck.data.tables import ArrayTable
from limbeck.labels.rules import LabelRule
from limbeck.methods.bptt import BPTT, BPTTOptions
from limbeck.methods.driver import State, Turn
from limbeck.methods.problem import Problem
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.train.plan import plan_for, threads
from limbeck.train.updates import adam_step
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

CLASSES, STORED, REAL, WINDOW = 10, 100, 256, 10
UNROLLS = (20, 40, 80)
TARGET = Path(__file__).parent.parent / "results" / "methods-unrolling.json"


@cache
def problem(width: int, ipc: int, cores: int, eager: bool) -> Problem:
    """Random images of ten classes, and the plan of a long job or an eager one with the same chunk."""
    labels = torch.arange(CLASSES).repeat_interleave(STORED)
    pixels = torch.randint(0, 256, (len(labels), 1, 28, 28), dtype=torch.uint8, generator=Streams(0).torch("pixels"))
    table = ArrayTable(pixels, labels.numpy(), [str(number) for number in range(CLASSES)])
    network = Network(parse_model(f"convnet-w{width}"), table.shape, CLASSES)
    plan = plan_for(network, 100_000_000, threads=cores)
    return Problem(
        train=table,
        validation=table,
        network=network,
        pixels=PixelSpace(),
        counts=(ipc,) * CLASSES,
        rule=LabelRule(kind="hard"),
        recipe=Recipe(steps=1),
        streams=Streams(0),
        plan=ExecutionPlan(chunk=plan.chunk, threads=cores) if eager else plan,
    )


def plain_step(given: Problem, state: State, unroll: int) -> tuple[Tensor, ...]:
    """Gradients of images and labels by an unrolled window."""
    module = given.network.loaded(given.network.init(Streams(1))).train()
    images, labels = (state[name].clone().requires_grad_() for name in ("images", "labels"))
    chosen = torch.randperm(len(given.train), generator=Streams(1).torch("real"))[:REAL]
    real, targets = given.pixels(given.train.read(chosen)), torch.from_numpy(given.train.labels.copy())[chosen]
    parameters: dict[str, Tensor] = {name: parameter.detach() for name, parameter in module.named_parameters()}
    slots: dict[str, Tensor] = {}
    for number in range(1, unroll + 1):
        windowed = number > unroll - WINDOW
        if not windowed or number == unroll - WINDOW + 1:
            parameters = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        loss = F.cross_entropy(torch.func.functional_call(module, parameters, (images,)), labels)
        found = torch.autograd.grad(loss, list(parameters.values()), create_graph=windowed)
        with torch.set_grad_enabled(windowed):
            parameters, slots = adam_step(parameters, dict(zip(parameters, found, strict=True)), slots, lr=1e-3, number=number)
    loss = F.cross_entropy(torch.func.functional_call(module, parameters, (real,)), targets)
    return torch.autograd.grad(loss, (images, labels))


def timed(plain: bool, unroll: int, width: int, ipc: int, cores: int, eager: bool, number: int) -> tuple[float, int]:
    """Seconds of one step, and the most memory (MB) that this process has held."""
    torch.set_num_threads(cores)
    given = problem(width, ipc, cores, eager)
    method = BPTT(BPTTOptions(learn="both", window=WINDOW, unroll=unroll, window_place="end", real_batch=REAL))
    state = method.init(given)
    if plain:
        started = time.perf_counter()
        plain_step(given, state, unroll)
    else:
        with threads(given.plan.threads):
            started = time.perf_counter()
            method.step(given, state, Turn(number, 1.0, given.streams["step", number]))
    return time.perf_counter() - started, peak_megabytes()


def main() -> None:
    """Times both sides alternately, then measures memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    context, size = get_context("spawn"), (given.width, given.ipc, given.threads)
    with context.Pool(1) as plain_pool, context.Pool(1) as own_pool:
        first, _ = own_pool.apply(timed, (False, UNROLLS[0], *size, False, 0))
        plain_pool.apply(timed, (True, UNROLLS[0], *size, False, 0))
        plain, own = [], []
        for number in range(1, given.rounds + 1):
            plain.append(plain_pool.apply(timed, (True, UNROLLS[0], *size, False, number)))
            own.append(own_pool.apply(timed, (False, UNROLLS[0], *size, False, number)))
        alike, _ = own_pool.apply(timed, (True, UNROLLS[0], *size, False, 0))
    memory = {}
    for unroll in UNROLLS:
        with context.Pool(1) as pool:
            memory[unroll] = pool.apply(timed, (False, unroll, *size, True, 0))[1]
    ratios = [one[0] / other[0] for one, other in zip(plain, own, strict=True)]
    seconds = statistics.median(value for value, _ in own)
    result = {
        "machine": f"{given.threads} threads, {platform.machine()}, torch {torch.__version__}",
        "case": f"ConvNet-D3-W{given.width} on 28x28x1, {given.ipc} images per class, W={WINDOW}, T={UNROLLS[0]}, {REAL} real images, Adam, images and labels",
        "plan": problem(*size, False).plan.model_dump(),
        "plain_s": round(statistics.median(value for value, _ in plain), 2),
        "limbeck_s": round(seconds, 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio_same_allocator": round(alike / seconds, 2),
        "compile_s": round(max(0.0, first - seconds), 1),
        "plain_peak_mb": plain[-1][1],
        "peak_mb_by_unroll": memory,
        "peak_growth": round(max(memory.values()) / min(memory.values()), 3),
    }
    print(json.dumps(result, indent=2))
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""How long a step of FRePo takes on this machine's CPU at 1 and at 10 images per class, on 28x28 gray images with the ConvNet and 512 real images:
``python -m benchmarks.methods.frepo`` (under two minutes on two cores) prints a table and writes ``benchmarks/results/methods-frepo.json``.

The plain step is the same algorithm in ordinary PyTorch: one nn.Module, eager, float32, whole batches, kernels between real images and prototypes. Limbeck's is
the method's own under the plan of a long job; its first step, which compiles, is timed apart. The two alternate, each in a process of its own, since limbeck's
allocator setting (`limbeck.train.plan`) holds for a whole process.
"""

import argparse
import json
import platform
import statistics
import time
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from limbeck.data.tables import ArrayTable
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import State, Turn
from limbeck.methods.frepo import FRePo
from limbeck.methods.problem import Problem
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.train.plan import plan_for, threads
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe

CLASSES, STORED, BATCH, ROUNDS = 10, 300, 512, 7
TARGET = Path(__file__).parent.parent / "results" / "methods-frepo.json"


@cache
def started(ipc: int, cores: int) -> tuple[Problem, FRePo, State]:
    """Random images of ten classes, the plan of a long job, and the method's first state with one network in the pool."""
    labels = torch.arange(CLASSES).repeat_interleave(STORED)
    pixels = torch.randint(0, 256, (len(labels), 1, 28, 28), dtype=torch.uint8, generator=Streams(0).torch("pixels"))
    table = ArrayTable(pixels, labels.numpy(), [str(number) for number in range(CLASSES)])
    network = Network(parse_model("convnet"), table.shape, CLASSES)
    problem = Problem(
        train=table,
        validation=table,
        network=network,
        pixels=PixelSpace(),
        counts=(ipc,) * CLASSES,
        rule=LabelRule(kind="hard"),
        recipe=Recipe(steps=1),
        streams=Streams(0),
        plan=plan_for(network, 100_000_000, threads=cores),
    )
    method = FRePo(FRePo.Options(batch=BATCH, pool=1))
    return problem, method, method.init(problem)


def plain_step(problem: Problem, state: State, number: int) -> None:
    """One step of images and labels and one of the network, as one would write it."""
    module = problem.network.loaded({name: state[f"pool.0.{name}"] for name in problem.network.module.state_dict()}).train()
    chosen = torch.randperm(len(problem.train), generator=Streams(number).torch())[:BATCH]
    real, targets = problem.pixels(problem.train.read(chosen)), F.one_hot(torch.from_numpy(problem.train.labels[chosen.numpy()])) - 1 / CLASSES
    images, labels = state["images"].clone().requires_grad_(), (state["labels"] - 1 / CLASSES).requires_grad_()
    outer, online = torch.optim.Adam([images, labels], lr=0.01), torch.optim.Adam(module.parameters(), lr=3e-4)
    with torch.no_grad():
        seen = module.features(real)  # type: ignore[operator]
    phi = module.features(images)  # type: ignore[operator]
    kernel = phi @ phi.T
    ridge = 1e-6 * kernel.trace() / len(kernel) * torch.eye(len(kernel))
    predicted = (seen @ phi.T).double() @ torch.linalg.solve((kernel + ridge).double(), labels.double())
    first, second = labels.topk(2).values.unbind(1)
    loss = 0.5 * (predicted - targets).square().sum(1).mean() - (first - second).clamp_max(1 / CLASSES).mean()
    images.grad, labels.grad = torch.autograd.grad(loss, (images, labels))
    outer.step()
    (0.5 * (module(images.detach()) - labels.detach()).square().sum(1).mean()).backward()
    online.step()


def timed(ipc: int, plain: bool, cores: int, number: int) -> float:
    """Seconds of one step."""
    torch.set_num_threads(cores)
    problem, method, state = started(ipc, cores)
    begun = time.perf_counter()
    if plain:
        plain_step(problem, state, number)
    else:
        with threads(problem.plan.threads):
            method.step(problem, state, Turn(number, 1.0, problem.streams["step", number]))
    return time.perf_counter() - begun


def measure(ipc: int, cores: int) -> dict[str, Any]:
    """Both sides alternately, after one step of each that is not counted."""
    context = get_context("spawn")
    with context.Pool(1) as plain_pool, context.Pool(1) as own_pool:
        first = own_pool.apply(timed, (ipc, False, cores, 0))
        plain_pool.apply(timed, (ipc, True, cores, 0))
        pairs = [(plain_pool.apply(timed, (ipc, True, cores, n)), own_pool.apply(timed, (ipc, False, cores, n))) for n in range(1, ROUNDS + 1)]
        plan = started(ipc, cores)[0].plan.model_dump()
    plain, own = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = [one / other for one, other in pairs]
    return {
        "plain_ms": round(plain * 1e3, 1),
        "limbeck_ms": round(own * 1e3, 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "first_step_s": round(first, 1),
        "plan": plan,
    }


def main() -> None:
    """Runs both cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=TARGET)
    given = parser.parse_args()
    cases = {}
    for ipc in (1, 10):
        row = cases[f"{ipc} per class"] = measure(ipc, given.threads)
        print(
            f"{ipc} per class: plain {row['plain_ms']} ms, limbeck {row['limbeck_ms']} ms, ratio {row['ratio']} {row['ratios']}, "
            f"first step {row['first_step_s']} s"
        )
    machine = f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}"
    given.out.write_text(json.dumps({"machine": machine, "real_images": BATCH, "cases": cases}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

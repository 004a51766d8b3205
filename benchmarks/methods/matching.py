"""How long a step of gradient matching (dc) and of distribution matching (dm) takes on this machine's CPU, at 10 images per class on 28x28 gray images
with the ConvNet: ``python -m benchmarks.methods.matching`` (under three minutes on two cores) prints a table and writes
``benchmarks/results/methods-matching.json``.

The plain step is written in the manner of the published code: one nn.Module with GroupNorm, eager, float32, whole batches, a loop over classes and over
parameters in Python, one graph for all classes. Limbeck's is the method's own, under the plan that is chosen for a long job; compiling is timed apart. The two
alternate, each in a process of its own, since limbeck's allocator setting (`limbeck.train.plan`) holds for a whole process; the third column is the plain
step in limbeck's process, where it gains from that setting too. A step of dc is one image step and the 50 epochs of training that follow it.
"""

import argparse
import json
import platform
import statistics
import time
from functools import cache
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peak import peak_megabytes
from limbeck.data.augment import DSA
from limbeck.data.tables import ArrayTable
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import Turn
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.train.plan import plan_for, threads
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe

CLASSES, IPC, STORED = 10, 10, 300
ROUNDS = {"dc": 2, "dm": 5}
INNER_EPOCHS, BATCH = 50, 256
TARGET = Path(__file__).parent.parent / "results" / "methods-matching.json"


@cache
def problem(width: int, cores: int) -> Problem:
    """Random images of ten classes, and the plan of a long job."""
    labels = torch.arange(CLASSES).repeat_interleave(STORED)
    pixels = torch.randint(0, 256, (len(labels), 1, 28, 28), dtype=torch.uint8, generator=Streams(0).torch("pixels"))
    table = ArrayTable(pixels, labels.numpy(), [str(number) for number in range(CLASSES)])
    network = Network(parse_model(f"convnet-w{width}"), table.shape, CLASSES)
    return Problem(
        train=table,
        validation=table,
        network=network,
        pixels=PixelSpace(),
        counts=(IPC,) * CLASSES,
        rule=LabelRule(kind="hard"),
        recipe=Recipe(steps=1),
        streams=Streams(0),
        plan=plan_for(network, 100_000_000, threads=cores),
    )


def row_distance(made: Tensor, real: Tensor) -> Tensor:
    """The published distance of one parameter's gradients."""
    if made.ndim == 1:
        return torch.zeros(())
    made, real = made.reshape(len(made), -1), real.reshape(len(real), -1)
    return torch.sum(1 - torch.sum(made * real, dim=-1) / (torch.norm(made, dim=-1) * torch.norm(real, dim=-1) + 1e-6))


def plain_dc(given: Problem, real: Tensor, made: Tensor) -> None:
    """Gradient matching of every class, an image step, and the training that follows."""
    module = given.network.loaded(given.network.init(Streams(1))).train()
    parameters, labels = list(module.parameters()), torch.arange(CLASSES).repeat_interleave(IPC)
    image_steps, network_steps = torch.optim.SGD([made], lr=0.1, momentum=0.5), torch.optim.SGD(parameters, lr=0.01)
    loss = torch.zeros(())
    for number in range(CLASSES):
        shown = real[number * STORED + torch.randperm(STORED, generator=Streams(1).torch(number))[:BATCH]]
        value = F.cross_entropy(module(shown), torch.full((BATCH,), number))
        of_real = [gradient.detach().clone() for gradient in torch.autograd.grad(value, parameters)]
        own = made[number * IPC : (number + 1) * IPC]
        of_made = torch.autograd.grad(F.cross_entropy(module(own), torch.full((IPC,), number)), parameters, create_graph=True)
        for mine, other in zip(of_made, of_real, strict=True):
            loss = loss + row_distance(mine, other)
    image_steps.zero_grad()
    loss.backward()
    image_steps.step()
    for _ in range(INNER_EPOCHS):
        network_steps.zero_grad()
        F.cross_entropy(module(made.detach()), labels).backward()
        network_steps.step()


def plain_dm(given: Problem, real: Tensor, made: Tensor) -> None:
    """Distribution matching of every class under Siamese augmentation, and an image step."""
    module = given.network.loaded(given.network.init(Streams(1))).train().requires_grad_(False)
    augment, image_steps = DSA(siamese=True), torch.optim.SGD([made], lr=1.0, momentum=0.5)
    loss = torch.zeros(())
    for number in range(CLASSES):
        shown = real[number * STORED + torch.randperm(STORED, generator=Streams(1).torch(number))[:BATCH]]
        drawn = augment.draw(1, given.network.shape, Streams(1).torch("augment", number))
        own = augment.apply(made[number * IPC : (number + 1) * IPC], drawn)
        embedded = module.features(augment.apply(shown, drawn)).detach()
        loss = loss + torch.sum((torch.mean(embedded, dim=0) - torch.mean(module.features(own), dim=0)) ** 2)
    image_steps.zero_grad()
    loss.backward()
    image_steps.step()


def timed(case: str, plain: bool, width: int, cores: int, number: int) -> tuple[float, int]:
    """Seconds of one step, and the most memory (MB) that this process has held."""
    torch.set_num_threads(cores)
    given = problem(width, cores)
    if plain:
        real, made = given.pixels(given.train.read(range(len(given.train)))), torch.randn(CLASSES * IPC, 1, 28, 28, generator=Streams(2).torch())
        made.requires_grad_(True)
        started = time.perf_counter()
        (plain_dc if case == "dc" else plain_dm)(given, real, made)
    else:
        method = parse_method(case)
        state = method.init(given)
        with threads(given.plan.threads):
            started = time.perf_counter()
            # every outer loop's first step draws a network: turns 0, 10, 20 ... of dc are alike
            method.step(given, state, Turn(10 * number, 1.0, given.streams["step", number]))
    seconds = time.perf_counter() - started
    return seconds, peak_megabytes()


def measure(case: str, rounds: int, width: int, cores: int) -> dict[str, Any]:
    """Both sides alternately, then the plain step under limbeck's allocator setting."""
    context = get_context("spawn")

    def run(pool: Pool, plain: bool, number: int) -> tuple[float, int]:
        return pool.apply(timed, (case, plain, width, cores, number))

    with context.Pool(1) as plain_pool, context.Pool(1) as own_pool:
        first, _ = run(own_pool, False, 0)
        plain, own = [], []
        for number in range(1, rounds + 1):
            plain.append(run(plain_pool, True, number))
            own.append(run(own_pool, False, number))
        alike, _ = run(own_pool, True, 0)
    ratios = [one[0] / other[0] for one, other in zip(plain, own, strict=True)]
    seconds = statistics.median(value for value, _ in own)
    return {
        "plain_s": round(statistics.median(value for value, _ in plain), 3),
        "limbeck_s": round(seconds, 3),
        "plain_same_allocator_s": round(alike, 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio_same_allocator": round(alike / seconds, 2),
        "first_step_s": round(first, 1),
        "plain_peak_mb": plain[-1][1],
        "limbeck_peak_mb": own[-1][1],
        "rounds": rounds,
        "plan": problem(width, cores).plan.model_dump(),
    }


def main() -> None:
    """Runs both cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, default=128, help="channels of the ConvNet")
    parser.add_argument("--out", type=Path, default=TARGET)
    given = parser.parse_args()
    cases = {}
    print("method  plain s  limbeck s  ratio (rounds)           same allocator  first step s  peak MB plain, limbeck")
    for case, rounds in ROUNDS.items():
        row = cases[case] = measure(case, rounds, given.width, given.threads)
        print(
            f"{case:<6}  {row['plain_s']:>7.2f}  {row['limbeck_s']:>9.2f}  {row['ratio']:>5} {row['ratios']!s:<22}  {row['ratio_same_allocator']:>14}  "
            f"{row['first_step_s']:>12}  {row['plain_peak_mb']}, {row['limbeck_peak_mb']}"
        )
    machine = f"{platform.machine()}, {given.threads} threads, torch {torch.__version__}"
    given.out.write_text(json.dumps({"machine": machine, "width": given.width, "cases": cases}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

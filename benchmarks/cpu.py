"""How fast training is on this machine's CPU: ``python -m benchmarks.cpu`` (about three minutes) prints a table and writes ``benchmarks/results/cpu.json``.

Each case runs a plain loop (one nn.Module, eager, float32, whole batches, in the manner of the published repositories) and limbeck's `fit` under the plan that it
chooses for a long job, alternating in one process; compiling is timed apart. The allocator setting of `limbeck.train.plan` is process-wide, so the plain loop
gains from it too, and the ratio here is smaller than against another program.
"""

import json
import platform
import statistics
import time
from pathlib import Path

import torch

from limbeck.data.tables import ArrayTable
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import fit
from limbeck.train.network import Network
from limbeck.train.plan import plan_for, threads
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe

CASES = {"expert step, 28x28x1, batch 256": ((1, 28, 28), 256, 6), "student step, 28x28x1, batch 100": ((1, 28, 28), 100, 12)}
ROUNDS = 3


def plain_loop(network: Network, examples: Examples, recipe: Recipe, steps: int) -> None:
    """Eager float32 training of one module on whole batches."""
    module = network.loaded(network.init(Streams(0))).train()
    optimizer = torch.optim.SGD(module.parameters(), recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    for _ in range(steps):
        images, labels = examples.batch(torch.arange(recipe.batch_size), torch.device("cpu"))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(images), labels).backward()
        optimizer.step()


def measure(shape: tuple[int, int, int], batch: int, steps: int) -> dict[str, object]:
    """Milliseconds a step of both loops, their ratio round by round, and the seconds that the first compiled steps took."""
    network = Network(parse_model("convnet"), shape, 10)
    images = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=Streams(0).torch("pixels"))
    examples = Examples.of_table(ArrayTable(images, [i % 10 for i in range(batch)], [str(i) for i in range(10)]), PixelSpace())
    recipe = Recipe(batch_size=batch, steps=steps)
    plan = plan_for(network, 1_000_000, batch=batch)
    started = time.perf_counter()
    fit(network, network.init(Streams(0)), examples, recipe.with_(steps=2), Streams(0), plan)
    warm_up = time.perf_counter() - started
    plain, ours = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        with threads(plan.threads):
            plain_loop(network, examples, recipe, steps)
        plain.append((time.perf_counter() - started) / steps * 1e3)
        started = time.perf_counter()
        fit(network, network.init(Streams(0)), examples, recipe, Streams(0), plan)
        ours.append((time.perf_counter() - started) / steps * 1e3)
    ratios = [a / b for a, b in zip(plain, ours, strict=True)]
    return {
        "plain_ms": round(statistics.median(plain), 1),
        "limbeck_ms": round(statistics.median(ours), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "warm_up_s": round(warm_up, 1),
        "plan": plan.model_dump(),
    }


def main() -> None:
    """Runs every case."""
    results = {}
    for name, case in CASES.items():
        results[name] = measure(*case)
        row = results[name]
        print(
            f"{name}: plain {row['plain_ms']} ms, limbeck {row['limbeck_ms']} ms, ratio {row['ratio']} {row['ratios']}, compiled in {row['warm_up_s']} s"
        )
    record = {"machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}", "cases": results}
    target = Path(__file__).parent / "results" / "cpu.json"
    target.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

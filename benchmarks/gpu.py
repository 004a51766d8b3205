"""How fast training and scoring are on one GPU: ``python -m benchmarks.gpu`` (under eight minutes) prints a table and writes ``benchmarks/results/speed/gpu.json``.

Evaluation is measured with 5 and 25 students; our side trains them as the plan for such a job says, and for comparison one after another under the same
plan. The expert of CIFAR-10's size is also trained for an absolute time.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu import finish, parse
from benchmarks.speed import cases, limits, machine, measure, measure_scoring, table_of
from limbeck.data.tables import ArrayTable
from limbeck.experts.trajectory import EXPERT_RECIPE
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import fit
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan

TARGET = Path(__file__).parent / "results" / "speed" / "gpu.json"


def run(rounds: int, device: str = "cuda") -> dict[str, Any]:
    """All cases."""
    rows = []
    for case in cases((5, 25), lambda batch: 50):
        rows.append(measure(case, device, rounds))
        print(table_of(rows[-1:]).splitlines()[-1], flush=True)
        if rows[-1]["plan"]["models"] > 1 and case.images == 100:
            one = ExecutionPlan(**{**rows[-1]["plan"], "models": 1})
            rows.append({**measure(case, device, rounds, one), "case": f"{case.name}, one by one"})
            print(table_of(rows[-1:]).splitlines()[-1], flush=True)
    rows.append(measure_scoring("32x32x3", device, rounds, images=50_000))
    rows.append(measure_scoring("32x32x3", device, rounds, images=10_000, states=20))
    found = {"bfloat16": limits(device, torch.bfloat16), "float32": limits(device, torch.float32)}
    return {"machine": machine(device), "limits": found, "rows": rows, "expert": expert(device)}


def expert(device: str) -> dict[str, float]:
    """Seconds for 20 epochs of a ConvNet on 50,000 images of 32x32x3, compiling included, and the arithmetic rate."""
    network = Network(parse_model("convnet"), (3, 32, 32), 10)
    pixels = torch.randint(0, 256, (50_000, 3, 32, 32), dtype=torch.uint8, generator=Streams(0).torch("pixels"))
    examples = Examples.of_table(ArrayTable(pixels, [i % 10 for i in range(50_000)], [str(i) for i in range(10)]), PixelSpace())
    recipe = EXPERT_RECIPE.with_(epochs=20)
    started = time.perf_counter()
    fit(network, network.init(Streams(0)), examples, recipe, Streams(0), plan_for(network, 10**9, device=device))
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    print(f"expert, 20 epochs of 50,000 images 32x32x3: {seconds:.1f} s with compiling")
    return {"seconds": seconds, "tflops": 3 * network.flops() * 50_000 * 20 / seconds / 1e12}


if __name__ == "__main__":
    given = parse()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu needs a GPU and this machine has none; use python -m benchmarks.cpu")
    finish(run(given.rounds), TARGET, given)

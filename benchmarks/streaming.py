"""Training and labeling from disk: ``python -m benchmarks.streaming`` (about a minute; writes 3,000 JPEG files to a temporary folder).

Images per second of opening (which decodes every file once), of reading decoded images, of labeling and of an expert's training, and the peak of the
process's memory at two sizes: constant means that four times the images need no more. Writes ``benchmarks/results/speed/streaming.json``.
"""

import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch
from PIL import Image

from benchmarks.peak import peak_megabytes
from benchmarks.speed import machine
from limbeck.data.opening import open_source
from limbeck.data.pixels import normalize
from limbeck.data.tables import Subset
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import fit, predict
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.types.recipe import Recipe

TARGET = Path(__file__).parent / "results" / "speed" / "streaming.json"
SIDE, SMALL, LARGE = 256, 750, 3000


def paint(folder: Path, count: int) -> None:
    """`count` JPEG files of smooth noise, SIDE x SIDE, in ten class folders."""
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        target = folder / f"class{index % 10}" / f"{index:05d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels.save(target, quality=90)


def measure(folder: str, count: int, queue: "multiprocessing.Queue[dict[str, Any]]") -> None:
    """Rates on the first `count` images, and this process's peak memory."""
    started = time.perf_counter()
    source = open_source(folder, size=64).train
    opening = time.perf_counter() - started
    table = Subset(source, np.arange(count))
    network = Network(parse_model("convnet-d4-w32"), table.shape, 10)
    space = normalize(Subset(source, np.arange(200)))
    plan = plan_for(network, count)
    state, seconds = network.init(Streams(0)), {}
    for name, work in {
        "reading": lambda: [table.read(part) for part in torch.arange(count).split(64)],
        "labeling": lambda: predict(network, state, table, space, plan),
        "training": lambda: fit(network, state, Examples.of_table(table, space), Recipe(epochs=1, batch_size=64), Streams(0), plan),
    }.items():
        started = time.perf_counter()
        work()
        seconds[name] = time.perf_counter() - started
    rates = {"opening_images_per_second": round(len(source) / opening, 1)} | {
        f"{name}_images_per_second": round(count / value, 1) for name, value in seconds.items()
    }
    queue.put({"images": count, **rates, "peak_mb": peak_megabytes()})


if __name__ == "__main__":
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        paint(Path(scratch), LARGE)
        for size in (SMALL, LARGE):
            context = multiprocessing.get_context("spawn")
            results = context.Queue()
            process = context.Process(target=measure, args=(scratch, size, results))
            process.start()
            rows.append(results.get())
            process.join()
            print(rows[-1], flush=True)
    TARGET.parent.mkdir(exist_ok=True, parents=True)
    TARGET.write_text(json.dumps({"machine": machine("cpu"), "rows": rows}, indent=1) + "\n", encoding="utf-8")

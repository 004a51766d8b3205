"""Traces of curvature along training against a plain Hutchinson loop, as a ratio of costs at equal standard error.

    python -m benchmarks.curvature [--width 32] [--images 2000] [--steps 60] [--snapshots 3] [--probes 4] [--plain-probes 8] [--threads 1] [--processor-time]

A ConvNet is trained on Fashion-MNIST; at a few of its steps the Hessian's trace is estimated on 100 real images (as many as a set of ten images per class) and on
all of `images` real images. The plain loop draws one Rademacher vector after another and multiplies it by the Hessian by differentiating twice, over all images
in batches of 256. Limbeck draws signs for every image, and on all images a sample of `--sample` of them. The cost of the plain loop at the standard error that
limbeck reached is ``seconds a probe x (deviation of a probe / that standard error)^2``, with the deviation estimated from `plain-probes` probes, so each ratio
is uncertain by some ``sqrt(2 / (plain-probes - 1))``. The same is done for the trace of the Fisher information (generalized Gauss-Newton), which the plain loop
multiplies by through `limbeck.analyze.operators`. Eigenvalues are not part of this comparison.
``benchmarks/results/curvature.json`` holds what it printed for ``--images 1000 --sample 300 --snapshots 2 --processor-time``.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from limbeck.analyze.curvature import sampled_traces
from limbeck.analyze.operators import Curvature, chunk_for
from limbeck.analyze.subject import early_steps
from limbeck.analyze.trace import rademacher
from limbeck.data import open_source
from limbeck.data.pixels import normalize
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import TrainingState, fit
from limbeck.train.network import Network, State
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

_DEFAULTS = (("width", 32), ("images", 2000), ("sample", 500), ("steps", 60), ("snapshots", 3), ("probes", 4), ("plain-probes", 8), ("threads", 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in _DEFAULTS:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--processor-time", action="store_true", help="seconds of processor time instead of the clock's: for a machine that others use"
    )
    print(json.dumps(measure(parser.parse_args()), indent=2))


def measure(given: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.processor_time else time.perf_counter
    table = open_source("fashion-mnist").train
    network, examples = (
        Network(parse_model(f"convnet:width={given.width}"), table.shape, len(table.classes)),
        Examples.of_table(table, normalize(table)),
    )
    states: dict[int, State] = {}

    def keep(live: TrainingState) -> None:
        states[live.step] = {name: tensor.detach().clone() for name, tensor in live.network.items()}

    recipe = Recipe(lr=0.01, momentum=0.9, weight_decay=0, batch_size=256, steps=given.steps)
    plan = ExecutionPlan(chunk=64, threads=given.threads)
    fit(network, network.init(Streams(0)), examples, recipe, Streams(0), plan, observe_at=early_steps(given.steps, given.snapshots), observe=keep)
    generator = Streams(0).torch("probes")
    pool = torch.randperm(len(table), generator=generator)[: given.images]
    cases = {"100 images": pool[:100], f"all {given.images} images": pool}
    rows = []
    for step, state in sorted(states.items()):
        for name, chosen in cases.items():
            images, labels = examples.batch(chosen, torch.device("cpu"))
            rows += compare(network, state, images, labels, given, name == "100 images", generator, clock, {"step": step, "on": name})
    matrices, totals = ("Hessian", "Fisher"), {}
    for name in cases:
        for matrix in matrices:
            part = [row for row in rows if row["on"] == name and row["matrix"] == matrix]
            totals[f"{matrix}, {name}"] = sum(row["plain_s"] for row in part) / sum(row["limbeck_s"] for row in part)
    for matrix in matrices:
        part = [row for row in rows if row["matrix"] == matrix]
        totals[matrix] = sum(row["plain_s"] for row in part) / sum(row["limbeck_s"] for row in part)
    return {
        "rows": rows,
        "ratios_along_training": totals,
        **{name.replace("-", "_"): getattr(given, name.replace("-", "_")) for name, _ in _DEFAULTS},
        "clock": "processor time" if given.processor_time else "wall",
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }


def compare(
    network: Network,
    state: State,
    images: Tensor,
    labels: Tensor,
    given: argparse.Namespace,
    small: bool,
    generator: torch.Generator,
    clock: Callable[[], float],
    about: dict[str, Any],
) -> list[dict[str, Any]]:
    """Both matrices at one moment on some images."""
    chunk = chunk_for(network, images.device)
    whole = Curvature(network, state, images, labels, chunk=256)
    products = {"Hessian": lambda vector: plain_product(network, state, images, labels, vector), "Fisher": lambda vector: whole.ggn(vector[None])[0]}
    some = torch.arange(len(images)) if small else torch.randperm(len(images), generator=generator)[: given.sample]
    sample = Curvature(network, state, images[some], labels[some], chunk=chunk)
    repeats = given.probes if small else 1
    sampled_traces(Curvature(network, state, images[:8], labels[:8], chunk=chunk), generator, 1, False)
    started = clock()
    ggn, hessian = sampled_traces(sample, generator, repeats, not small)
    both = clock() - started
    started = clock()
    for _ in range(repeats):
        sample.ggn_samples(generator)
    seconds = {"Hessian": both, "Fisher": clock() - started}
    rows = []
    for matrix, found in (("Hessian", hessian), ("Fisher", ggn)):
        products[matrix](rademacher(1, whole.dimension, generator, whole.like)[0])
        started, values = clock(), []
        for _ in range(given.plain_probes):
            vector = rademacher(1, whole.dimension, generator, whole.like)[0]
            values.append(float(vector @ products[matrix](vector)))
        probe = (clock() - started) / given.plain_probes
        spread = float(torch.tensor(values).std())
        needed = (spread / found.standard_error) ** 2
        row = {"matrix": matrix, "trace": found.value, "standard_error": found.standard_error, "limbeck_s": seconds[matrix]}
        row |= {"plain_trace": sum(values) / len(values), "plain_deviation": spread, "plain_probe_s": probe, "plain_probes_needed": needed}
        # a loop cannot take less than one probe
        rows.append({**about, **row, "plain_s": probe * max(1, math.ceil(needed)), "ratio": probe * max(1, math.ceil(needed)) / seconds[matrix]})
    return rows


def plain_product(network: Network, state: State, images: Tensor, labels: Tensor, vector: Tensor) -> Tensor:
    """The Hessian of the mean cross-entropy times a vector, as a plain loop does it: the gradient of the gradient's product with the vector."""
    parameters = {name: state[name].clone().requires_grad_() for name in network.parameter_names}
    parts = vector.split([tensor.numel() for tensor in parameters.values()])
    directions = [part.view_as(tensor) for part, tensor in zip(parts, parameters.values(), strict=True)]
    total = torch.zeros_like(vector)
    for batch, rows in zip(images.split(256), labels.split(256), strict=True):
        loss = -(rows * network.forward({**state, **parameters}, batch).log_softmax(1)).sum() / len(images)
        gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        found = torch.autograd.grad(gradients, list(parameters.values()), grad_outputs=directions)
        total += torch.cat([tensor.flatten() for tensor in found])
    return total


if __name__ == "__main__":
    main()

"""Whether the fast path trains the same students as the plain reference: ``python -m benchmarks.equivalence`` (about ten minutes on two cores).

Twenty students of each, in pairs of equal initialization and equal batches (independent students differ by a point or two), on one set of random real
Fashion-MNIST images (10 per class, hard labels), with differentiable augmentation; a ConvNet-D3-W32 for the time's sake. Equivalence is two one-sided t tests
at 5 %: the 90 % interval of the mean difference must lie within half a point (Schuirmann 1987). Writes ``benchmarks/results/speed/equivalence.json``.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np
import torch
from scipy import stats
from torch.nn import functional as F

from benchmarks import reference
from benchmarks.speed import machine
from limbeck.data.augment import parse_augment
from limbeck.data.opening import open_source
from limbeck.data.pixels import normalize
from limbeck.data.splits import Splits
from limbeck.data.tables import Subset
from limbeck.evaluate.protocols import DSA_ALL
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.train.students import Student, score, train_students
from limbeck.types.recipe import Recipe

TARGET = Path(__file__).parent / "results" / "speed" / "equivalence.json"
MARGIN = 0.005


def equivalence(first: np.ndarray, second: np.ndarray, margin: float) -> dict[str, Any]:
    """Mean difference of pairs with its 90 % interval, and whether that lies within the margin."""
    gaps = first - second
    difference = float(gaps.mean())
    half = float(stats.t.ppf(0.95, len(gaps) - 1) * gaps.std(ddof=1) / np.sqrt(len(gaps)))
    return {
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "margin": margin,
        "equivalent": abs(difference) + half < margin,
    }


def _batches(streams: Streams, recipe: Recipe, images: torch.Tensor, labels: torch.Tensor) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    """The batch that our student saw at a step: one batch is an epoch here."""
    augment = parse_augment(recipe.augment)
    assert augment is not None
    count, channels, height, width = images.shape

    def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.randperm(count, generator=streams.torch("order", step))
        drawn = augment.draw(count, (channels, height, width), streams.torch("augment", step))
        return augment.apply(images[order], drawn), labels[order]

    return batch


def run(students: int, steps: int, device: str) -> dict[str, Any]:
    """Accuracies of both sides on the test split."""
    splits = Splits.make(open_source("fashion-mnist"), seed=0)
    train, test = splits.train, splits.test.open_for_measurement()
    rng = np.random.default_rng(0)
    chosen = Subset(train, np.concatenate([rng.choice(np.flatnonzero(train.labels == k), 10, replace=False) for k in range(10)]))
    space = normalize(train)
    examples, recipe = Examples.of_table(chosen, space), Recipe(steps=steps, augment=DSA_ALL)
    network = Network(parse_model("convnet-w32"), chosen.shape, 10)
    plan = plan_for(network, 10**7, batch=100, device=device)
    ours, theirs = [], []
    images, labels = space(chosen.read(range(100))).to(device), F.one_hot(torch.from_numpy(chosen.labels.copy()), 10).float().to(device)
    shown = space(test.read(range(len(test)))).to(device)
    truth = torch.from_numpy(test.labels.copy())
    for index in range(students):
        state = train_students(network, [Student(examples, Streams(index)["equivalence"])], recipe, plan)[0]
        ours.append(score(network, state, test, examples, plan).accuracy)
        streams = Streams(index)["equivalence"]
        start = [tensor for name, tensor in network.init(streams).items() if name in network.parameter_names]
        net = reference.train(
            images,
            labels,
            steps=steps,
            batch_size=256,
            augmented=True,
            rng=rng,
            width=32,
            start=start,
            view=_batches(streams, recipe, images, labels),
        )
        theirs.append(float((reference.predict(net, shown).argmax(1) == truth).double().mean()))
        print(f"student {index + 1}: limbeck {100 * ours[-1]:.2f} %, reference {100 * theirs[-1]:.2f} %", flush=True)
    found = equivalence(np.array(ours), np.array(theirs), MARGIN)
    return {"machine": machine(device), "plan": plan.model_dump(), "steps": steps, "limbeck": ours, "reference": theirs, **found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    record = run(given.students, given.steps, given.device)
    means = {side: (100 * np.mean(record[side]), 100 * np.std(record[side], ddof=1)) for side in ("limbeck", "reference")}
    print("; ".join(f"{side} {mean:.2f} % (sd {spread:.2f})" for side, (mean, spread) in means.items()))
    words = "equivalent" if record["equivalent"] else "not shown to be equivalent"
    print(
        f"difference {100 * record['difference']:+.2f} points, 90 % interval [{100 * record['low']:+.2f}, {100 * record['high']:+.2f}]: {words} within 0.5 points"
    )
    TARGET.parent.mkdir(exist_ok=True, parents=True)
    TARGET.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

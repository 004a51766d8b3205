"""Small problems that many tests share: two-class Gaussians on 8x8 images, networks of a few thousand parameters, plans of one thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import torch

from limbeck.analyze.subject import Subject
from limbeck.cache import Cache
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ArrayTable, ImageTable
from limbeck.experts.trajectory import Trajectory, train_expert
from limbeck.labels.rules import LabelRule
from limbeck.methods.problem import Problem
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

SHAPE = (1, 8, 8)
PLAN = ExecutionPlan(chunk=64, threads=1)
SHORT = Recipe(lr=0.1, weight_decay=0, batch_size=16, steps=20)


def gaussians(per_class: int | tuple[int, ...], seed: int = 0, *, classes: int = 2, noise: float = 25.0) -> ArrayTable:
    """Class k is a bright band of rows in a gray image, under pixel noise; `per_class` images of each class, shuffled."""
    rng = np.random.default_rng(seed)
    sizes = (per_class,) * classes if isinstance(per_class, int) else per_class
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    means = np.full((len(sizes), *SHAPE), 110.0)
    for k, rows in enumerate(np.array_split(np.arange(8), len(sizes))):
        means[k, :, rows] += 40
    images = np.clip(means[labels] + rng.normal(0, noise, (len(labels), *SHAPE)), 0, 255).astype(np.uint8)
    return ArrayTable(torch.from_numpy(images), labels, [f"band {k}" for k in range(len(sizes))])


def network(model: str = "softmax", classes: int = 2, shape: tuple[int, int, int] = SHAPE) -> Network:
    return Network(parse_model(model), shape, classes)


def distilled(table: ImageTable, labels: Labels | None = None, **changes: Any) -> DistilledDataset:
    """The whole table as a set, under hard labels unless told otherwise."""
    owners = torch.from_numpy(table.labels.copy())
    given: dict[str, Any] = {
        "images": table.read(range(len(table))),
        "owners": owners,
        "labels": labels or Labels.hard(owners, len(table.classes)),
        "pixels": PixelSpace(),
        "classes": table.classes,
        "recipe": SHORT,
    }
    return DistilledDataset(**{**given, **changes})


class Oracle:
    """A labeler with a table of its own: logits by the index of the record in `table`."""

    def __init__(self, table: ImageTable, logits: torch.Tensor, digest: str = "oracle") -> None:
        self._rows = {int(key): row for key, row in zip(table.record_digests(), logits.float(), strict=True)}
        self.digest = digest

    def logits(self, table: ImageTable, plan: ExecutionPlan, *, tick: Any = None) -> torch.Tensor:
        return torch.stack([self._rows[int(key)] for key in table.record_digests()])

    def logits_of(self, images: Any, pixels: PixelSpace, plan: ExecutionPlan) -> torch.Tensor:
        """Images of their own, as `gaussians` makes them: the brighter a class's band of rows, the larger its logit."""
        shown, classes = pixels(images.read(range(len(images)))), len(images.classes)
        return torch.stack([10 * shown[:, :, list(rows)].mean(dim=(1, 2, 3)) for rows in np.array_split(np.arange(8), classes)], dim=1)


def problem(train: ImageTable, counts: tuple[int, ...], **changes: Any) -> Problem:
    """A problem with hard labels and no expert unless told otherwise."""
    given: dict[str, Any] = {
        "train": train,
        "validation": gaussians(20, seed=99, classes=len(train.classes)),
        "network": network(classes=len(train.classes)),
        "pixels": PixelSpace(),
        "counts": counts,
        "rule": LabelRule(kind="hard"),
        "recipe": SHORT,
        "streams": Streams(0)["method"],
        "plan": PLAN,
    }
    return Problem(**{**given, **changes})


def subject(
    dataset: DistilledDataset | None = None, *, classes: int = 2, model: str = "mlp:width=16,depth=1", cache: Path | None = None, **changes: Any
) -> Subject:
    """A set of three real images of each class, to analyze beside Gaussians that it was drawn from."""
    train = gaussians(30, classes=classes)
    net = network(model, classes)
    given: dict[str, Any] = {
        "dataset": dataset or distilled(gaussians(3, seed=7, classes=classes)),
        "train": train,
        "validation": gaussians(20, seed=99, classes=classes),
        "test": TestHandle(gaussians(25, seed=5, classes=classes)),
        "pixels": PixelSpace(),
        "network": net,
        "recipe": SHORT,
        "protocol": "tiny/1",
        "streams": Streams(0)["analyze"],
        "plan": PLAN,
        "cache": Cache(cache),
    }
    given |= changes

    def trajectories(which: Network, recipe: Recipe, number: int, steps: tuple[int, ...], reporter: Any) -> Trajectory:
        tables = given["train"], given["validation"], given["pixels"]
        return train_expert(which, recipe, *tables, seed=1, index=number, plan=PLAN, cache=given["cache"], steps=steps, reporter=reporter)

    return Subject(**{"trajectories": trajectories, **given})


@contextmanager
def as_shipped() -> Iterator[None]:
    """Without the shape checks of the tests: for refusals that, under them, a type violation would preempt."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def flip_byte(path: Path, position: int) -> None:
    """Changes one byte of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x40
    path.write_bytes(bytes(content))

"""Students for analyses: trained in groups, reduced at once to what they predict, and kept group by group so that a killed run goes on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from limbeck.analyze.subject import Subject
from limbeck.data.tables import ImageTable, Subset, digest_rows
from limbeck.experts.trajectory import Trajectory
from limbeck.progress import Reporter
from limbeck.streams import Streams
from limbeck.train.examples import Examples, StoredImages
from limbeck.train.fit import predict
from limbeck.train.network import Network
from limbeck.train.students import Student, in_groups, score_logits, train_students
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe


@dataclass(frozen=True)
class Trainee:
    """A student to train: on what (made when it is needed, `size` images), from which streams, by which recipe, and plain JSON that, with the subject, says
    all of this."""

    examples: Callable[[], Examples]
    size: int
    streams: Streams
    recipe: Recipe
    task: Mapping[str, Any]


def predicted_classes(
    subject: Subject, trainees: Sequence[Trainee], tables: Mapping[str, ImageTable], reporter: Reporter, words: str, network: Network | None = None
) -> dict[str, Int[Tensor, "S M"]]:
    """What every student predicts for every image of each table, [students, images]. Students that can share a program train together, by the subject's plan.

    A diverged student names the class that `score_logits` gives it.
    """
    network = network or subject.network
    found: dict[int, dict[str, Tensor]] = {}
    with reporter.task(words, len(trainees)) as tick:
        for indices in _alike(trainees):
            # the plan of a stack suits the whole list, so groups do not depend on what is already known
            for group in in_groups(len(indices), subject.plan):
                members = [indices[i] for i in group]
                given = [trainees[i] for i in members]
                task = {
                    "what": "predicted classes",
                    "model": network.identity,
                    "tables": {name: table.digest for name, table in tables.items()},
                    "students": [
                        {**one.task, "recipe": one.recipe.model_dump(mode="json"), "streams": [one.streams.root, *one.streams.path]} for one in given
                    ],
                }
                made = subject.remembered(task, lambda given=given: _train(subject, network, given, tables))  # type: ignore[misc]
                for position, index in enumerate(members):
                    found[index] = {name: made[name][position] for name in tables}
                tick(len(members))
    return {
        name: torch.stack([found[i][name] for i in range(len(trainees))]).long() if trainees else torch.zeros(0, len(table), dtype=torch.int64)
        for name, table in tables.items()
    }


def _alike(trainees: Sequence[Trainee]) -> list[list[int]]:
    groups: dict[tuple[str, int], list[int]] = {}
    for index, one in enumerate(trainees):
        # a learning rate may differ within a stack; everything else of a recipe is shared
        groups.setdefault((one.recipe.with_(lr=1).model_dump_json(), one.size), []).append(index)
    return list(groups.values())


def _train(subject: Subject, network: Network, given: Sequence[Trainee], tables: Mapping[str, ImageTable]) -> dict[str, Tensor]:
    students = [Student(one.examples(), one.streams, one.recipe.lr) for one in given]
    states = train_students(network, students, given[0].recipe, subject.plan)
    return {
        name: torch.stack(
            [classes_of(predict(network, state, table, one.examples.pixels, subject.plan)) for one, state in zip(students, states, strict=True)]
        )
        for name, table in tables.items()
    }


def classes_of(logits: Tensor) -> Int[Tensor, " M"]:
    """The class of each image, int32, as `score_logits` sees it."""
    return score_logits(logits, torch.zeros(len(logits), dtype=torch.int64)).predictions.to(torch.int32)


def classes_along(
    subject: Subject, trajectory: Trajectory, tables: Mapping[str, ImageTable], reporter: Reporter, words: str
) -> dict[str, Int[Tensor, "T M"]]:
    """What a network predicts at each snapshot of its training, [snapshots, images], for every image of each table, and for those of the set as ``set``."""

    def look() -> dict[str, Tensor]:
        found: dict[str, list[Tensor]] = {name: [] for name in (*tables, "set")}
        with reporter.task(words, len(trajectory.snapshots)) as tick:
            for snapshot in trajectory.snapshots:
                expert = trajectory.at(snapshot.step)
                found["set"].append(classes_of(expert.logits_of(StoredImages(subject.dataset), subject.dataset.pixels, subject.plan)))
                for name, table in tables.items():
                    found[name].append(classes_of(expert.logits(table, subject.plan)))
                tick(1)
        return {name: torch.stack(rows) for name, rows in found.items()}

    task = {"what": "classes along a run", "trajectory": trajectory.key, "tables": {name: table.digest for name, table in tables.items()}}
    return {name: tensor.long() for name, tensor in subject.remembered(task, look).items()}


def in_steps(recipe: Recipe, images: int, steps: int | None = None) -> Recipe:
    """The recipe counted in steps: as many as it takes over `images` images, or `steps`; quirks that hang on epochs are left out."""
    return recipe.with_(steps=steps or recipe.total_steps(images), extra_epoch=False)


def accuracy_of(predictions: Int[Tensor, "*S M"], table: ImageTable) -> np.ndarray:
    """Accuracy [*S], as a fraction."""
    return (predictions == torch.from_numpy(table.labels.copy())).double().mean(-1).numpy()


def draw_balanced(table: ImageTable, counts: Sequence[int], generator: torch.Generator, exclude: np.ndarray | None = None) -> np.ndarray:
    """Indices of ``counts[k]`` random records of each class k, as many as there are, in random order within a class, classes in turn."""
    allowed = np.ones(len(table), dtype=bool) if exclude is None else ~exclude
    drawn = []
    for number, count in enumerate(counts):
        members = np.flatnonzero((table.labels == number) & allowed)
        drawn.append(members[torch.randperm(len(members), generator=generator).numpy()[:count]])
    return np.concatenate(drawn)


def images_of_set_in(dataset: DistilledDataset, table: ImageTable) -> np.ndarray:
    """bool [N]: which records of a table are images of the set, by their pixels: a set of real images must not be mixed with itself."""
    return np.isin(table.record_digests(), digest_rows(dataset.images.flatten(1).numpy()))


def real_examples(subject: Subject, indices: np.ndarray) -> Examples:
    """Some training images under their hard labels."""
    return Examples.of_table(Subset(subject.train, indices), subject.pixels)


def as_set(subject: Subject, inputs: Tensor, owners: Tensor, labels: Tensor) -> DistilledDataset:
    """Network inputs with dense labels of any kind as a set that students can train on."""
    return DistilledDataset(
        images=inputs,
        owners=owners,
        labels=Labels.encode(labels, kind="free", sums_to_one=False),
        pixels=PixelSpace(subject.dataset.pixels.steps, "network"),
        classes=subject.dataset.classes,
        recipe=subject.dataset.recipe,
    )

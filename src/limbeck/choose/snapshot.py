"""Which snapshot of the expert teaches best at this budget: successive halving on validation accuracy of students. The test split is never seen."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from limbeck.cache import Cache
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ImageTable, Subset
from limbeck.errors import OptionError
from limbeck.progress import SILENT, Reporter
from limbeck.store import write_json
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.network import Network
from limbeck.train.students import score, train_student
from limbeck.types.distilled import DistilledDataset
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

_VALIDATION_IMAGES = 2000  # a student's score then has a standard error of about one point, below the spread between students


@dataclass(frozen=True)
class Trial:
    """One candidate at one rung: fraction of the recipe's length, validation accuracy of each student."""

    candidate: int
    rung: int
    fraction: float
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean validation accuracy."""
        return float(np.mean(self.accuracies))


@dataclass(frozen=True)
class Choice:
    """The winning candidate, every trial, and how many validation images judged."""

    best: int
    trials: tuple[Trial, ...]
    validation_images: int


def successive_halving(
    candidates: Sequence[int],
    make: Callable[[int], DistilledDataset],
    network: Network,
    recipe: Recipe,
    validation: ImageTable,
    *,
    streams: Streams,
    plan: ExecutionPlan,
    cache: Cache,
    rungs: Sequence[tuple[float, int]] = ((0.25, 1), (0.5, 1), (1.0, 2)),
    keep: float = 1 / 3,
    reporter: Reporter = SILENT,
) -> Choice:
    """Trains students on ``make(candidate)`` for a growing fraction of `recipe` and keeps the best third after each rung (Jamieson and Talwalkar 2016).

    `rungs` are (fraction of the recipe, students). All candidates of a rung share student initializations, data order and validation images, so their scores
    are paired. Ties go to the earlier candidate. With a single candidate nothing is trained.
    """
    if isinstance(validation, TestHandle):
        raise OptionError("choosing needs the validation split, got the test handle; the test split only measures")
    if not candidates:
        raise OptionError("choosing the expert's snapshot needs at least one candidate, got none; train the expert for at least one step")
    if len(candidates) == 1:
        return Choice(candidates[0], (), 0)
    if len(validation) == 0:
        raise OptionError(
            "choosing the expert's snapshot needs a validation split, got an empty one; use --validation 0.1, or name the step with --expert-step"
        )
    judges = Subset(validation, _stratified(validation, streams))
    sets = {candidate: make(candidate) for candidate in candidates}
    alive, trials = list(candidates), []
    for rung, (fraction, students) in enumerate(rungs):
        short = _shortened(recipe, fraction, len(sets[alive[0]]))
        with reporter.task(f"choosing the snapshot, {fraction:.0%} of training", len(alive) * students) as tick:
            scored = []
            for candidate in alive:
                accuracies = []
                for student in range(students):
                    accuracies.append(_judge(sets[candidate], network, short, judges, streams["student", student], plan, cache))
                    tick(1)
                scored.append(Trial(candidate, rung, fraction, tuple(accuracies)))
        trials += scored
        ranked = sorted(scored, key=lambda trial: (-trial.mean, trial.candidate))
        alive = sorted(trial.candidate for trial in ranked[: max(2, round(len(ranked) * keep))]) if rung + 1 < len(rungs) else [ranked[0].candidate]
    return Choice(alive[0], tuple(trials), len(judges))


def best_learning_rate(
    rates: Sequence[float],
    dataset: DistilledDataset,
    network: Network,
    recipe: Recipe,
    validation: ImageTable,
    *,
    streams: Streams,
    plan: ExecutionPlan,
    cache: Cache,
    students: int = 2,
    reporter: Reporter = SILENT,
) -> tuple[float, dict[float, float]]:
    """The rate whose students do best on validation, and every rate's mean accuracy. Students of all rates share initializations and data order."""
    if isinstance(validation, TestHandle) or len(validation) == 0:
        raise OptionError("choosing a learning rate needs a non-empty validation split; use --validation 0.1")
    judges = Subset(validation, _stratified(validation, streams))
    means: dict[float, float] = {}
    with reporter.task("choosing the learning rate", len(rates) * students) as tick:
        for rate in rates:
            accuracies = []
            for student in range(students):
                accuracies.append(_judge(dataset, network, recipe.with_(lr=rate), judges, streams["student", student], plan, cache))
                tick(1)
            means[rate] = float(np.mean(accuracies))
    return max(means, key=lambda rate: (means[rate], -rate)), means


def _judge(
    dataset: DistilledDataset, network: Network, recipe: Recipe, judges: ImageTable, streams: Streams, plan: ExecutionPlan, cache: Cache
) -> float:
    task = {
        "set": dataset.digest,
        "model": network.identity,
        "recipe": recipe.model_dump(mode="json"),
        "judges": judges.digest,
        "streams": [streams.root, *streams.path],
        "plan": plan.model_dump(exclude={"reason"}),
    }
    path = cache.path("trials", cache.key("trials", task), ".json")
    try:
        return float(json.loads(path.read_text())["accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    examples = Examples.of_distilled(dataset)
    accuracy = score(network, train_student(network, examples, recipe, streams, plan), judges, examples, plan).accuracy
    write_json(path, {"accuracy": accuracy, "task": task})
    return accuracy


def _shortened(recipe: Recipe, fraction: float, examples: int) -> Recipe:
    if fraction >= 1:
        return recipe
    if recipe.epochs is not None:
        return recipe.with_(epochs=max(1, round(recipe.epochs * fraction)))
    return recipe.with_(steps=max(1, round(recipe.total_steps(examples) * fraction)))


def _stratified(table: ImageTable, streams: Streams) -> np.ndarray:
    if len(table) <= _VALIDATION_IMAGES:
        return np.arange(len(table))
    order = torch.randperm(len(table), generator=streams.torch("judges")).numpy()
    # every class in proportion: sort by class, then take evenly spaced records
    by_class = order[np.argsort(table.labels[order], kind="stable")]
    return np.sort(by_class[np.linspace(0, len(by_class) - 1, _VALIDATION_IMAGES).astype(int)])


def trials_as_dicts(choice: Choice) -> list[dict[str, object]]:
    """Plain rows for records and reports."""
    return [{**asdict(trial), "mean": trial.mean} for trial in choice.trials]

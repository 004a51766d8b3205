"""Which snapshot of the expert teaches best at this budget: successive halving on validation accuracy of students. The test split is never seen."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from limbeck.cache import Cache
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ImageTable, Subset
from limbeck.errors import OptionError
from limbeck.progress import SILENT, Reporter, Tick
from limbeck.store import write_json
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.network import Network
from limbeck.train.students import Student, in_groups, score, train_students
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
    what: str = "the snapshot",
    reporter: Reporter = SILENT,
) -> Choice:
    """Trains students on ``make(candidate)`` for a growing fraction of `recipe` and keeps the best third after each rung (Jamieson and Talwalkar 2016).

    `rungs` are (fraction of the recipe, students). All candidates of a rung share student initializations, data order and validation images, so their scores
    are paired. Ties go to the earlier candidate. With a single candidate nothing is trained. `what` is being chosen, in words.
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
        with reporter.task(f"choosing {what}, {fraction:.0%} of training", len(alive) * students) as tick:
            asked = [_Asked(sets[candidate], streams["student", student]) for candidate in alive for student in range(students)]
            found = np.reshape(_judge(asked, network, short, judges, plan, cache, tick), (len(alive), students))
            scored = [Trial(candidate, rung, fraction, tuple(row)) for candidate, row in zip(alive, found.tolist(), strict=True)]
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
    with reporter.task("choosing the learning rate", len(rates) * students) as tick:
        asked = [_Asked(dataset, streams["student", student], rate) for rate in rates for student in range(students)]
        found = np.reshape(_judge(asked, network, recipe, judges, plan, cache, tick), (len(rates), students))
    means = {rate: float(row.mean()) for rate, row in zip(rates, found, strict=True)}
    return max(means, key=lambda rate: (means[rate], -rate)), means


@dataclass(frozen=True)
class _Asked:
    """One student whose validation accuracy is wanted."""

    dataset: DistilledDataset
    streams: Streams
    lr: float | None = None


def _judge(
    asked: Sequence[_Asked], network: Network, recipe: Recipe, judges: ImageTable, plan: ExecutionPlan, cache: Cache, tick: Tick
) -> list[float]:
    """The accuracies, in order; as many students at once as the plan says, and a group is trained only if the cache does not know all of it."""
    accuracies: list[float] = []
    for group in in_groups(len(asked), plan):
        members = [asked[index] for index in group]
        tasks = [_task(member, network, recipe, judges, plan) for member in members]
        paths = [cache.path("trials", cache.key("trials", task), ".json") for task in tasks]
        known = [accuracy for accuracy in map(_read_accuracy, paths) if accuracy is not None]
        if len(known) < len(members):
            examples = {id(member.dataset): Examples.of_distilled(member.dataset) for member in members}
            students = [Student(examples[id(member.dataset)], member.streams, member.lr) for member in members]
            trained = train_students(network, students, recipe, plan)
            known = [score(network, state, judges, student.examples, plan).accuracy for student, state in zip(students, trained, strict=True)]
            for path, task, accuracy in zip(paths, tasks, known, strict=True):
                write_json(path, {"accuracy": accuracy, "task": task})
        accuracies += known
        tick(len(group))
    return accuracies


def _task(member: _Asked, network: Network, recipe: Recipe, judges: ImageTable, plan: ExecutionPlan) -> dict[str, object]:
    return {
        "set": member.dataset.digest,
        "model": network.identity,
        "recipe": (recipe if member.lr is None else recipe.with_(lr=member.lr)).model_dump(mode="json"),
        "judges": judges.digest,
        "streams": [member.streams.root, *member.streams.path],
        "plan": plan.model_dump(exclude={"reason"}),
    }


def _read_accuracy(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text())["accuracy"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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

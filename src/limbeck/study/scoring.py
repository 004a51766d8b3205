"""The job behind `limbeck score`: trains the arms that the robust scores compare, each at a learning rate chosen by the same search on validation."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from limbeck.cache import Cache
from limbeck.choose.snapshot import best_learning_rate
from limbeck.data.augment import dsa_strategy_for
from limbeck.errors import OptionError
from limbeck.evaluate.evaluate import evaluate
from limbeck.evaluate.robust import NATURAL_ZERO, AugmentationRobustness, LabelRobustness, normalized
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.distill import Sets, describe_job, random_baselines, student_plan
from limbeck.study.judge import Bench, set_up
from limbeck.study.options import EvaluationOptions, ScoreOptions
from limbeck.types.distilled import DistilledDataset
from limbeck.types.evaluation import t_interval
from limbeck.types.labels import Labels
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

RATES = (0.1, 0.5, 1.0, 5.0, 10.0)
"""Factors on the protocol's learning rate that every arm tries: at a rate of 0.01 these are DD-Ranking's own candidates, 0.001 to 0.1."""

_FULL_EPOCHS = 20
_LARGEST_FULL = 8e9  # bytes of pixels that the full-data arm holds in memory


@dataclass(frozen=True)
class _Arm:
    """What students of one kind are trained on, and how: `sets` holds one set for each draw, and each trains `students`."""

    role: str
    name: str
    sets: Sets
    recipe: Recipe
    students: int
    plan: ExecutionPlan


def score_file(
    file: Path,
    options: ScoreOptions,
    *,
    source: str | None = None,
    model: str | None = None,
    seed: int | None = None,
    cache: Cache | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Scores a distilled file on the source that its provenance names, or on another; `limbeck.evaluate.robust` has the formulas.

    Every arm's students are trained by one protocol at the learning rate, of five (and the one that the set learned, if it did), whose students do best on
    validation: full data, the set and random real images are all searched alike. Arms with hard labels use cross-entropy, whatever the protocol's loss. Random
    real images are drawn anew for each student and, when the set's labels are not hard, labeled by the set's own expert (from the cache) or by the checkpoint
    `expert_file`; without either there is no score. The augmented arms use the protocol's augmentation, or DSA where it has none.

    Cost: training on all data, 5 rates x `search_students` + `full_students` networks of `full_epochs` epochs, is nearly all of it; `full_accuracy` leaves it
    out, and the record says that the number was given. Returns a record like that of `evaluate`, with every arm and ``score``.
    """
    cache = cache or Cache()
    if options.full_accuracy is not None and not 0 <= options.full_accuracy <= 1:
        raise OptionError(f"--full-accuracy is a fraction from 0 to 1, got {options.full_accuracy:g}; divide percentages by 100")
    judging = EvaluationOptions(protocol=options.protocol, students=options.students, device=options.device, threads=options.threads)
    bench = set_up(
        file,
        judging,
        source=source,
        source_options=options,
        model=model,
        seed=seed,
        expert_file=options.expert_file,
        cache=cache,
        reporter=reporter,
    )
    options = _without_augmentation(options, reporter) if bench.dataset.views is not None else options
    random = _random_sets(bench, options.students, reporter)
    arms = _arms(bench, random, options, judging, reporter)
    rows = {arm.role: _trained(arm, bench, options, cache, reporter) for arm in arms}
    score = _scores(rows, options, bench)
    if options.which != "augmentation" and score["label_robust"]["hlr"] < 0:
        reporter.note(
            "training on all data did worse than training on this set under hard labels, so it was too short to compare with; use more --full-epochs"
        )
    return {
        **describe_job(bench.dataset, bench.setting, bench.protocol, bench.plan, bench.problem.rule, bench.seed),
        "title": f"Robust scores of {Path(file).name} on {bench.setting.spec}",
        "file": str(file),
        "evaluations": list(rows.values()),
        "score": score,
    }


def _without_augmentation(options: ScoreOptions, reporter: Reporter) -> ScoreOptions:
    """A set with labels per view is trained on those views, whatever augmentation the recipe names."""
    reason = "this set has a label for each of its own augmented views and is trained on those alone, so there is no augmentation-robust score"
    if options.which == "augmentation":
        raise OptionError(f"{reason}; use --which label")
    if options.which == "both":
        reporter.note(reason)
    return options.model_copy(update={"which": "label"})


def _random_sets(bench: Bench, draws: int, reporter: Reporter) -> Sets:
    """Random real images under the set's own kind of labels, one set for each draw."""
    if bench.dataset.labels.kind == "hard":
        return random_baselines(bench.problem, (), draws, reporter)["random-hard"]
    if bench.labeler is None:
        why = "the expert that labeled this file is not in the cache" if bench.dataset.labels.expert else "no expert labeled this file"
        raise OptionError(
            f"a robust score compares with random real images under labels of the set's own kind, and {why}; give a checkpoint with --expert-file"
        )
    return bench.random(draws, reporter)["random-soft"]


def _arms(bench: Bench, random: Sets, options: ScoreOptions, judging: EvaluationOptions, reporter: Reporter) -> list[_Arm]:
    dataset, students = bench.dataset, options.students
    soft = dataset.labels.kind != "hard"
    hard = bench.protocol.recipe.with_(loss="cross-entropy")
    own = bench.protocol.recipe if soft else hard
    arms = []
    if options.which != "augmentation":
        arms += [
            _Arm("distilled", "this set, own labels", [[dataset]], own, students, bench.plan),
            _Arm("random", "random real, own labels", random, own, 1, bench.plan),
        ]
        if soft:
            arms.append(_Arm("distilled-hard", "this set, hard labels", [[dataset.with_hard_labels()]], hard, students, bench.plan))
        if options.full_accuracy is None:
            arms.append(_full(bench, hard, options, judging, reporter))
    if options.which != "label":
        strategy = own.augment if own.augment != "none" else f"dsa:{dsa_strategy_for(_kind(bench.setting.spec))}"
        for words, augment in (("augmented", strategy), ("plain", "none")):
            recipe = own.with_(augment=augment)
            arms.append(_Arm(f"distilled-{words}", f"this set, {words}", [[dataset]], recipe, students, bench.plan))
            arms.append(_Arm(f"random-{words}", f"random real, {words}", random, recipe, 1, bench.plan))
    return arms


def _kind(spec: str) -> str:
    return spec if spec.startswith("composed:") else spec.partition(":")[0]


def _full(bench: Bench, recipe: Recipe, options: ScoreOptions, judging: EvaluationOptions, reporter: Reporter) -> _Arm:
    """All training images under hard labels, for at least as many steps as the set's own students take."""
    train = bench.setting.splits.train
    epochs = options.full_epochs or max(_FULL_EPOCHS, math.ceil(recipe.total_steps(len(bench.dataset)) / recipe.steps_per_epoch(len(train))))
    recipe = recipe.with_(epochs=epochs)
    size = len(train) * float(np.prod(train.shape))
    if size > _LARGEST_FULL:
        raise OptionError(f"training on all data would hold {size / 1e9:.0f} GB of pixels in memory; give its accuracy with --full-accuracy 0.85")
    networks, steps = len(RATES) * options.search_students + options.full_students, recipe.total_steps(len(train))
    reporter.note(
        f"training on all {len(train)} images takes {networks} networks of {steps} steps each ({epochs} epochs; {len(RATES)} learning rates are "
        "tried); --full-accuracy VALUE leaves it out"
    )
    owners = torch.from_numpy(train.labels.copy())
    everything = DistilledDataset(
        images=train.read(range(len(train))),
        owners=owners,
        labels=Labels.hard(owners, len(train.classes)),
        pixels=bench.setting.pixels,
        classes=train.classes,
        recipe=recipe,
    )
    plan = student_plan(bench.problem.network, recipe, len(train), judging)
    return _Arm("full", "all real images, hard labels", [[everything]], recipe, options.full_students, plan)


def _trained(arm: _Arm, bench: Bench, options: ScoreOptions, cache: Cache, reporter: Reporter) -> dict[str, Any]:
    """The arm's evaluation at its best learning rate, and what every rate did on validation."""
    network, learned = bench.problem.network, bench.dataset.step_size
    rates = {round(arm.recipe.lr * factor, 10) for factor in RATES} | ({learned} if learned is not None else set())
    rate, tried = best_learning_rate(
        sorted(rates),
        arm.sets[0][0],
        network,
        arm.recipe,
        bench.setting.splits.validation,
        streams=Streams(bench.seed)["tune"],
        plan=arm.plan,
        cache=cache,
        students=options.search_students,
        reporter=reporter,
    )
    result = evaluate(
        arm.name,
        arm.sets,
        network,
        bench.protocol,
        bench.setting.splits.test,
        students=arm.students,
        seed=bench.seed,
        recipe=arm.recipe.with_(lr=rate),
        plan=arm.plan,
        cache=cache,
        reporter=reporter,
    )
    return {**result.to_dict(), "role": arm.role, "validation_by_rate": {f"{key:g}": value for key, value in tried.items()}}


def _scores(rows: dict[str, dict[str, Any]], options: ScoreOptions, bench: Bench) -> dict[str, Any]:
    accuracy = {role: np.array(row["accuracy"], dtype=np.float64).reshape(-1) for role, row in rows.items()}
    mean = {role: float(values.mean()) for role, values in accuracy.items()}
    weight = options.weight
    found: dict[str, Any] = {
        "protocol": bench.protocol.label,
        "model": str(bench.problem.network.spec),
        "weight": weight,
        "students": options.students,
        "natural_zero": NATURAL_ZERO,
    }
    if options.which != "augmentation":
        hard = "distilled-hard" if "distilled-hard" in rows else "distilled"
        given = options.full_accuracy is not None
        full = options.full_accuracy if options.full_accuracy is not None else mean["full"]
        label = LabelRobustness(real_hard=full, set_hard=mean[hard], set_own=mean["distilled"], random_own=mean["random"], weight=weight)
        found["label_robust"] = {
            "real_hard": full,
            "real_hard_from": "given" if given else f"{options.full_students} network(s) of {rows['full']['recipe']['epochs']} epochs",
            "set_hard": label.set_hard,
            "set_own": label.set_own,
            "random_own": label.random_own,
            "hlr": label.hard_label_recovery,
            "ior": label.improvement_over_random,
            "alpha": label.alpha,
            "lrs": label.score,
            **_interval("lrs", weight * (accuracy["distilled"] - accuracy["random"]) - (1 - weight) * (full - accuracy[hard])),
        }
    if options.which != "label":
        augmentation = AugmentationRobustness(
            set_augmented=mean["distilled-augmented"],
            random_augmented=mean["random-augmented"],
            set_plain=mean["distilled-plain"],
            random_plain=mean["random-plain"],
            weight=weight,
        )
        gaps = [accuracy[f"distilled-{how}"] - accuracy[f"random-{how}"] for how in ("augmented", "plain")]
        found["augmentation_robust"] = {
            "augmentation": rows["distilled-augmented"]["recipe"]["augment"],
            "set_augmented": augmentation.set_augmented,
            "random_augmented": augmentation.random_augmented,
            "set_plain": augmentation.set_plain,
            "random_plain": augmentation.random_plain,
            "beta": augmentation.beta,
            "ars": augmentation.score,
            **_interval("ars", weight * gaps[0] + (1 - weight) * gaps[1]),
        }
    return found


def _interval(name: str, advantages: np.ndarray) -> dict[str, float | None]:
    """The 95 % interval of a score over students and draws of random images: that of the mean advantage [S], mapped as the score maps it."""
    interval = t_interval(advantages, "students and random draws")
    known = interval.n > 1
    return {f"{name}_low": normalized(interval.low) if known else None, f"{name}_high": normalized(interval.high) if known else None}

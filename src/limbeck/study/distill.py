"""The main job: source -> experts -> snapshot chosen on validation -> distilled file -> students with both baselines -> record.

Every expensive part is cached under its content, so the same command continues where it was stopped and ends in the same bytes.
"""

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from limbeck import __version__, store
from limbeck.cache import Cache
from limbeck.choose.snapshot import Choice, best_learning_rate, successive_halving, trials_as_dicts
from limbeck.data.augment import dsa_strategy_for
from limbeck.errors import OptionError
from limbeck.evaluate.evaluate import evaluate, evaluate_labeler
from limbeck.evaluate.protocols import DSA_ALL, Protocol, get_protocol
from limbeck.experts.checkpoint import load_expert
from limbeck.experts.expert import Expert, Labeler, labeler_of
from limbeck.experts.trajectory import EXPERT_RECIPE, Trajectory, train_expert
from limbeck.labels.rules import LabelRule
from limbeck.methods import METHODS, SELECTORS
from limbeck.methods.budget import counts_for, parse_bytes
from limbeck.methods.driver import run_method
from limbeck.methods.problem import Problem
from limbeck.models import parse_model
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.options import DistillOptions, EvaluationOptions
from limbeck.study.setting import Setting
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.types.distilled import DistilledDataset
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

Sets = list[list[DistilledDataset]]
FILE, RECORD = "distilled.safetensors", "result.json"
NAMES = {
    "distilled": "this set",
    "distilled-hard": "this set, hard labels",
    "random-soft": "random real, same soft labels",
    "random-hard": "random real, hard labels",
}


@dataclass(frozen=True)
class Experts:
    """The labelers of a job (one, or several to cross with the image draws), where they come from, and the choice of their snapshot."""

    labelers: tuple[Labeler, ...]
    trajectories: tuple[Trajectory, ...] = ()
    step: int | None = None
    choice: Choice | None = None
    chosen_by: str = "given"


def distill(
    source: str, options: DistillOptions, out: Path, *, cache: Cache | None = None, reporter: Reporter = SILENT, command: str = ""
) -> tuple[DistilledDataset, dict[str, Any]]:
    """Runs the whole job and writes ``distilled.safetensors`` and ``result.json`` under `out`. Returns the set and the record."""
    started = time.monotonic()
    seconds: dict[str, float] = {}
    cache = cache or Cache()
    _check_names(options)
    protocol = protocol_for(options.protocol, source)
    setting = Setting.open(source, options, options.seed, reporter, pixels=options.pixels)
    rule = _rule(options)
    counts = counts_for(
        setting.splits.train, rule, setting.pixels, ipc=options.ipc, total_bytes=parse_bytes(options.bytes) if options.bytes else None
    )
    network = setting.network(options.model)
    plan = student_plan(network, protocol.recipe, sum(counts), options)
    if rule.top_k is not None and rule.top_k > network.classes:
        raise OptionError(f"top-k needs 1 <= k <= {network.classes} classes, got k={rule.top_k}; use k={network.classes} to keep all")
    if options.evaluate and setting.splits.test.size == 0:
        raise OptionError("the source is too small to set test images aside, so nothing can be evaluated; use --no-evaluate, or give more images")
    # found out now, before anything expensive: whether `out` can be written
    store.write_json(out / "options.json", {"source": source, **options.model_dump(mode="json")})
    problem = Problem(
        train=setting.splits.train,
        validation=setting.splits.validation,
        network=network,
        pixels=setting.pixels,
        counts=counts,
        rule=rule,
        recipe=protocol.recipe,
        streams=Streams(options.seed),
        plan=plan,
        provenance=_provenance(source, setting, options, plan),
    )

    lap = time.monotonic()
    experts = _experts(problem, setting, options, cache, reporter)
    seconds["expert and choice"] = time.monotonic() - lap
    sets = _draw(problem, experts, options, "draw", options.method, options.selector, reporter)
    dataset = sets[0][0]
    dataset.save(out / FILE)

    record: dict[str, Any] = {
        **describe_job(dataset, setting, protocol, plan, rule, options.seed),
        "title": f"{source}, {_budget_words(counts)}, {options.method}",
        "command": command,
        "expert": _expert_record(experts, options),
    }
    if options.evaluate:
        lap = time.monotonic()
        kinds = {"distilled": sets, **(_baselines(problem, experts, options, reporter) if options.baselines else {})}
        record["evaluations"] = evaluate_kinds(kinds, setting, options.model, protocol, options, options.seed, cache, reporter, plan=plan)
        if experts.labelers:
            record["expert"] |= _expert_test(experts, setting, plan)
        seconds["evaluate"] = time.monotonic() - lap
    record["seconds"] = {**{key: round(value, 1) for key, value in seconds.items()}, "total": round(time.monotonic() - started, 1)}
    store.write_json(out / RECORD, record)
    return dataset, record


def describe_job(dataset: DistilledDataset, setting: Setting, protocol: Protocol, plan: ExecutionPlan, rule: LabelRule, seed: int) -> dict[str, Any]:
    """What every record says of its set, source, protocol and machine; its evaluations are still to come."""
    return {
        "format": 1,
        "source": setting.describe(),
        "method": dataset.provenance.get("method", "unknown"),
        "label_rule": rule.model_dump(mode="json"),
        "counts": torch.bincount(dataset.owners.long(), minlength=len(dataset.classes)).tolist(),
        "bytes": dataset.bytes,
        "full_data_bytes": len(setting.splits.train) * math.prod(dataset.shape),
        "digest": dataset.digest,
        "seed": seed,
        "protocol": protocol.model_dump(mode="json"),
        "evaluations": [],
        "expert": None,
        "plan": plan.model_dump(),
        "provenance": {key: value for key, value in dataset.provenance.items() if key != "indices"},
        "machine": f"{plan.threads} threads, {platform.machine()}, torch {torch.__version__}",
        "versions": {"limbeck": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def evaluate_kinds(
    kinds: dict[str, Sets],
    setting: Setting,
    model: str,
    protocol: Protocol,
    options: EvaluationOptions,
    seed: int,
    cache: Cache,
    reporter: Reporter,
    plan: ExecutionPlan | None = None,
) -> list[dict[str, Any]]:
    """Evaluates each kind of set (role -> sets[draw][expert]) on the main architecture and on every other that `options.cross` names."""
    rows = []
    for name in (model, *options.cross):
        network = setting.network(name)
        used = plan if name == model and plan is not None else student_plan(network, protocol.recipe, len(next(iter(kinds.values()))[0][0]), options)
        for role, sets in kinds.items():
            recipe = None
            if options.tune_lr:
                recipe = _tuned(sets[0][0], network, protocol.recipe, setting, seed, used, cache, reporter)
            result = evaluate(
                NAMES[role],
                sets,
                network,
                protocol,
                setting.splits.test,
                students=options.students,
                seed=seed,
                recipe=recipe,
                plan=used,
                cache=cache,
                reporter=reporter,
            )
            rows.append({**result.to_dict(), "role": role})
    return rows


def random_baselines(problem: Problem, labelers: Sequence[Labeler], draws: int, reporter: Reporter) -> dict[str, Sets]:
    """Random real images of fresh draws, under the problem's label rule and under hard labels; the same images in both."""
    method = METHODS["random-real"]
    if not labelers:
        problem = replace(problem, rule=LabelRule(kind="hard"))
    fresh = []
    for draw in range(draws):
        drawn = replace(problem, streams=problem.streams["baseline", draw], provenance={**problem.provenance, "draw": draw, "baseline": True})
        fresh.append([run_method(method(method.Options()), drawn.with_expert(labeler), reporter) for labeler in labelers or (None,)])
    hard = [[dataset.with_hard_labels() for dataset in row] for row in fresh]
    return ({"random-soft": fresh} if labelers and problem.rule.kind == "soft" else {}) | {"random-hard": hard}


def protocol_for(name: str, source: str) -> Protocol:
    """The named protocol with the augmentation that suits the source: digits must not be mirrored."""
    protocol = get_protocol(name)
    if not protocol.recipe.augment.startswith(DSA_ALL):
        return protocol
    kind = source if source.startswith("composed:") else source.partition(":")[0]
    augment = protocol.recipe.augment.replace(DSA_ALL, f"dsa:{dsa_strategy_for(kind)}", 1)
    return protocol.model_copy(update={"recipe": protocol.recipe.with_(augment=augment)})


def _check_names(options: DistillOptions) -> None:
    METHODS.check(options.method)
    SELECTORS.check(options.selector.partition(":")[0])
    parse_model(options.model)
    for name in options.cross:
        parse_model(name)
    if options.ensemble and options.experts < 2:
        raise OptionError(f"an ensemble needs at least 2 experts, got {options.experts}; use --experts 5")
    if options.labels == "hard" and (options.top_k is not None or options.temperature != 1 or options.experts > 1):
        raise OptionError("hard labels have no top-k, temperature or several experts; leave those out, or use --labels soft")
    if options.expert_file is not None and options.expert_step is not None:
        raise OptionError("--expert-file brings one finished network, so --expert-step has nothing to choose from; use one of them")
    if options.expert_file is not None and options.experts > 1:
        raise OptionError(f"--expert-file brings one expert, but --experts asks for {options.experts}; use one of them")


def _rule(options: DistillOptions) -> LabelRule:
    return LabelRule(
        kind=options.labels, temperature=options.temperature, top_k=options.top_k, renormalize=options.renormalize, precision=options.label_precision
    )


def student_plan(network: Network, recipe: Recipe, images: int, options: EvaluationOptions) -> ExecutionPlan:
    """The plan for a job's students: by the length of one student, and some twenty of them (three kinds of set, and choosing the snapshot). It does not
    depend on how many are asked for, so the students of a larger evaluation include those of a smaller one."""
    each = recipe.total_steps(images) * min(recipe.batch_size, images)
    return plan_for(network, 20 * each, batch=min(recipe.batch_size, images), device=options.device, threads=options.threads)


def _provenance(source: str, setting: Setting, options: DistillOptions, plan: ExecutionPlan) -> dict[str, Any]:
    splits = setting.splits
    return {
        "limbeck": __version__,
        "torch": torch.__version__,
        "source": source,
        "source_options": setting.source.options,
        "train_digest": splits.train.digest,
        "validation_digest": splits.validation.digest,
        "test_digest": splits.test.digest,
        "validation_fraction": options.validation,
        "method": options.method,
        "selector": options.selector,
        "protocol": options.protocol,
        "seed": options.seed,
        "draw": 0,
        "plan": plan.model_dump(exclude={"reason"}),
    }


def _experts(problem: Problem, setting: Setting, options: DistillOptions, cache: Cache, reporter: Reporter) -> Experts:
    uses_scores = options.selector.partition(":")[0] != "random"
    if options.labels == "hard" and not uses_scores:
        return Experts(())
    if options.expert_file is not None:
        return Experts((load_expert(options.expert_file, problem.network, setting.pixels),), chosen_by="given file")
    recipe = EXPERT_RECIPE.with_(epochs=options.expert_epochs, lr=options.expert_lr)
    images = recipe.total_steps(len(problem.train)) * recipe.batch_size
    plan = plan_for(problem.network, images, batch=recipe.batch_size, device=options.device, threads=options.threads)
    trajectories = tuple(
        train_expert(
            problem.network,
            recipe,
            problem.train,
            problem.validation,
            setting.pixels,
            seed=options.seed,
            index=index,
            plan=plan,
            cache=cache,
            reporter=reporter,
        )
        for index in range(options.experts)
    )

    def labelers(step: int) -> tuple[Labeler, ...]:
        experts: list[Expert] = [trajectory.at(step) for trajectory in trajectories]
        return (labeler_of(experts),) if options.ensemble else tuple(experts)

    if options.expert_step is not None:
        return Experts(labelers(options.expert_step), trajectories, options.expert_step)
    if options.labels == "hard":
        return Experts(labelers(trajectories[0].last.step), trajectories, trajectories[0].last.step, chosen_by="last snapshot")

    def make(step: int) -> DistilledDataset:
        drawn = replace(problem, streams=problem.streams["choose"]).with_expert(labelers(step)[0])
        return _run(drawn, options.method, options.selector, SILENT)

    choice = successive_halving(
        [snapshot.step for snapshot in trajectories[0].snapshots if snapshot.step > 0],
        make,
        problem.network,
        problem.recipe,
        problem.validation,
        streams=problem.streams["choose"],
        plan=problem.plan,
        cache=cache,
        reporter=reporter,
    )
    return Experts(labelers(choice.best), trajectories, choice.best, choice, "successive halving on validation")


def _run(problem: Problem, method: str, selector: str, reporter: Reporter) -> DistilledDataset:
    kind = METHODS[method]
    options = {"selector": selector} if "selector" in kind.Options.model_fields else {}
    return run_method(kind(kind.Options(**options)), problem, reporter)


def _draw(problem: Problem, experts: Experts, options: DistillOptions, stream: str, method: str, selector: str, reporter: Reporter) -> Sets:
    source = {"expert_keys": [trajectory.key for trajectory in experts.trajectories], "expert_step": experts.step, "chosen_by": experts.chosen_by}
    sets = []
    for draw in range(options.draws):
        provenance = {**problem.provenance, **(source if experts.labelers else {}), "draw": draw}
        drawn = replace(problem, streams=problem.streams[stream, draw], provenance=provenance)
        sets.append([_run(drawn.with_expert(labeler), method, selector, reporter) for labeler in experts.labelers or (None,)])
    return sets


def _baselines(problem: Problem, experts: Experts, options: DistillOptions, reporter: Reporter) -> dict[str, Sets]:
    return random_baselines(problem, experts.labelers if options.labels == "soft" else (), options.draws, reporter)


def _tuned(
    dataset: DistilledDataset, network: Network, recipe: Recipe, setting: Setting, seed: int, plan: ExecutionPlan, cache: Cache, reporter: Reporter
) -> Recipe:
    rates = [round(recipe.lr * factor, 10) for factor in (0.1, 0.5, 1, 5)]
    rate, _ = best_learning_rate(
        rates, dataset, network, recipe, setting.splits.validation, streams=Streams(seed)["tune"], plan=plan, cache=cache, reporter=reporter
    )
    return recipe.with_(lr=rate)


def _expert_record(experts: Experts, options: DistillOptions) -> dict[str, Any] | None:
    if not experts.labelers:
        return None
    first = experts.trajectories[0] if experts.trajectories else None
    return {
        "model": str(labeler.network.spec) if isinstance(labeler := experts.labelers[0], Expert) else options.model,
        "recipe": first.about["recipe"] if first else None,
        "count": options.experts,
        "ensemble": options.ensemble,
        "snapshots": [vars(snapshot) for snapshot in first.snapshots] if first else [],
        "chosen_step": experts.step,
        "chosen_by": experts.chosen_by,
        "trials": trials_as_dicts(experts.choice) if experts.choice else [],
        "validation_images": experts.choice.validation_images if experts.choice else 0,
        "digests": [labeler.digest for labeler in experts.labelers],
    }


def _expert_test(experts: Experts, setting: Setting, plan: ExecutionPlan) -> dict[str, Any]:
    chosen = [evaluate_labeler(labeler, setting.splits.test, plan).accuracy for labeler in experts.labelers]
    record: dict[str, Any] = {"test_accuracy": sum(chosen) / len(chosen)}
    if experts.trajectories:
        step = experts.trajectories[0].last.step
        last = [evaluate_labeler(trajectory.at(step), setting.splits.test, plan).accuracy for trajectory in experts.trajectories]
        record |= {"last_step": step, "last_test_accuracy": sum(last) / len(last)}
    return record


def _budget_words(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low} image{'s' if low != 1 else ''} per class" if low == high else f"{low} to {high} images per class"

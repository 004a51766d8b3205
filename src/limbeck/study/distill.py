"""The main job: source -> experts -> snapshot chosen on validation -> distilled file -> students with both baselines -> record.

Every expensive part is cached under its content, so the same command continues where it was stopped and ends in the same bytes.
"""

import math
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel

from limbeck import __version__, store
from limbeck.cache import Cache
from limbeck.choose.snapshot import best_learning_rate
from limbeck.data.augment import suited_to
from limbeck.errors import OptionError
from limbeck.evaluate.evaluate import evaluate
from limbeck.evaluate.protocols import PROTOCOLS, Protocol, get_protocol
from limbeck.experts.expert import Labeler
from limbeck.labels.rules import LabelRule
from limbeck.methods import SELECTORS
from limbeck.methods.budget import counts_for, parse_bytes
from limbeck.methods.driver import Check, Method, run_method, seconds_spent
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.models import parse_model
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.experts import Experts, expert_record, expert_test, expert_use, label_default, prepare_experts, uses_labeler
from limbeck.study.options import DistillOptions, EvaluationOptions
from limbeck.study.setting import Setting
from limbeck.train.examples import Examples
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.train.students import score, train_student
from limbeck.types.distilled import DistilledDataset
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

Sets = list[list[DistilledDataset]]
_IMAGES_OF_A_STEP = 1000  # of a method that optimizes, in round numbers: it only decides whether compiling pays
FILE, RECORD = "distilled.safetensors", "result.json"
NAMES = {
    "distilled": "this set",
    "distilled-hard": "this set, hard labels",
    "random-soft": "random real, same soft labels",  # from the expert that labeled the set
    "random-hard": "random real, hard labels",
    "random-soft-bytes": "random real, soft labels, same bytes",
    "random-hard-bytes": "random real, hard labels, same bytes",
}
_FOREIGN_LABELS = "random real, an expert's soft labels"  # beside a set whose own labels are learned, or of somebody else


def distill(
    source: str, options: DistillOptions, out: Path, *, cache: Cache | None = None, reporter: Reporter = SILENT, command: str = ""
) -> tuple[DistilledDataset, dict[str, Any]]:
    """Runs the whole job and writes ``distilled.safetensors`` and ``result.json`` under `out`. Returns the set and the record."""
    started = time.monotonic()
    seconds: dict[str, float] = {}
    cache = cache or Cache()
    _check_names(options)
    protocol = protocol_for(options.protocol, source)
    method = method_of(options, source)
    _check_protocol(method, protocol, options)
    budget = parse_duration(options.budget) if options.budget else None
    setting = Setting.open(source, options, options.seed, reporter, pixels=options.pixels)
    rule = label_rule(method, options)
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
    if plan.reason.startswith("no C++ compiler"):
        reporter.note(plan.reason)
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
        provenance=_provenance(source, setting, method, options, plan),
    )

    for words in _idle_options(method, problem, options):
        reporter.note(words)

    lap = time.monotonic()
    experts = prepare_experts(method, problem, setting, options, cache, reporter, _random_real)
    seconds["expert and choice"], lap = (experts.earlier_seconds or 0.0) + time.monotonic() - lap, time.monotonic()
    earlier: list[float] = []
    sets = draw_sets(method, problem, experts, options, budget, cache, reporter, on_resume=earlier.append)
    seconds["distilling"] = sum(earlier) + time.monotonic() - lap
    dataset = sets[0][0]
    dataset.save(out / FILE)

    record: dict[str, Any] = {
        **describe_job(dataset, setting, protocol, plan, rule, options.seed),
        "title": f"{source}, {_budget_words(counts)}, {options.method.partition(':')[0]}",
        "command": command,
        "expert": expert_record(experts, options, expert_use(method, dataset, experts)),
        "optimization": dataset.provenance.get("optimization"),
    }
    if options.evaluate:
        lap = time.monotonic()
        kinds = {"distilled": sets, **(_baselines(method, problem, dataset, experts, options, reporter) if options.baselines else {})}
        record["evaluations"] = evaluate_kinds(kinds, setting, options.model, protocol, options, options.seed, cache, reporter, plan=plan)
        if experts.labelers:
            record["expert"] |= expert_test(experts, setting, plan)
        seconds["evaluate"] = time.monotonic() - lap
    record["cached"] = ["expert and choice"] if experts.earlier_seconds is None else []
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
        "provenance": {key: value for key, value in dataset.provenance.items() if key not in ("indices", "optimization")},
        "machine": f"{plan.threads * plan.lanes} threads, {platform.machine()}, torch {torch.__version__}",
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
        labeled = next(iter(kinds.values()))[0][0].labels.expert is not None
        for role, sets in kinds.items():
            step_size = sets[0][0].step_size
            # a learned step size belongs to the set: its students train at it
            recipe, rate = (None, None) if step_size is None else (protocol.recipe.with_(lr=step_size), "learned")
            if options.tune_lr:
                rate = "chosen"
                recipe = _tuned(sets[0][0], network, protocol.recipe, setting, seed, used, cache, reporter)
            result = evaluate(
                NAMES[role] if labeled or role != "random-soft" else _FOREIGN_LABELS,
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
            rows.append({**result.to_dict(), "role": role, "rate": rate})
    return rows


def random_baselines(
    problem: Problem, labelers: Sequence[Labeler], draws: int, reporter: Reporter, options: BaseModel | None = None
) -> dict[str, Sets]:
    """Random real images of fresh draws, under the problem's label rule and under hard labels; the same images in both. Where the `options` of the method
    that they stand beside ask for labels of several views, the soft ones have as many."""
    method = parse_method("random-real", views=getattr(options, "views", None), view_augment=getattr(options, "view_augment", None))
    if not labelers:
        problem = replace(problem, rule=LabelRule(kind="hard"))
    fresh = []
    for draw in range(draws):
        drawn = replace(problem, streams=problem.streams["baseline", draw], provenance={**problem.provenance, "draw": draw, "baseline": True})
        fresh.append([run_method(method, drawn.with_expert(labeler), reporter) for labeler in labelers or (None,)])
    hard = [[dataset.with_hard_labels() for dataset in row] for row in fresh]
    return ({"random-soft": fresh} if labelers and problem.rule.kind == "soft" else {}) | {"random-hard": hard}


def protocol_for(name: str, source: str) -> Protocol:
    """The named protocol with the augmentation that suits the source: digits must not be mirrored."""
    protocol = get_protocol(name)
    return protocol.model_copy(update={"recipe": protocol.recipe.with_(augment=suited_to(protocol.recipe.augment, source))})


def _check_names(options: DistillOptions) -> None:
    SELECTORS.check(options.selector.partition(":")[0])
    parse_model(options.model)
    for name in (*options.cross, *filter(None, [options.expert_model])):
        parse_model(name)
    if options.ensemble and options.experts < 2:
        raise OptionError(f"an ensemble needs at least 2 experts, got {options.experts}; use --experts 5")
    if options.expert_file is not None and options.expert_step is not None:
        raise OptionError("--expert-file brings one finished network, so --expert-step has nothing to choose from; use one of them")
    if options.expert_file is not None and options.experts > 1:
        raise OptionError(f"--expert-file brings one expert, but --experts asks for {options.experts}; use one of them")


def _check_protocol(method: Method, protocol: Protocol, options: DistillOptions) -> None:
    wanted = getattr(method, "student_loss", None)
    if options.evaluate and wanted is not None and protocol.recipe.loss != wanted:
        fitting = [name for name, known in PROTOCOLS.items() if known.recipe.loss == wanted]
        raise OptionError(
            f"{options.method.partition(':')[0]} learns labels for students that are trained by {wanted}, but protocol {protocol.name} trains them by "
            f"{protocol.recipe.loss}; use --protocol {' or '.join(fitting)}"
        )


def _idle_options(method: Method, problem: Problem, options: DistillOptions) -> list[str]:
    """A sentence for every option that the user gave and that this method's set does not depend on."""
    name = options.method.partition(":")[0]
    found = []
    if options.steps is not None and "steps" not in type(method.options).model_fields:
        found.append(f"--steps does nothing here: {name} has no number of steps to choose")
    if options.budget is not None and not method.total_steps(problem):
        found.append(f"--budget does nothing here: {name} takes no steps")
    given = {"--labels soft": options.labels == "soft", "--top-k": options.top_k is not None, "--temperature": options.temperature != 1}
    named = ", ".join(option for option, used in given.items() if used)
    if named and label_default(method) == "learned":
        found.append(f"{named}: for the random images beside this set alone, since {name} learns the set's labels")
    return found


def method_of(options: DistillOptions, source: str) -> Method:
    """The method of a job, suited to the source."""
    return suited_method(
        parse_method(options.method, selector=options.selector if options.selector != "random" else None, steps=options.steps), source
    )


def suited_method(method: Method, source: str) -> Method:
    """The method with the augmentation that suits the source: digits must not be mirrored."""
    augment = getattr(method.options, "augment", None)
    # "students" is trajectory matching's word for the augmentation of the students' recipe, which is suited where that recipe is made
    if not isinstance(augment, str) or augment == "students" or (changed := suited_to(augment, source)) == augment:
        return method
    made: Method = type(method)(method.options.model_copy(update={"augment": changed}))  # type: ignore[call-arg]
    return made


def parse_duration(text: str) -> float:
    """``90s``, ``20min``, ``1.5h`` or a bare number of seconds, as seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|sec|min|m|h)?\s*", text)
    if match is None or float(match[1]) <= 0:
        raise OptionError(f"a time budget looks like 90s, 20min or 1.5h, got {text!r}")
    return float(match[1]) * {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}[match[2] or ""]


def label_rule(method: Method, options: DistillOptions) -> LabelRule:
    """How the job's labels are made; "auto" is as the method is published."""
    kind: Literal["soft", "hard"] = "soft" if label_default(method) == "soft" else "hard"
    if options.labels != "auto":
        kind = options.labels
    if kind == "hard" and (options.top_k is not None or options.temperature != 1):
        raise OptionError("hard labels have no top-k or temperature; leave those out, or use --labels soft")
    return LabelRule(
        kind=kind, temperature=options.temperature, top_k=options.top_k, renormalize=options.renormalize, precision=options.label_precision
    )


def student_plan(network: Network, recipe: Recipe, images: int, options: EvaluationOptions) -> ExecutionPlan:
    """The plan for a job's students: by the length of one student, and some twenty of them (three kinds of set, and choosing the snapshot). It does not
    depend on how many are asked for, so the students of a larger evaluation include those of a smaller one."""
    each = recipe.total_steps(images) * min(recipe.batch_size, images)
    return plan_for(network, 20 * each, batch=min(recipe.batch_size, images), device=options.device, threads=options.threads)


def _provenance(source: str, setting: Setting, method: Method, options: DistillOptions, plan: ExecutionPlan) -> dict[str, Any]:
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
        "method": options.method.partition(":")[0],
        "method_options": method.options.model_dump(mode="json"),
        "protocol": options.protocol,
        "seed": options.seed,
        "draw": 0,
        "plan": plan.model_dump(exclude={"reason"}),
    }


def draw_sets(
    method: Method,
    problem: Problem,
    experts: Experts,
    options: DistillOptions,
    budget: float | None,
    cache: Cache,
    reporter: Reporter,
    *,
    on_resume: Callable[[float], None] = lambda seconds: None,
) -> Sets:
    """A set of every draw and expert; each kept in the cache as it grows, so a stopped job goes on. `on_resume` is told the seconds that earlier runs spent on a
    set."""
    check = _validation_check(problem) if options.checks and len(problem.validation) else None
    if steps := method.total_steps(problem):
        plan = plan_for(problem.network, steps * _IMAGES_OF_A_STEP, device=options.device, threads=options.threads)
        problem = replace(problem, plan=plan, provenance={**problem.provenance, "plan": plan.model_dump(exclude={"reason"})})
    sets = []
    for draw in range(options.draws):
        provenance = {**problem.provenance, **experts.provenance, "draw": draw}
        drawn = replace(problem, streams=problem.streams["draw", draw], provenance=provenance, trajectories=experts.trajectories)
        row = []
        for labeler in experts.labelers if uses_labeler(method, problem.rule) else (None,):
            given = drawn.with_expert(labeler)
            folder = cache.path("methods", cache.key("methods", _method_task(method, given, options.checks)))
            on_resume(seconds_spent(folder, budget))
            row.append(run_method(method, given, reporter, folder=folder, budget_seconds=budget, check=check, checks=options.checks))
        sets.append(row)
    return sets


def _method_task(method: Method, problem: Problem, checks: int) -> dict[str, Any]:
    """Everything that determines how a method goes on."""
    return {
        "method": f"{type(method).__module__}:{type(method).__qualname__}",
        "options": method.options.model_dump(mode="json"),
        "train": problem.train.digest,
        "validation": problem.validation.digest,
        "model": problem.network.identity,
        "shape": [*problem.network.shape, problem.network.classes],
        "pixels": store.content_digest(problem.pixels.header(), problem.pixels.tensors()),
        "counts": list(problem.counts),
        "rule": problem.rule.model_dump(mode="json"),
        "recipe": problem.recipe.model_dump(mode="json"),
        "streams": [problem.streams.root, *problem.streams.path],
        "plan": problem.plan.model_dump(exclude={"reason"}),
        "expert": problem.expert.digest if problem.expert else None,
        "trajectories": [trajectory.key for trajectory in problem.trajectories],
        "checks": checks,
        **({"withheld": list(problem.withheld)} if problem.withheld else {}),
    }


def _validation_check(problem: Problem) -> Check:
    """Validation accuracy of one student trained on an interim set."""

    def check(dataset: DistilledDataset) -> float:
        examples, streams = Examples.of_distilled(dataset), problem.streams["check"]
        state = train_student(problem.network, examples, problem.recipe, streams, problem.plan)
        return score(problem.network, state, problem.validation, examples, problem.plan).accuracy

    return check


def _random_real(problem: Problem) -> DistilledDataset:
    return run_method(parse_method("random-real"), problem)


def _baselines(
    method: Method, problem: Problem, dataset: DistilledDataset, experts: Experts, options: DistillOptions, reporter: Reporter
) -> dict[str, Sets]:
    """Random real images at the set's counts, and, where the set's images cost more bytes than real ones, also as many as its bytes pay for: under hard labels,
    and fewer of them under soft ones where those are shown at all."""
    soft = problem if problem.rule.kind == "soft" else replace(problem, rule=LabelRule())
    labelers = experts.labelers if options.labels != "hard" else ()
    found = random_baselines(soft, labelers, options.draws, reporter, method.options)
    plain = found["random-soft" if labelers else "random-hard"][0][0].bytes["total"]
    if dataset.bytes["total"] < 1.5 * plain:
        return found
    for rule, given in ((soft.rule, labelers), (LabelRule(kind="hard"), ())):
        role = f"random-{rule.kind}"
        if role in found:
            affordable = counts_for(problem.train, rule, problem.pixels, total_bytes=dataset.bytes["total"])
            more = random_baselines(replace(soft, counts=_at_most(affordable, problem)), given, options.draws, reporter)
            found[f"{role}-bytes"] = more[role]
    return found


def _at_most(counts: Sequence[int], problem: Problem) -> tuple[int, ...]:
    available = np.bincount(problem.train.labels, minlength=len(counts)).tolist()
    return tuple(min(wanted, has) for wanted, has in zip(counts, available, strict=True))


def _tuned(
    dataset: DistilledDataset, network: Network, recipe: Recipe, setting: Setting, seed: int, plan: ExecutionPlan, cache: Cache, reporter: Reporter
) -> Recipe:
    rates = {round(recipe.lr * factor, 10) for factor in (0.1, 0.5, 1, 5)} | ({dataset.step_size} if dataset.step_size is not None else set())
    rate, _ = best_learning_rate(
        sorted(rates), dataset, network, recipe, setting.splits.validation, streams=Streams(seed)["tune"], plan=plan, cache=cache, reporter=reporter
    )
    return recipe.with_(lr=rate)


def _budget_words(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low} image{'s' if low != 1 else ''} per class" if low == high else f"{low} to {high} images per class"

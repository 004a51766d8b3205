"""The frontier of defenses: what each costs in the students' test accuracy, and what it takes away from exposure."""

from typing import Any

from limbeck import store
from limbeck.errors import FileFormatError, LimbeckError
from limbeck.experts.expert import Expert, Labeler
from limbeck.labels.rules import LabelRule
from limbeck.leak.defenses import Defense, NoisyLabeler, parse_defenses
from limbeck.leak.private_expert import noise_multiplier, train_private
from limbeck.study.auditing import Bench, make_sets, measured, student_jobs, students_of
from limbeck.study.experts import Experts
from limbeck.train.plan import plan_for
from limbeck.types.distilled import DistilledDataset
from limbeck.types.recipe import Recipe

_STATE = "private expert"
_CLIP = 1.0


def frontier_of(bench: Bench, experts: Experts, share: float) -> list[dict[str, Any]]:
    """One row for the set as published and one for each defense alone, in the arm of the expert where that is audited. A defense that cannot be tried has a
    note instead of numbers."""
    arm = bench.arms[0]
    rows: list[dict[str, Any]] = []
    sets: list[list[DistilledDataset]] = []
    for defense in (None, *parse_defenses(bench.options.defend or "")):
        name = defense.name if defense else "as published"
        rows.append({"defense": name, "kind": defense.kind if defense else "none", "value_set": defense.value if defense else "", "arm": arm})
        try:
            guarded, rule, extra = _guarded(bench, experts, defense)
            sets.append(make_sets(bench, arm, guarded, rule=rule))
            rows[-1] |= extra
        except LimbeckError as problem:
            bench.reporter.note(f"defense {name} was not tried: {problem}")
            sets.append([])
            rows[-1]["note"] = str(problem)
    # first all together, as many at once as the plan says; then each row finds its own in the cache
    students_of(bench, [job for made in sets for job in student_jobs(bench, made)], "students of every defense")
    for row, made in zip(rows, sets, strict=True):
        if made:
            row |= measured(bench, made, f"defense: {row['defense']}", share)[1]
    return rows


def _guarded(bench: Bench, experts: Experts, defense: Defense | None) -> tuple[Experts, LabelRule, dict[str, Any]]:
    """The experts and the label rule under a defense, and what the record says beside its numbers."""
    rule = bench.rule
    if defense is None:
        return experts, rule, {}
    if defense.kind == "temperature":
        return experts, _changed(rule, temperature=defense.number), {}
    if defense.kind == "top-k":
        return experts, _changed(rule, top_k=int(defense.value)), {}
    if defense.kind == "precision":
        return experts, _changed(rule, precision=defense.value), {}
    labelers: tuple[Labeler, ...]
    if defense.kind == "noise":
        labelers = tuple(NoisyLabeler(labeler, defense.number, bench.streams["noise", e]) for e, labeler in enumerate(experts.labelers))
        return Experts(labelers, (), experts.step), rule, {}
    if defense.kind == "expert-epochs":
        if not experts.trajectories:
            raise LimbeckError("an expert from a file has no earlier snapshots")
        step = int(defense.value) * bench.expert_recipe.steps_per_epoch(len(bench.problem.train))
        return Experts(tuple(trajectory.at(step) for trajectory in experts.trajectories), (), step), rule, {}
    found = [_private_expert(bench, defense.number, e) for e in range(max(1, len(experts.labelers)))]
    return Experts(tuple(expert for expert, _ in found), (), found[0][0].step), rule, found[0][1]


def _changed(rule: LabelRule, **changes: Any) -> LabelRule:
    return LabelRule(**{**rule.model_dump(), **changes})


def _private_expert(bench: Bench, epsilon: float, index: int) -> tuple[Expert, dict[str, Any]]:
    """An expert trained with DP-SGD to this epsilon on the planted data, for as many epochs as the audited one."""
    train, pixels = bench.problem.train, bench.setting.pixels
    recipe: Recipe = bench.expert_recipe.with_(augment="none", weight_decay=0.0)
    steps, delta = recipe.total_steps(len(train)), 1 / (10 * len(train))
    noise = noise_multiplier(epsilon, delta, min(1.0, recipe.batch_size / len(train)), steps)
    network = bench.setting.network(bench.options.expert_model or bench.options.model)
    plan = plan_for(network, steps * recipe.batch_size, batch=recipe.batch_size, device=bench.options.device, threads=bench.options.threads)
    streams = bench.streams["private expert", index]
    task = {
        "model": network.identity,
        "recipe": recipe.model_dump(mode="json"),
        "train": train.digest,
        "pixels": store.content_digest(pixels.header(), pixels.tensors()),
        "noise": noise,
        "clip": _CLIP,
        "streams": [streams.root, *streams.path],
        "device": plan.device,
    }
    path = bench.cache.path("shadows", bench.cache.key("shadows", task), ".safetensors")
    try:
        state = store.load(path, _STATE)[1]
    except FileFormatError:
        with bench.reporter.task(f"expert with epsilon {epsilon:g}", steps) as tick:
            state = train_private(network, recipe, train, pixels, streams, plan, noise=noise, clip=_CLIP, tick=tick)
        store.save(path, {"kind": _STATE}, state)
    expert = Expert(network, state, pixels, steps, store.content_digest({"kind": _STATE}, state))
    return expert, {"epsilon": epsilon, "delta": delta, "noise_multiplier": noise, "clip": _CLIP}

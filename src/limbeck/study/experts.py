"""The experts of a job: trained (or brought), their snapshot chosen on validation, and what the record says of them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from limbeck.cache import Cache
from limbeck.choose.snapshot import Choice, successive_halving, trials_as_dicts
from limbeck.data.augment import suited_to
from limbeck.evaluate.evaluate import evaluate_labeler
from limbeck.experts.checkpoint import load_expert
from limbeck.experts.expert import Expert, Labeler, labeler_of
from limbeck.experts.trajectory import EXPERT_RECIPE, Trajectory, train_expert
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import Method
from limbeck.methods.problem import Problem
from limbeck.progress import Reporter
from limbeck.study.options import DistillOptions
from limbeck.study.setting import Setting
from limbeck.train.plan import plan_for
from limbeck.types.distilled import DistilledDataset
from limbeck.types.plan import ExecutionPlan


@dataclass(frozen=True)
class Experts:
    """The labelers of a job (one, or several to cross with the image draws), where they come from, and the choice of their snapshot."""

    labelers: tuple[Labeler, ...]
    trajectories: tuple[Trajectory, ...] = ()
    step: int | None = None
    choice: Choice | None = None
    chosen_by: str = "given"

    @property
    def earlier_seconds(self) -> float | None:
        """How long earlier runs trained them; None where one is from a cache that does not say."""
        each = [trajectory.earlier_seconds for trajectory in self.trajectories]
        return None if None in each else sum((seconds for seconds in each if seconds is not None), 0.0)

    @property
    def provenance(self) -> dict[str, Any]:
        """What a set that they labeled says of them."""
        if not self.labelers and not self.trajectories:
            return {}
        return {"expert_keys": [trajectory.key for trajectory in self.trajectories], "expert_step": self.step, "chosen_by": self.chosen_by}


def wants_labeler(method: Method, rule: LabelRule, options: DistillOptions) -> bool:
    """Whether the job needs an expert's logits: for its sets, or for the baseline beside learned labels."""
    learned = options.labels == "auto" and label_default(method) == "learned" and options.evaluate and options.baselines
    return learned or rule.kind == "soft" or uses_labeler(method, rule)


def uses_labeler(method: Method, rule: LabelRule) -> bool:
    """Whether the sets of a method differ between experts: for soft labels, for selectors that score images, and where the method makes images with one."""
    scores = getattr(method.options, "selector", "random").partition(":")[0] != "random"
    labeled = rule.kind == "soft" and not getattr(method, "labels_itself", False)
    return labeled or scores or getattr(method, "wants_expert", False)


def label_default(method: Method) -> str:
    """The labels that a method is published with: ``soft`` (an expert's), ``hard`` or ``learned``."""
    return str(getattr(method, "label_default", "hard"))


def prepare_experts(
    method: Method,
    problem: Problem,
    setting: Setting,
    options: DistillOptions,
    cache: Cache,
    reporter: Reporter,
    make: Callable[[Problem], DistilledDataset],
) -> Experts:
    """Trains what the job needs. `make` gives the set on which a snapshot is tried: random real images of the job's counts, whatever the method, since every
    candidate needs one."""
    recipe = getattr(method, "expert_recipe", None)
    labeler = wants_labeler(method, problem.rule, options)
    trains = (labeler or recipe is not None) and options.expert_file is None
    network = setting.network(options.expert_model or options.model)
    if check := getattr(method, "check", None):
        check(problem, network if labeler or recipe is not None else None, options.expert_epochs if trains else None)
    if not labeler and recipe is None:
        return Experts(())
    if options.expert_file is not None:
        return Experts((load_expert(options.expert_file, network, setting.pixels),), chosen_by="given file")
    recipe = recipe or EXPERT_RECIPE
    recipe = recipe.with_(
        augment=suited_to(recipe.augment, setting.spec),
        epochs=options.expert_epochs,
        **({"lr": options.expert_lr} if options.expert_lr is not None else {}),
    )
    images = recipe.total_steps(len(problem.train)) * recipe.batch_size
    plan = plan_for(network, images, batch=recipe.batch_size, device=options.device, threads=options.threads)
    trajectories = tuple(
        train_expert(
            network,
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
    if not labeler:
        return Experts((), trajectories, chosen_by="matched, not asked for labels")

    def labelers(step: int) -> tuple[Labeler, ...]:
        experts: list[Expert] = [trajectory.at(step) for trajectory in trajectories]
        return (labeler_of(experts),) if options.ensemble else tuple(experts)

    if options.expert_step is not None:
        return Experts(labelers(options.expert_step), trajectories, options.expert_step)
    if (problem.rule.kind == "hard" and label_default(method) != "learned") or getattr(method, "wants_last_snapshot", False):
        return Experts(labelers(trajectories[0].last.step), trajectories, trajectories[0].last.step, chosen_by="last snapshot")
    soft = problem if problem.rule.kind == "soft" else replace(problem, rule=LabelRule())
    choice = successive_halving(
        [snapshot.step for snapshot in trajectories[0].snapshots if snapshot.step > 0],
        lambda step: make(replace(soft, streams=problem.streams["choose"]).with_expert(labelers(step)[0])),
        problem.network,
        problem.recipe,
        problem.validation,
        streams=problem.streams["choose"],
        plan=problem.plan,
        cache=cache,
        reporter=reporter,
    )
    return Experts(labelers(choice.best), trajectories, choice.best, choice, "successive halving on validation")


def expert_use(method: Method, dataset: DistilledDataset, experts: Experts) -> str:
    """What the experts are for: ``labels`` (of the set), ``matched``, ``images`` (that are made or chosen with them), or ``baseline`` (random images' labels)."""
    if dataset.labels.expert is not None:
        return "labels"
    if getattr(method, "expert_recipe", None) is not None:
        return "matched"
    return "images" if uses_labeler(method, LabelRule(kind="hard")) else "baseline"


def expert_record(experts: Experts, options: DistillOptions, use: str) -> dict[str, Any] | None:
    """The experts as plain JSON; `use` is what `expert_use` says."""
    if not experts.labelers and not experts.trajectories:
        return None
    first = experts.trajectories[0] if experts.trajectories else None
    labeler = experts.labelers[0] if experts.labelers else None
    return {
        "use": use,
        "model": str(labeler.network.spec) if isinstance(labeler, Expert) else options.expert_model or options.model,
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


def expert_test(experts: Experts, setting: Setting, plan: ExecutionPlan) -> dict[str, Any]:
    """Test accuracy of the chosen and of the last snapshot."""
    chosen = [evaluate_labeler(labeler, setting.splits.test, plan).accuracy for labeler in experts.labelers]
    record: dict[str, Any] = {"test_accuracy": sum(chosen) / len(chosen)}
    if experts.trajectories:
        step = experts.trajectories[0].last.step
        last = [evaluate_labeler(trajectory.at(step), setting.splits.test, plan).accuracy for trajectory in experts.trajectories]
        record |= {"last_step": step, "last_test_accuracy": sum(last) / len(last)}
    return record

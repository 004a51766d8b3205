"""The planted audit of a source: canaries in, students out, and a `Finding` for every question. The mathematics is in `limbeck.leak`.

Everything that trains is cached under its content, so an audit that was stopped goes on where it was.
"""

import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck import __version__, store
from limbeck.cache import Cache
from limbeck.data.pixels import fit_pixel_space
from limbeck.data.tables import ImageTable, Subset, digest_rows
from limbeck.errors import FileFormatError, OptionError
from limbeck.evaluate.protocols import Protocol
from limbeck.experts.expert import Expert, Labeler
from limbeck.experts.trajectory import EXPERT_RECIPE, snapshot_steps
from limbeck.labels.rules import LabelRule
from limbeck.leak.canaries import Plant, Relabeled
from limbeck.leak.defenses import parse_defenses
from limbeck.leak.exposure import Exposure, exposure
from limbeck.leak.file_audit import label_findings
from limbeck.leak.membership import Attack, AttackResult, LabelAttack, draw_design, judge_attack, label_margin, lira, rmia, tested_rate
from limbeck.leak.split import within_class
from limbeck.leak.verdicts import exit_code, overall
from limbeck.methods import SELECTORS
from limbeck.methods.budget import counts_for, parse_bytes
from limbeck.methods.driver import Method, Size, run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.models import parse_model
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.audit_options import AuditOptions
from limbeck.study.distill import draw_sets, label_rule, method_of, parse_duration, protocol_for, student_plan
from limbeck.study.experts import Experts, prepare_experts, uses_labeler, wants_labeler
from limbeck.study.setting import Setting
from limbeck.train.examples import Examples
from limbeck.train.fit import predict
from limbeck.train.network import Network, State
from limbeck.train.plan import plan_for
from limbeck.train.students import Student, in_groups, score_logits, train_students
from limbeck.types.distilled import DistilledDataset
from limbeck.types.evaluation import t_interval
from limbeck.types.finding import Finding, p_words
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

RECORD = "audit.json"
_POPULATION = 500  # validation records under drawn labels that RMIA compares with
_LABEL_REDRAWS = 10_000
_OUTPUT, _STATE = "audited student", "shadow expert"
ARMS = {"expert": "expert only", "end-to-end": "end to end"}
ROLES = {"published": "as published", "hard": "control: hard labels", "shuffled": "control: soft labels shuffled within classes"}


@dataclass(frozen=True)
class Bench:
    """What every part of an audit shares. `problem` is the one of the expert: its training table holds the canaries, none of which it may publish."""

    source: str
    options: AuditOptions
    setting: Setting
    plant: Plant
    method: Method
    rule: LabelRule
    protocol: Protocol
    problem: Problem
    cache: Cache
    reporter: Reporter

    @property
    def network(self) -> Network:
        """The students' architecture."""
        return self.problem.network

    @property
    def classes(self) -> int:
        return self.network.classes

    @property
    def streams(self) -> Streams:
        """Streams of the audit's own draws."""
        return Streams(self.options.seed)["audit"]

    @property
    def arms(self) -> tuple[str, ...]:
        """Where the canaries are: in the expert's data alone, or in the method's as well."""
        return ("expert", "end-to-end") if self.options.arm == "both" else (self.options.arm,)

    @cached_property
    def population(self) -> Relabeled:
        """Validation records under drawn labels: of the canaries' distribution, and in no world."""
        table = self.setting.splits.validation
        some = self.streams.numpy("population").permutation(len(table))[:_POPULATION]
        return Relabeled(Subset(table, some), self.streams.numpy("population-labels").integers(0, self.classes, len(some)))

    @cached_property
    def test(self) -> Subset:
        """Some of the test images, to say what the students are good for."""
        table = self.setting.splits.test.open_for_measurement()
        return Subset(table, self.streams.numpy("test").permutation(len(table))[: self.options.test_images])

    def arm_problem(self, arm: str, members: np.ndarray | None = None) -> Problem:
        """The method's problem: clean data in the arm "expert", data with the members in "end-to-end"."""
        if arm == "expert":
            return replace(self.problem, train=self.plant.clean, withheld=())
        return replace(self.problem, train=self.plant.planted(members), withheld=self.plant.withheld(members))

    @property
    def expert_recipe(self) -> Recipe:
        """How experts are trained, as far as the options say: the schedule is the method's."""
        options = self.options
        recipe: Recipe = getattr(self.method, "expert_recipe", None) or EXPERT_RECIPE
        return recipe.with_(epochs=options.expert_epochs, **({"lr": options.expert_lr} if options.expert_lr is not None else {}))

    @property
    def with_expert(self) -> bool:
        """Whether an expert takes part in making the set."""
        return wants_labeler(self.method, self.rule, self.options) or getattr(self.method, "expert_recipe", None) is not None


def audit_source(
    source: str, options: AuditOptions, out: Path, *, cache: Cache | None = None, reporter: Reporter = SILENT, command: str = ""
) -> dict[str, Any]:
    """Runs the planted audit and writes ``audit.json`` under `out`; returns the record. With ``options.price`` it stops at the cost."""
    started = time.monotonic()
    bench = set_up(source, options, cache or Cache(), reporter)
    cost = price(bench)
    reporter.note(cost["sentence"])
    if options.price:
        return {"cost": cost, "findings": [], "exit_code": 0}
    store.write_json(out / "options.json", {"source": source, **options.model_dump(mode="json")})
    experts = _experts(bench)
    share = options.alpha / max(1, _tests(bench))
    exposures, sets = _exposures(bench, experts, share)
    membership, attacks = _membership(bench, experts, share)
    findings = [*_exposure_findings(bench, exposures), *membership, *label_findings(next(iter(sets.values()))[0], bench.network)]
    frontier: list[dict[str, Any]] = []
    if options.defend:
        from limbeck.study.defending import frontier_of

        frontier = frontier_of(bench, experts, share)
    first = next(iter(sets.values()))[0]
    record = {
        **about(bench, command),
        "counts": torch.bincount(first.owners.long(), minlength=bench.classes).tolist(),
        "bytes": first.bytes,
        "expert": _about_expert(bench, experts, share),
        "exposures": exposures,
        "attacks": attacks,
        "frontier": frontier,
        "findings": [finding.to_dict() for finding in findings],
        "verdict": overall(findings),
        "exit_code": exit_code(findings),
        "cost": cost,
        "seconds": round(time.monotonic() - started, 1),
    }
    store.write_json(out / RECORD, record)
    return record


def set_up(source: str, options: AuditOptions, cache: Cache, reporter: Reporter) -> Bench:
    """Opens the source, draws the plant and poses the expert's problem. Trains nothing."""
    SELECTORS.check(options.selector.partition(":")[0])
    for name in filter(None, (options.model, options.expert_model)):
        parse_model(name)
    # hidden from the job's helpers, which would train an expert for a baseline that an audit has not
    options = options.model_copy(update={"evaluate": False})
    protocol = protocol_for(options.protocol, source)
    method = method_of(options, source)
    rule = label_rule(method, options)
    setting = Setting.open(source, options, options.seed, reporter, pixels=PixelSpace())
    plant = Plant.draw(setting.splits.train, options.canaries, Streams(options.seed)["audit", "plant"], images=options.train_images)
    setting = replace(setting, pixels=fit_pixel_space(options.pixels, plant.clean))
    counts = counts_for(plant.clean, rule, setting.pixels, ipc=options.ipc, total_bytes=parse_bytes(options.bytes) if options.bytes else None)
    network = setting.network(options.model)
    if rule.top_k is not None and rule.top_k > network.classes:
        raise OptionError(f"top-k needs 1 <= k <= {network.classes} classes, got k={rule.top_k}; use k={network.classes} to keep all")
    if setting.splits.test.size == 0:
        raise OptionError("the source is too small to set test images aside, so the students' accuracy cannot be measured; give more images")
    problem = Problem(
        train=plant.planted(),
        validation=setting.splits.validation,
        network=network,
        pixels=setting.pixels,
        counts=counts,
        rule=rule,
        recipe=protocol.recipe,
        streams=Streams(options.seed),
        plan=student_plan(network, protocol.recipe, sum(counts), options),
        provenance={"method": options.method.partition(":")[0], "source": source, "seed": options.seed, "audit": options.canaries},
        withheld=plant.withheld(),
    )
    bench = Bench(source, options, setting, plant, method, rule, protocol, problem, cache, reporter)
    if options.arm == "expert" and not bench.with_expert:
        raise OptionError("no expert takes part in making this set, so the arm 'expert' has nothing to check; use --arm end-to-end")
    share = options.alpha / max(1, _tests(bench))
    if _attacked(options) and tested_rate((options.shadows + 1) * options.canaries) is not None:
        share /= 2  # an attack's share is split between its area and its rate
    if share * (options.redraws + 1) < 1:
        raise OptionError(
            f"{options.redraws} redraws cannot show a p-value of {share:.2g}, each test's share of --alpha; use --redraws {int(2 / share)}"
        )
    parse_defenses(options.defend or "")
    if options.defend and rule.kind != "soft":
        raise OptionError("defenses act on soft labels, and this set has hard ones; use --labels soft, or leave --defend out")
    return bench


def about(bench: Bench, command: str) -> dict[str, Any]:
    """What a record says of its job."""
    options = bench.options
    title = f"{bench.source}, {sum(bench.problem.counts)} images by {options.method.partition(':')[0]}, {options.snapshot} expert"
    return {
        "format": 1,
        "kind": "audit",
        "title": f"{title}, temperature {bench.rule.temperature:g}" if bench.rule.kind == "soft" else title,
        "command": command,
        "source": bench.setting.describe(),
        "method": options.method,
        "label_rule": bench.rule.model_dump(mode="json"),
        "canaries": bench.plant.canaries,
        "train_images": len(bench.problem.train),
        "alpha": options.alpha,
        "tolerance": options.tolerance,
        "tests": _tests(bench),
        "students": options.students,
        "model": str(bench.network.spec),
        "protocol": bench.protocol.model_dump(mode="json"),
        "seed": options.seed,
        "options": options.model_dump(mode="json"),
        "plan": bench.problem.plan.model_dump(),
        "machine": f"{bench.problem.plan.threads * bench.problem.plan.lanes} threads, {platform.machine()}, torch {torch.__version__}",
        "versions": {"limbeck": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _experts(bench: Bench) -> Experts:
    """The experts of the audited job, trained on the clean records and the canaries."""
    options = bench.options
    if options.snapshot == "last" and options.expert_file is None:
        options = options.model_copy(update={"expert_step": bench.expert_recipe.total_steps(len(bench.problem.train))})
    return prepare_experts(bench.method, bench.problem, bench.setting, options, bench.cache, bench.reporter, _random_real)


def _random_real(problem: Problem) -> DistilledDataset:
    return run_method(parse_method("random-real"), problem)


def _tests(bench: Bench) -> int:
    """Required tests that share the false-alarm rate: one for each arm, and three attacks."""
    arms = [arm for arm in bench.arms if arm == "end-to-end" or bench.with_expert]
    attacks = 3 if _attacked(bench.options) else 0
    return len(arms) * ("exposure" not in bench.options.skip) + attacks


def _attacked(options: AuditOptions) -> bool:
    """Whether membership is to be inferred."""
    return options.shadows > 0 and "membership" not in options.skip


@dataclass(frozen=True)
class Output:
    """What a student says of the audited records [2 m, K] and of the population [Z, K], and its test accuracy."""

    audited: Float[Tensor, "R K"]
    population: Float[Tensor, "Z K"]
    accuracy: float


def students_of(bench: Bench, sets: Sequence[tuple[DistilledDataset, Streams]], words: str) -> list[Output]:
    """Students, one for each set and streams, and what they say; from the cache where it knows them."""
    plan = bench.problem.plan
    keys = [bench.cache.path("audit", bench.cache.key("audit", _output_task(bench, *member)), ".safetensors") for member in sets]
    different = dict(zip(keys, sets, strict=True))  # the arms of a method that only labels real images train the same students
    found: dict[Path, Output] = {}
    with bench.reporter.task(words, len(different)) as tick:
        for group in in_groups(len(different), plan):
            paths = [list(different)[i] for i in group]
            known = [output for output in map(_read_output, paths) if output is not None]
            if len(known) < len(paths):
                known = _train(bench, [different[path] for path in paths], paths)
            found.update(zip(paths, known, strict=True))
            tick(len(group))
    return [found[path] for path in keys]


def student_jobs(bench: Bench, sets: Sequence[DistilledDataset]) -> list[tuple[DistilledDataset, Streams]]:
    """All students on the sets of all experts."""
    return [(dataset, bench.streams["student", e, s]) for e, dataset in enumerate(sets) for s in range(bench.options.students)]


def _train(bench: Bench, members: Sequence[tuple[DistilledDataset, Streams]], paths: Sequence[Path]) -> list[Output]:
    examples = {id(dataset): Examples.of_distilled(dataset) for dataset, _ in members}
    # a learned step size belongs to plain SGD
    learns = bench.protocol.recipe.optimizer == "sgd"
    students = [Student(examples[id(dataset)], streams, dataset.step_size if learns else None) for dataset, streams in members]
    plan, found = bench.problem.plan, []
    for path, state in zip(paths, train_students(bench.network, students, bench.protocol.recipe, plan), strict=True):
        audited, population, test = (
            predict(bench.network, state, table, bench.setting.pixels, plan) for table in (bench.plant.audited, bench.population, bench.test)
        )
        output = Output(audited, population, score_logits(test, torch.from_numpy(bench.test.labels.copy())).accuracy)
        store.save(path, {"kind": _OUTPUT, "accuracy": output.accuracy}, {"audited": audited, "population": population})
        found.append(output)
    return found


def _output_task(bench: Bench, dataset: DistilledDataset, streams: Streams) -> dict[str, Any]:
    return {
        "set": _content(dataset),
        "model": bench.network.identity,
        "recipe": bench.protocol.recipe.model_dump(mode="json"),
        "tables": [bench.plant.audited.digest, bench.population.digest, bench.test.digest],
        "streams": [streams.root, *streams.path],
        "plan": bench.problem.plan.model_dump(exclude={"reason"}),
    }


def _content(dataset: DistilledDataset) -> list[str]:
    """What students are taught, whatever its origin: sets that differ in provenance alone have the same students."""
    labels, pixels = dataset.labels, dataset.pixels
    views = None if dataset.views is None else dataset.views.model_dump(mode="json")
    step_size = dataset.step_size
    return [
        store.content_digest(
            {"labels": labels.header() | {"expert": None}, "views": views, "lr": step_size}, {"x": dataset.images, **labels.tensors()}
        ),
        store.content_digest(pixels.header(), pixels.tensors()),
    ]


def _read_output(path: Path) -> Output | None:
    try:
        header, tensors = store.load(path, _OUTPUT)
    except FileFormatError:
        return None
    return Output(tensors["audited"], tensors["population"], header["accuracy"])


def measured(bench: Bench, sets: Sequence[DistilledDataset], words: str, share: float) -> tuple[Exposure, dict[str, Any]]:
    """The exposure of all students on sets of all experts together, and what the record says: accuracy, spread over experts, bytes."""
    options = bench.options
    outputs = students_of(bench, student_jobs(bench, sets), words)
    predictions = np.stack([output.audited.nan_to_num(nan=-torch.inf).argmax(1).numpy() for output in outputs])
    plant = bench.plant
    found = exposure(predictions, plant.labels, plant.members, bench.classes, bench.streams.numpy("redraw"), alpha=share, redraws=_LABEL_REDRAWS)
    right = (predictions == plant.labels).reshape(len(sets), options.students, -1).mean(1)
    by_expert = right[:, plant.members].mean(1) - right[:, ~plant.members].mean(1)
    accuracy = t_interval(np.array([output.accuracy for output in outputs]), "students")
    known = accuracy.n > 1
    return found, {
        **found.to_dict(),
        "by_expert": by_expert.tolist(),
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low if known else None,
        "accuracy_high": accuracy.high if known else None,
        "test_images": len(bench.test),
        "bytes": sets[0].bytes,
    }


def make_sets(bench: Bench, arm: str, experts: Experts, members: np.ndarray | None = None, rule: LabelRule | None = None) -> list[DistilledDataset]:
    """The set that the method makes under every expert, checked to hold no canary."""
    options = bench.options
    problem = bench.arm_problem(arm, members)
    if rule is not None:
        problem = replace(problem, rule=rule)
    budget = parse_duration(options.budget) if options.budget else None
    sets = draw_sets(bench.method, problem, experts, options, budget, bench.cache, bench.reporter)[0]
    secret = digest_rows(bench.plant.audited.read(range(len(bench.plant.audited))).flatten(1).numpy())
    for dataset in sets:
        if dataset.images.dtype == torch.uint8 and np.isin(secret, digest_rows(dataset.images.flatten(1).numpy())).any():
            raise OptionError(
                f"method {options.method.partition(':')[0]} published an audited record itself, so nothing is left to audit; "
                "make it take its images from Problem.candidates"
            )
    return list(sets)


def _exposures(bench: Bench, experts: Experts, share: float) -> tuple[list[dict[str, Any]], dict[str, list[DistilledDataset]]]:
    """Exposure in every arm as published and under the control labels. Returns the sets as published by arm."""
    published = {arm: make_sets(bench, arm, experts) for arm in bench.arms if arm == "end-to-end" or bench.with_expert}
    if "exposure" in bench.options.skip:
        return [], published
    kinds = {(arm, role): kind for arm, sets in published.items() for role, kind in _roles(bench, sets).items()}
    # first all together, as many at once as the plan says; then each row finds its own in the cache
    students_of(bench, [job for kind in kinds.values() for job in student_jobs(bench, kind)], "students of every arm and control")
    rows = []
    for (arm, role), kind in kinds.items():
        found, row = measured(bench, kind, f"exposure, {ARMS[arm]}, {role}", share)
        rows.append({"arm": arm, "role": role, "verdict": found.verdict(bench.options.tolerance), **row})
    return rows, published


def _roles(bench: Bench, sets: list[DistilledDataset]) -> dict[str, list[DistilledDataset]]:
    roles = {"published": sets}
    if not bench.options.controls or bench.rule.kind != "soft" or sets[0].labels.kind == "hard":
        return roles
    roles["hard"] = [dataset.with_hard_labels() for dataset in sets]
    if int(torch.bincount(sets[0].owners.long()).max()) > 1:  # one image a class has nothing to change places with
        roles["shuffled"] = [shuffled_within_classes(dataset, bench.streams.torch("shuffle", e)) for e, dataset in enumerate(sets)]
    return roles


def shuffled_within_classes(dataset: DistilledDataset, generator: torch.Generator) -> DistilledDataset:
    """The same images, with the labels of each class's images permuted among them: class averages stay, what belongs to an example goes."""
    order = within_class(dataset.owners.long(), generator)
    return DistilledDataset(**{**vars(dataset), "labels": dataset.labels.select(order)})


def _exposure_findings(bench: Bench, rows: Sequence[Mapping[str, Any]]) -> list[Finding]:
    findings = []
    for arm in bench.arms:
        name = f"exposure, {ARMS[arm]}"
        if "exposure" in bench.options.skip:
            findings.append(Finding(name, "not checked", "Left out with --skip exposure.", required=False))
        elif arm == "expert" and not bench.with_expert:
            findings.append(Finding(name, "not checked", "No expert takes part in making this set.", required=False))
    for row in rows:
        control = row["role"] != "published"
        name = f"exposure, {ARMS[row['arm']]}" + (f", {ROLES[row['role']]}" if control else "")
        findings.append(
            Finding(
                name,
                row["verdict"],
                _exposure_words(row, bench, control),
                dict(row),
                threshold=row["critical"],
                false_positive_rate=row["size"],
                required=not control,
            )
        )
    return findings


def _exposure_words(row: Mapping[str, Any], bench: Bench, control: bool) -> str:
    numbers = (
        f"students name {row['canary']:.1%} of the canaries' labels and {row['control']:.1%} of the controls', a difference of {100 * row['value']:+.1f} points "
        f"(95 % interval {100 * row['low']:+.1f} to {100 * row['high']:+.1f}, {p_words(row['p_value'])})"
    )
    where = "the expert's training data" if row["arm"] == "expert" else "the training data of expert and method"
    if row["verdict"] == "leak":
        blame = " Labels of classes alone cannot carry this: look for it in the images, or in the audit." if control else ""
        return f"Records of {where} that are not in the set leak: {numbers}.{blame}"
    if row["verdict"] == "clean":
        return f"No leak of {where} was found, and an exposure of {100 * bench.options.tolerance:.0f} points is excluded: {numbers}."
    return (
        f"Undecided: {numbers}, so an exposure of {100 * bench.options.tolerance:.0f} points is not excluded. "
        f"{row['canaries']} canaries find {100 * row['detectable']:.0f} points four times in five; use more canaries, or a larger --tolerance."
    )


def _about_expert(bench: Bench, experts: Experts, share: float) -> dict[str, Any] | None:
    """What the experts themselves remember: no student of theirs can be expected to know more."""
    if not experts.labelers:
        return None
    plant, plan = bench.plant, bench.problem.plan
    logits = torch.stack([labeler.logits(plant.audited, plan) for labeler in experts.labelers])
    generator = bench.streams.numpy("redraw")
    found = exposure(logits.argmax(2).numpy(), plant.labels, plant.members, bench.classes, generator, alpha=share, redraws=_LABEL_REDRAWS)
    test = torch.from_numpy(bench.test.labels.copy())
    accuracy = [score_logits(labeler.logits(bench.test, plan), test).accuracy for labeler in experts.labelers]
    return {
        "step": experts.step,
        "chosen_by": experts.chosen_by,
        "count": len(experts.labelers),
        "accuracy": float(np.mean(accuracy)),
        **found.to_dict(),
    }


def _membership(bench: Bench, experts: Experts, share: float) -> tuple[list[Finding], dict[str, Any]]:
    """LiRA and RMIA on students, and the attack on labels, in worlds that each hold a random half of the audited records."""
    options = bench.options
    reason = None
    if "membership" in options.skip:
        return [Finding("membership", "not checked", "Left out with --skip membership.", required=False)], {}
    if not options.shadows:
        reason = "No shadow worlds were asked for; use --shadows 8."
    elif options.expert_file is not None:
        reason = "The expert is a file of yours, so no shadow of it can be trained."
    elif getattr(bench.method, "expert_recipe", None) is not None:
        reason = "This method follows whole trajectories of experts; shadows of it are not made."
    elif options.ensemble:
        reason = "Shadows of an ensemble are not made."
    if reason is not None:
        return [Finding("membership", "not checked", reason)], {}
    worlds = options.shadows + 1
    design = draw_design(worlds, len(bench.plant.records), bench.streams.numpy("design"))
    labelers = _shadow_experts(bench, experts, design)
    arm = bench.arms[-1]
    sets = [
        make_sets(bench, arm, Experts((labeler,) if labeler else (), (), experts.step), members)[0]
        for labeler, members in zip(labelers, design, strict=True)
    ]
    outputs = students_of(bench, [(dataset, bench.streams["world", w]) for w, dataset in enumerate(sets)], "students of the worlds")
    attacks = _attacks(bench, sets, outputs)
    findings, results = [], {}
    for name, attack in attacks.items():
        if isinstance(attack, Unmade):
            findings.append(Finding(f"membership, {name}", "not checked", attack.reason, required=attack.required))
            continue
        with bench.reporter.task(f"attack: {name}", 1) as tick:
            found = judge_attack(attack, design, bench.streams.numpy("attack", name), alpha=share, redraws=options.redraws)
            tick(1)
        results[name] = found.to_dict()
        findings.append(_attack_finding(name, found, share, options.tolerance))
    return findings, {"arm": arm, "attacks": results}


@dataclass(frozen=True)
class Unmade:
    """Why an attack is not made: because there is nothing of its kind to attack, or (`required`) because what it needs was not given."""

    reason: str
    required: bool


def _attacks(bench: Bench, sets: Sequence[DistilledDataset], outputs: Sequence[Output]) -> dict[str, Attack | Unmade]:
    """Every attack, or why it is not made."""
    labels = bench.plant.labels
    margins = np.stack([label_margin(output.audited.numpy(), labels) for output in outputs])
    found: dict[str, Attack | Unmade] = {"students (LiRA)": lambda design: lira(margins, design)}
    if len(bench.population):
        own = [output.audited.double().softmax(1)[torch.arange(len(labels)), torch.from_numpy(labels)].numpy() for output in outputs]
        drawn = torch.from_numpy(bench.population.labels.copy())
        others = [output.population.double().softmax(1)[torch.arange(len(drawn)), drawn].numpy() for output in outputs]
        mine, theirs = np.stack(own), np.stack(others)
        found["students (RMIA)"] = lambda design: rmia(mine, theirs, design)
    else:
        found["students (RMIA)"] = Unmade("There are no validation records to compare with; use --validation 0.1.", required=True)
    if sets[0].labels.kind != "probability" or sets[0].labels.views is not None:
        found["published labels"] = Unmade("Only soft labels, one an image, are attacked by themselves.", required=False)
    elif any(not torch.equal(dataset.images, sets[0].images) for dataset in sets[1:]):
        found["published labels"] = Unmade("The worlds' images differ, so their labels cannot be compared entry by entry.", required=False)
    else:
        rows = np.stack([dataset.targets().double().clamp_min(1e-12).log().flatten().numpy() for dataset in sets])
        found["published labels"] = LabelAttack(rows)
    return found


def _attack_finding(name: str, found: AttackResult, share: float, tolerance: float) -> Finding:
    parts = [f"area {found.auc:.3f} (95 % interval {found.auc_low:.3f} to {found.auc_high:.3f} over records; {p_words(found.p_value)})"]
    for rate, value in found.rates.items():
        if value is None:
            parts.append(f"{float(rate):.1%} false positives not resolvable with {found.non_members:,} non-members")
            continue
        tested = f"; {p_words(value.p_value)}" if rate == found.tested else ""
        parts.append(f"{value.tpr:.1%} ({value.low:.1%} to {value.high:.1%}{tested}) of members at {float(rate):.1%} false positives")
    numbers, verdict = "; ".join(parts), found.verdict(tolerance)
    if verdict == "leak":
        words = f"Members can be told from non-members: {numbers}."
    elif verdict == "clean":
        words = f"Members were not told from non-members: {numbers}."
    else:
        words = f"Undecided: {numbers}; {_not_excluded(found, tolerance)}. Use more canaries or shadows."
    return Finding(f"membership, {name}", verdict, words, found.to_dict(), threshold=found.critical, false_positive_rate=share)


def _not_excluded(found: AttackResult, tolerance: float) -> str:
    """Why an attack that did not leak is not clean."""
    reasons = [f"an area of {0.5 + tolerance:.2f} is not excluded"] if found.auc_high >= 0.5 + tolerance else []
    rate = found.rates[found.tested] if found.tested else None
    if rate is not None and found.tested is not None:
        guessed = float(found.tested)
        if rate.high >= guessed + tolerance:
            reasons.append(f"finding {guessed + tolerance:.1%} of members at {guessed:.1%} false positives is not excluded")
        elif rate.low > guessed:
            reasons.append(f"more than {guessed:.1%} of members seem to be found at {guessed:.1%} false positives")
    return " and ".join(reasons)


def _shadow_experts(bench: Bench, experts: Experts, design: np.ndarray) -> list[Labeler | None]:
    """An expert for each world, trained as many steps as the audited one, several at once where the plan says so."""
    if not uses_labeler(bench.method, bench.rule):
        return [None] * len(design)
    trajectory = experts.trajectories[0]
    assert experts.step is not None
    recipe = Recipe(**trajectory.about["recipe"]).with_(steps=experts.step)
    network = bench.setting.network(bench.options.expert_model or bench.options.model)
    tables = [bench.plant.planted(members) for members in design]
    images = recipe.total_steps(len(tables[0])) * recipe.batch_size
    plan = plan_for(network, images, batch=recipe.batch_size, device=bench.options.device, threads=bench.options.threads)
    pixels, made = bench.setting.pixels, []
    with bench.reporter.task("experts of the worlds", len(tables)) as tick:
        for group in in_groups(len(tables), plan):
            streams = [bench.streams["shadow", w] for w in group]
            paths = [_shadow_path(bench, network, recipe, tables[w], stream, plan) for w, stream in zip(group, streams, strict=True)]
            states = [state for state in map(_read_state, paths) if state is not None]
            if len(states) < len(group):
                given = [Student(Examples.of_table(tables[w], pixels), stream) for w, stream in zip(group, streams, strict=True)]
                states = train_students(network, given, recipe, plan)
                for path, state in zip(paths, states, strict=True):
                    store.save(path, {"kind": _STATE}, state)
            made += [Expert(network, state, pixels, experts.step, store.content_digest({"kind": _STATE}, state)) for state in states]
            tick(len(group))
    return list(made)


def _shadow_path(bench: Bench, network: Network, recipe: Recipe, table: ImageTable, streams: Streams, plan: ExecutionPlan) -> Path:
    pixels = bench.setting.pixels
    task = {
        "model": network.identity,
        "recipe": recipe.model_dump(mode="json"),
        "train": table.digest,
        "pixels": store.content_digest(pixels.header(), pixels.tensors()),
        "streams": [streams.root, *streams.path],
        "plan": plan.model_dump(exclude={"reason"}),
    }
    return bench.cache.path("shadows", bench.cache.key("shadows", task), ".safetensors")


def _read_state(path: Path) -> State | None:
    try:
        return store.load(path, _STATE)[1]
    except FileFormatError:
        return None


def price(bench: Bench) -> dict[str, Any]:
    """What the audit trains, in networks and images that pass through them, and about how long that takes here: by one timed step of each network."""
    options, plan, protocol = bench.options, bench.problem.plan, bench.protocol
    count = sum(bench.problem.counts)
    student_images = protocol.recipe.total_steps(count) * min(protocol.recipe.batch_size, count)
    recipe, records = bench.expert_recipe, len(bench.problem.train)
    expert_images = recipe.total_steps(records) * min(recipe.batch_size, records)
    experts = options.experts if bench.with_expert and options.expert_file is None else 0
    arms = [arm for arm in bench.arms if arm == "end-to-end" or bench.with_expert]
    roles = 3 if options.controls and bench.rule.kind == "soft" else 1
    # a method that only labels real images makes one set in both arms, whose students are trained once
    alike = options.method.partition(":")[0] == "random-real" and options.selector == "random"
    kinds = roles * (1 if alike else len(arms))
    students = float(kinds * options.experts * options.students) if "exposure" not in options.skip else 0.0
    shadows = options.shadows + 1 if _attacked(options) else 0
    defenses = parse_defenses(options.defend or "")
    private = 0
    if defenses:
        students += (1 + len(defenses)) * options.experts * options.students
        # as many as give labels: every expert, or one ensemble, or one file
        private = sum(defense.kind == "dp" for defense in defenses) * (1 if options.ensemble or options.expert_file else options.experts)
    trials = 0.0
    if experts and options.snapshot == "chosen" and options.expert_step is None and bench.rule.kind == "soft":
        candidates = len(snapshot_steps(recipe.steps_per_epoch(records), recipe.total_steps(records))) - 1
        trials = candidates / 4 + max(2, candidates / 3) / 2 + max(2, candidates / 9) * 2
    worlds = shadows if bench.with_expert and experts else 0
    expert_network = bench.setting.network(options.expert_model or options.model)
    expert_plan = plan_for(expert_network, expert_images, batch=recipe.batch_size, device=options.device, threads=options.threads)
    each_expert = expert_images * _seconds_per_image(bench, expert_network, recipe, min(recipe.batch_size, records), expert_plan)
    per_image = _seconds_per_image(bench, bench.network, protocol.recipe, min(protocol.recipe.batch_size, count), plan)
    each_student = student_images * per_image
    sets = (len(arms) + len(defenses)) * max(1, experts) + shadows
    steps = sets * bench.method.total_steps(bench.problem)
    making = sets * bench.method.work(Size(count, len(bench.problem.train.classes), records)) / 3 * per_image if steps else 0.0
    trained = experts + worlds + private
    seconds = trained * each_expert + (students + shadows + trials) * each_student + making
    sentence = (
        f"cost: {trained} experts of {expert_images:,} images"
        + (f" ({private} of them by DP-SGD, which takes longer than is priced)" if private else "")
        + f" and {students + shadows:.0f} students of {student_images:,} images"
        + (f", {trials:.1f} more to choose the snapshot" if trials else "")
        + (f"; {sets} sets, {steps:,} steps of the method in all" if steps else "")
        + f"; about {max(1, round(seconds / 60))} min on this machine when it is idle, by one timed step of each network (compiled training is faster, "
        "finished work costs nothing)"
    )
    return {
        "experts": trained,
        "private_experts": private,
        "expert_images": expert_images,
        "students": students + shadows,
        "trials": trials,
        "student_images": student_images,
        "method_steps": steps,
        "seconds": round(seconds),
        "sentence": sentence,
    }


def _seconds_per_image(bench: Bench, network: Network, recipe: Recipe, batch: int, plan: ExecutionPlan) -> float:
    """Of training, by the second of two steps of as many models at once as the plan has, uncompiled."""
    plan = plan.model_copy(update={"strategy": "eager", "precision": "float32"})
    table = Subset(bench.plant.clean, np.arange(len(bench.plant.clean))[:batch])
    examples = Examples.of_table(table, bench.setting.pixels)
    one = recipe.with_(steps=1, schedule="constant", warmup_steps=0)
    students = [Student(examples, bench.streams["price", model]) for model in range(plan.models)]
    for _ in range(2):
        wall, computing = time.monotonic(), time.process_time()
        train_students(network, students, one, plan)
        wall, computing = time.monotonic() - wall, time.process_time() - computing
    # on a busy machine the wall clock times the others' work as well
    seconds = wall if torch.device(plan.device).type == "cuda" else min(wall, computing / (plan.threads * plan.lanes))
    return seconds / (plan.models * len(table))

"""Jobs that start from a distilled file: evaluate it, compare it, train a user's own model on it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from limbeck import store
from limbeck.cache import Cache
from limbeck.data.splits import TestHandle
from limbeck.errors import FileFormatError, LimbeckError, OptionError
from limbeck.evaluate.evaluate import evaluate_labeler, images_shared_with_test
from limbeck.evaluate.protocols import Protocol
from limbeck.experts.checkpoint import load_expert
from limbeck.experts.expert import Expert, Labeler, labeler_of
from limbeck.experts.trajectory import find_trajectory
from limbeck.labels.rules import LabelRule
from limbeck.methods.problem import Problem
from limbeck.methods.views import ViewOptions
from limbeck.models import parse_model
from limbeck.models.spec import ModelSpec
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.distill import RECORD, Sets, describe_job, evaluate_kinds, protocol_for, random_baselines, student_plan
from limbeck.study.options import EvaluationOptions, OpenOptions
from limbeck.study.setting import Setting
from limbeck.train.examples import Examples
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.train.students import train_student
from limbeck.types.distilled import DistilledDataset
from limbeck.types.evaluation import Evaluation, Interval, paired_difference
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan


def evaluate_file(
    file: Path,
    options: EvaluationOptions,
    *,
    source: str | None = None,
    source_options: OpenOptions | None = None,
    model: str | None = None,
    labels: Literal["stored", "hard", "both"] = "stored",
    seed: int | None = None,
    expert_file: Path | None = None,
    cache: Cache | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Evaluates a distilled file on the source that its provenance names (or on `source`), with both random-real baselines where they can be made.

    `labels` says which labels the students see: the stored ones, the class of each image alone, or both in turn, which is figure 1 of Qin, Deng and
    Alvarez-Melis (2024, arXiv:2406.10485) for this set. Seeds default to the file's own. The soft baseline needs an expert: the one that labeled the file, when
    the cache still has it, or the checkpoint `expert_file`; it is left out, with a note, otherwise.
    """
    cache = cache or Cache()
    bench = set_up(
        file, options, source=source, source_options=source_options, model=model, seed=seed, expert_file=expert_file, cache=cache, reporter=reporter
    )
    dataset, hard = bench.dataset, bench.dataset.with_hard_labels()
    if labels == "both" and dataset.labels.kind == "hard":
        reporter.note("the labels of this file are hard already, so they are evaluated once")
    kinds = {"distilled": [[hard if labels == "hard" else dataset]]}
    if labels == "both" and dataset.labels.kind != "hard":
        kinds["distilled-hard"] = [[hard]]
    if options.baselines:
        soft = bench.labeler is not None and (labels != "hard" or expert_file is not None)
        if bench.labeler is None and dataset.labels.kind != "hard" and labels != "hard":
            why = "the expert that labeled this file is not in the cache" if dataset.labels.expert else "no expert labeled this file"
            reporter.note(f"{why}, so random real images under soft labels are left out; --expert-file brings an expert for them")
        kinds |= bench.random(1, reporter) if soft else random_baselines(bench.problem, (), 1, reporter)
    rows = evaluate_kinds(kinds, bench.setting, bench.model, bench.protocol, options, bench.seed, cache, reporter, plan=bench.plan)
    rule = LabelRule(kind="hard") if labels == "hard" else _rule_of(dataset)
    return {
        **describe_job(kinds["distilled"][0][0], bench.setting, bench.protocol, bench.plan, rule, bench.seed),
        "title": f"{Path(file).name} on {bench.setting.spec}",
        "file": str(file),
        "evaluations": rows,
    }


@dataclass(frozen=True)
class Bench:
    """A distilled file set up to be judged: its source, network, protocol and plan, and the problem of making random counterparts of it.

    `labeler` is the expert that gives those counterparts soft labels, or None.
    """

    dataset: DistilledDataset
    setting: Setting
    model: str
    protocol: Protocol
    plan: ExecutionPlan
    problem: Problem
    labeler: Labeler | None
    seed: int

    def random(self, draws: int, reporter: Reporter) -> dict[str, Sets]:
        """Random real images with as many labels each as the file's have, and the same images under hard labels. Without a labeler there are hard labels only."""
        if self.labeler is None:
            return random_baselines(self.problem, (), draws, reporter)
        views = self.dataset.views
        alike = ViewOptions(views=views.count, view_augment=views.augment) if views else None
        return random_baselines(self.problem, (self.labeler,), draws, reporter, alike)


def set_up(
    file: Path,
    options: EvaluationOptions,
    *,
    source: str | None,
    source_options: OpenOptions | None,
    model: str | None,
    seed: int | None,
    expert_file: Path | None,
    cache: Cache,
    reporter: Reporter,
) -> Bench:
    """Reads a distilled file and opens its source, or another."""
    dataset = DistilledDataset.load(file)
    seed = int(dataset.provenance.get("seed", 0)) if seed is None else seed
    setting = _setting_of(dataset, source, source_options, reporter)
    model = model or _architecture_of(dataset)
    protocol = protocol_for(options.protocol, setting.spec)
    network = setting.network(model)
    plan = student_plan(network, protocol.recipe, len(dataset), options)
    labeler = _labeler_of(dataset, cache) if dataset.labels.kind != "hard" else None
    if expert_file is not None:
        labeler = load_expert(expert_file, network, setting.pixels)
    rule = LabelRule() if dataset.labels.kind == "hard" and labeler is not None else _rule_of(dataset)
    counts = tuple(np.bincount(dataset.owners.numpy(), minlength=len(dataset.classes)).tolist())
    problem = Problem(setting.splits.train, setting.splits.validation, network, setting.pixels, counts, rule, protocol.recipe, Streams(seed), plan)
    return Bench(dataset, setting, model, protocol, plan, problem, labeler, seed)


def load_record(path: Path) -> dict[str, Any]:
    """The record of a run folder, or of a JSON file that `evaluate` or `distill` wrote."""
    path = Path(path)
    file = path / RECORD if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(record["evaluations"], list):
            raise KeyError("evaluations")
    except OSError as problem:
        raise FileFormatError(f"no results at {str(file)!r} ({problem.strerror}); give a run folder or a result.json that limbeck wrote") from None
    except (ValueError, KeyError, TypeError):
        raise FileFormatError(f"{str(file)!r} is not a limbeck result; give a run folder or a result.json that limbeck wrote") from None
    return dict(record)


def compare_rows(first: dict[str, Any], second: dict[str, Any]) -> Interval:
    """Paired difference in accuracy, first minus second, between two evaluations that share protocol, model, test split and student seeds."""
    for key, words in (("protocol", "protocol"), ("model", "model"), ("test_digest", "test split"), ("seed", "seed")):
        if first[key] != second[key]:
            raise OptionError(f"the two results differ in {words} ({first[key]} and {second[key]}), so they are not paired; evaluate both alike")
    a, b = Evaluation.from_dict(first), Evaluation.from_dict(second)
    if a.accuracy.shape != b.accuracy.shape:
        raise OptionError(
            f"the two results have {_shape_words(a.accuracy)} and {_shape_words(b.accuracy)}, so they are not paired; evaluate both with the same numbers"
        )
    return paired_difference(a.accuracy, b.accuracy)


def train_on_file(
    file: Path,
    out: Path,
    *,
    model: str | None = None,
    protocol: str | None = None,
    source: str | None = None,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Trains a model on a distilled file by its recommended recipe (or a protocol's) and saves a checkpoint with its pixel space.

    Test accuracy is measured when the source can be opened on this machine; a note says so when it cannot.
    """
    dataset = DistilledDataset.load(file)
    refuse_overwriting(file, out)
    name = model or _architecture_of(dataset)
    network = Network(parse_model(name), dataset.shape, len(dataset.classes))
    recipe = protocol_for(protocol, source or str(dataset.provenance.get("source", ""))).recipe if protocol else dataset.recipe
    if protocol is None and dataset.step_size is not None:
        recipe = recipe.with_(lr=dataset.step_size)
    images = recipe.total_steps(len(dataset)) * min(recipe.batch_size, len(dataset))
    plan = plan_for(network, images, batch=min(recipe.batch_size, len(dataset)), device=device, threads=threads)
    with reporter.task(f"training {name}", recipe.total_steps(len(dataset))) as tick:
        state = train_student(network, Examples.of_distilled(dataset), recipe, Streams(seed)["evaluate", "student", 0], plan, tick=tick)
    expert = Expert(network, state, PixelSpace(dataset.pixels.steps), recipe.total_steps(len(dataset)), "")
    digest = expert.save(
        out, {"trained_on": dataset.digest, "recipe": recipe.model_dump(mode="json"), "seed": seed, "classes": list(dataset.classes)}
    )
    result: dict[str, Any] = {"model": str(network.spec), "parameters": network.parameter_count, "checkpoint": str(out), "digest": digest}
    try:
        setting = _setting_of(dataset, source, None, reporter)
    except LimbeckError as problem:
        reporter.note(f"test accuracy was not measured: {problem}")
        return result
    test: TestHandle = setting.splits.test
    return {**result, "test_accuracy": evaluate_labeler(expert, test, plan).accuracy, "test_images": test.size, "students": 1}


def refuse_overwriting(file: Path, out: Path) -> None:
    """Raises `OptionError` when the result would replace the file that it is made from."""
    if Path(out).resolve() == Path(file).resolve():
        raise OptionError(f"the result would overwrite {str(file)!r} itself; give another place with --out")


def _setting_of(dataset: DistilledDataset, source: str | None, options: OpenOptions | None, reporter: Reporter) -> Setting:
    provenance = dataset.provenance
    spec = source or provenance.get("source")
    if not isinstance(spec, str):
        raise OptionError("this file does not say which source it was made from; name it with --source")
    if source is None:
        options = _stored_options(provenance, options)
    try:
        # real images are pixels, wherever the set's own images lie
        pixels = PixelSpace(dataset.pixels.steps)
        setting = Setting.open(spec, options or OpenOptions(), int(provenance.get("seed", 0)), reporter, pixels=pixels)
    except LimbeckError as problem:
        raise type(problem)(f"{problem} (the file names this source; give another with --source)" if source is None else str(problem)) from None
    expected = provenance.get("test_digest")
    if expected is not None and setting.splits.test.digest != expected:
        reporter.note(
            f"the test images of {spec} are not those that this file's numbers were measured on; results are not comparable with its record"
        )
    shared = images_shared_with_test(dataset, setting.splits.test)
    if shared:
        reporter.note(f"{shared} of the {len(dataset)} distilled images are test images of {spec}: its accuracy is not a measurement")
    return setting


def _stored_options(provenance: Mapping[str, Any], given: OpenOptions | None) -> OpenOptions:
    """How the file's own source was opened; what the user gave now comes before it."""
    made = dict(provenance.get("source_options", {}))
    size = made.get("size")
    stored = {
        "root": made.get("root"),
        "size": None if size is None else "x".join(str(side) for side in size) if isinstance(size, list) else str(size),
        "channels": made.get("channels"),
        "skip_corrupt": bool(made.get("skip_corrupt", False)),
        "image_column": made.get("image_column"),
        "label_column": made.get("label_column"),
        "validation": provenance.get("validation_fraction", 0.1),
    }
    chosen = {} if given is None else {key: getattr(given, key) for key in stored if key in given.model_fields_set}
    return OpenOptions(**{**stored, **chosen})


def _architecture_of(dataset: DistilledDataset) -> str:
    if dataset.architecture is None:
        raise OptionError("this file does not recommend an architecture; name one with --model")
    spec = ModelSpec.from_dict(dict(dataset.architecture))
    if spec.is_factory:
        raise OptionError(f"this file asks to import {spec.name!r}, which is code; if you trust it, say so with --model {spec.name}")
    return str(spec)


def _rule_of(dataset: DistilledDataset) -> LabelRule:
    labels = dataset.labels
    if labels.kind == "hard" or labels.values is None:
        return LabelRule(kind="hard")
    precision = {torch.float32: "float32", torch.float16: "float16", torch.uint8: "uint8"}.get(labels.values.dtype, "float32")
    kept = labels.values.shape[-1] if labels.indices is not None else None
    return LabelRule(temperature=labels.temperature, top_k=kept, renormalize=labels.sums_to_one, precision=precision)


def _labeler_of(dataset: DistilledDataset, cache: Cache) -> Labeler | None:
    keys, step = dataset.provenance.get("expert_keys"), dataset.provenance.get("expert_step")
    if not keys or step is None:
        return None
    found = [find_trajectory(cache, key) for key in keys]
    members: Sequence[Expert] = [trajectory.at(step) for trajectory in found if trajectory is not None]
    candidates: list[Labeler] = [*members, *([labeler_of(members)] if len(members) > 1 else [])]
    return next((labeler for labeler in candidates if labeler.digest == dataset.labels.expert), None)


def _shape_words(accuracy: np.ndarray) -> str:
    draws, experts, students = accuracy.shape
    return f"{draws} draw(s) x {experts} expert(s) x {students} student(s)"


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Writes a record as JSON, atomically."""
    store.write_json(path, record)

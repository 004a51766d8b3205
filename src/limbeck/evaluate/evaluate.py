"""Trains students on sets and measures them on the test split: the one place, with analyses and audits, that opens the test handle."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from limbeck import store
from limbeck.cache import Cache
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ImageTable, digest_rows
from limbeck.errors import FileFormatError, OptionError
from limbeck.evaluate.protocols import Protocol
from limbeck.experts.expert import Labeler
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.network import Network
from limbeck.train.students import Score, Student, in_groups, score, score_logits, train_students
from limbeck.types.distilled import DistilledDataset
from limbeck.types.evaluation import Evaluation
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

_KIND = "student score"


def evaluate(
    name: str,
    sets: Sequence[Sequence[DistilledDataset]],
    network: Network,
    protocol: Protocol,
    test: TestHandle,
    *,
    students: int = 5,
    seed: int = 0,
    recipe: Recipe | None = None,
    plan: ExecutionPlan,
    cache: Cache,
    reporter: Reporter = SILENT,
) -> Evaluation:
    """Last-epoch test accuracy of `students` students on each of ``sets[draw][expert]``, trained by the protocol.

    Student s of a draw and an expert has the same initialization, data order and augmentation in every evaluation of equal seed: they are paired. Finished students
    are taken from the cache. A `recipe` replaces the protocol's own (a learning rate chosen on validation, say) and is recorded.
    """
    if students < 1:
        raise OptionError(f"an evaluation needs at least 1 student, got {students}; use --students 5")
    table = test.open_for_measurement()
    if len(table) == 0:
        raise OptionError("there are no test images, so nothing can be measured; use a source with more images")
    if len({len(row) for row in sets}) != 1 or not sets[0]:
        raise OptionError(f"an evaluation needs one set for each image draw and expert, got rows of {[len(row) for row in sets]} sets")
    for row in sets:
        for dataset in row:
            check_fit(dataset, table)
    recipe = recipe or protocol.recipe
    for row in sets:
        for dataset in row:
            _check_labels(dataset, recipe, protocol)
    shape = (len(sets), len(sets[0]), students)
    accuracy, loss, worst = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    diverged, started = 0, time.monotonic()
    cells = list(np.ndindex(shape))
    with reporter.task(f"students: {name}", len(cells)) as tick:
        for group in in_groups(len(cells), plan):
            members = [(sets[draw][expert], student_streams(seed, draw, expert, student)) for draw, expert, student in (cells[i] for i in group)]
            for index, result in zip(group, score_students(members, network, recipe, table, plan, cache), strict=True):
                accuracy[cells[index]] = result.accuracy
                loss[cells[index]] = result.loss
                worst[cells[index]] = np.nanmin(result.class_accuracy.numpy())
                diverged += not result.finite
            tick(len(group))
    if diverged:
        reporter.note(f"{diverged} of {np.prod(shape)} students of {name!r} diverged; they are counted with the class that they name")
    return Evaluation(
        name=name,
        protocol=protocol.label,
        model=str(network.spec),
        accuracy=accuracy,
        loss=loss,
        worst_class=worst,
        bytes=sets[0][0].bytes,
        images=len(sets[0][0]),
        sets=tuple(dataset.digest for row in sets for dataset in row),
        test_digest=test.digest,
        test_images=len(table),
        plan=plan.model_dump(),
        recipe=recipe.model_dump(mode="json"),
        seed=seed,
        diverged=diverged,
        seconds=time.monotonic() - started,
    )


def evaluate_labeler(labeler: Labeler, test: TestHandle, plan: ExecutionPlan) -> Score:
    """How an expert or an ensemble does itself on the test split."""
    table = test.open_for_measurement()
    if len(table) == 0:
        raise OptionError("there are no test images, so nothing can be measured; use a source with more images")
    return score_logits(labeler.logits(table, plan), torch.from_numpy(table.labels.copy()))


def images_shared_with_test(dataset: DistilledDataset, test: TestHandle) -> int:
    """How many images of a set are test images, by their pixels. Sources that compare encoded files instead of pixels give 0."""
    pixels = digest_rows(dataset.images.flatten(1).numpy())
    return int(np.isin(pixels, test.open_for_measurement().record_digests()).sum())


def student_streams(seed: int, draw: int, expert: int, student: int) -> Streams:
    """Every cell trains students of its own, so that they are independent between cells; the same cell of another evaluation trains the same ones, so that two
    evaluations are paired. The first draw and expert number their students alone: a file evaluated later repeats them."""
    own = (*(("draw", draw) if draw else ()), *(("expert", expert) if expert else ()))
    return Streams(seed)[("evaluate", "student", student, *own)]


def _check_labels(dataset: DistilledDataset, recipe: Recipe, protocol: Protocol) -> None:
    if recipe.loss == "mse" or dataset.labels.kind != "free":
        return
    least = float(dataset.targets().min())
    if least < 0:
        raise OptionError(
            f"this set's labels are targets of a regression (the least is {least:.2f}), which protocol {protocol.name} with its {recipe.loss} cannot teach; "
            "use --protocol frepo"
        )


def check_fit(dataset: DistilledDataset, table: ImageTable) -> None:
    """Raises `OptionError` when a table's images or classes are not those that the set was made from."""
    if dataset.shape != tuple(table.shape):
        raise OptionError(
            f"the distilled images are {_sides(dataset.shape)} but the test images are {_sides(tuple(table.shape))}; "
            "evaluate on the source that the set was made from, with the same --size"
        )
    if len(dataset.classes) != len(table.classes):
        raise OptionError(
            f"the distilled set has {len(dataset.classes)} classes but the source has {len(table.classes)}; evaluate on the set's own source"
        )
    if tuple(dataset.classes) != tuple(table.classes):
        wrong = next(i for i, (a, b) in enumerate(zip(dataset.classes, table.classes, strict=True)) if a != b)
        raise OptionError(
            f"class {wrong} is {dataset.classes[wrong]!r} in the distilled set but {table.classes[wrong]!r} in the source; evaluate on the set's own source"
        )


def score_students(
    members: Sequence[tuple[DistilledDataset, Streams]], network: Network, recipe: Recipe, table: ImageTable, plan: ExecutionPlan, cache: Cache
) -> list[Score]:
    """Scores on a test table of students of the given sets and streams, which train at once; from the cache when it knows all of them."""
    tasks = [_task(dataset, network, recipe, table, streams, plan) for dataset, streams in members]
    paths = [cache.path("students", cache.key("students", task), ".safetensors") for task in tasks]
    known = [result for result in map(_read_score, paths) if result is not None]
    if len(known) == len(members):
        return known
    examples = {id(dataset): Examples.of_distilled(dataset) for dataset, _ in members}  # one for students of one set, which then share its images
    given = [Student(examples[id(dataset)], streams) for dataset, streams in members]
    results = []
    for task, path, student, state in zip(tasks, paths, given, train_students(network, given, recipe, plan), strict=True):
        result = score(network, state, table, student.examples, plan)
        header = {"kind": _KIND, "accuracy": result.accuracy, "loss": result.loss if result.finite else None, "finite": result.finite, "task": task}
        store.save(path, header, {"predictions": result.predictions.to(torch.int32), "class_accuracy": result.class_accuracy})
        results.append(result)
    return results


def _task(dataset: DistilledDataset, network: Network, recipe: Recipe, table: ImageTable, streams: Streams, plan: ExecutionPlan) -> dict[str, object]:
    return {
        "set": store.digest_of(
            [store.content_digest(dataset.labels.header(), {"x": dataset.images, **_label_tensors(dataset)}), dataset.pixels.header()]
        ),
        "pixels": store.content_digest({}, dataset.pixels.tensors()),
        "views": None if dataset.views is None else dataset.views.model_dump(mode="json"),
        "model": network.identity,
        "recipe": recipe.model_dump(mode="json"),
        "test": table.digest,
        "streams": [streams.root, *streams.path],
        "plan": plan.model_dump(exclude={"reason"}),
    }


def _label_tensors(dataset: DistilledDataset) -> dict[str, Tensor]:
    """What a student is taught: the dense labels, and what is stored for each view where there are views."""
    return {"y": dataset.targets(), **(dataset.labels.tensors() if dataset.views is not None else {})}


def _read_score(path: Path) -> Score | None:
    try:
        header, tensors = store.load(path, _KIND)
    except FileFormatError:
        return None
    predictions: Tensor = tensors["predictions"].long()
    return Score(
        predictions, header["accuracy"], float("inf") if header["loss"] is None else header["loss"], tensors["class_accuracy"], header["finite"]
    )


def _sides(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)

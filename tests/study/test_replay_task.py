"""Learning classes group after group: what arrives, what is kept of it, what is measured, and that no memory knows what came later."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from limbeck.data.tables import ArrayTable, Subset
from limbeck.errors import OptionError
from limbeck.evaluate.evaluate import student_streams
from limbeck.experts.trajectory import train_expert
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.study.analyses import STUDY_ANALYSES
from limbeck.study.graph import Builder, DataKey, Graph
from limbeck.study.pricing import price
from limbeck.study.replay_analyses import GroupsSeenOptions
from limbeck.study.replay_task import Course, Learned, groups_of, learn, of_classes, repeated
from limbeck.study.running import Run, run_study
from limbeck.study.spec import Study
from limbeck.study.study_options import StudyOptions
from limbeck.study.view import View
from limbeck.train.examples import Examples
from limbeck.train.network import Network
from limbeck.train.students import score, score_logits, train_student
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

CLASSES, PLAN = ("a", "b", "c", "d"), ExecutionPlan(threads=1)
NETWORK = Network(parse_model("softmax"), (1, 2, 2), 4)
RECIPE = Recipe(lr=0.5, weight_decay=0, batch_size=8, steps=40)

STUDY = """name = "replay"
title = "Replay"
question = "Does it run?"
paper = "none"

[arms.hard]
task = "replay"
ipc = 2
labels = { kind = "hard" }
replay = { groups = 3 }

[arms.soft]
task = "replay"
ipc = 2
at = 2
labels = { kind = "soft" }
replay = { groups = 3 }

[arms.made]
task = "replay"
method = "dm:steps=2,real_batch=4"
ipc = 2
labels = { kind = "hard" }
replay = { groups = 3 }

[arms.alone]
task = "replay"
ipc = 2
labels = { kind = "hard" }
replay = { groups = 3, alone = true }

[scales.smoke]
source = "digits"
data = { shape = [1, 8, 8], classes = 10, train = 1295, test = 359 }
model = "softmax"
protocol = "tiny"
students = 2
cost = "seconds"

[scales.smoke.experts.main]
epochs = 2
"""


def _table(images_of_a_class: int) -> ArrayTable:
    """Class k is bright at pixel k, in a shade of its own for every image."""
    labels = np.arange(4).repeat(images_of_a_class)
    images = torch.zeros(len(labels), 4, dtype=torch.uint8)
    images[torch.arange(len(labels)), torch.from_numpy(labels)] = 200 + torch.arange(len(labels), dtype=torch.uint8)
    return ArrayTable(images.view(-1, 1, 2, 2), labels, CLASSES)


def _memory(classes: list[int], labels: torch.Tensor | None = None) -> DistilledDataset:
    """Two images of each class, in network space."""
    owners = torch.tensor(classes).repeat_interleave(2)
    images = torch.nn.functional.one_hot(owners, 4).float().view(-1, 1, 2, 2) * torch.tensor([0.5, 0.75]).repeat(len(classes)).view(-1, 1, 1, 1)
    given = Labels.hard(owners, 4) if labels is None else Labels.encode(labels)
    return DistilledDataset(images, owners, given, PixelSpace(stored="network"), CLASSES, RECIPE)


def _learn(course: Course, students: int = 2) -> Learned:
    return learn(course, NETWORK, RECIPE, [Streams(student) for student in range(students)], _table(3), PLAN)


@pytest.mark.parametrize(("classes", "groups"), [(10, 1), (10, 3), (10, 10), (100, 5)])
def test_groups_cut_the_classes(classes: int, groups: int) -> None:
    parts = groups_of(0, 0, classes, groups)
    assert len(parts) == groups
    assert sorted(label for part in parts for label in part) == list(range(classes))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == groups_of(0, 0, classes, groups)
    assert groups == 1 or parts != groups_of(0, 1, classes, groups)


def test_rows_are_repeated_in_turn_and_none_is_left_out() -> None:
    assert repeated(np.array([3, 1, 3, 1, 1]), 5).tolist() == [1, 3, 4, 1, 3, 0, 2, 0, 2, 0]
    assert repeated(np.array([3, 1, 3, 1, 1]), 0).tolist() == [1, 3, 4, 0, 2]
    assert repeated(np.zeros(0, dtype=np.int64), 5).tolist() == []


@pytest.mark.parametrize("everything", [False, True])
def test_every_class_seen_is_shown_equally_often(everything: bool) -> None:
    memories = [] if everything else [_memory([2, 0]), _memory([1])]
    course = Course(_table(7), [[2, 0], [1], [3]], PixelSpace(), memories, everything)
    for number, classes in enumerate([[0, 2], [0, 1, 2], [0, 1, 2, 3]]):
        examples = course.examples(number)
        _, targets = examples.batch(torch.arange(len(examples)), torch.device("cpu"))
        np.testing.assert_array_equal(targets.sum(0), [7.0 if label in classes else 0.0 for label in range(4)])


def test_new_and_remembered_images_are_what_a_network_is_shown() -> None:
    soft = torch.tensor([[0.75, 0, 0.25, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0.5, 0, 0.5, 0]])
    memory, train = _memory([0, 2], soft), _table(3)
    examples = Course(train, [[2, 0], [1, 3]], PixelSpace(), [memory]).examples(1)
    images, targets = examples.batch(torch.tensor([8, 0, 6, 3]), torch.device("cpu"))
    np.testing.assert_array_equal(images[[0, 2]], memory.images[[0, 0]])
    np.testing.assert_array_equal(targets[[0, 2]], soft[[0, 0]])
    np.testing.assert_array_equal(images[[1, 3]], train.images[[3, 9]].float() / 255)
    np.testing.assert_array_equal(targets[[1, 3]].argmax(1), [1, 3])


def test_without_memory_earlier_classes_are_forgotten_and_with_all_data_they_are_not() -> None:
    groups = [[2, 0], [1], [3]]
    nothing, everything = (_learn(Course(_table(8), groups, PixelSpace(), everything=kept)) for kept in (False, True))
    np.testing.assert_array_equal(nothing.on_group[:, -1], [[0, 0, 1]] * 2)
    np.testing.assert_array_equal(nothing.forgetting, [1, 1])
    np.testing.assert_allclose(nothing.seen, [[1, 1 / 3, 1 / 4]] * 2)
    np.testing.assert_array_equal(everything.seen, np.ones((2, 3)))
    np.testing.assert_array_equal(everything.forgetting, [0, 0])
    with_memory = _learn(Course(_table(8), groups, PixelSpace(), [_memory([2, 0]), _memory([1])]))
    np.testing.assert_array_equal(with_memory.seen, np.ones((2, 3)))


def test_one_group_of_all_data_is_a_plain_evaluation() -> None:
    train, test, streams = _table(5), _table(3), student_streams(0, 1, 0, 0)
    examples = Examples.of_table(train, PixelSpace())
    plain = score(NETWORK, train_student(NETWORK, examples, RECIPE, streams, PLAN), test, examples, PLAN)
    for kept in (False, True):
        found = learn(Course(train, [[3, 1, 0, 2]], PixelSpace(), everything=kept), NETWORK, RECIPE, [streams], test, PLAN)
        (ours,) = found.last
        assert (ours.accuracy, ours.loss) == (plain.accuracy, plain.loss)
        assert torch.equal(ours.predictions, plain.predictions)
        assert found.measures()["forgetting"] == [None]


def test_classes_to_come_are_not_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that always prefers the last class."""
    monkeypatch.setattr("limbeck.study.replay_task.predict", lambda network, state, table, pixels, plan: torch.arange(4.0).repeat(len(table), 1))
    found = _learn(Course(_table(4), [[2, 0], [1], [3]], PixelSpace()), students=1)
    np.testing.assert_allclose(found.seen, [[1 / 2, 1 / 3, 1 / 4]])
    np.testing.assert_allclose(found.on_group[0], np.array([[0.5, np.nan, np.nan], [0.5, 0, np.nan], [0, 0, 1]]))
    assert found.last[0].predictions.tolist() == [3] * 12


def test_forgetting_is_the_fall_from_the_best_that_was() -> None:
    on_group = np.array([[[0.75, np.nan, np.nan], [0.875, 0.5, np.nan], [0.25, 0.75, 1.0]]])
    last = [score_logits(torch.eye(4), torch.arange(4))]
    found = Learned(np.array([[0.75, 0.625, 0.5]]), on_group, last).measures()
    assert found["forgetting"] == [((0.875 - 0.25) + (0.5 - 0.75)) / 2]
    assert found["average"] == [0.625]
    assert [found[f"accuracy on group {group}"] for group in (1, 2, 3)] == [[0.25], [0.75], [1.0]]


def test_alone_a_new_network_learns_from_the_memory() -> None:
    memories = [_memory([2, 0]), _memory([1, 3])]
    course = Course(_table(8), [[2, 0], [1, 3]], PixelSpace(), memories, alone=True)
    assert len(course.examples(0)) == 4
    assert len(course.examples(1)) == 8
    found, streams = _learn(course, students=1), Streams(0)["group", 1]
    state = train_student(NETWORK, course.examples(1), RECIPE, streams, PLAN)
    assert found.last[0].loss == score(NETWORK, state, _table(3), Examples.of_table(_table(3), PixelSpace()), PLAN).loss


def test_what_is_kept_is_counted() -> None:
    train, groups = _table(5), [[2, 0], [1], [3]]
    assert Course(train, groups, PixelSpace()).size() == {"images": 0, "bytes": 0}
    assert Course(train, groups, PixelSpace(), everything=True).size() == {"images": 15, "bytes": 15 * (4 + 1)}
    assert Course(train, groups, PixelSpace(), [_memory([2, 0]), _memory([1])]).size() == {"images": 6, "bytes": 6 * (16 + 1)}


@pytest.fixture(scope="module")
def experts_saw() -> list[list[int]]:
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, experts_saw: list[list[int]]) -> Run:
    torch.set_num_threads(1)
    honest = train_expert

    def watched(network: Network, recipe: Recipe, train: Subset, validation: Subset, *given: Any, **named: Any) -> Any:
        experts_saw.append(sorted({*train.labels.tolist(), *validation.labels.tolist()}))
        return honest(network, recipe, train, validation, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.study.replay_task.train_expert", watched)
        return run_study(Study.parse(STUDY), _options(tmp_path_factory.mktemp("replay")))


def _options(folder: Path) -> StudyOptions:
    return StudyOptions(out=folder / "out", store=str(folder / "store"), threads=1)


def _graph(content: str) -> Graph:
    return Builder(Study.parse(content), "smoke", DataKey.unseen("normalize"), device="cpu").graph()


def test_a_memory_knows_its_own_group_alone(finished: Run, experts_saw: list[list[int]]) -> None:
    groups = [sorted(group) for group in groups_of(0, 0, 10, 3)]
    assert experts_saw == groups[:-1]
    kept = [row for row in finished.ledger.rows.values() if row["kind"] == "memory"]
    assert sorted(row["settings"]["classes"] for row in kept if "expert" in row["settings"]) == sorted(groups[:-1])
    for row in kept:
        made = finished.artefacts.dataset(row)
        classes = row["settings"]["classes"]
        assert made.owners.tolist() == [label for label in classes for _ in range(2)]
        targets = made.targets()
        outside = [label for label in range(10) if label not in classes]
        assert not targets[:, outside].any()
        np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)
        assert ("expert" in row["settings"]) == bool((targets.max(1).values < 1).any())


def test_hard_and_soft_memories_hold_the_same_images(finished: Run) -> None:
    kept = [row for row in finished.ledger.rows.values() if row["kind"] == "memory" and row["settings"]["method"] == "random-real"]
    for row in kept:
        same = [other for other in kept if other["settings"]["classes"] == row["settings"]["classes"]]
        assert all(torch.equal(finished.artefacts.dataset(row).images, finished.artefacts.dataset(other).images) for other in same)
    assert len(kept) == 5  # three under their classes, which two arms share, and two under experts


def test_rows_say_what_was_reached(finished: Run) -> None:
    row = next(row for row in finished.ledger.rows.values() if row["kind"] == "replay" and row["settings"]["alone"])
    measures = row["measures"]
    assert measures["accuracy"] == measures["accuracy after 3"]
    assert measures["images"] == 20
    scores = finished.artefacts.scores(row)
    assert scores["predictions"].shape == (2, 359)
    assert scores["group_accuracy"].shape == (2, 3, 3)


def test_the_figure_shows_what_is_measured(finished: Run) -> None:
    view = View(finished.study, finished.scale, finished.graph.cells, finished.graph.keys, finished.ledger.rows)
    options = GroupsSeenOptions(title="T", rows=[{"name": "plain", "arm": "hard"}, {"name": "made", "arm": "made"}])
    show = STUDY_ANALYSES["groups-seen"]
    measurement, (plot,) = show(view, options, finished.artefacts)
    assert (plot.kind, measurement.axes) == ("line", {"memory": ("plain", "made"), "groups seen": (1, 2, 3)})
    row = view.row(next(cell for cell in view.cells if cell.arm == "made"))
    np.testing.assert_allclose(measurement["accuracy"].values[1], [np.mean(row["measures"][f"accuracy after {number}"]) for number in (1, 2, 3)])
    assert "students" in measurement["accuracy"].covers
    without = {key: row for key, row in view.rows.items() if key != view.tasks[0]}
    partly, _ = show(replace(view, rows=without), options, finished.artefacts)
    assert partly.axes["memory"] == ("made",)


def test_a_second_run_does_nothing_and_another_machine_finds_the_same(finished: Run, tmp_path: Path) -> None:
    again = run_study(finished.study, StudyOptions(out=finished.out, store=str(finished.artefacts.cache.root), threads=1))
    assert again.done == 0
    elsewhere = run_study(finished.study, _options(tmp_path))
    assert elsewhere.ledger.canonical() == finished.ledger.canonical()


def test_a_study_is_priced_by_its_groups_and_experts() -> None:
    def lines(content: str) -> dict[str, Any]:
        graph = _graph(content)
        return {line.kind: line for line in price(graph, "smoke", Study.parse(content).scale("smoke"), set(graph.tasks), rate=1e6).lines}

    few = lines(STUDY)
    assert few["replay"].steps == 4 * 2 * 3 * 20  # arms, students, groups, steps
    assert few["memory"].steps == 2 * 2 + 2 * 3 + 2 * 2  # dm for two groups; experts of two epochs in three and two batches
    assert few["memory"].tasks == 3 + 2 + 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "replay = { groups = 3 }",
            "replay = { groups = 11 }",
            "11 groups need at least as many classes, got 10; use at most 10 groups, at arms.hard",
        ),
        ("replay = { groups = 3 }", "replay = { grups = 3 }", r"unknown key 'grups' .*did you mean 'groups'"),
        ("replay = { groups = 3 }", "", r"needs to say how the classes arrive, for example replay = \{ groups = 5 \}"),
        ("ipc = 2", "ipc = -1", "a memory holds 0, 1, 2, ... images of a class, or 'all', got -1"),
        ('labels = { kind = "hard" }', 'transforms = ["swap:rank=2"]\nat = 2', "'random-real' was asked for trajectories, views or transforms"),
        ('ipc = 2\nlabels = { kind = "hard" }', 'ipc = "all"\nat = 2', r"with ipc = 'all' no image is labeled by an expert; add labels"),
        ("at = 2", "", 'stopped at a stated moment, not at the best one; add for example at = 2, or at = "last"'),
        ('protocol = "tiny"', 'protocol = "dc"', r"needs a recipe that counts steps, .* got epochs = 300; use recipe = \{ steps = 500 \}"),
        (
            'ipc = 2\nlabels = { kind = "hard" }\nreplay = { groups = 3, alone',
            'ipc = 0\nlabels = { kind = "hard" }\nreplay = { groups = 3, alone',
            "nothing can be learned from a memory of 0 images alone",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(old: str, new: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        _graph(STUDY.replace(old, new, 1))


def test_an_expert_that_stops_too_late_is_one_sentence_before_the_run_begins() -> None:
    with pytest.raises(OptionError, match=r"images are trained for 6 steps, so they have no step 9999; use an earlier one, at arms\.soft"):
        _graph(STUDY.replace("at = 2", 'at = "step 9999"'))


def test_records_of_some_classes_keep_their_order() -> None:
    assert of_classes(_table(2), [3, 0]).indices.tolist() == [0, 1, 6, 7]

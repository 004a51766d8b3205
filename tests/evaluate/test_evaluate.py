import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.small import PLAN, Oracle, distilled, gaussians, network

import limbeck
from limbeck.cache import Cache
from limbeck.data.pixels import normalize
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ArrayTable
from limbeck.errors import OptionError
from limbeck.evaluate import evaluate as module
from limbeck.evaluate.evaluate import evaluate, evaluate_labeler
from limbeck.evaluate.protocols import Protocol
from limbeck.progress import Reporter
from limbeck.train.network import Network
from limbeck.types.distilled import DistilledDataset
from limbeck.types.evaluation import Evaluation, paired_difference
from limbeck.types.labels import Labels
from limbeck.types.recipe import Recipe

TEST = gaussians(100, seed=7)
PROTOCOL = Protocol(name="tiny", version=2, recipe=Recipe(lr=0.05, batch_size=16, epochs=6), source="here", note="small")


def run(root: Path, sets: list[list[DistilledDataset]], *, test: ArrayTable = TEST, net: Network | None = None, **options: object) -> Evaluation:
    net = net or network(classes=len(test.classes))
    return evaluate("a set", sets, net, PROTOCOL, TestHandle(test), cache=Cache(root), **{"students": 2, "plan": PLAN, **options})  # type: ignore[arg-type]


def good(seed: int = 0) -> DistilledDataset:
    table = gaussians(10, seed)
    return distilled(table, pixels=normalize(table))


def test_a_good_set_teaches_and_the_record_says_how(tmp_path: Path) -> None:
    sets = [[good(0), good(1)], [good(2), good(3)], [good(4), good(5)]]
    result = run(tmp_path, sets, seed=4)
    assert result.accuracy.shape == result.loss.shape == result.worst_class.shape == (3, 2, 2)
    assert result.accuracy.min() > 0.9
    assert (result.worst_class <= result.accuracy).all()
    assert (result.name, result.protocol, result.model, result.seed, result.diverged) == ("a set", "tiny/2", "softmax", 4, 0)
    assert (result.images, result.bytes, result.test_images, result.test_digest) == (20, sets[0][0].bytes, 200, TEST.digest)
    assert result.sets == tuple(made.digest for row in sets for made in row)
    assert Recipe(**result.recipe) == PROTOCOL.recipe
    assert Evaluation.from_dict(result.to_dict()).to_dict() == result.to_dict()


def test_equal_sets_have_a_paired_difference_of_zero(tmp_path: Path) -> None:
    """Students share seeds whatever the cache holds: one evaluation here is fresh, the other has a cache of its own."""
    first, second = run(tmp_path / "a", [[good()]], students=3), run(tmp_path / "b", [[good()]], students=3)
    difference = paired_difference(first.accuracy, second.accuracy)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert np.array_equal(first.loss, second.loss)
    assert len(np.unique(first.loss)) == 3
    across = run(tmp_path / "d", [[good(), good()], [good(), good()]]).loss
    assert (across[0, 0] == first.loss[0, 0, :2]).all()  # the first draw and expert number their students alone
    assert len(np.unique(across)) == across.size  # every other cell has students of its own
    assert not np.array_equal(run(tmp_path / "c", [[good()]], students=3, seed=1).loss, first.loss)


def test_labels_of_pure_noise_give_chance(tmp_path: Path) -> None:
    test, accuracies = gaussians(50, seed=7, classes=4), []
    for seed in range(6):
        table = gaussians(15, seed, classes=4)
        noise = torch.from_numpy(np.random.default_rng(seed).integers(0, 4, 60))
        made = distilled(table, Labels.hard(noise, 4), owners=noise, pixels=normalize(table))
        accuracies.append(run(tmp_path, [[made]], test=test, students=1).accuracy.item())
    assert abs(np.mean(accuracies) - 0.25) < 4 * np.std(accuracies, ddof=1) / np.sqrt(6)


def test_permuting_classes_everywhere_leaves_accuracy_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, labels, the test split and the head's initial rows permuted together: the same students, up to the order of float32 sums."""
    order = torch.tensor([2, 0, 3, 1])  # new class k is old class order[k]
    rank = order.argsort()
    table, test = gaussians(10, classes=4, noise=60), gaussians(60, seed=7, classes=4, noise=60)
    rows = torch.from_numpy(np.random.default_rng(0).dirichlet([1] * 4, 40)).float() + 3 * torch.nn.functional.one_hot(
        torch.from_numpy(table.labels.copy()), 4
    )
    rows = rows / rows.sum(1, keepdim=True)

    def renamed(images: ArrayTable) -> ArrayTable:
        return ArrayTable(images.images, rank[torch.from_numpy(images.labels.copy())].numpy(), [images.classes[k] for k in order])

    straight = run(tmp_path, [[distilled(table, Labels.encode(rows), pixels=normalize(table))]], test=test)
    init = Network.init
    monkeypatch.setattr(Network, "init", lambda net, streams: {name: tensor[order] for name, tensor in init(net, streams).items()})
    moved = run(tmp_path, [[distilled(renamed(table), Labels.encode(rows[:, order]), pixels=normalize(table))]], test=renamed(test))
    assert straight.sets != moved.sets
    assert np.array_equal(straight.accuracy, moved.accuracy)
    assert np.array_equal(straight.worst_class, moved.worst_class)
    assert np.allclose(straight.loss, moved.loss, rtol=1e-5)
    assert 0.3 < straight.accuracy.mean() < 0.999
    assert (straight.worst_class < straight.accuracy).all()


def test_finished_students_are_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path, [[good()]], students=2)
    trained = []
    real = module.train_students
    monkeypatch.setattr(module, "train_students", lambda *arguments: trained.append(1) or real(*arguments))
    again = run(tmp_path, [[good()]], students=3)
    assert trained == [1]
    assert np.array_equal(again.loss[:, :, :2], first.loss)
    assert np.array_equal(again.worst_class[:, :, :2], first.worst_class)
    for path in (tmp_path / "students").iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    assert np.array_equal(run(tmp_path, [[good()]], students=3).loss, again.loss)
    assert len(trained) == 4


def test_the_cache_tells_apart_whatever_could_change_a_student(tmp_path: Path) -> None:
    def entries() -> int:
        return len(list((tmp_path / "students").iterdir()))

    base = good()
    run(tmp_path, [[base]], students=1)
    changes = [
        lambda: run(tmp_path, [[good(1)]], students=1),
        lambda: run(tmp_path, [[distilled(gaussians(10, 0))]], students=1),
        lambda: run(tmp_path, [[base]], students=1, seed=1),
        lambda: run(tmp_path, [[base]], students=1, recipe=PROTOCOL.recipe.with_(lr=0.01)),
        lambda: run(tmp_path, [[base]], students=1, net=network("mlp:width=4,depth=1")),
        lambda: run(tmp_path, [[base]], students=1, test=gaussians(100, seed=8)),
    ]
    for number, change in enumerate(changes, start=2):
        change()
        assert entries() == number
    run(tmp_path, [[DistilledDataset(**{**vars(base), "provenance": {"other": 1}})]], students=1)
    assert entries() == len(changes) + 1


def test_a_recipe_replaces_the_protocols_own_and_is_recorded(tmp_path: Path) -> None:
    result = run(tmp_path, [[good()]], recipe=PROTOCOL.recipe.with_(lr=1e-9))
    assert result.recipe["lr"] == 1e-9
    assert result.accuracy.max() < 0.9


def test_diverged_students_are_counted_and_noted(tmp_path: Path) -> None:
    notes: list[str] = []

    class Noting(Reporter):
        def note(self, message: str) -> None:
            notes.append(message)

    wild = PROTOCOL.recipe.with_(lr=1e20, loss="mse", epochs=20)
    for _ in range(2):  # trained, and then taken from the cache
        result = run(tmp_path, [[good()]], recipe=wild, reporter=Noting())
        assert result.diverged == 2
        assert np.isinf(result.loss).all()
        assert notes.pop() == "2 of 2 students of 'a set' diverged; they are counted with the class that they name"


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            lambda: distilled(gaussians(2), images=torch.zeros(4, 1, 8, 9, dtype=torch.uint8)),
            "the distilled images are 1x8x9 but the test images are 1x8x8; evaluate on the source that the set was made from, with the same --size",
        ),
        (lambda: distilled(gaussians(2, classes=3)), "the distilled set has 3 classes but the source has 2; evaluate on the set's own source"),
        (
            lambda: distilled(gaussians(2), classes=("band 0", "tape")),
            "class 1 is 'tape' in the distilled set but 'band 1' in the source; evaluate on the set's own source",
        ),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_set_of_other_data_is_answered_wherever_it_stands(tmp_path: Path, made, sentence: str, first: bool) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(OptionError) as caught:
        run(tmp_path, [[made()], [good()]] if first else [[good()], [made()]])
    assert str(caught.value) == sentence


def test_impossible_layouts_are_answered(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="^an evaluation needs at least 1 student, got 0; use --students 5$"):
        run(tmp_path, [[good()]], students=0)
    for sets in ([[good(), good()], [good()]], [[]], []):
        with pytest.raises(OptionError, match="^an evaluation needs one set for each image draw and expert, got rows of "):
            run(tmp_path, sets)


def test_a_labeler_is_measured_by_its_own_logits() -> None:
    logits = torch.nn.functional.one_hot(torch.from_numpy(TEST.labels.copy()), 2).float()
    logits[:10] = 1 - logits[:10]
    assert evaluate_labeler(Oracle(TEST, logits), TestHandle(TEST), PLAN).accuracy == 0.95


def test_only_measuring_code_opens_the_test_split() -> None:
    package = Path(limbeck.__file__).parent
    openers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("open_for_measurement", "_TestHandle__table")
    }
    # beside the rooms that measure: the students of a study and of an audit, and the pictures on an analysis's page
    known = {"study/tasks.py", "study/replay_task.py", "study/auditing.py", "report/analysis.py"}
    assert {opener for opener in openers if opener.split("/")[0] not in ("evaluate", "analyze", "leak")} <= known
    assert "evaluate/evaluate.py" in openers


def test_students_that_train_at_once_are_those_that_train_alone(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone", [[good()], [good(1)]], students=3)
    together = run(tmp_path / "together", [[good()], [good(1)]], students=3, plan=PLAN.model_copy(update={"models": 4}))
    assert np.allclose(alone.loss, together.loss, atol=1e-4)
    assert np.array_equal(alone.accuracy, together.accuracy)
    for path in list((tmp_path / "together" / "students").iterdir())[::2]:
        path.unlink()
    again = run(tmp_path / "together", [[good()], [good(1)]], students=3, plan=PLAN.model_copy(update={"models": 4}))
    assert np.array_equal(together.loss, again.loss)


def test_labels_that_only_a_regression_can_teach_are_refused_under_another_loss(tmp_path: Path) -> None:
    given = good()
    rows = torch.nn.functional.one_hot(given.owners, 2).float() - 0.2
    labels = Labels.encode(rows, kind="free", precision="float32", sums_to_one=False)
    sentence = r"^this set's labels are targets of a regression \(the least is -0.20\), which protocol tiny .* cannot teach; use --protocol frepo$"
    taught = DistilledDataset(**{**vars(given), "labels": labels})
    with pytest.raises(OptionError, match=sentence):
        run(tmp_path, [[taught]])
    assert run(tmp_path, [[taught]], recipe=PROTOCOL.recipe.with_(loss="mse")).diverged == 0

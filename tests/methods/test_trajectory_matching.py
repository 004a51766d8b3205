import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.small import PLAN, SHORT, gaussians, network, problem
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.cache import Cache
from limbeck.data.pixels import normalize
from limbeck.errors import OptionError
from limbeck.experts.trajectory import Trajectory, train_expert
from limbeck.labels.rules import LabelRule, soften
from limbeck.methods.driver import State, Turn, run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import one_hot, owners_of
from limbeck.methods.trajectory_matching import (
    TESLA,
    Matched,
    Segment,
    TESLAOptions,
    TrajectoryMatching,
    TrajectoryMatchingOptions,
    gradient_agreement,
    recomputed,
    unrolled,
)
from limbeck.streams import Streams
from limbeck.train.second_order import Batch, BatchLoss, SummedLoss, network_loss
from limbeck.train.updates import Tensors
from limbeck.types.recipe import Recipe

TRAIN, VALIDATION, PIXELS = gaussians(16), gaussians(8, seed=1), normalize(gaussians(16))
SMALL: dict[str, Any] = {"steps": 4, "student_steps": 3, "expert_epochs": 1, "max_start_epoch": 2, "image_lr": 1.0, "step_size": 0.05}
BOTH = ("images", "labels")


def train(root: Path, model: str = "softmax", index: int = 0, recipe: Recipe | None = None) -> Trajectory:
    recipe = recipe or TrajectoryMatching.expert_recipe.with_(epochs=3, lr=0.05, batch_size=8, augment="none")
    return train_expert(network(model), recipe, TRAIN, VALIDATION, PIXELS, seed=0, index=index, plan=PLAN, cache=Cache(root))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experts")


def task(folder: Path, model: str = "softmax", experts: int = 2, **changes: Any) -> Problem:
    given: dict[str, Any] = {"network": network(model), "pixels": PIXELS, "trajectories": tuple(train(folder, model, i) for i in range(experts))}
    return problem(TRAIN, (2, 2), **{**given, **changes})


def mtt(**options: Any) -> TrajectoryMatching:
    return TrajectoryMatching(TrajectoryMatchingOptions(**{**SMALL, **options}))


def tesla(**options: Any) -> TESLA:
    return TESLA(TESLAOptions(**{**SMALL, **options}))


def turn(given: Problem, number: int = 0, scale: float = 1.0) -> Turn:
    return Turn(number, scale, given.streams["step", number])


def walk(method: TrajectoryMatching, given: Problem, steps: int) -> list[tuple[State, dict[str, float]]]:
    history: list[tuple[State, dict[str, float]]] = []
    state = method.init(given)
    for number in range(steps):
        state, metrics = method.step(given, state, turn(given, number))
        history.append((state, dict(metrics)))
    return history


# --- a quadratic, where training is a linear recurrence ---

CURVATURE = torch.diag(torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64))


def quadratic(parameters: Tensors, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``1/2 sum_b (theta - x_b)' A (theta - x_b)``: the gradient of the mean is ``A (theta - mean x)``."""
    away = parameters["theta"] - images.flatten(1)
    return 0.5 * ((away @ CURVATURE) * away).sum()


def recurrence(steps: int, alpha: float = 0.1) -> tuple[Segment, torch.Tensor, torch.Tensor]:
    draw = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images, labels = draw[:5, None, None, :], torch.zeros(5, 2, dtype=torch.float64)
    batches = [Batch(torch.arange(5), None, {})] * steps
    return Segment({"theta": draw[5]}, {"theta": draw[6]}, batches, torch.tensor(alpha, dtype=torch.float64)), images, labels


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_on_a_quadratic_the_exact_gradient_is_that_of_the_matrix_power(steps: int) -> None:
    segment, images, labels = recurrence(steps)
    start, target, mean = segment.start["theta"], segment.target["theta"], images.flatten(1).mean(0)
    once = torch.eye(4, dtype=torch.float64) - 0.1 * CURVATURE
    power = torch.linalg.matrix_power(once, steps)
    end = power @ start + (torch.eye(4, dtype=torch.float64) - power) @ mean
    scale = (start - target).square().sum()
    adjoint = 2 * (end - target) / scale
    by_each = (torch.eye(4, dtype=torch.float64) - power) @ adjoint / 5
    by_alpha = adjoint @ (-steps * CURVATURE @ torch.linalg.matrix_power(once, steps - 1)) @ (start - mean)
    student = BatchLoss.of_function(quadratic, "parameters", "images", chunk=2)
    for found in (unrolled(quadratic, segment, images, labels), recomputed(student, segment, images, labels)):
        torch.testing.assert_close(found.loss, (end - target).square().sum() / scale)
        torch.testing.assert_close(found.images, by_each.expand(5, 4)[:, None, None, :])
        torch.testing.assert_close(found.step_size, by_alpha)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_on_a_quadratic_tesla_leaves_the_factors_out(steps: int) -> None:
    """Every ``a_i = a_N``, so the images' derivative is ``N alpha A a_N / B`` and the step size's ``-<a_N, G>``."""
    segment, images, labels = recurrence(steps)
    start, target, mean = segment.start["theta"], segment.target["theta"], images.flatten(1).mean(0)
    path = [start]
    for _ in range(steps):
        path.append(path[-1] - 0.1 * CURVATURE @ (path[-1] - mean))
    adjoint = 2 * (path[-1] - target) / (start - target).square().sum()
    found = recomputed(BatchLoss.of_function(quadratic, "images"), segment, images, labels)
    torch.testing.assert_close(found.images, (steps * 0.1 * CURVATURE @ adjoint / 5).expand(5, 4)[:, None, None, :])
    torch.testing.assert_close(found.step_size, -sum(CURVATURE @ (theta - mean) for theta in path[:-1]) @ adjoint)


# --- networks ---


def training(model: str, steps: int, batch: int = 4) -> tuple[SummedLoss, Segment, torch.Tensor, torch.Tensor, Tensors]:
    """A segment in float64 with augmented minibatches, images, soft labels and buffers."""
    net, generator = network(model), torch.Generator().manual_seed(0)
    state = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in net.init(Streams(0)).items()}
    start = {name: state[name] for name in net.parameter_names}
    buffers = {name: tensor for name, tensor in state.items() if name not in start}
    target = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for name, tensor in start.items()}
    images = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.rand(6, 2, generator=generator, dtype=torch.float64).softmax(1)
    augment = mtt(augment="dsa")._augment(problem(TRAIN, (2, 2)))
    assert augment is not None
    batches = []
    for _ in range(steps):
        rows = torch.randperm(6, generator=generator)[:batch]
        batches.append(Batch(rows, augment, augment.draw(batch, (1, 8, 8), generator)))
    plain = network_loss(net, "cross-entropy", "float32", "cpu")
    segment = Segment(start, target, batches, torch.tensor(0.3, dtype=torch.float64))
    return lambda parameters, shown, rows: plain(parameters, shown, rows, buffers), segment, images, labels, buffers


def largest_difference(one: Matched, other: Matched, names: tuple[str, ...] = ("loss", "step_size", *BOTH)) -> float:
    return max(float((getattr(one, name) - getattr(other, name)).abs().max() / getattr(other, name).abs().max()) for name in names)


@pytest.mark.parametrize("model", ["mlp:width=5,depth=1", "convnet-d1-w4", "convnet:depth=1,width=4,norm=batch"])
def test_recomputation_gives_the_numbers_of_the_unrolled_training(model: str) -> None:
    loss, segment, images, labels, buffers = training(model, 5)
    student = BatchLoss.of_network(network(model), buffers, PLAN.model_copy(update={"chunk": 3}), "parameters", *BOTH)
    found = recomputed(student, segment, images, labels)
    assert largest_difference(found, unrolled(loss, segment, images, labels)) < 1e-10


def test_tesla_is_exact_for_one_step_and_for_no_more() -> None:
    for steps, exact in ((1, True), (4, False)):
        loss, segment, images, labels, _ = training("convnet-d1-w4", steps)
        found, reference = recomputed(BatchLoss.of_function(loss, *BOTH), segment, images, labels), unrolled(loss, segment, images, labels)
        assert (largest_difference(found, reference) < 1e-10) == exact
        assert largest_difference(found, reference, ("loss",)) < 1e-12


class PeakBytes(TorchDispatchMode):
    """Most bytes of tensors alive at once, of those made while this is active."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._alive = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return out


@pytest.mark.parametrize("wanted", [("parameters", "images"), ("images",)])
def test_recomputation_keeps_one_graph_however_long_the_training(wanted: tuple[str, ...]) -> None:
    peaks: dict[str, list[int]] = {"unrolled": [], "recomputed": []}
    for steps in (2, 12):
        loss, segment, images, labels, _ = training("convnet-d1-w4", steps, batch=6)
        runs = {"unrolled": partial(unrolled, loss), "recomputed": partial(recomputed, BatchLoss.of_function(loss, *wanted))}
        for name, run in runs.items():
            with PeakBytes() as measured:
                run(segment, images, labels)
            peaks[name].append(measured.peak)
    parameters = sum(tensor.nbytes for tensor in segment.start.values())
    assert peaks["recomputed"][1] - peaks["recomputed"][0] < 10 * 2.5 * parameters  # two numbers a parameter for each of ten steps more
    assert peaks["unrolled"][1] > 4 * peaks["unrolled"][0]
    assert peaks["unrolled"][1] > 4 * peaks["recomputed"][1]


# --- the method ---


def test_all_gradients_of_the_method_match_the_same_segment(folder: Path) -> None:
    given, method = task(folder, "mlp:width=5,depth=1", recipe=SHORT.with_(augment="dsa:crop_flip")), mtt(batch=3)
    state = method.init(given)
    found = {kind: method.match(given, state, turn(given), kind).matched for kind in ("unrolled", "recomputed", "tesla")}  # type: ignore[arg-type]
    assert largest_difference(found["recomputed"], found["unrolled"], ("loss", "images", "step_size")) < 1e-4
    assert largest_difference(found["tesla"], found["unrolled"], ("loss",)) < 1e-5
    assert largest_difference(found["tesla"], found["unrolled"], ("images",)) > 1e-3


def test_the_student_starts_at_an_experts_epoch_and_aims_at_a_later_one(folder: Path) -> None:
    given, method = task(folder), mtt()
    pairs = set()
    for number in range(40):
        segment = method.match(given, method.init(given), turn(given, number)).segment
        for index, trajectory in enumerate(given.trajectories):
            states = {snapshot.epoch: trajectory.at(snapshot.step).state for snapshot in trajectory.snapshots if snapshot.epoch in (0, 1, 2)}
            for start in (0, 1):
                if torch.equal(segment.start["head.weight"], states[start]["head.weight"]):
                    assert torch.equal(segment.target["head.weight"], states[start + 1]["head.weight"])
                    pairs.add((index, start))
    assert pairs == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_minibatches_are_passes_over_fresh_permutations(folder: Path) -> None:
    given = task(folder)
    batches = mtt(student_steps=5, batch=3)._batches(given, given.streams)
    assert [len(batch.rows) for batch in batches] == [3, 1, 3, 1, 3]
    for first, second in ((0, 1), (2, 3)):
        assert sorted([*batches[first].rows.tolist(), *batches[second].rows.tolist()]) == [0, 1, 2, 3]
    assert [batch.rows.tolist() for batch in batches[:2]] != [batch.rows.tolist() for batch in batches[2:4]]


def test_images_move_by_sgd_with_momentum(folder: Path) -> None:
    given, method = task(folder), mtt(image_lr=3.0, momentum=0.5)
    first = method.init(given)
    second, _ = method.step(given, first, turn(given, 0))
    third, _ = method.step(given, second, turn(given, 1, scale=0.5))
    one = method.match(given, first, turn(given, 0)).matched.images
    other = method.match(given, second, turn(given, 1, scale=0.5)).matched.images
    assert one is not None
    assert other is not None
    torch.testing.assert_close(second["images"], first["images"] - 3 * one)
    torch.testing.assert_close(third["images"], second["images"] - 0.5 * 3 * (0.5 * one + other))


def test_matching_lowers_its_loss(folder: Path) -> None:
    given, method = task(folder, experts=1), mtt(max_start_epoch=1, image_lr=10.0, step_size_lr=1e-3)
    losses = [metrics["loss"] for _, metrics in walk(method, given, 30)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_step_size_moves_as_published_to_first_order(folder: Path) -> None:
    given, method = task(folder), mtt(step_size=0.05, step_size_lr=1e-7)
    state = method.init(given)
    new, _ = method.step(given, state, turn(given))
    derivative = method.match(given, state, turn(given)).matched.step_size
    assert float(new["step_size"].double() - state["step_size"].double()) == pytest.approx(-1e-7 * float(derivative), rel=0.05)


@pytest.mark.parametrize("rate", [1.0, 1e9])
def test_the_step_size_stays_positive_however_fast_it_moves(folder: Path, rate: float) -> None:
    given = task(folder)
    sizes = [0.05, *(float(state["step_size"]) for state, _ in walk(mtt(step_size_lr=rate), given, 8))]
    ratios = [after / before for before, after in pairwise(sizes)]
    assert min(sizes) > 0
    assert all(0.499 < ratio < 2.001 for ratio in ratios)
    assert max(abs(math.log(ratio)) for ratio in ratios) == pytest.approx(math.log(2), rel=1e-3)


def test_a_fixed_step_size_is_kept_and_stored(folder: Path) -> None:
    given = task(folder)
    made = run_method(mtt(step_size_lr=0), given)
    assert made.step_size == pytest.approx(0.05, rel=1e-6)
    assert made.provenance["matched_experts"] == [trajectory.key for trajectory in given.trajectories]


def test_a_repeated_step_trains_the_student_more_slowly_too(folder: Path) -> None:
    given, method = task(folder), mtt(step_size_lr=0)
    state = method.init(given)
    assert float(method.match(given, state, turn(given, scale=0.25)).segment.step_size) == pytest.approx(0.05 / 4, rel=1e-6)
    assert float(method.step(given, state, turn(given, scale=0.25))[0]["step_size"]) == pytest.approx(0.05 / 4, rel=1e-6)


@pytest.mark.parametrize("form", ["simplex", "free"])
def test_learned_labels_leave_real_images_as_they_are(folder: Path, form: str) -> None:
    given, method = task(folder), mtt(learn="labels", label_form=form, label_lr=1.0 if form == "free" else 20.0, steps=10)
    start = method.init(given)
    hard = one_hot(owners_of(given), given)
    rows = method._shown(start["labels"])
    torch.testing.assert_close(rows, hard * 0.8 + 0.1 if form == "simplex" else hard)
    made = run_method(method, given)
    assert torch.equal(made.images, TRAIN.read(made.provenance["indices"]))
    assert made.images.dtype == torch.uint8
    assert made.labels.kind == {"simplex": "probability", "free": "free"}[form]
    assert not torch.allclose(made.targets(), rows, atol=1e-3)
    assert float(made.targets().min()) >= 0
    if form == "simplex":
        torch.testing.assert_close(made.targets().sum(1), torch.ones(4))


@pytest.mark.parametrize("form", ["simplex", "free"])
def test_label_derivatives_agree_with_differences(folder: Path, form: str) -> None:
    given, method = task(folder, "mlp:width=5,depth=1"), mtt(learn="both", label_form=form)
    state = method.init(given)
    found = method.match(given, state, turn(given)).matched.labels
    assert found is not None
    moved = torch.zeros_like(state["labels"])
    moved[2, 0] = 0.05
    up, down = (float(method.match(given, {**state, "labels": state["labels"] + sign * moved}, turn(given)).matched.loss) for sign in (1, -1))
    assert float(found[2, 0]) == pytest.approx((up - down) / 0.1, rel=0.02)


def test_images_and_labels_are_learned_together(folder: Path) -> None:
    given = task(folder)
    (first, _), (second, _) = walk(mtt(learn="both"), given, 2)
    assert not torch.equal(first["images"], second["images"])
    assert not torch.equal(first["labels"], second["labels"])
    made = mtt(learn="both").finish(given, second)
    assert made.images.dtype == torch.float32
    assert made.labels.kind == "probability"


def test_tesla_shows_the_student_what_the_target_expert_says(folder: Path) -> None:
    given, method = task(folder, rule=LabelRule(temperature=2.0)), tesla()
    state, said = method.init(given), []
    for number in range(3):
        found = method.match(given, state, turn(given, number))
        assert found.target_logits is not None
        logits = state["images"].flatten(1) @ found.segment.target["head.weight"].T + found.segment.target["head.bias"]
        torch.testing.assert_close(found.target_logits, logits, rtol=1e-4, atol=1e-5)
        said.append(logits)
        student = BatchLoss.of_network(given.network, {}, PLAN, "images")
        torch.testing.assert_close(found.matched.images, recomputed(student, found.segment, state["images"], soften(logits, 2.0)).images)
        state, _ = method.step(given, state, turn(given, number))
    made = method.finish(given, state)
    torch.testing.assert_close(made.targets(), soften(torch.stack(said).mean(0), 2.0), rtol=1e-4, atol=1e-5)
    assert made.labels.temperature == 2.0


def test_under_hard_labels_tesla_shows_the_class(folder: Path) -> None:
    given = task(folder)
    assert tesla().match(given, tesla().init(given), turn(given)).target_logits is None
    assert run_method(tesla(), given).labels.kind == "hard"


def test_agreement_is_perfect_for_one_step_and_measured_for_more(folder: Path) -> None:
    given = task(folder, "mlp:width=5,depth=1")
    for steps in (1, 5):
        method = mtt(student_steps=steps, step_size=0.2)
        found = gradient_agreement(method, given, method.init(given), turn(given))
        assert set(found) == {"cosine", "norm_ratio", "loss"}
        apart = max(abs(found["cosine"] - 1), abs(found["norm_ratio"] - 1))
        assert (apart < 1e-5) if steps == 1 else (1e-3 < apart < 1), found
    method = mtt(learn="labels")
    assert gradient_agreement(method, given, method.init(given), turn(given))["cosine"] > 0.9


def test_labels_are_hard_soft_or_learned_by_default() -> None:
    assert [method.label_default for method in (mtt(), mtt(learn="both"), tesla(), tesla(labels="class"))] == ["hard", "learned", "soft", "hard"]
    assert (TrajectoryMatching.label_default, TESLA.label_default) == ("hard", "soft")


def test_recipes_are_the_published_ones() -> None:
    small = parse_method("mtt@cifar10-ipc10").options
    assert (small.image_lr, small.step_size_lr, small.step_size, small.student_steps) == (100.0, 1e-5, 0.001, 30)  # type: ignore[attr-defined]
    for name, kind in (("mtt", TrajectoryMatching), ("tesla", TESLA)):
        for recipe in kind.recipes:
            parse_method(f"{name}@{recipe}")
    recipe = TrajectoryMatching.expert_recipe
    assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.batch_size, recipe.schedule) == (0.01, 0, 0, 256, "constant")


def test_misuse_is_one_sentence(folder: Path) -> None:
    given = task(folder)
    with pytest.raises(OptionError) as caught:
        mtt().init(problem(TRAIN, (2, 2)))
    assert str(caught.value) == "trajectory matching (mtt, tesla) needs experts and their training, got none; use --experts N, such as --experts 5"
    with pytest.raises(OptionError) as caught:
        mtt(max_start_epoch=4).init(given)
    assert str(caught.value) == (
        "matching 1 epochs from starts before epoch 4 needs experts of 4 epochs, got 3; use --expert-epochs 4, or smaller max_start_epoch or expert_epochs"
    )
    with pytest.raises(OptionError) as caught:
        mtt().init(task(folder, network=network("mlp")))
    assert str(caught.value).startswith(
        "trajectory matching (mtt, tesla) needs experts of the architecture that it distills for, got experts of softmax for mlp"
    )
    with pytest.raises(OptionError) as caught:
        mtt().init(task(folder, pixels=problem(TRAIN, (2, 2)).pixels))
    assert str(caught.value).endswith("; use the same --pixels for both")
    with pytest.raises(OptionError) as caught:
        mtt(learn="labels", labels="target")
    assert str(caught.value) == (
        "labels are either learned or taken from the expert at the target epoch, got learn=labels and labels=target; use labels=class"
    )
    with pytest.raises(OptionError, match="unknown augmentation"):
        mtt(augment="dsaa")


def test_free_rows_have_a_smaller_rate_unless_one_is_given(folder: Path) -> None:
    assert mtt(learn="both").options.label_lr == 10  # type: ignore[attr-defined]
    assert mtt(learn="both", label_form="free").options.label_lr == 0.1  # type: ignore[attr-defined]
    assert mtt(learn="both", label_form="free", label_lr=3.0).options.label_lr == 3  # type: ignore[attr-defined]
    given = task(folder)
    largest = {
        words: max(float(state["labels"].abs().max()) for state, _ in walk(mtt(learn="labels", label_form="free", **changes), given, 4))
        for words, changes in (("of a softmax", {"label_lr": 10.0}), ("default", {}))
    }
    assert largest["default"] < 2 < largest["of a softmax"]

"""The derivative through training: against a closed form, against a plainly unrolled graph in float64, and without keeping graphs."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import SHORT, distilled, gaussians, network, problem
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.data.augment import parse_augment
from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule
from limbeck.methods import bptt
from limbeck.methods.bptt import BPTT, Batches, BPTTOptions, InnerLoop, LabelLearning, LabelLearningOptions, clipped
from limbeck.methods.driver import State, Turn, run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.train.second_order import Batch
from limbeck.types.plan import ExecutionPlan

SHORTEST: dict[str, Any] = {"steps": 4, "learn": "both", "window": 2, "unroll": 3, "real_batch": 8}
TRAIN = gaussians((9, 7, 8))


def wide(state: State) -> State:
    return {name: tensor.double() for name, tensor in state.items()}


def data(net: Network, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images and free label rows in float64."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *net.shape, generator=generator, dtype=torch.float64)
    return images, torch.rand(count, net.classes, generator=generator, dtype=torch.float64)


def whole(count: int) -> Iterator[Batch]:
    while True:
        yield Batch(torch.arange(count), None, {})


def method(**options: Any) -> BPTT:
    return BPTT(BPTTOptions(**{**SHORTEST, **options}))


def after(one: BPTT, given: Problem, steps: int | None = None, scale: float = 1.0) -> tuple[list[State], list[dict[str, float]]]:
    """States before the first step and after each, and the metrics."""
    states, metrics = [one.init(given)], []
    for number in range(one.options.steps if steps is None else steps):
        state, found = one.step(given, states[-1], Turn(number, scale, given.streams["step", number]))
        states.append(state)
        metrics.append(dict(found))
    return states, metrics


def test_on_a_quadratic_training_is_a_linear_recurrence_and_its_derivative_a_matrix_power() -> None:
    """Squared loss of a linear model: Theta' = Theta A + lr C with A = I - lr X'X/B and C = Y'X/B, so that after the window
    Theta = Theta_s A^W + lr C S with S = sum_{j<W} A^j, whose derivative in Y is (lr / B) X S G' for the gradient G in Theta."""
    net, warm_up, window, rate, count = network("softmax", classes=3, shape=(1, 2, 2)), 3, 5, 0.3, 6
    options = BPTTOptions(learn="both", inner="sgd", inner_lr=rate, inner_momentum=0, loss="mse")
    (images, labels), (real, targets) = data(net, count), data(net, 7, seed=1)
    start = wide(net.init(Streams(0)))
    loop = InnerLoop(net, start, ExecutionPlan(chunk=4, threads=1), options, batch=count)
    loss, by_images, by_labels = loop.derivatives(images, labels, whole(count), warm_up, window, real, targets)

    def design(x: Tensor) -> Tensor:
        return torch.cat([x.flatten(1), torch.ones(len(x), 1, dtype=x.dtype)], dim=1)

    def trained(theta: Tensor, x: Tensor, y: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        a = torch.eye(5, dtype=x.dtype) - rate * design(x).T @ design(x) / count
        total = sum((torch.linalg.matrix_power(a, j) for j in range(steps)), torch.zeros_like(a))
        return theta @ torch.linalg.matrix_power(a, steps) + rate / count * (y - 1 / 3).T @ design(x) @ total, total

    first = torch.cat([start["head.weight"], start["head.bias"][:, None]], dim=1)
    middle = trained(first, images, labels, warm_up)[0]
    learned = images.clone().requires_grad_()
    theta, total = trained(middle, learned, labels, window)
    error = design(real) @ theta.T - (targets - 1 / 3)
    expected = 0.5 * error.square().sum() / len(real)
    slope = (error.T @ design(real) / len(real)).detach()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.allclose(by_labels, rate / count * design(images) @ total.detach() @ slope.T, rtol=1e-10, atol=1e-14)
    assert torch.allclose(by_images, torch.autograd.grad(expected, learned)[0], rtol=1e-10, atol=1e-14)


def unrolled(
    net: Network, options: BPTTOptions, state: State, images: Tensor, labels: Tensor, batches: list[Batch], window: int, real: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same by one graph over the whole window, whole batches, and optimizers written out."""
    module = net.loaded(state).double().train()
    images, labels = images.clone().requires_grad_(), labels.clone().requires_grad_()
    theta = {name: parameter.detach().requires_grad_() for name, parameter in module.named_parameters()}
    mean = {name: torch.zeros_like(tensor) for name, tensor in theta.items()}
    square = dict(mean)

    def loss_of(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = torch.func.functional_call(module, parameters, (x,))
        return -(y * F.log_softmax(logits, dim=1)).sum(1).mean()

    for number, batch in enumerate(batches, 1):
        if number == len(batches) - window + 1:
            theta, mean, square = ({name: tensor.detach() for name, tensor in group.items()} for group in (theta, mean, square))
            theta = {name: tensor.requires_grad_() for name, tensor in theta.items()}
        shown = images[batch.rows] if batch.augment is None else batch.augment.apply(images[batch.rows], batch.params)
        found = torch.autograd.grad(loss_of(theta, shown, labels[batch.rows]), list(theta.values()), create_graph=True)
        for name, gradient in zip(list(theta), found, strict=True):
            gradient = gradient + options.inner_weight_decay * theta[name]
            if options.inner == "sgd":
                mean[name] = options.inner_momentum * mean[name] + gradient
                theta[name] = theta[name] - options.inner_lr * mean[name]
            else:
                mean[name] = 0.9 * mean[name] + 0.1 * gradient
                square[name] = 0.999 * square[name] + 0.001 * gradient**2
                # the root of a gradient that is exactly 0 (a bias before a normalization) has no derivative: it stays where it is
                still = square[name] == 0
                root = torch.where(still, 1.0, square[name] / (1 - 0.999**number)).sqrt()
                theta[name] = theta[name] - torch.where(still, 0.0, options.inner_lr * mean[name] / (1 - 0.9**number) / (root + 1e-8))
    loss = loss_of(theta, real, targets)
    return loss, *torch.autograd.grad(loss, (images, labels))


CASES = {
    "adam": {"inner": "adam", "inner_lr": 0.01},
    "adam, weight decay": {"inner": "adam", "inner_lr": 0.01, "inner_weight_decay": 0.1},
    "sgd": {"inner": "sgd", "inner_lr": 0.05, "inner_momentum": 0.0},
    "sgd, momentum, weight decay": {"inner": "sgd", "inner_lr": 0.05, "inner_weight_decay": 0.1},
    "augmented subsets of classes": {"inner": "sgd", "inner_lr": 0.05, "inner_augment": "dsa:flip_rotate", "batch_per_class": 2, "batch_classes": 2},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("model", ["mlp:width=6,depth=1", "convnet-d1-w4", "convnet-d1-w4:norm=batch"])
def test_it_is_the_derivative_of_the_plainly_unrolled_window(case: str, model: str) -> None:
    net, counts = network(model, classes=3), (3, 1, 4)
    options = BPTTOptions(learn="both", **CASES[case])
    (images, labels), (real, targets) = data(net, sum(counts)), data(net, 10, seed=1)
    drawn = Batches(counts, torch.ones(8, dtype=torch.bool), options.batch_per_class, options.batch_classes)
    draws = drawn.all(torch.Generator().manual_seed(3), parse_augment(options.inner_augment), net.shape)
    batches = [next(draws) for _ in range(7)]
    state = wide(net.init(Streams(0)))
    loop = InnerLoop(net, state, ExecutionPlan(chunk=3, threads=1), options, batch=drawn.size)
    found = loop.derivatives(images, labels, iter(batches), 3, 4, real, targets)
    expected = unrolled(net, options, net.init(Streams(0)), images, labels, batches, 4, real, targets)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-7, atol=1e-9 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("learn", ["images", "labels"])
def test_what_is_not_learned_is_not_differentiated(learn: str) -> None:
    net = network("mlp:width=6,depth=1")
    (images, labels), (real, targets) = data(net, 4), data(net, 4, seed=1)

    def found(what: str) -> tuple[Tensor, ...]:
        loop = InnerLoop(net, wide(net.init(Streams(0))), ExecutionPlan(threads=1), BPTTOptions(learn=what), batch=4)
        return loop.derivatives(images, labels, whole(4), 1, 2, real, targets)

    both, one = found("both"), found(learn)
    kept, left = (1, 2) if learn == "images" else (2, 1)
    assert torch.allclose(one[kept], both[kept], rtol=1e-12)
    assert both[left].abs().min() > 0
    assert not one[left].any()


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that were made under it and still live; `peak` is the most at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak(inner: str, warm_up: int, window: int) -> tuple[int, int]:
    """Most live bytes of a derivative, and the bytes of one moment; activations are far larger than parameters."""
    net, count = network("convnet-d1-w16"), 32
    images, labels = (tensor.float() for tensor in data(net, count))
    start, options = net.init(Streams(0)), BPTTOptions(learn="both", inner=inner)
    loop = InnerLoop(net, start, ExecutionPlan(chunk=8, threads=1), options, batch=count)
    with LiveBytes() as live:
        loop.derivatives(images, labels, whole(count), warm_up, window, images, labels)
    return live.peak, (4 if inner == "adam" else 3) * sum(tensor.nbytes for tensor in start.values())


@pytest.mark.parametrize("inner", ["adam", "sgd"])
def test_memory_does_not_depend_on_the_unroll_and_grows_with_the_window_by_snapshots_alone(inner: str) -> None:
    few, moment = peak(inner, 2, 3)
    assert few > 5 * moment  # what one piece of a batch takes is not lost beside the snapshots
    assert peak(inner, 12, 3)[0] == few
    assert peak(inner, 2, 13)[0] - few <= 10 * (moment + 1024)


def test_the_walk_back_lets_go_of_the_moments_that_it_has_passed() -> None:
    net = network()
    images, labels = (tensor.float() for tensor in data(net, 2))
    loop = InnerLoop(net, net.init(Streams(0)), ExecutionPlan(threads=1), BPTTOptions(), batch=2)
    start = {name: net.init(Streams(0))[name] for name in net.parameter_names}
    moments = [loop.advance(images, labels, next(whole(2)), start, {}, 1)[2]]
    loop.walk_back(images, labels, moments, start)
    assert moments == []


def test_bfloat16_rounds_the_derivative_little() -> None:
    net = network("convnet-d1-w16")
    images, labels = (tensor.float() for tensor in data(net, 8))

    def found(precision: Any) -> list[Tensor]:
        plan = ExecutionPlan(threads=1, precision=precision)
        loop = InnerLoop(net, net.init(Streams(0)), plan, BPTTOptions(learn="both", inner="sgd", inner_lr=0.01), batch=8)
        return [part.flatten() for part in loop.derivatives(images, labels, whole(8), 2, 4, images, labels)[1:]]

    for narrow, full in zip(found("bfloat16"), found("float32"), strict=True):
        assert torch.nn.functional.cosine_similarity(narrow, full, dim=0) > 0.99
        assert not torch.equal(narrow, full)


def test_compiled_programs_see_one_shape_of_each_kind_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []

    def noting(function: Any, dynamic: bool) -> Any:
        def program(*given: Any) -> Any:
            shapes.append((len(given), len(given[1])))
            return function(*given)

        return program

    monkeypatch.setattr(torch, "compile", noting)
    monkeypatch.setattr(bptt, "can_compile", lambda device_type: True)
    given = problem(TRAIN, (3, 1, 2), network=network("convnet-d1-w7", classes=3))
    plans = [ExecutionPlan(chunk=4, threads=1, strategy=strategy) for strategy in ("eager", "compiled")]
    eager, compiled = (after(method(real_batch=10), Problem(**{**vars(given), "plan": plan}), 1)[0][1] for plan in plans)
    # 6 distilled images pass in pieces of 3; of 10 real ones, pieces of 4 are compiled and the last 2 are not; derivatives take a direction as well
    assert {shape for shape in shapes if shape[0] == 4} == {(4, 3), (4, 4)}
    assert {shape for shape in shapes if shape[0] == 5} == {(5, 3)}
    assert all(torch.allclose(eager[name], compiled[name], atol=1e-6) for name in eager)


def test_a_gradient_is_clipped_to_twice_the_running_mean_of_its_norm() -> None:
    ones, mean = torch.ones(4), torch.tensor(0.0)
    first, norm, mean = clipped(ones, mean, 2.0)
    assert (norm.item(), mean.item()) == (2, 2)
    assert torch.equal(first, ones)
    second, norm, mean = clipped(100 * ones, mean, 2.0)
    assert mean.item() == pytest.approx(0.9 * 2 + 0.1 * 200)
    assert norm.item() == 200
    assert second.norm().item() == pytest.approx(2 * 21.8)
    assert torch.allclose(second / second.norm(), ones / 2)
    assert torch.equal(clipped(100 * ones, torch.tensor(2.0), None)[0], 100 * ones)
    assert not clipped(torch.zeros(4), torch.tensor(2.0), 2.0)[0].any()


def test_only_pixels_are_clipped_unless_labels_are_asked_for() -> None:
    given = problem(TRAIN, (2, 1, 1), network=network(classes=3))
    tight, loose, labels_too = (
        after(method(outer="sgd", image_lr=1, label_lr=1, **clip), given, 1)[0]
        for clip in ({"clip": 1e-3}, {"clip": None}, {"clip": 1e-3, "clip_labels": True})
    )
    moved = [[(states[1][name] - states[0][name]).norm().item() for name in ("images", "labels")] for states in (tight, loose, labels_too)]
    assert moved[0] == pytest.approx([1e-3 * moved[1][0], moved[1][1]], rel=1e-2)
    assert moved[2] == pytest.approx([moved[0][0], 1e-3 * moved[1][1]], rel=1e-2)


def test_labels_on_the_simplex_stay_there_and_begin_with_the_share_that_was_asked_for() -> None:
    given = problem(TRAIN, (2, 1, 1), network=network(classes=3))
    one = method(label_form="simplex", label_start=0.7, label_lr=0.5)
    states, _ = after(one, given)
    begun, made = one.finish(given, states[0]).labels.dense(), one.finish(given, states[-1]).labels
    owners = torch.tensor([0, 0, 1, 2])
    assert torch.allclose(begun, torch.where(F.one_hot(owners, 3).bool(), 0.7, 0.15))
    assert (made.kind, made.sums_to_one) == ("probability", True)
    assert torch.allclose(made.dense().sum(1), torch.ones(4))
    assert made.dense().min() > 0
    assert (made.dense() - begun).abs().max() > 0.01


def test_the_softmax_of_the_labels_is_differentiated() -> None:
    """Plain descent of the logits by the rate moves them along J' y-gradient, as autograd has it."""
    given = problem(TRAIN, (1, 1, 1), network=network(classes=3))
    simplex = method(label_form="simplex", outer="sgd", label_lr=0.1, learn="labels")
    states, _ = after(simplex, given, 1)
    logits = states[0]["labels"].clone().requires_grad_()
    # the same rows as free labels give the gradient in the rows themselves
    free = method(outer="sgd", label_lr=0.1, learn="labels")
    state = {**states[0], "labels": logits.detach().softmax(1)}
    moved, _ = free.step(given, state, Turn(0, 1.0, given.streams["step", 0]))
    by_rows = (state["labels"] - moved["labels"]) / 0.1
    expected = torch.autograd.grad(logits.softmax(1), logits, by_rows)[0]
    assert torch.allclose((states[0]["labels"] - states[1]["labels"]) / 0.1, expected, atol=1e-5)


def test_free_labels_begin_one_hot_and_stay_non_negative() -> None:
    given = problem(TRAIN, (2, 1, 1), network=network(classes=3), rule=LabelRule(precision="float16"))
    one = method(label_lr=0.3)
    states, _ = after(one, given)
    made = one.finish(given, states[-1]).labels
    assert torch.equal(states[0]["labels"], F.one_hot(torch.tensor([0, 0, 1, 2]), 3).float())
    assert states[-1]["labels"].min() == 0
    assert (made.kind, made.sums_to_one) == ("free", False)
    assert made.values is not None
    assert made.values.dtype == torch.float16


def test_the_window_moves_or_stays_at_the_end() -> None:
    given = problem(TRAIN, (1, 1, 1), network=network(classes=3))
    lengths = {
        place: {found["inner_steps"] for found in after(method(steps=20, unroll=4, window_place=place), given)[1]} for place in ("random", "end")
    }
    assert lengths == {"random": {2, 3, 4}, "end": {4}}


def test_a_step_is_as_small_as_its_turn_asks() -> None:
    given = problem(TRAIN, (1, 1, 1), network=network(classes=3))
    one = method(image_lr=0.1, label_lr=0.1)
    for scale in (1.0, 0.5):
        (before, state), _ = after(one, given, 1, scale)
        # the first step of Adam is the sign of the gradient
        assert (state["images"] - before["images"]).abs().max() == pytest.approx(0.1 * scale, rel=1e-2)
        assert (state["labels"] - before["labels"]).abs().max() == pytest.approx(0.1 * scale, rel=1e-2)


def test_stages_bring_images_into_play_block_by_block() -> None:
    given = problem(TRAIN, (4, 2, 1), network=network(classes=3))
    one = method(steps=6, stages=2, boost_factor=0.01, image_lr=0.1)
    states, _ = after(one, given)
    early = torch.tensor([True, True, False, False, True, False, True])
    first, second = (
        (states[3]["images"] - states[0]["images"]).abs().amax((1, 2, 3)),
        (states[4]["images"] - states[3]["images"]).abs().amax((1, 2, 3)),
    )
    assert torch.equal(first > 0, early)
    # the optimizer begins anew with the stage, so the step of every pixel is its rate
    assert torch.allclose(second, torch.where(early, 0.001, 0.1), rtol=0.02)
    frozen, _ = after(method(steps=6, stages=2, boost_factor=0), given)
    assert torch.equal(frozen[6]["images"][early], frozen[3]["images"][early])
    assert torch.equal(frozen[6]["labels"][early], frozen[3]["labels"][early])


def test_batches_are_of_the_classes_and_images_that_were_asked_for() -> None:
    counts, generator = (3, 0, 1, 4), torch.Generator().manual_seed(0)
    owners = torch.arange(4).repeat_interleave(torch.tensor(counts))

    def rows(playing: Tensor, per_class: int | None, classes: int | None) -> tuple[list[list[int]], int]:
        batches = Batches(counts, playing, per_class, classes)
        drawn = batches.all(generator, None, (1, 8, 8))
        return [next(drawn).rows.tolist() for _ in range(40)], batches.size

    everything = torch.ones(8, dtype=torch.bool)
    found, size = rows(everything, None, None)
    assert (found, size) == ([list(range(8))] * 40, 8)
    found, size = rows(everything, 2, None)
    assert size == 5
    assert all(np.bincount(owners[row], minlength=4).tolist() == [2, 0, 1, 2] for row in found)
    assert {i for row in found for i in row} == set(range(8))
    found, size = rows(everything, None, 2)
    assert size == 7
    assert {tuple(sorted(set(owners[row].tolist()))) for row in found} == {(0, 2), (0, 3), (2, 3)}
    found, size = rows(torch.tensor([True, False, False, True, True, True, False, False]), None, None)
    assert (found[0], size) == ([0, 3, 4, 5], 4)


def test_noise_is_projected_to_unit_norm_where_asked() -> None:
    given = problem(TRAIN, (2, 1, 1), network=network(classes=3))
    norms = [method(start="noise", project=on).init(given)["images"].flatten(1).norm(dim=1) for on in (True, False)]
    assert torch.allclose(norms[0], torch.ones(4))
    assert norms[1].min() > 4


def test_the_recommended_recipe_is_the_inner_training() -> None:
    given = problem(TRAIN, (1, 1, 1), network=network(classes=3))
    one = method(inner="sgd", inner_lr=0.03, inner_momentum=0.5, loss="mse")
    recipe = one.finish(given, one.init(given)).recipe
    assert recipe == SHORT.with_(optimizer="sgd", lr=0.03, momentum=0.5, weight_decay=0, loss="mse")


def test_images_alone_leave_the_labels_to_the_rule() -> None:
    given = problem(TRAIN, (1, 1, 1), network=network(classes=3))
    one = method(learn="images")
    states, _ = after(one, given)
    assert one.finish(given, states[-1]).labels.kind == "hard"
    assert torch.equal(states[-1]["labels"], states[0]["labels"])
    assert [method(learn=what).label_default for what in ("images", "labels", "both")] == ["hard", "learned", "learned"]
    assert LabelLearning.label_default == "learned"


def test_label_learning_keeps_the_real_images_as_they_are() -> None:
    given = problem(TRAIN, (2, 1, 1), network=network(classes=3))
    made = run_method(LabelLearning(LabelLearningOptions(steps=3, window=2, unroll=3, real_batch=8, label_lr=0.1)), given)
    indices = made.provenance["indices"]
    assert made.images.dtype == torch.uint8
    assert torch.equal(made.images, TRAIN.images[indices])
    assert TRAIN.labels[indices].tolist() == made.owners.tolist() == [0, 0, 1, 2]
    assert made.labels.kind == "free"
    assert not torch.equal(made.targets(), distilled(TRAIN).targets()[indices])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "bptt:window=20,unroll=10",
            "the window is part of the inner training, got window=20 and unroll=10 steps; use window=10 or less",
        ),
        ("bptt:steps=2,stages=3", "every stage needs a step, got stages=3 and steps=2; use stages=2 or less"),
        ("label-learning:learn=images", "option learn of method label-learning: input should be 'labels', got 'images'"),
    ],
)
def test_wrong_options_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_method(text)
    assert str(caught.value) == sentence

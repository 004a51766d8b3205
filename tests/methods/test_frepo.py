import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from tests.small import Oracle, gaussians, network, problem

from limbeck.data.augment import parse_augment
from limbeck.evaluate.protocols import get_protocol
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import State, Turn, run_method
from limbeck.methods.frepo import STUDENT, FRePo, label_margin, ridge_weights, trust_ratio
from limbeck.methods.problem import Problem
from limbeck.streams import Streams
from limbeck.train.losses import make_loss
from limbeck.types.distilled import DistilledDataset
from limbeck.types.plan import ExecutionPlan

TRAIN = gaussians((9, 7, 8))
COUNTS = (2, 1, 3)


def method(**options: object) -> FRePo:
    return FRePo(FRePo.Options(**{"batch": 16, "pool": 1, "last_rate": 1.0, **options}))


def turn(given: Problem, number: int = 0, scale: float = 1.0) -> Turn:
    return Turn(number, scale, given.streams["step", number])


def task(model: str = "mlp:width=12", **changes: object) -> Problem:
    return problem(TRAIN, COUNTS, **{"network": network(model, classes=3), **changes})


def member(given: Problem, state: State, i: int = 0) -> State:
    """A network of the pool: parameters and buffers."""
    return {name: state[f"pool.{i}.{name}"] for name in given.network.module.state_dict()}


def rows(count: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, columns)))


def test_with_as_many_prototypes_as_features_and_solved_labels_the_predictor_is_that_of_the_full_data() -> None:
    """W = phi' (phi phi' + c I)^-1 Y is any W that is asked for: with G = phi' phi it is the one of Y = phi (I + c G^-1) W."""
    real, targets, prototypes = rows(200, 12), rows(200, 4, seed=1), rows(15, 12, seed=2)
    full = torch.linalg.solve(real.T @ real + 0.3 * torch.eye(12, dtype=torch.float64), real.T @ targets)
    ridge = 1e-3
    c, gram = ridge * prototypes.square().sum() / 15, prototypes.T @ prototypes
    labels = prototypes @ (full + c * torch.linalg.solve(gram, full))
    assert torch.allclose(real @ ridge_weights(prototypes, labels, ridge), real @ full, rtol=0, atol=1e-10)


def test_the_solved_labels_are_where_the_methods_own_gradient_is_zero() -> None:
    """Pixels are the features of the softmax model: with 80 full-rank prototypes any predictor can be had, and least squares on the full data is the best."""
    table = gaussians(60)
    given = problem(table, (40, 40), network=network("softmax"))
    one = method(batch=120, margin=False, ridge=1e-4)
    real = given.pixels(table.read(range(120))).flatten(1).double()
    targets = torch.nn.functional.one_hot(torch.from_numpy(table.labels.copy()), 2).double() - 0.5
    best = torch.linalg.lstsq(real, targets).solution
    start = one.init(given)
    prototypes = start["images"].flatten(1).double()
    c, gram = 1e-4 * prototypes.square().sum() / 80, prototypes.T @ prototypes
    labels = prototypes @ (best + c * torch.linalg.solve(gram, best)) + 0.5
    before, _ = one.gradients(given, start, member(given, start), Streams(0))
    after, metrics = one.gradients(given, {**start, "labels": labels}, member(given, start), Streams(0))
    assert metrics["error"] == pytest.approx(float(0.5 * (real @ best - targets).square().sum(1).mean()), rel=1e-9)
    assert float(after["labels"].norm()) < 1e-9 * float(before["labels"].norm())


def test_prediction_and_gradients_are_those_of_the_dense_formula() -> None:
    seen, phi, labels, targets = rows(20, 9), rows(6, 9, seed=1), rows(6, 3, seed=2), rows(20, 3, seed=3)
    phi.requires_grad_()
    labels.requires_grad_()
    ridge = 1e-2

    def dense() -> torch.Tensor:
        kernel = phi @ phi.T
        inverse = torch.linalg.inv(kernel + ridge * torch.trace(kernel) / 6 * torch.eye(6, dtype=torch.float64))
        return (seen @ phi.T) @ inverse @ labels

    predicted = seen @ ridge_weights(phi, labels, ridge)
    assert torch.allclose(predicted, dense(), rtol=1e-10)
    for mine, other in zip(*(torch.autograd.grad((out - targets).square().sum(), (phi, labels)) for out in (predicted, dense())), strict=True):
        assert torch.allclose(mine, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("margin", [False, True])
@pytest.mark.parametrize("model", ["mlp:width=12", "convnet-d1-w3"])
def test_a_steps_gradients_are_float64_autograd_of_the_written_loss(flip: bool, margin: bool, model: str) -> None:
    given, one = task(model), method(flip=flip, margin=margin, ridge=1e-2)
    state = one.init(given)
    got, metrics = one.gradients(given, state, member(given, state), given.streams["step", 0])

    module = given.network.loaded(member(given, state)).double()
    chosen = torch.randperm(len(TRAIN), generator=given.streams["step", 0].torch("real"))[:16]
    real = given.pixels(TRAIN.read(chosen)).double()
    targets = torch.nn.functional.one_hot(torch.from_numpy(TRAIN.labels[chosen.numpy()]), 3).double() - 1 / 3
    images, labels = (state[name].double().requires_grad_() for name in ("images", "labels"))
    shown = torch.cat([images, images.flip(3)]) if flip else images
    centered = (torch.cat([labels, labels]) if flip else labels) - 1 / 3
    phi = module.features(shown)
    kernel = phi @ phi.T
    inverse = torch.linalg.inv(kernel + 1e-2 * kernel.trace() / len(kernel) * torch.eye(len(kernel), dtype=torch.float64))
    predicted = module.features(real) @ phi.T @ inverse @ centered
    loss = 0.5 * (predicted - targets).square().sum() / 16
    assert metrics["error"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(float((predicted.argmax(1) == targets.argmax(1)).double().mean()))
    if margin:
        first, second = labels.sort(dim=1, descending=True).values[:, :2].unbind(1)
        loss = loss - torch.minimum(first - second, torch.tensor(1 / 3)).mean()
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, wanted in zip(("images", "labels"), torch.autograd.grad(loss, (images, labels)), strict=True):
        assert torch.allclose(got[name].double(), wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_the_margin_counts_up_to_one_over_the_classes() -> None:
    labels = torch.tensor([[1.0, 0.9, 0.0], [0.0, 1.0, 0.0], [-0.2, -0.2, -0.5]])
    assert float(label_margin(labels)) == pytest.approx((0.1 + 1 / 3 + 0) / 3)
    assert float(label_margin(labels + 7)) == pytest.approx(float(label_margin(labels)), abs=1e-6)


def test_pieces_of_a_batch_give_the_gradients_and_the_networks_step_of_the_whole() -> None:
    whole, cut = (task("convnet-d1-w3:norm=none", plan=ExecutionPlan(chunk=chunk, threads=1)) for chunk in (0, 4))
    one = method()
    state = one.init(whole)
    (first, _), (second, _) = (one.gradients(given, state, member(given, state), given.streams["step", 0]) for given in (whole, cut))
    assert all(torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-6) for name in first)
    after = [one.step(given, state, turn(given))[0] for given in (whole, cut)]
    assert all(torch.allclose(after[0][name], after[1][name], atol=1e-5) for name in after[0])


def test_the_pools_online_steps_are_plain_adam_on_the_prototypes_of_the_moment() -> None:
    given, one = task(), method(pool_lr=1e-3, image_lr=0.02, reset_after=50)
    state = one.init(given)
    module = given.network.loaded(member(given, state)).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    for number in range(6):
        state, _ = one.step(given, state, turn(given, number))
        optimizer.zero_grad()
        (0.5 * (module(state["images"]) - (state["labels"] - 1 / 3)).square().sum(1).mean()).backward()
        optimizer.step()
    for name, wanted in module.state_dict().items():
        assert torch.allclose(state[f"pool.0.{name}"], wanted, atol=1e-5)
    assert (int(state["pool.updates"][0]), int(state["pool.left"][0])) == (6, 44)


def test_a_large_set_trains_the_pool_on_some_prototypes_only() -> None:
    given, one = task("softmax"), method(pool_batch=2, image_lr=1e-9, label_lr=0)
    state = one.init(given)
    new, _ = one.step(given, state, turn(given))
    chosen = torch.randperm(6, generator=turn(given).streams.torch("online"))[:2]
    module = given.network.loaded(member(given, state))
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    (0.5 * (module(state["images"][chosen]) - (state["labels"][chosen] - 1 / 3)).square().sum(1).mean()).backward()
    optimizer.step()
    assert torch.allclose(new["pool.0.head.weight"], module.head.weight, atol=1e-6)  # type: ignore[union-attr]


def test_networks_begin_at_staggered_ages_and_are_replaced_after_their_last_step() -> None:
    given = task()
    assert method(pool=4, reset_after=10).init(given)["pool.left"].tolist() == [10, 8, 6, 4]
    one = method(reset_after=2)
    state = one.init(given)
    ages = []
    for number in range(7):
        ages.append((int(state["pool.updates"][0]), int(state["pool.left"][0])))
        state, _ = one.step(given, state, turn(given, number))
    assert ages == [(0, 2), (1, 1), (2, 0), (0, 2), (1, 1), (2, 0), (0, 2)]
    # step 5 replaced the network; one step of Adam from zero memory moves every entry by the rate at most
    fresh = given.network.init(turn(given, 5).streams["network"])
    assert all(float((state[f"pool.0.{name}"] - tensor).abs().max()) <= 3.1e-4 for name, tensor in fresh.items())


def test_every_network_of_the_pool_is_used_and_the_others_rest() -> None:
    given, one = task("softmax"), method(pool=3)
    state = one.init(given)
    weights = [state[f"pool.{i}.head.weight"] for i in range(3)]
    assert len({tuple(weight.flatten().tolist()) for weight in weights}) == 3
    used = set()
    for number in range(20):
        new, _ = one.step(given, state, turn(given, number))
        moved = [i for i in range(3) if not torch.equal(new[f"pool.{i}.head.weight"], state[f"pool.{i}.head.weight"])]
        assert len(moved) == 1
        used |= set(moved)
        state = new
    assert used == {0, 1, 2}
    assert state["pool.updates"].sum() == 20


def test_adam_and_its_cosine_are_the_formula() -> None:
    given, one = task(), method(steps=10, image_lr=0.02, label_lr=0.005, last_rate=0.2)
    state = one.init(given)
    plain = {name: state[name].clone().requires_grad_() for name in ("images", "labels")}
    optimizer = torch.optim.Adam([{"params": [plain["images"]], "lr": 0.02}, {"params": [plain["labels"]], "lr": 0.005}])
    for number in range(4):
        gradients, _ = one.gradients(given, state, member(given, state), turn(given, number).streams)
        fall = 0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * number / 10))
        for group, rate in zip(optimizer.param_groups, (0.02, 0.005), strict=True):
            group["lr"] = rate * fall
        for name, tensor in plain.items():
            tensor.grad = gradients[name]
        optimizer.step()
        state, _ = one.step(given, state, turn(given, number))
        assert all(torch.allclose(state[name], tensor, atol=1e-5) for name, tensor in plain.items())


def test_lamb_is_its_formula() -> None:
    given, one = task(), method(optimizer="lamb", image_lr=0.01, label_lr=0.02)
    state = one.init(given)
    mean, square = ({name: torch.zeros_like(state[name], dtype=torch.float64) for name in ("images", "labels")} for _ in range(2))
    for number in range(3):
        gradients, _ = one.gradients(given, state, member(given, state), turn(given, number).streams)
        new, _ = one.step(given, state, turn(given, number))
        for name, rate, origin in (("images", 0.01, 0), ("labels", 0.02, 1 / 3)):
            gradient = gradients[name].double()
            mean[name] = 0.9 * mean[name] + 0.1 * gradient
            square[name] = 0.999 * square[name] + 0.001 * gradient.square()
            direction = mean[name] / (1 - 0.9 ** (number + 1)) / ((square[name] / (1 - 0.999 ** (number + 1))).sqrt() + 1e-6)
            values = state[name].double() - origin
            wanted = values - rate * values.norm() / direction.norm() * direction
            assert torch.allclose(new[name].double() - origin, wanted, atol=1e-5)
        state = new
    assert float(trust_ratio(torch.zeros(3), torch.ones(3))) == float(trust_ratio(torch.ones(3), torch.zeros(3))) == 1


def test_the_scale_of_a_turn_scales_every_step() -> None:
    given, one = task("softmax"), method()
    state = one.init(given)
    full, half = (one.step(given, state, turn(given, scale=scale))[0] for scale in (1.0, 0.5))
    for name in ("images", "labels", "pool.0.head.bias"):
        ratio = (half[name] - state[name]).norm() / (full[name] - state[name]).norm()
        assert float(ratio) == pytest.approx(0.5, rel=1e-2)


def test_labels_start_centered_and_scaled_and_a_student_of_the_file_sees_them_so() -> None:
    table = gaussians(2, classes=8)
    given = problem(
        table, (1,) * 8, network=network("softmax", classes=8), rule=LabelRule(precision="float16"), expert=Oracle(table, torch.zeros(16, 8))
    )
    one = method()
    start = one.init(given)
    centered = (torch.eye(8) - 1 / 8) / math.sqrt(0.8)
    assert torch.allclose(start["labels"] - 1 / 8, centered, atol=1e-6)
    made = one.finish(given, start)
    assert (made.labels.kind, made.labels.sums_to_one, made.bytes["labels"]) == ("free", False, 8 * (1 + 2 * 8))
    assert float(make_loss("mse", 1.0)(centered, made.targets())) == pytest.approx(0, abs=1e-5)


def test_labels_that_are_kept_stay(tmp_path) -> None:  # type: ignore[no-untyped-def]
    given = task("softmax")
    made = run_method(method(label_lr=0, steps=3), given)
    start = method().init(given)
    assert torch.equal(made.targets(), start["labels"])
    assert not torch.equal(made.images, start["images"])
    made.save(tmp_path / "set.safetensors")
    assert torch.equal(DistilledDataset.load(tmp_path / "set.safetensors").targets(), made.targets())


def test_batch_statistics_move_online_and_in_the_new_state_only() -> None:
    given, one = task("convnet-d1-w3:norm=batch", plan=ExecutionPlan(chunk=0, threads=1)), method()
    state = one.init(given)
    before = {name: tensor.clone() for name, tensor in state.items()}
    new, _ = one.step(given, state, turn(given))
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert new["pool.0.body.0.norm.num_batches_tracked"] == 1
    assert not torch.equal(new["pool.0.body.0.norm.running_mean"], before["pool.0.body.0.norm.running_mean"])


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Bytes that graphs keep for their backward pass, summed over all of them."""
    total = [0]

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        total[0] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept):
        yield total
    gc.collect()


def test_real_images_keep_their_features_and_no_activations() -> None:
    given = task("convnet-d1-w16")
    state = method().init(given)
    kept = []
    for batch in (8, 24):
        with saved_bytes() as total:
            method(batch=batch).gradients(given, state, member(given, state), Streams(0))
        kept.append(total[0])
    features = 16 * 4 * 4
    assert kept[1] - kept[0] <= 16 * 8 * (features + 4 * 3)


def test_what_is_not_finite_is_seen_by_the_driver() -> None:
    given, one = task("softmax"), method()
    state = one.init(given)
    _, metrics = one.step(given, {**state, "images": state["images"] * math.inf}, turn(given))
    assert not math.isfinite(metrics["loss"])


def test_the_recommended_training_is_the_protocol_without_mirroring() -> None:
    published = get_protocol("frepo").recipe
    mirrored = parse_augment(published.augment)
    assert published.with_(augment=str(mirrored).replace("dsa", "dsa:color_crop_cutout_scale_rotate")) == STUDENT
    assert task().recipe.loss == "cross-entropy"
    assert method().finish(task(), method().init(task())).recipe == STUDENT
    asked = task(recipe=published.with_(steps=7))
    assert method().finish(asked, method().init(asked)).recipe == asked.recipe

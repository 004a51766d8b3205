"""The one loop against hand-written float64 updates, and the promises of its docstring: resumable anywhere, chunked exactly, the same bytes again."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.small import PLAN, gaussians, network

from limbeck.data.augment import Augment, Params
from limbeck.data.pixels import normalize
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import TrainingState, fit, predict
from limbeck.train.network import Network
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

TABLE = gaussians(21)  # 42 images: batches of 16, 16 and 10
EXAMPLES = Examples.of_table(TABLE, normalize(TABLE))
WHOLE = ExecutionPlan(chunk=0, threads=1)
MOMENTUM = Recipe(lr=0.05, momentum=0.9, weight_decay=0.01, batch_size=16, epochs=3)
ADAM = Recipe(optimizer="adam", lr=0.01, weight_decay=0.01, batch_size=16, epochs=3)
ADAMW = ADAM.with_(optimizer="adamw", schedule="cosine")


def copy(state: TrainingState) -> TrainingState:
    return TrainingState(
        state.step,
        {name: tensor.clone() for name, tensor in state.network.items()},
        {name: tensor.clone() for name, tensor in state.optimizer.items()},
    )


def run(net: Network, recipe: Recipe, *, seed: int = 0, plan: ExecutionPlan = PLAN, state: Any = None, **options: Any) -> TrainingState:
    return fit(net, net.init(Streams(seed)) if state is None else state, EXAMPLES, recipe, Streams(seed), plan, **options)


def same(first: TrainingState, second: TrainingState) -> bool:
    parts = [(first.network, second.network), (first.optimizer, second.optimizer)]
    return first.step == second.step and all(a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a) for a, b in parts)


def by_hand(recipe: Recipe, steps: int, rates: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression by SGD in float64: weights [K, D] and biases [K], with v <- m v + (g + wd w) and w <- w - rate v."""
    start = network().init(Streams(0))
    weights = [start["head.weight"].double().numpy(), start["head.bias"].double().numpy()]
    velocity: list[Any] = [0.0, 0.0]
    inputs, owners = EXAMPLES.pixels(TABLE.images).double().flatten(1).numpy(), np.eye(2)[TABLE.labels]
    per_epoch = math.ceil(len(TABLE) / recipe.batch_size)
    for step in range(steps):
        epoch, position = divmod(step, per_epoch)
        permutation = torch.randperm(len(TABLE), generator=Streams(0).torch("order", epoch)).numpy()
        rows = permutation[position * recipe.batch_size :][: recipe.batch_size]
        logits = inputs[rows] @ weights[0].T + weights[1]
        gap = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - owners[rows]
        for i, gradient in enumerate((gap.T @ inputs[rows] / len(rows), gap.mean(0))):
            velocity[i] = recipe.momentum * velocity[i] + gradient + recipe.weight_decay * weights[i]
            weights[i] = weights[i] - rates[step] * velocity[i]
    return weights[0], weights[1]


@pytest.mark.parametrize("plan", [WHOLE, PLAN, ExecutionPlan(chunk=5, threads=1)])
@pytest.mark.parametrize("recipe", [MOMENTUM, MOMENTUM.with_(momentum=0.0, weight_decay=0.0)])
def test_sgd_on_softmax_regression_is_the_float64_update(recipe: Recipe, plan: ExecutionPlan) -> None:
    """Over four steps: a whole pass with its smaller last batch (weighted by its own size), and the start of the next."""
    trained = run(network(), recipe.with_(steps=4), plan=plan)
    weight, bias = by_hand(recipe, 4, [recipe.lr] * 4)
    assert np.allclose(trained.network["head.weight"].numpy(), weight, atol=1e-6)
    assert np.allclose(trained.network["head.bias"].numpy(), bias, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"schedule": "step", "decay_at": (0.5,), "decay": 0.1}, [1, 1, 1, 0.1, 0.1, 0.1]),
        ({"schedule": "step", "decay_at": (0.34, 0.67), "decay": 0.5}, [1, 1, 0.5, 0.5, 0.25, 0.25]),
        ({"schedule": "step", "decay_at": (0.5,), "decay": 0.1, "epochs": 2}, [1, 1, 1, 0.1, 0.1, 0.1]),
        ({"schedule": "cosine"}, [0.5 * (1 + math.cos(math.pi * t / 6)) for t in range(6)]),
        ({"schedule": "constant", "decay_at": (0.5,)}, [1] * 6),
    ],
)
def test_schedules_are_exact(changes: dict[str, Any], rates: list[float]) -> None:
    recipe = MOMENTUM.with_(**{"steps": 6, **changes}) if "epochs" not in changes else MOMENTUM.with_(**changes)
    weight, _ = by_hand(recipe, 6, [recipe.lr * rate for rate in rates])
    assert np.allclose(run(network(), recipe).network["head.weight"].numpy(), weight, atol=1e-6)


def test_the_quirk_loses_momentum_at_the_decay_and_nowhere_else() -> None:
    decayed = MOMENTUM.with_(steps=6, schedule="step", decay_at=(0.5,), weight_decay=0.0)
    quirky = decayed.with_(restart_momentum_at_decay=True)
    plain, lost = run(network(), decayed), run(network(), quirky)
    assert not same(plain, lost)
    # by hand: three steps, then a fresh optimizer at a tenth of the rate
    half = run(network(), MOMENTUM.with_(steps=3, weight_decay=0.0))
    fresh = TrainingState(3, half.network, {})
    rest = run(network(), MOMENTUM.with_(steps=6, weight_decay=0.0, lr=MOMENTUM.lr * 0.1), state=fresh)
    assert torch.allclose(rest.network["head.weight"], lost.network["head.weight"], atol=1e-7)


def test_the_quirk_trains_one_epoch_more_and_decays_two_later() -> None:
    recipe = MOMENTUM.with_(epochs=4, schedule="step", decay_at=(0.5,), extra_epoch=True)
    trained = run(network(), recipe)
    assert trained.step == 15
    weight, _ = by_hand(recipe, 15, [recipe.lr] * 12 + [recipe.lr * 0.1] * 3)
    assert np.allclose(trained.network["head.weight"].numpy(), weight, atol=3e-6)


@pytest.mark.parametrize("loss", ["cross-entropy", "kl", "mse"])
@pytest.mark.parametrize("model", ["mlp:width=8,depth=1", "convnet-d1-w8"])
def test_a_chunked_gradient_is_that_of_the_whole_batch(model: str, loss: str) -> None:
    recipe = MOMENTUM.with_(loss=loss, steps=3)
    whole = run(network(model), recipe, plan=WHOLE)
    for chunk in (1, 7, 15):
        parts = run(network(model), recipe, plan=ExecutionPlan(chunk=chunk, threads=1))
        assert all(torch.allclose(parts.network[name], tensor, atol=2e-6) for name, tensor in whole.network.items())
        assert not torch.equal(whole.network["head.weight"], network(model).init(Streams(0))["head.weight"])


CASES = {
    "momentum": ("softmax", MOMENTUM),
    "no momentum": ("softmax", MOMENTUM.with_(momentum=0.0)),
    "adam": ("mlp:width=8,depth=1", ADAM),
    "adamw": ("convnet-d1-w8", ADAMW),
    "batch norm": ("convnet:depth=1,width=8,norm=batch", MOMENTUM),
    "augmented": ("convnet-d1-w8", MOMENTUM.with_(augment="dsa", steps=7)),
    "quirks": ("softmax", MOMENTUM.with_(schedule="step", decay_at=(0.0,), restart_momentum_at_decay=True, extra_epoch=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_training_resumed_from_any_step_is_the_straight_run(case: str) -> None:
    model, recipe = CASES[case]
    plan = WHOLE if "batch" in model else PLAN
    kept: list[TrainingState] = []
    total = recipe.total_steps(len(TABLE))
    straight = run(network(model), recipe, plan=plan, observe_at=range(total + 1), observe=lambda live: kept.append(copy(live)))
    assert [state.step for state in kept] == list(range(total + 1))
    assert same(kept[-1], straight)
    for state in kept:
        before = copy(state)
        assert same(run(network(model), recipe, plan=plan, state=state), straight), state.step
        assert same(state, before)


def test_batch_norm_statistics_follow_the_batches() -> None:
    net = network("convnet:depth=1,width=8,norm=batch")
    start = net.init(Streams(0))
    trained = run(net, MOMENTUM, plan=WHOLE, state=start)
    means = [name for name in trained.network if name.endswith("running_mean")]
    assert means
    assert all(not torch.equal(trained.network[name], start[name]) for name in means)
    counts = [int(tensor) for name, tensor in trained.network.items() if name.endswith("num_batches_tracked")]
    assert counts == [9] * len(counts)
    assert all(torch.equal(tensor, net.init(Streams(0))[name]) for name, tensor in start.items())


@pytest.mark.parametrize("model", ["convnet-d1-w8", "mlp:width=8,depth=1"])
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(model: str) -> None:
    recipe = MOMENTUM.with_(augment="crop_flip", epochs=1)
    assert same(run(network(model), recipe), run(network(model), recipe))
    start = network(model).init(Streams(0))
    others = [fit(network(model), start, EXAMPLES, recipe, Streams(seed), PLAN) for seed in (0, 1)]
    assert not same(*others)


def test_observation_is_in_order_and_only_where_it_was_asked_for() -> None:
    seen: list[int] = []
    ticks: list[int] = []
    final = run(network(), MOMENTUM, observe_at={0, 2, 9, 40}, observe=lambda live: seen.append(live.step), tick=ticks.append)
    assert (seen, final.step, sum(ticks)) == ([0, 2, 9], 9, 9)
    seen.clear()
    run(network(), MOMENTUM, state=TrainingState(2, final.network, {}), observe_at={0, 2, 5}, observe=lambda live: seen.append(live.step))
    assert seen == [5]


def test_each_step_augments_from_a_stream_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    class Recording(Augment):
        def draw(self, batch: int, shape: tuple[int, int, int], generator: torch.Generator) -> Params:
            seeds.append(generator.initial_seed())
            return {}

        def apply(self, images: torch.Tensor, params: Params) -> torch.Tensor:
            return images

    monkeypatch.setattr("limbeck.train.fit.parse_augment", lambda text: Recording())
    augmented = run(network(), MOMENTUM.with_(steps=3))
    assert seeds == [Streams(0).seed("augment", step) for step in range(3)]
    monkeypatch.undo()
    assert same(augmented, run(network(), MOMENTUM.with_(steps=3)))


def test_no_steps_change_nothing() -> None:
    start = network().init(Streams(0))
    done = run(network(), MOMENTUM.with_(epochs=0), state=start)
    assert done.step == 0
    assert not any(slot.any() for slot in done.optimizer.values())
    assert all(torch.equal(done.network[name], tensor) for name, tensor in start.items())


def test_divergence_is_returned() -> None:
    diverged = run(network("mlp:width=8,depth=1"), MOMENTUM.with_(lr=1e20, loss="mse", steps=6))
    assert not diverged.finite
    assert run(network(), MOMENTUM).finite


def test_a_step_takes_the_plans_threads_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    run(network(), MOMENTUM, plan=ExecutionPlan(threads=before + 1), observe_at={1}, observe=lambda live: seen.append(torch.get_num_threads()))
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("model", ["convnet-d1-w8", "convnet:depth=1,width=8,norm=batch"])
def test_predictions_are_the_modules_own_in_evaluation_mode(model: str) -> None:
    net = network(model)
    state = run(net, MOMENTUM, plan=WHOLE).network
    module = net.loaded(state)
    with torch.no_grad():
        expected = module(EXAMPLES.pixels(TABLE.images))
    ticks: list[int] = []
    found = predict(net, state, TABLE, EXAMPLES.pixels, ExecutionPlan(chunk=5, threads=1), tick=ticks.append)
    assert torch.allclose(found, expected, atol=1e-5)
    assert sum(ticks) == len(TABLE)
    assert predict(net, state, gaussians(0), PixelSpace(), PLAN).shape == (0, 2)


def test_betas_are_adams():
    recipe = Recipe(optimizer="adam", lr=0.01, weight_decay=0, batch_size=42, steps=5, betas=(0.5, 0.7), shuffle=False)
    found = run(network(), recipe).network
    start = network().init(Streams(0))
    module = torch.nn.utils.skip_init(torch.nn.Linear, 64, 2)
    module.weight.data, module.bias.data = start["head.weight"].clone(), start["head.bias"].clone()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, betas=(0.5, 0.7))
    inputs, owners = EXAMPLES.pixels(TABLE.images).flatten(1), torch.from_numpy(TABLE.labels.copy())
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(inputs), owners).backward()
        optimizer.step()
    torch.testing.assert_close(found["head.weight"], module.weight.detach(), rtol=1e-4, atol=1e-6)


def test_without_shuffling_batches_come_in_the_order_of_the_examples_and_a_whole_batch_is_read_once(monkeypatch):
    reads: list[list[int]] = []
    original = Examples.batch

    def counted(self: Examples, indices: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        reads.append(indices.tolist())
        return original(self, indices, device)

    monkeypatch.setattr(Examples, "batch", counted)
    run(network(), MOMENTUM.with_(shuffle=False, epochs=2))
    assert reads == 2 * [list(range(16)), list(range(16, 32)), list(range(32, 42))]
    reads.clear()
    whole = MOMENTUM.with_(shuffle=False, batch_size=64, steps=7)
    straight = run(network(), whole, plan=WHOLE)
    assert reads == [list(range(42))]
    half = run(network(), whole.with_(steps=3), plan=WHOLE)
    assert same(run(network(), whole, plan=WHOLE, state=half), straight)

"""Many models at once: each becomes what it would alone, whatever trains beside it; data, labels, order, augmentation and rate are its own."""

from typing import Any

import pytest
import torch
from tests.small import PLAN, as_shipped, gaussians, network

from limbeck.data.pixels import normalize
from limbeck.data.tables import Subset
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.feed import Feed, _Placed
from limbeck.train.fit import Job, TrainingState, fit, fit_many, predict
from limbeck.train.network import Network
from limbeck.train.stepper import Recorded, _pieces
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

TABLE = gaussians(21)
SPACE = normalize(TABLE)
SGD = Recipe(lr=0.05, momentum=0.9, weight_decay=0.01, batch_size=16, epochs=2)
STACKED = PLAN.model_copy(update={"models": 8})
TOLERANCE = 2e-5  # of parameters of size one, after a few steps: what docs/numerics.md states
CASES = {
    "softmax": ("softmax", SGD),
    "schedule": ("mlp:width=8,depth=1", SGD.with_(epochs=4, schedule="step", decay_at=(0.5,), restart_momentum_at_decay=True)),
    "adam": ("mlp:width=8,depth=1", SGD.with_(optimizer="adam", lr=0.003, schedule="cosine", warmup_steps=2)),
    "instance norm": ("convnet-d1-w8", SGD.with_(augment="dsa", steps=8)),
    "batch norm": ("convnet:depth=1,width=8,norm=batch", SGD.with_(augment="crop_flip+mixup")),
    "residual": ("resnet18:width=4", SGD.with_(steps=3)),
    "kl": ("convnet-d1-w8", SGD.with_(loss="kl", temperature=4.0)),
}


def jobs(net: Network, count: int = 3) -> list[Job]:
    """Every job has its own start, order, labels (a fifth of them replaced) and rate."""
    made = []
    for index in range(count):
        targets = torch.nn.functional.one_hot(torch.from_numpy(TABLE.labels.copy()), 2).float()
        targets[index::5] = 0.5
        made.append(Job(net.init(Streams(index)), Examples(TABLE, targets, SPACE), Streams(index), 0.05 / (index + 1)))
    return made


def near(first: TrainingState, second: TrainingState, tolerance: float = TOLERANCE) -> bool:
    parts = [(first.network, second.network), (first.optimizer, second.optimizer)]
    return first.step == second.step and all(
        a.keys() == b.keys() and all(torch.allclose(a[k].float(), b[k].float(), atol=tolerance, rtol=tolerance) for k in a) for a, b in parts
    )


@pytest.mark.parametrize("case", CASES)
def test_a_model_in_a_stack_becomes_what_it_would_alone(case: str) -> None:
    model, recipe = CASES[case]
    net = network(model)
    plan = STACKED if "norm=batch" not in model else STACKED.model_copy(update={"chunk": 0})
    stacked = fit_many(net, jobs(net), recipe, plan)
    alone = [fit_many(net, [job], recipe, plan.model_copy(update={"models": 1}))[0] for job in jobs(net)]
    assert all(near(ours, theirs) for ours, theirs in zip(stacked, alone, strict=True))
    assert not near(stacked[0], stacked[1])


def test_who_trains_beside_it_is_immaterial() -> None:
    net = network("convnet-d1-w8")
    recipe = SGD.with_(augment="dsa")
    five, two = fit_many(net, jobs(net, 5), recipe, STACKED), fit_many(net, jobs(net, 2), recipe, STACKED.model_copy(update={"chunk": 5}))
    pairs = fit_many(net, jobs(net, 5), recipe, STACKED.model_copy(update={"models": 2}))
    assert all(near(ours, theirs) for ours, theirs in zip(five[:2], two, strict=True))
    assert all(near(ours, theirs) for ours, theirs in zip(five, pairs, strict=True))


def test_the_same_plan_gives_the_same_bytes() -> None:
    net = network("convnet-d1-w8")
    first, again = (fit_many(net, jobs(net), SGD.with_(augment="dsa"), STACKED) for _ in range(2))
    assert all(torch.equal(a.network[name], b.network[name]) for a, b in zip(first, again, strict=True) for name in a.network)


def test_sets_of_different_sizes_and_starts_at_different_steps_train_apart() -> None:
    net = network()
    half = Subset(TABLE, range(20))
    mixed = [jobs(net)[0], Job(net.init(Streams(7)), Examples.of_table(half, SPACE), Streams(7)), jobs(net)[1]]
    begun = fit(net, mixed[2].start, mixed[2].examples, SGD.with_(steps=2, lr=0.025), mixed[2].streams, PLAN)
    mixed[2] = Job(begun, mixed[2].examples, mixed[2].streams, 0.025)
    seen: list[tuple[int, int]] = []
    done = fit_many(net, mixed, SGD.with_(steps=5), STACKED, observe_at=(5,), observe=lambda index, live: seen.append((index, live.step)))
    alone = [fit_many(net, [job], SGD.with_(steps=5), PLAN)[0] for job in mixed]
    assert all(near(ours, theirs) for ours, theirs in zip(done, alone, strict=True))
    assert sorted(seen) == [(0, 5), (1, 5), (2, 5)]


def test_a_stack_ticks_for_each_model_and_leaves_its_starts_alone() -> None:
    net, ticks = network(), []
    given = jobs(net)
    before = [{name: tensor.clone() for name, tensor in job.start.network.items()} for job in given]
    fit_many(net, given, SGD.with_(steps=4), STACKED, tick=ticks.append)
    assert sum(ticks) == 12
    assert all(torch.equal(job.start.network[name], kept[name]) for job, kept in zip(given, before, strict=True) for name in kept)


@pytest.mark.parametrize("targets", ["numbers", "rows"])
def test_images_placed_on_a_device_give_the_batches_of_the_tables(targets: str) -> None:
    other = gaussians(21, seed=4)
    makers: dict[str, Any] = {"numbers": lambda table: Examples.of_table(table, SPACE), "rows": lambda table: jobs(network())[0].examples}
    members = [
        makers[targets](table) if targets == "numbers" else Examples(table, makers[targets](table).targets, SPACE) for table in (TABLE, other, TABLE)
    ]
    rows = [torch.tensor([3, 0, 41]), torch.tensor([5, 5, 1]), torch.tensor([40, 2, 7])]
    placed = _Placed.of(members, torch.device("cpu"))
    assert placed is not None
    assert len(placed.images) == 84
    images, labels = placed.batch(torch.stack(rows))
    [(plain_images, plain_labels, _)] = Feed(members, torch.device("cpu")).batches([(0, rows)])
    assert torch.equal(images, plain_images)
    assert torch.equal(labels, plain_labels)
    assert images.shape == (3, 3, 1, 8, 8)


def test_members_of_different_pixel_spaces_are_not_placed_together() -> None:
    members = [Examples.of_table(TABLE, SPACE), Examples.of_table(TABLE, PixelSpace())]
    assert _Placed.of(members, torch.device("cpu")) is None


def test_a_compiled_stack_is_the_eager_one() -> None:
    net, recipe = network("mlp:width=8,depth=1"), SGD.with_(epochs=1)
    plan = ExecutionPlan(chunk=0, threads=1, models=3, strategy="compiled")
    with as_shipped():
        compiled = fit_many(net, jobs(net), recipe, plan)
    eager = fit_many(net, jobs(net), recipe, plan.model_copy(update={"strategy": "eager"}))
    assert all(near(ours, theirs) for ours, theirs in zip(compiled, eager, strict=True))


def test_a_recorded_step_is_recorded_once_for_each_shape_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bookkeeping of `Recorded`, with recording replaced by remembering the call: no GPU is needed for that."""
    total = torch.zeros(())
    recordings: list[torch.Size] = []

    class Graph:
        def __init__(self, inputs: tuple[torch.Tensor, ...]) -> None:
            self.inputs = inputs

        def replay(self) -> None:
            total.add_(self.inputs[0].sum())

    def record(self: Recorded, places: tuple[torch.Tensor, ...]) -> Any:
        recordings.append(places[0].shape)
        return Graph(places)

    monkeypatch.setattr(Recorded, "_record", record)
    monkeypatch.setattr(Recorded, "_warm", lambda self, inputs: total.add_(inputs[0].sum()))
    step = Recorded(lambda *inputs: None)
    expected = 0.0
    for number in range(8):
        for size in (4, 3):
            step(torch.full((size,), float(number)))
            expected += number * size
    assert float(total) == expected
    assert recordings == [torch.Size([4]), torch.Size([3])]


def test_lanes_add_the_same_pieces_in_the_same_order() -> None:
    net, recipe = network("mlp:width=8,depth=1"), SGD.with_(augment="dsa")
    plan = ExecutionPlan(chunk=4, threads=1, strategy="compiled")
    with as_shipped():  # the shape checks themselves do not survive compiling
        alone, side_by_side, again = (fit_many(net, jobs(net, 1), recipe, plan.model_copy(update={"lanes": lanes}))[0] for lanes in (1, 2, 2))
    assert near(alone, side_by_side)
    assert all(torch.equal(side_by_side.network[name], tensor) for name, tensor in again.network.items())


def test_lanes_predict_what_one_predicts() -> None:
    net = network("convnet-d1-w8")
    state = net.init(Streams(0))
    one = predict(net, state, TABLE, SPACE, PLAN, batch=8)
    three = predict(net, state, TABLE, SPACE, PLAN.model_copy(update={"lanes": 3}), batch=8)
    assert one.shape == (42, 2)
    assert torch.equal(one, three)


@pytest.mark.parametrize(
    ("batch", "chunk", "lanes", "size"), [(100, 32, 1, 25), (100, 0, 2, 100), (10, 5, 2, 5), (96, 32, 2, 24), (1, 1, 2, 1), (3, 2, 2, 2)]
)
def test_pieces_are_equal_and_as_many_for_every_lane(batch: int, chunk: int, lanes: int, size: int) -> None:
    assert _pieces(batch, chunk, lanes) == size


@pytest.mark.parametrize("loss", ["cross-entropy", "kl", "mse"])
def test_a_piece_that_is_filled_up_adds_nothing(loss: str) -> None:
    net, recipe = network("mlp:width=8,depth=1"), SGD.with_(loss=loss, steps=2)
    plan = ExecutionPlan(chunk=6, threads=1, strategy="compiled")  # 16 images: pieces of 6, 6 and 4
    with as_shipped():  # the shape checks themselves do not survive compiling
        compiled = fit_many(net, jobs(net, 1), recipe, plan)[0]
    assert near(compiled, fit_many(net, jobs(net, 1), recipe, PLAN)[0])


def test_layers_that_draw_random_numbers_train_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("mlp:width=8,depth=1")
    assert net.can_stack
    monkeypatch.setattr(Network, "template", lambda self, lane: torch.nn.Sequential(torch.nn.Dropout(0.5)))
    assert not net.can_stack


def test_a_rebuilt_adam_starts_its_bias_correction_again() -> None:
    net = network()
    quirky = SGD.with_(optimizer="adam", lr=0.01, epochs=None, steps=4, schedule="step", decay_at=(0.5,), decay=1.0, restart_momentum_at_decay=True)
    job = jobs(net, 1)[0]
    restarted = fit_many(net, [job], quirky, PLAN)[0]
    half = fit_many(net, [job], quirky.with_(steps=2, schedule="constant", restart_momentum_at_decay=False), PLAN)[0]
    before = {name: half.network[name] for name in net.parameter_names}
    with_memory = fit_many(net, [job], quirky.with_(restart_momentum_at_decay=False), PLAN)[0]
    moved = max(float((restarted.network[name] - before[name]).abs().max()) for name in before)
    assert moved <= 2 * 0.05 * 1.01  # two steps of Adam from rest move no parameter by more than its rate each
    assert not near(restarted, with_memory)

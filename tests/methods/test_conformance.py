"""What every method must pass, bought by its one line in the table."""

import random
import re
import sys
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from tests.small import PLAN, Oracle, gaussians, network, problem
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from limbeck.cache import Cache
from limbeck.data.tables import ArrayTable
from limbeck.experts.trajectory import Trajectory, train_expert
from limbeck.labels.rules import LabelRule
from limbeck.leak.file_audit import find_copies
from limbeck.methods import METHODS, PUBLISHES
from limbeck.methods.driver import Method, Size, State, Turn, run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.progress import Reporter
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.network import Network
from limbeck.train.students import score, train_student
from limbeck.types.distilled import DistilledDataset
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe

TRAIN = gaussians((30, 30))
RULES = {"hard": LabelRule(kind="hard"), "soft": LabelRule(), "top-1 uint8": LabelRule(top_k=1, precision="uint8", renormalize=False)}
pytestmark = pytest.mark.parametrize("name", METHODS)


def method(name: str) -> Method:
    return parse_method(f"{name}@smoke" if "smoke" in getattr(METHODS[name], "recipes", {}) else name)


def walk(steps: Iterable[int], given: Problem, state: State, *, on: Method) -> State:
    for number in steps:
        state, _ = on.step(given, state, Turn(number, 1.0, given.streams["step", number]))
    return state


def task(seed: int = 0, rule: str = "soft", counts: tuple[int, ...] = (3, 3), train=TRAIN) -> Problem:  # type: ignore[no-untyped-def]
    logits = 3 * torch.nn.functional.one_hot(torch.from_numpy(train.labels.copy()), len(counts)).float()
    given = {"rule": RULES[rule], "expert": Oracle(train, logits), "streams": Streams(seed)["method"], "trajectories": trajectories(train)}
    return problem(train, counts, **given)


def trajectories(train: ArrayTable, net: Network | None = None) -> tuple[Trajectory, ...]:
    """Two experts of six epochs; the cache of this test run keeps them."""
    recipe = Recipe(lr=0.1, momentum=0, weight_decay=0, batch_size=6, epochs=6)
    given = net or network(classes=len(train.classes)), recipe, train, gaussians(20, seed=99, classes=len(train.classes)), PixelSpace()
    return tuple(train_expert(*given, seed=0, index=index, plan=PLAN, cache=Cache()) for index in range(2))


def test_it_is_a_method_with_options_that_refuse_unknown_keys(name: str) -> None:
    assert isinstance(method(name), Method)
    assert METHODS[name].Options.model_config["extra"] == "forbid"
    assert METHODS[name].Options.model_config["frozen"]


@pytest.mark.parametrize("rule", RULES)
def test_its_output_fits_the_problem_and_teaches(name: str, rule: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    given = task(rule=rule)
    made = run_method(method(name), given)
    assert np.bincount(made.owners.numpy(), minlength=2).tolist() == [3, 3]
    assert (made.shape, made.classes) == (TRAIN.shape, TRAIN.classes)
    assert made.pixels.header()["steps"] == given.pixels.header()["steps"]
    if made.labels.kind in ("hard", "probability"):  # learned labels are free, and stored in full
        assert made.bytes["labels"] <= 6 * given.rule.bytes_per_image(2)
    made.save(tmp_path / "set.safetensors")
    assert DistilledDataset.load(tmp_path / "set.safetensors").digest == made.digest
    net, examples = network("softmax"), Examples.of_distilled(made)
    student = train_student(net, examples, made.recipe, Streams(0), PLAN)
    assert score(net, student, gaussians(200, seed=5), examples, PLAN).accuracy > 0.8


def test_the_same_seed_gives_the_same_digest_and_another_does_not(name: str) -> None:
    first, again, other = (run_method(method(name), task(seed)).digest for seed in (0, 0, 1))
    assert first == again != other


def test_it_moves_no_global_random_state(name: str) -> None:
    def states() -> tuple[object, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().numpy().tobytes()

    before = states()
    run_method(method(name), task())
    assert states() == before


def test_it_leaves_the_problem_as_it_was(name: str) -> None:
    given = task()
    before = TRAIN.images.clone(), given.train.digest
    run_method(method(name), given)
    assert torch.equal(TRAIN.images, before[0])
    assert given.train.digest == before[1]


def test_one_image_of_each_class_survives_a_class_with_a_single_example(name: str) -> None:
    made = run_method(method(name), task(counts=(1, 1, 1), train=gaussians((9, 1, 9))))
    assert sorted(made.owners.tolist()) == [0, 1, 2]


def test_stopping_at_half_and_going_on_is_the_straight_run(name: str) -> None:
    given, whole = task(), run_method(method(name), task())
    one, other = method(name), method(name)
    total = one.total_steps(given)
    state = walk(range(total // 2), given, one.init(given), on=one)
    state = walk(range(total // 2, total), given, {key: tensor.clone() for key, tensor in state.items()}, on=other)
    made = other.finish(given, state)
    assert torch.equal(made.images, whole.images)
    assert torch.equal(made.targets(), whole.targets())


def test_a_step_leaves_the_state_that_it_was_given_as_it_was(name: str) -> None:
    given, one = task(), method(name)
    state = one.init(given)
    before = {key: tensor.clone() for key, tensor in state.items()}
    walk(range(min(2, one.total_steps(given))), given, state, on=one)
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_it_reports_as_many_steps_as_it_takes(name: str) -> None:
    totals: list[int] = []
    ticks: list[int] = []

    class Recording(Reporter):
        def task(self, description: str, total: int):  # type: ignore[no-untyped-def]
            from contextlib import contextmanager

            @contextmanager
            def bar():  # type: ignore[no-untyped-def]
                totals.append(total)
                yield ticks.append

            return bar()

    run_method(method(name), task(), Recording())
    assert sum(ticks) == sum(totals) == method(name).total_steps(task())


def test_it_declares_what_its_sets_hold_of_the_training_images(name: str) -> None:
    """Audits ask it: whoever publishes real images by design says so, and nobody else publishes one."""
    kind = METHODS[name]
    assert kind.publishes in PUBLISHES
    exact = find_copies(run_method(method(name), task()), TRAIN, torch.arange(0)).exact
    if kind.publishes == "whole training images":
        assert exact.all()
    elif kind.publishes == "no training image":  # and a part may be all of an image
        assert not exact.any()


class Counting(TorchDispatchMode):
    """Adds up the operations of convolutions and products."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        count, kwargs = flop_registry.get(func._overloadpacket), kwargs or {}
        if count is None:  # in inference mode a convolution arrives as what it is made of
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        made = func(*args, **kwargs)
        self.total += count(*args, **kwargs, out_val=made) if count else 0
        return made


def test_its_work_is_what_it_takes(name: str) -> None:
    """All that convolutions and products compute, counted as they are called, beside what the method says."""
    net = network("convnet-d1-w8:norm=batch" if name == "sre2l" else "convnet-d1-w8", classes=3)
    table = gaussians(24, classes=3)
    experts = trajectories(table, net)
    given = problem(table, (6, 6, 6), network=net, expert=experts[0].at(experts[0].last.step), rule=LabelRule(), trajectories=experts)
    one = method(name)
    with Counting() as counter:
        run_method(one, given)
    taken = counter.total
    said = (one.work(Size(18, 3, len(table))) + 18) * net.flops()
    assert 0.5 < said / taken < 2, f"{name} says {said:.3g} operations and takes {taken:.3g}"


def test_its_documentation_cites_its_source_and_states_its_cost(name: str) -> None:
    kind: Callable[..., object] = METHODS[name]
    text = f"{sys.modules[kind.__module__].__doc__} {kind.__doc__}"
    assert re.search(r"(19|20)\d\d", text)
    assert re.search(r"arXiv \d{4}\.\d{4,5}", text)
    assert "Cost" in text

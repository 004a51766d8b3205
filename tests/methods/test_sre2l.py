"""SRe2L against its published loop written out with PyTorch's own optimizer, and its statistics against a second implementation in float64."""

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from tests.small import Oracle, gaussians, network, problem
from torch.autograd import gradcheck
from torch.nn import functional as F

from limbeck.data.pixels import normalize, zca_mtt
from limbeck.errors import OptionError
from limbeck.experts.expert import Ensemble, Expert
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import State, Turn, run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.methods.sre2l import SRe2L, SRe2LOptions, forward_with_statistics, make_blocks, valid_range
from limbeck.methods.synthetic import owners_of
from limbeck.streams import Streams
from limbeck.train.network import Network

TABLE = gaussians(6, classes=3)
SPACE = normalize(TABLE)
BATCH = "convnet-d2-w4:norm=batch"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def teacher_state(net: Network, seed: int = 0, dtype: torch.dtype = torch.float32) -> State:
    """Random parameters and running statistics that are not the defaults."""
    generator, state = seeded(seed), net.init(Streams(seed))
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            state[name] = 0.3 * torch.randn(tensor.shape, generator=generator)
        elif name.endswith(("running_var", "norm.weight")):
            state[name] = 0.5 + torch.rand(tensor.shape, generator=generator)
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def teacher(model: str = BATCH, seed: int = 0) -> Expert:
    net = network(model, classes=3)
    return Expert(net, teacher_state(net, seed), SPACE, 0, f"teacher {seed}")


def task(expert: Any = None, counts: tuple[int, ...] = (2, 2, 2), **changes: Any) -> Problem:
    given = {"rule": LabelRule(), "pixels": SPACE, **changes}
    return problem(TABLE, counts, expert=expert or teacher(), **given)


def options(**changes: Any) -> SRe2LOptions:
    return SRe2LOptions(**{"steps": 6, "jitter": 0, "image_lr": 0.1, "bn_weight": 0.05, **changes})


def reference_statistics(state: State, images: torch.Tensor, first_weight: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and mismatch of a two-block ConvNet in evaluation mode, layer by layer."""
    mismatch, maps = torch.zeros((), dtype=images.dtype), images
    for block in range(2):
        maps = F.conv2d(maps, state[f"body.{block}.conv.weight"], state[f"body.{block}.conv.bias"], padding=1)
        mean, variance = (state[f"body.{block}.norm.running_{name}"] for name in ("mean", "var"))
        flat = maps.transpose(0, 1).flatten(1)
        for wanted, found in ((mean, flat.mean(1)), (variance, (flat - flat.mean(1, keepdim=True)).square().mean(1))):
            mismatch = mismatch + (first_weight if block == 0 else 1) * (wanted - found).square().sum().sqrt()
        weight, bias = (state[f"body.{block}.norm.{name}"][:, None, None] for name in ("weight", "bias"))
        maps = (maps - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt() * weight + bias
        maps = F.avg_pool2d(maps.relu(), 2)
    return maps.flatten(1) @ state["head.weight"].T + state["head.bias"], mismatch


def test_statistics_are_those_of_a_second_implementation() -> None:
    net = network(BATCH, classes=3)
    state, images = teacher_state(net, dtype=torch.float64), torch.randn(5, 1, 8, 8, dtype=torch.float64, generator=seeded())
    logits, mismatch = forward_with_statistics(net, state, images, 10.0)
    expected_logits, expected = reference_statistics(state, images, 10.0)
    torch.testing.assert_close(mismatch, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-12)
    assert not any(layer._forward_pre_hooks for layer in net.module.modules())


def test_the_objective_has_the_gradient_of_finite_differences() -> None:
    net = network("convnet-d2-w2:norm=batch", classes=3, shape=(1, 4, 4))
    state = teacher_state(net, dtype=torch.float64)

    def objective(images: torch.Tensor) -> torch.Tensor:
        logits, mismatch = forward_with_statistics(net, state, images, 10.0)
        return F.cross_entropy(logits, torch.tensor([0, 2])) + 0.3 * mismatch

    assert gradcheck(objective, (torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=seeded()).requires_grad_(),))


def published_loop(given: Problem, chosen: SRe2LOptions, start: torch.Tensor) -> torch.Tensor:
    """The published recovery, without augmentation: a fresh Adam for every block, clamped pixels, the last iterate."""
    images, owners, expert = start.clone(), owners_of(given), given.expert
    assert isinstance(expert, Expert)
    mean, std = SPACE.steps[0].mean, SPACE.steps[0].std  # type: ignore[union-attr]
    for block in make_blocks(given.counts, chosen.batch):
        pixels = images[block].clone().requires_grad_()
        optimizer = torch.optim.Adam([pixels], lr=chosen.image_lr, betas=(0.5, 0.9), eps=1e-8)
        for iteration in range(chosen.steps):
            optimizer.param_groups[0]["lr"] = 0.5 * (1 + math.cos(math.pi * iteration / chosen.steps)) * chosen.image_lr
            optimizer.zero_grad()
            logits, mismatch = reference_statistics(expert.state, pixels, chosen.first_bn)
            (F.cross_entropy(logits, owners[block]) + chosen.bn_weight * mismatch).backward()
            optimizer.step()
            pixels.data.clamp_(-mean / std, (1 - mean) / std)
        images[block] = pixels.detach()
    return images


@pytest.mark.parametrize("batch", [100, 4])
def test_images_are_those_of_the_published_loop(batch: int) -> None:
    given, chosen = task(), options(batch=batch, image_lr=2.0)
    method = SRe2L(chosen)
    assert method.total_steps(given) == 6 * (1 if batch == 100 else 2)
    expected = published_loop(given, chosen, method.init(given)["images"])
    made = run_method(method, given)
    torch.testing.assert_close(made.images, expected, rtol=1e-4, atol=1e-4)
    low, high = valid_range(given)
    assert (made.images.min(), made.images.max()) == (low.min(), high.max())  # some pixels have come to the borders of the range


def test_both_terms_fall() -> None:
    curve = run_method(SRe2L(options(steps=100)), task()).provenance["optimization"]["curve"]
    assert curve[-1]["statistics"] < 0.5 * curve[0]["statistics"]
    assert curve[-1]["cross_entropy"] < curve[0]["cross_entropy"] - 0.05
    assert curve[-1]["loss"] == pytest.approx(curve[-1]["cross_entropy"] + 0.05 * curve[-1]["statistics"], rel=1e-5)


@pytest.mark.parametrize(
    ("counts", "most", "sizes"),
    [((10,) * 10, 100, [100]), ((1,) * 10, 100, [10]), ((2,) * 1000, 100, [100] * 20), ((3, 0, 1), 2, [2, 2]), ((11,) * 10, 100, [55, 55])],
)
def test_blocks_take_the_first_of_every_class_then_the_second(counts: tuple[int, ...], most: int, sizes: list[int]) -> None:
    blocks = make_blocks(counts, most)
    assert list(map(len, blocks)) == sizes
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    order = torch.cat(blocks)
    assert sorted(order.tolist()) == list(range(sum(counts)))
    ranks = torch.cat([torch.arange(count) for count in counts])[order]
    assert [(rank, owner) for rank, owner in zip(ranks.tolist(), owners[order].tolist(), strict=True)] == sorted(
        zip(ranks.tolist(), owners[order].tolist(), strict=True)
    )


def test_blocks_are_the_published_ones_where_a_hundred_classes_fill_them() -> None:
    owners = torch.arange(200).repeat_interleave(3)
    assert [owners[block].tolist() for block in make_blocks((3,) * 200, 100)] == [list(range(100)), list(range(100, 200))] * 3


def test_the_valid_range_is_exact_or_that_of_real_images() -> None:
    low, high = valid_range(task())
    mean, std = SPACE.steps[0].mean, SPACE.steps[0].std  # type: ignore[union-attr]
    torch.testing.assert_close((low.flatten(), high.flatten()), (-mean / std, (1 - mean) / std))
    white = zca_mtt(TABLE)
    low, high = valid_range(task(pixels=white))
    inputs = white(TABLE.images)
    assert (low.item(), high.item()) == (inputs.min().item(), inputs.max().item())


def test_the_teacher_stays_in_evaluation_mode_and_as_it_was() -> None:
    expert = teacher()
    before = {name: tensor.clone() for name, tensor in expert.state.items()}
    method, given = SRe2L(options()), task(expert)
    state = method.init(given)
    for number in range(3):
        state, _ = method.step(given, state, Turn(number, 1.0, Streams(0)["step", number]))
    assert all(torch.equal(expert.state[name], tensor) and torch.equal(state[f"teacher.{name}"], tensor) for name, tensor in before.items())


def test_half_the_scale_is_half_the_step() -> None:
    method, given = SRe2L(options(image_lr=1e-3)), task()
    state = method.init(given)
    state = {**state, "pixels": 0.1 * state["pixels"]}  # away from the borders of the range
    whole, half = (method.step(given, state, Turn(0, scale, Streams(0)))[0]["pixels"] - state["pixels"] for scale in (1.0, 0.5))
    torch.testing.assert_close(half, whole / 2, rtol=1e-3, atol=1e-7)


def test_a_block_is_rolled_and_augmented_alike() -> None:
    pixels, method = torch.randn(4, 1, 8, 8, generator=seeded()), SRe2L(options(jitter=2))
    seen = set()
    for number in range(200):
        shown = method._shown(pixels, Turn(number, 1.0, Streams(number)))
        rolls = [(r, c) for r in range(-2, 3) for c in range(-2, 3) if torch.equal(shown, pixels.roll((r, c), (2, 3)))]
        assert len(rolls) == 1
        seen.add(rolls[0])
    assert len(seen) == 25
    cropped = SRe2L(options(augment="resized_crop+flip"))._shown(pixels[:1].expand(4, 1, 8, 8), Turn(0, 1.0, Streams(1)))
    assert all(torch.equal(cropped[0], other) for other in cropped)
    assert not torch.equal(cropped[0], pixels[0])


def test_an_unfinished_run_keeps_what_is_made_and_what_is_not() -> None:
    method, given = SRe2L(options(batch=3)), task()
    state = start = method.init(given)
    for number in range(8):  # six iterations of the first block, two of the second
        state, _ = method.step(given, state, Turn(number, 1.0, Streams(0)["step", number]))
    images, (first, second) = method.finish(given, state).images, make_blocks(given.counts, 3)
    assert torch.equal(images[second], state["pixels"])
    assert not torch.equal(images[first], start["images"][first])
    only = method.finish(given, method.step(given, start, Turn(0, 1.0, Streams(0)))[0]).images
    assert torch.equal(only[second], start["images"][second])


def test_labels_per_view_belong_to_the_finished_images() -> None:
    given = task()
    made = run_method(SRe2L(options(views=3, image_precision="float16")), given)
    assert made.views is not None
    assert (made.labels.views, made.labels.kind, made.labels.expert) == (3, "logit", "teacher 0")
    assert made.bytes["labels"] == 3 * 6 * 3 * 4 + 6
    assert run_method(SRe2L(options()), given).labels.kind == "probability"


def test_a_teacher_of_its_own_is_trained_where_the_expert_will_not_do() -> None:
    given = task(Oracle(TABLE, torch.zeros(18, 3)))
    method = SRe2L(options(teacher="convnet-d1-w4:norm=batch", teacher_steps=40, teacher_lr=0.1))
    state = method.init(given)
    net = Network(network("convnet-d1-w4:norm=batch", classes=3).spec, (1, 8, 8), 3)
    trained = {name.removeprefix("teacher."): tensor for name, tensor in state.items() if name.startswith("teacher.")}
    accuracy = (net.forward(trained, SPACE(TABLE.images)).argmax(1) == torch.from_numpy(TABLE.labels.copy())).double().mean()
    assert accuracy > 0.9
    assert all(torch.equal(tensor, method.init(given)[name]) for name, tensor in state.items())


def test_of_an_ensemble_the_first_is_inverted() -> None:
    first, second = teacher(seed=0), teacher(seed=1)
    alone, both = (run_method(SRe2L(options()), task(expert)) for expert in (first, Ensemble((first, second))))
    assert torch.equal(alone.images, both.images)
    assert not torch.allclose(alone.targets(), both.targets(), atol=1e-3)


def test_what_cannot_be_inverted_is_answered_before_anything_is_made() -> None:
    with pytest.raises(
        OptionError, match="^sre2l matches the running statistics of batch normalization, which convnet:.* lacks; use --expert-model "
    ):
        SRe2L(options()).init(task(teacher("convnet-d2-w4")))
    with pytest.raises(OptionError, match="^sre2l matches the running statistics of batch normalization, which softmax lacks"):
        SRe2L(options(teacher="softmax")).init(task())
    with pytest.raises(
        OptionError, match="^sre2l inverts a trained expert, got none; give the problem an expert, or name a network to train first: sre2l:teacher="
    ):
        SRe2L(options()).init(problem(TABLE, (1, 1, 1), pixels=SPACE))
    with pytest.raises(
        OptionError, match="^labels per view are an expert's soft labels, got views=2 with hard labels; use --labels soft, or views=0$"
    ):
        SRe2L(options(views=2)).init(task(rule=LabelRule(kind="hard")))
    with pytest.raises(
        OptionError, match="^sre2l makes every image for itself, so its augment cannot mix images, got 'flip\\+cutmix'; use for example"
    ):
        options(augment="flip+cutmix")
    with pytest.raises(ValidationError):
        options(iterations=3)


def test_published_settings() -> None:
    names = ("steps", "image_lr", "bn_weight", "first_bn", "augment", "batch", "start")
    rows = {
        name: tuple(getattr(parse_method(f"sre2l@{name}").options, key) for key in names) for name in ("imagenet-1k", "tiny-imagenet", "cifar100")
    }
    assert rows == {
        "imagenet-1k": (4000, 0.25, 0.01, 10, "resized_crop+flip", 100, "noise"),
        "tiny-imagenet": (4000, 0.1, 1.0, 10, "resized_crop+flip", 100, "noise"),
        "cifar100": (1000, 0.25, 0.01, 10, "none", 100, "noise"),
    }
    assert all(parse_method(f"sre2l@{name}") for name in SRe2L.recipes)

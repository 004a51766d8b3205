import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
import torch
from tests.small import PLAN, gaussians, network, problem

from limbeck.data.augment import DSA
from limbeck.errors import OptionError
from limbeck.methods import matching
from limbeck.methods.distribution_matching import DistributionMatching
from limbeck.methods.driver import State, Turn
from limbeck.methods.matching import chunked, groups_within, joint_means, real_piece
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import real_batch
from limbeck.types.plan import ExecutionPlan

TRAIN = gaussians((9, 7, 8))


def method(**options: object) -> DistributionMatching:
    return DistributionMatching(DistributionMatching.Options(**{"real_batch": 16, "augment": "none", **options}))


def turn(given: Problem, number: int = 0, scale: float = 1.0) -> Turn:
    return Turn(number, scale, given.streams["step", number])


def class_means(table=TRAIN) -> torch.Tensor:  # type: ignore[no-untyped-def]
    return torch.stack([table.images[torch.from_numpy(table.labels == k)].double().div(255).mean(0) for k in range(len(table.classes))])


def means_of(state: State, counts: tuple[int, ...]) -> torch.Tensor:
    return torch.stack([part.double().mean(0) for part in state["images"].split(counts)])


@contextmanager
def peak_of_saved_bytes() -> Iterator[list[int]]:
    """The most bytes that graphs keep for a backward pass at any moment, weights and images that live anyway included."""
    now, most = [0], [0]

    class Kept:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            now[0] += tensor.nbytes
            most[0] = max(most[0], now[0])

        def __del__(self) -> None:
            now[0] -= self.tensor.nbytes

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        yield most
    gc.collect()


def test_with_identity_features_the_loss_is_the_squared_gap_of_the_class_means_and_a_step_closes_it_as_it_must() -> None:
    counts = (3, 1, 2)
    given = problem(TRAIN, counts)  # features of the softmax model are the pixels, and 16 real images are the whole class
    one = method(image_lr=0.25, momentum=0.0)
    state = one.init(given)
    gap = means_of(state, counts) - class_means()
    new, metrics = one.step(given, state, turn(given))
    assert metrics["loss"] == pytest.approx(float(gap.square().sum()), rel=1e-5)
    # dL/ds_kj = 2 gap_k / n_k: every image of a class moves alike
    wanted = state["images"].double() - 0.25 * torch.cat([(2 / n * gap[k]).expand(n, *gap.shape[1:]) for k, n in enumerate(counts)])
    assert torch.allclose(new["images"].double(), wanted, atol=1e-6)
    half, _ = one.step(given, state, turn(given, scale=0.5))
    assert torch.allclose(half["images"].double(), (state["images"].double() + wanted) / 2, atol=1e-6)


def test_with_identity_features_the_minimizer_has_the_class_means() -> None:
    counts = (2, 1, 3)
    given, one = problem(TRAIN, counts), method(image_lr=0.2, start="noise")
    state = one.init(given)
    for number in range(60):
        state, metrics = one.step(given, state, turn(given, number))
    assert metrics["loss"] < 1e-9
    assert torch.allclose(means_of(state, counts), class_means(), atol=1e-5)


def reference(given: Problem, state: State, of: Turn, augment: DSA | None) -> tuple[float, torch.Tensor]:
    """Loss and pixel gradient with one plain module in float64, one graph for all classes."""
    network = given.network
    module = network.loaded(network.init(of.streams["network"])).double().train()
    images = state["images"].double().requires_grad_()
    reals, mades = [], []
    for k, made in enumerate(images.split(list(given.counts))):
        real = real_batch(given, given.members(k), 16, of.streams.torch("real", k)).double()
        if augment is not None:
            drawn = augment.draw(1, network.shape, of.streams.torch("augment", k))
            real, made = augment.apply(real, drawn), augment.apply(made, drawn)
        reals.append(real)
        mades.append(made)
    if network.has_batch_statistics:
        embedded = [module.features(torch.cat(parts)).split([len(part) for part in parts]) for parts in (reals, mades)]
    else:
        embedded = [[module.features(part) for part in parts] for parts in (reals, mades)]
    loss = sum(((real.detach().mean(0) - made.mean(0)) ** 2).sum() for real, made in zip(*embedded, strict=True))
    loss.backward()
    assert images.grad is not None
    return loss.item(), images.grad


@pytest.mark.parametrize("model", ["convnet-d1-w8", "convnet:depth=1,width=8,norm=batch"])
@pytest.mark.parametrize("strategy", ["color", "crop", "cutout", "flip", "scale", "rotate", "color_crop_cutout_flip_scale_rotate"])
def test_a_step_is_that_of_a_plain_float64_reference(model: str, strategy: str) -> None:
    given = problem(TRAIN, (3, 1, 2), network=network(model, classes=3), plan=PLAN.model_copy(update={"chunk": 4}))
    one, of = method(augment=f"dsa:{strategy}", image_lr=1.0), turn(given)
    state = one.init(given)
    first, metrics = one.step(given, state, of)
    loss, gradient = reference(given, state, of, DSA(strategy, siamese=True))
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert torch.allclose(first["images.momentum"].double(), gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    second, _ = one.step(given, first, turn(given, 1))
    _, next_gradient = reference(given, first, turn(given, 1), DSA(strategy, siamese=True))
    wanted = first["images"].double() - (0.5 * gradient + next_gradient)
    assert torch.allclose(second["images"].double(), wanted, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


def test_the_chunk_changes_no_more_than_rounding() -> None:
    given = problem(TRAIN, (3, 1, 2), network=network("convnet-d1-w8", classes=3))
    results = [method().step(problem_with(given, chunk), method().init(given), turn(given))[0]["images"] for chunk in (0, 1, 3, 64)]
    assert all(torch.allclose(results[0], other, atol=1e-6) for other in results[1:])


def problem_with(given: Problem, chunk: int) -> Problem:
    return Problem(**{**vars(given), "plan": PLAN.model_copy(update={"chunk": chunk})})


@pytest.mark.parametrize("strategy", ["color_crop_cutout_flip_scale_rotate", "flip", "rotate"])
def test_real_and_synthetic_images_of_a_class_are_augmented_alike(strategy: str) -> None:
    counts = (9, 7, 8)  # every real image is also a synthetic one: only the same parameters for both leave no gap
    given = problem(TRAIN, counts, network=network("convnet-d1-w8", classes=3))
    one = method(augment=f"dsa:{strategy}")
    for number in range(4):
        _, metrics = one.step(given, one.init(given), turn(given, number))
        assert metrics["loss"] < 1e-9


def test_every_class_has_an_augmentation_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    plain = DSA.apply

    def watching(self: DSA, images: torch.Tensor, params: dict[str, torch.Tensor]) -> torch.Tensor:
        seen.append(params)
        return plain(self, images, params)

    monkeypatch.setattr(DSA, "apply", watching)
    given, one = problem(TRAIN, (1, 1, 1)), method(augment="dsa:color")
    one.step(given, one.init(given), turn(given))
    real, made = seen[:3], seen[3:]
    assert [drawn["color"].shape for drawn in seen] == [torch.Size([1, 3])] * 6
    assert all(torch.equal(a["color"], b["color"]) for a, b in zip(real, made, strict=True))
    assert not any(torch.equal(a["color"], b["color"]) for a, b in pairwise(real))


def test_a_graph_is_as_long_as_a_chunk_or_a_class_however_many_classes_there_are() -> None:
    peaks = {}
    for classes in (2, 6):
        for chunk in (3, 0):
            table = gaussians(8, classes=classes)
            given = problem(table, (3,) * classes, network=network("convnet-d1-w8", classes=classes), plan=PLAN.model_copy(update={"chunk": chunk}))
            state = method().init(given)
            with peak_of_saved_bytes() as most:
                method().step(given, state, turn(given))
            peaks[classes, chunk] = most[0]
    assert peaks[6, 3] == peaks[2, 3]
    assert peaks[6, 0] > 2 * peaks[2, 0]


def test_a_class_without_images_is_left_out() -> None:
    given, one = problem(TRAIN, (2, 0, 1)), method()
    new, metrics = one.step(given, one.init(given), turn(given))
    assert len(new["images"]) == 3
    assert np.isfinite(metrics["loss"])
    assert one.finish(given, new).owners.tolist() == [0, 0, 2]


def test_padding_changes_no_mean() -> None:
    net = network("convnet-d1-w8")
    weights = net.init(problem(TRAIN, (1, 1, 1)).streams)
    images = torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def embed(batch: torch.Tensor) -> torch.Tensor:
        return net.features(weights, batch)

    rows = embed(images)
    assert torch.allclose(chunked(embed, images, 3, padded=True), rows, atol=1e-6)
    wanted = torch.stack([rows[:2].mean(0), rows[2:].mean(0)])
    assert torch.allclose(joint_means(embed, [images[:2], images[2:]], size=9), wanted, atol=1e-6)


def test_groups_are_whole_classes_within_the_chunk() -> None:
    assert list(groups_within([10] * 10, 32)) == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert list(groups_within([40, 1, 1], 32)) == [(0, 1), (1, 3)]
    assert list(groups_within([5, 5], 0)) == [(0, 2)]


def test_pieces_of_a_class_are_equal_and_within_the_chunk() -> None:
    given = problem(gaussians((100, 3)), (1, 1))
    assert [real_piece(problem_with(given, chunk), count) for count, chunk in ((256, 33), (64, 33), (256, 0), (20, 33))] == [25, 32, 100, 20]


def test_compiled_programs_see_one_shape_of_real_and_one_of_synthetic_images_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[tuple[bool, int]] = set()

    def noting(function: Callable[..., torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        def program(weights: object, images: torch.Tensor) -> torch.Tensor:
            shapes.add((torch.is_grad_enabled(), len(images)))
            return function(weights, images)

        return program

    monkeypatch.setattr(torch, "compile", noting)
    monkeypatch.setattr(matching, "can_compile", lambda device_type: True)
    given = problem(TRAIN, (3, 1, 2), network=network("convnet-d1-w7", classes=3))
    plans = [ExecutionPlan(chunk=4, threads=1, strategy=strategy) for strategy in ("eager", "compiled")]
    one = method(augment="dsa")
    eager, compiled = (one.step(Problem(**{**vars(given), "plan": plan}), one.init(given), turn(given)) for plan in plans)
    assert shapes == {(False, 3), (True, 4)}  # classes of 9, 7 and 8 real images; groups of 3 + 1 and 2 synthetic ones
    assert torch.allclose(eager[0]["images"], compiled[0]["images"], atol=1e-6)
    assert eager[1]["loss"] == pytest.approx(compiled[1]["loss"], rel=1e-5)


def test_the_defaults_are_the_published_settings() -> None:
    assert DistributionMatching.Options().model_dump() == {
        "steps": 20_000,
        "start": "real",
        "image_precision": "float32",
        "image_lr": 1.0,
        "momentum": 0.5,
        "real_batch": 256,
        "augment": "dsa",
    }
    assert DistributionMatching.recipes["cifar10-ipc100"] == {"image_lr": 10.0}


def test_an_augmentation_that_mixes_images_is_refused() -> None:
    sentence = (
        "matching shows real and synthetic images under one augmentation, none or dsa, got augment='cutmix'; use for example augment=dsa:color_crop"
    )
    with pytest.raises(OptionError, match=f"^{re.escape(sentence)}$"):
        method(augment="cutmix")

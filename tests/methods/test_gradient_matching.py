import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.small import PLAN, gaussians, network, problem

from limbeck.data.augment import DSA
from limbeck.errors import OptionError
from limbeck.methods import matching
from limbeck.methods.driver import State, Turn
from limbeck.methods.gradient_matching import (
    DISTANCES,
    LOOPS,
    GradientMatching,
    GradientMatchingOptions,
    SiameseGradientMatching,
    SiameseGradientMatchingOptions,
    _mean_count,
    class_loss,
    loops,
    match,
    mean_gradient,
    with_real_statistics,
)
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import owners_of, real_batch
from limbeck.types.plan import ExecutionPlan

TRAIN = gaussians((9, 7, 8))
CONVNET = "convnet-d1-w8"


def dc(**options: object) -> GradientMatching:
    return GradientMatching(GradientMatchingOptions(**{"real_batch": 16, "outer": 2, "inner": 3, "start": "real", **options}))


def dsa(**options: object) -> SiameseGradientMatching:
    return SiameseGradientMatching(SiameseGradientMatchingOptions(**{"real_batch": 16, "outer": 2, "inner": 3, **options}))


def turn(given: Problem, number: int = 0, scale: float = 1.0) -> Turn:
    return Turn(number, scale, given.streams["step", number])


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at_zero(classes: int) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], Callable[..., torch.Tensor]]:
    """Softmax regression with zero weights: its state, its parameters, its loss."""
    net = network(classes=classes)
    weights = {name: torch.zeros_like(tensor).double().requires_grad_() for name, tensor in net.init(problem(TRAIN, (1, 1, 1)).streams).items()}
    return weights, [weights[name] for name in net.parameter_names], class_loss(net, "float32", "cpu", False)


def row_of(number: int, classes: int = 3) -> torch.Tensor:
    return torch.eye(classes, dtype=torch.float64)[[number]]


@pytest.mark.parametrize("size", [2, 5, 16])
@pytest.mark.parametrize("padded", [False, True])
def test_at_zero_weights_the_mean_gradient_of_a_class_is_the_class_mean_under_known_factors(size: int, padded: bool) -> None:
    weights, parameters, loss = at_zero(4)
    shown = images(7)
    by_weight, by_bias = mean_gradient(loss, weights, parameters, shown, row_of(2, 4).expand(7, -1), size, padded=padded)
    factors = torch.full((4,), 0.25, dtype=torch.float64) - row_of(2, 4)[0]
    assert torch.allclose(by_weight, torch.outer(factors, shown.mean(0).flatten()), atol=1e-12)
    assert torch.allclose(by_bias, factors, atol=1e-12)


def test_at_zero_weights_the_squared_distance_pins_the_class_mean() -> None:
    weights, parameters, loss = at_zero(3)
    made, real = images(4), images(9, seed=1)
    target = mean_gradient(loss, weights, parameters, real, row_of(1).expand(9, -1), 9)
    gradient, apart = match(loss, weights, parameters, made, row_of(1), target, "mse")
    gap = made.mean(0) - real.mean(0)
    squared_factors = 1 - 1 / 3  # |1/K - e_c|^2
    assert apart.item() == pytest.approx(squared_factors * gap.square().sum().item(), rel=1e-12)
    assert torch.allclose(gradient, (2 * squared_factors / 4 * gap).expand(4, 1, 8, 8), atol=1e-12)


def test_at_zero_weights_the_row_cosine_pins_the_direction_of_the_class_mean_alone() -> None:
    weights, parameters, loss = at_zero(3)
    made, real = images(4), images(9, seed=1)
    target = mean_gradient(loss, weights, parameters, real, row_of(1).expand(9, -1), 9)
    cosine = torch.nn.functional.cosine_similarity(made.mean(0).flatten(), real.mean(0).flatten(), dim=0).item()
    for scale in (1.0, 3.0):
        gradient, apart = match(loss, weights, parameters, scale * made, row_of(1), target, "ours")
        assert apart.item() == pytest.approx(3 * (1 - cosine), rel=1e-5)  # K rows alike, the bias counts nothing; eps is 1e-6
        assert abs((gradient * made).sum().item()) < 1e-5  # scaling all images of a class leaves it as it is
    _, apart = match(loss, weights, parameters, real, row_of(1), target, "ours")
    assert apart.item() < 1e-5


def test_distances_by_hand() -> None:
    made = [torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([1.0])]
    real = [torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([-1.0])]
    assert DISTANCES["ours"](made, real).item() == pytest.approx(0 + 1, abs=1e-5)
    assert DISTANCES["mse"](made, real).item() == pytest.approx(4 + 4 + 4 + 4)
    assert DISTANCES["cosine"](made, real).item() == pytest.approx(1 - (3 - 1) / (14**0.5 * 6**0.5), rel=1e-5)


def test_a_convolution_is_compared_filter_by_filter_and_a_filter_without_gradient_has_a_finite_derivative() -> None:
    made, real = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0)), torch.ones(2, 3, 2, 2)
    made[1] = 0
    made.requires_grad_()
    distance = DISTANCES["ours"]([made], [real])
    cosine = torch.nn.functional.cosine_similarity(made[0].flatten(), real[0].flatten(), dim=0).item()
    assert distance.item() == pytest.approx(1 - cosine + 1, rel=1e-5)
    distance.backward()
    assert made.grad is not None
    assert made.grad.isfinite().all()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("strategy", ["none", "color", "crop", "cutout", "flip", "scale", "rotate"])
def test_the_image_gradient_is_the_derivative_of_the_distance(distance: str, strategy: str) -> None:
    """Central differences along a random direction, in float64: no autograd, first order or second."""
    net = network("convnet-d1-w4", classes=3)
    weights = {name: tensor.double().requires_grad_() for name, tensor in net.init(problem(TRAIN, (1, 1, 1)).streams).items()}
    parameters, loss = [weights[name] for name in net.parameter_names], class_loss(net, "float32", "cpu", False)
    augment = None if strategy == "none" else DSA(strategy, siamese=True)
    drawn = {} if augment is None else augment.draw(1, net.shape, torch.Generator().manual_seed(3))
    target = mean_gradient(loss, weights, parameters, images(6, seed=1), row_of(0).expand(6, -1), 6)
    made, direction, step = images(3), images(3, seed=2), 1e-5

    def apart(shown: torch.Tensor) -> float:
        return match(loss, weights, parameters, shown, row_of(0), target, distance, augment, drawn)[1].item()

    gradient, _ = match(loss, weights, parameters, made, row_of(0), target, distance, augment, drawn)
    slope = (apart(made + step * direction) - apart(made - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def reference(given: Problem, state: State, turns: list[Turn], augment: DSA | None = None) -> tuple[torch.Tensor, list[float]]:
    """Published loops in plain PyTorch: one module, eager float32, a graph over all classes, SGD objects; one outer loop as long as `turns`."""
    module = given.network.loaded(given.network.init(turns[0].streams["network"]))
    made = state["images"].clone().requires_grad_()
    labels, losses = owners_of(given), []
    image_steps = torch.optim.SGD([made], 0.1, momentum=0.5)
    network_steps = torch.optim.SGD(module.parameters(), 0.01)
    for of in turns:
        total = torch.zeros(())
        for k in range(3):
            real, own = real_batch(given, given.members(k), 16, of.streams.torch("real", k)), made[labels == k]
            if augment is not None:
                drawn = augment.draw(1, given.network.shape, of.streams.torch("augment", k))
                real, own = augment.apply(real, drawn), augment.apply(own, drawn)
            of_real = torch.autograd.grad(torch.nn.functional.cross_entropy(module(real), torch.full((len(real),), k)), list(module.parameters()))
            of_made = torch.autograd.grad(
                torch.nn.functional.cross_entropy(module(own), torch.full((len(own),), k)), list(module.parameters()), create_graph=True
            )
            for g, h in zip(of_made, of_real, strict=True):
                if g.ndim > 1:
                    g, h = g.reshape(len(g), -1), h.reshape(len(h), -1)
                    total = total + (1 - (g * h).sum(1) / (g.norm(dim=1) * h.norm(dim=1) + 1e-6)).sum()
        image_steps.zero_grad()
        total.backward()
        image_steps.step()
        losses.append(total.item())
        for _ in range(3):
            network_steps.zero_grad()
            torch.nn.functional.cross_entropy(module(made.detach()), labels).backward()
            network_steps.step()
    return made.detach(), losses


@pytest.mark.parametrize("model", [CONVNET, "convnet-d2-w4", "mlp:width=8,depth=1"])
@pytest.mark.parametrize("chunk", [0, 4])
def test_steps_with_training_in_between_are_those_of_the_published_loops(model: str, chunk: int) -> None:
    given = problem(TRAIN, (3, 1, 2), network=network(model, classes=3), plan=PLAN.model_copy(update={"chunk": chunk}))
    one = dc(outer=3)
    start = state = one.init(given)
    losses = []
    for number in range(3):
        state, metrics = one.step(given, state, turn(given, number))
        losses.append(metrics["loss"])
    wanted, wanted_losses = reference(given, start, [turn(given, number) for number in range(3)])
    assert losses == pytest.approx(wanted_losses, rel=1e-4)
    assert torch.allclose(state["images"], wanted, rtol=1e-3, atol=1e-4 * float((wanted - start["images"]).abs().max()))


@pytest.mark.parametrize("strategy", ["color", "crop", "cutout", "flip", "scale", "rotate"])
def test_a_siamese_step_is_that_of_the_published_loops(strategy: str) -> None:
    given = problem(TRAIN, (3, 1, 2), network=network(CONVNET, classes=3))
    one = dsa(augment=f"dsa:{strategy}")
    start = one.init(given)
    new, metrics = one.step(given, start, turn(given))
    wanted, losses = reference(given, start, [turn(given)], DSA(strategy, siamese=True))
    assert metrics["loss"] == pytest.approx(losses[0], rel=1e-4)
    assert torch.allclose(new["images"], wanted, rtol=1e-3, atol=1e-4 * float((wanted - start["images"]).abs().max()))


@pytest.mark.parametrize("strategy", ["color_crop_cutout_flip_scale_rotate", "flip", "rotate"])
def test_real_and_synthetic_images_of_a_class_are_augmented_alike(strategy: str) -> None:
    given = problem(TRAIN, (9, 7, 8), network=network(CONVNET, classes=3))  # every real image is also a synthetic one
    one = dsa(augment=f"dsa:{strategy}", distance="mse")
    for number in (0, 2, 4, 6):  # steps that draw a network
        _, metrics = one.step(given, one.init(given), turn(given, number))
        assert metrics["loss"] < 1e-9


def test_the_network_lives_in_the_state_until_its_last_image_step() -> None:
    given, one = problem(TRAIN, (1, 1, 1), network=network(CONVNET, classes=3)), dc(outer=2)
    first, _ = one.step(given, one.init(given), turn(given, 0))
    drawn = given.network.init(turn(given, 0).streams["network"])
    kept = {name.removeprefix("network."): tensor for name, tensor in first.items() if name.startswith("network.")}
    assert kept.keys() == drawn.keys()
    assert not torch.equal(kept["head.weight"], drawn["head.weight"])
    second, _ = one.step(given, first, turn(given, 1))
    assert second.keys() == {"images", "images.momentum"}


def test_all_step_sizes_are_scaled() -> None:
    given, one = problem(TRAIN, (2, 2, 2), network=network(CONVNET, classes=3)), dc(inner=1)
    start = one.init(given)
    whole, half = (one.step(given, start, turn(given, 0, scale))[0] for scale in (1.0, 0.5))
    assert torch.allclose(half["images"] - start["images"], (whole["images"] - start["images"]) / 2, atol=1e-7)
    frozen, _ = one.step(given, start, turn(given, 0, 1e-12))
    drawn = given.network.init(turn(given).streams["network"])
    assert all(torch.allclose(frozen[f"network.{name}"], drawn[name], atol=1e-9) for name in drawn)


def test_images_that_are_not_finite_are_returned_for_the_driver_to_see() -> None:
    given, one = problem(TRAIN, (1, 1, 1), network=network(CONVNET, classes=3)), dc(image_lr=1e30)
    new, _ = one.step(given, one.init(given), turn(given, 0, 1e15))
    assert not new["images"].isfinite().all()


def test_loops_follow_the_published_table_and_lie_between_its_rows() -> None:
    assert all(loops(float(ipc)) == pair for ipc, pair in LOOPS.items())
    assert loops(5.0) == (5, 23)
    assert loops(25.0) == (25, 22)
    assert loops(200.0) == (50, 10)
    given = problem(gaussians((12, 12)), (10, 10))
    assert GradientMatching(GradientMatchingOptions()).total_steps(given) == 10_000
    assert GradientMatching(GradientMatchingOptions(steps=7)).total_steps(given) == 7
    assert GradientMatching(GradientMatchingOptions(iterations=3, outer=4)).total_steps(given) == 12
    assert dc(outer=None, inner=None)._loops(_mean_count(problem(gaussians((12, 12, 12)), (10, 0, 0)))) == (10, 50)


def test_a_class_without_images_is_left_out() -> None:
    given, one = problem(TRAIN, (2, 0, 1)), dc()
    new, _ = one.step(given, one.init(given), turn(given))
    assert one.finish(given, new).owners.tolist() == [0, 0, 2]


def test_batch_statistics_are_those_of_real_images() -> None:
    net = network("convnet:depth=2,width=4,norm=batch", classes=3)
    given = problem(TRAIN, (1, 1, 1), network=net)
    weights, streams = net.init(given.streams["network"]), given.streams["statistics"]
    before = {name: tensor.clone() for name, tensor in weights.items()}
    settled = with_real_statistics(given, weights, streams)
    module = net.loaded(weights).train()
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    module(torch.cat([real_batch(given, given.members(k), 16, streams.torch("real", k)) for k in range(3)]))
    for name, wanted in module.state_dict().items():
        assert torch.allclose(settled[name].double(), wanted.double(), rtol=1e-5, atol=1e-6)
        assert torch.equal(weights[name], before[name])


def test_with_batch_normalization_gradients_are_taken_under_frozen_statistics() -> None:
    net = network("convnet:depth=1,width=4,norm=batch", classes=3)
    given, one = problem(TRAIN, (2, 1, 1), network=net), dc()
    start, of = one.init(given), turn(given)
    new, metrics = one.step(given, start, of)
    weights = with_real_statistics(given, net.init(of.streams["network"]), of.streams["statistics"])
    frozen = net.loaded(weights)  # in evaluation mode
    total = 0.0
    for k, own in enumerate(start["images"].split([2, 1, 1])):
        real = real_batch(given, given.members(k), 16, of.streams.torch("real", k))
        pair = [
            torch.autograd.grad(torch.nn.functional.cross_entropy(frozen(shown), torch.full((len(shown),), k)), list(frozen.parameters()))
            for shown in (own, real)
        ]
        total += DISTANCES["ours"](*pair).item()
    assert metrics["loss"] == pytest.approx(total, rel=1e-4)
    assert not torch.equal(new["network.body.0.norm.running_mean"], weights["body.0.norm.running_mean"])  # training moves them again


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


def test_the_graph_is_that_of_one_class() -> None:
    peaks = []
    for classes in (2, 6):
        # the head has a row for every class; 12 classes' weights keep it the same
        given = problem(gaussians(8, classes=12), (3,) * classes + (0,) * (12 - classes), network=network(CONVNET, classes=12))
        one = dc(inner=0)
        state = one.init(given)
        with peak_of_saved_bytes() as most:
            one.step(given, state, turn(given))
        peaks.append(most[0])
    assert peaks[1] < 1.05 * peaks[0]


def test_compiled_programs_see_one_shape_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: set[int] = set()

    def noting(function: Callable[..., torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        def program(weights: object, shown: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            shapes.add(len(shown))
            return function(weights, shown, rows)

        return program

    monkeypatch.setattr(torch, "compile", noting)
    monkeypatch.setattr(matching, "can_compile", lambda device_type: True)
    given = problem(TRAIN, (3, 1, 2), network=network("convnet-d1-w7", classes=3))
    plans = [ExecutionPlan(chunk=4, threads=1, strategy=strategy) for strategy in ("eager", "compiled")]
    one = dc(inner=0)
    eager, compiled = (one.step(Problem(**{**vars(given), "plan": plan}), one.init(given), turn(given)) for plan in plans)
    assert shapes == {3}  # classes of 9, 7 and 8 real images, so the second and third are filled up
    assert torch.allclose(eager[0]["images"], compiled[0]["images"], atol=1e-6)
    assert eager[1]["loss"] == pytest.approx(compiled[1]["loss"], rel=1e-5)


def test_the_defaults_are_the_published_settings() -> None:
    options = GradientMatchingOptions()
    assert (options.start, options.image_lr, options.momentum, options.iterations, options.real_batch) == ("noise", 0.1, 0.5, 1000, 256)
    assert (options.distance, options.network_lr, options.network_batch) == ("ours", 0.01, 256)
    assert "augment" not in GradientMatchingOptions.model_fields
    siamese = SiameseGradientMatchingOptions()
    assert (siamese.start, siamese.augment) == ("real", "dsa")
    with pytest.raises(OptionError, match="none or dsa, got augment='mixup'"):
        dsa(augment="mixup")

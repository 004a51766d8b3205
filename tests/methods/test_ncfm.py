import math

import pytest
import torch
from tests.methods.test_conformance import task
from tests.small import network, problem

from limbeck.errors import OptionError
from limbeck.methods.driver import Turn, run_method
from limbeck.methods.ncfm import NCFM, WEIGHT, characteristic, discrepancy, sampled


def method(**options: object) -> NCFM:
    return NCFM(NCFM.Options(**{"real_batch": 16, "augment": "none", "frequencies": 32, "image_lr": 0.05, "steps": 20, **options}))


def drawn(rows: int, *, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_characteristic_function_of_gaussian_features_is_the_known_one() -> None:
    frequencies = drawn(20, width=3, seed=1)
    mean = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    real, imaginary = characteristic(mean + drawn(200_000, width=3), frequencies)
    wanted = torch.exp(1j * (frequencies @ mean) - frequencies.square().sum(1) / 2)
    # each part is the mean of 200,000 numbers within [-1, 1]
    assert (torch.complex(real, imaginary) - wanted).abs().max() < 5 / math.sqrt(200_000)


def test_equal_weights_give_the_distance_in_the_complex_plane() -> None:
    frequencies = drawn(50, seed=1)
    first, second = characteristic(drawn(7), frequencies), characteristic(drawn(5, seed=3), frequencies)
    apart = (torch.complex(*first) - torch.complex(*second)).abs() / math.sqrt(2)
    assert torch.allclose(discrepancy(first, second, 0.5, 0.5), apart.mean(), rtol=1e-9)
    sizes = (torch.complex(*first).abs() - torch.complex(*second).abs()).abs()
    assert torch.allclose(discrepancy(first, second, 1.0, 0.0), sizes.mean(), rtol=1e-6)


def test_equal_features_have_no_discrepancy_and_a_finite_gradient() -> None:
    rows = drawn(4).requires_grad_()
    frequencies = drawn(50, seed=1)
    gap = discrepancy(characteristic(rows.detach(), frequencies), characteristic(rows, frequencies), 0.5, 0.5)
    gap.backward()
    assert gap.item() < 2e-6
    assert torch.isfinite(rows.grad).all()


def test_the_gradient_of_a_step_is_that_of_one_graph_over_everything() -> None:
    given = task(counts=(3, 3))
    one = method(calibration=0.0)
    state = one.init(given)
    turn = Turn(0, 1.0, given.streams["step", 0])
    new, metrics = one.step(given, state, turn)
    # Adam's first memory holds (1 - 0.9) times the gradient, in units of [0, 1] pixels
    unit = state["high"] - state["low"]
    found = new["images.mean"] / 0.1
    frequencies, _ = one._frequencies(given, state, turn)
    generator = turn.streams.torch("extractor")
    trajectory = given.trajectories[int(torch.randint(len(given.trajectories), (), generator=generator))]
    share = float(torch.rand((), generator=generator))
    first, last = trajectory.at(0).state, trajectory.last
    weights = {name: (1 - share) * first[name] + share * tensor for name, tensor in trajectory.at(last.step).state.items()}
    images = (state["images"] / unit).requires_grad_()
    total = torch.zeros(())
    for number in range(2):
        chosen = given.members(number)[torch.randperm(30, generator=turn.streams.torch("real", number))[:16]]
        pair = []
        for shown in (given.pixels(given.train.read(chosen)), (images * unit)[3 * number : 3 * number + 3]):
            rows = given.network.features(weights, shown)
            angles = (rows / rows.norm(dim=1, keepdim=True)) @ frequencies.T
            pair.append(torch.complex(angles.cos(), angles.sin()).mean(0))
        total = total + WEIGHT * (pair[0] - pair[1]).abs().mean() / math.sqrt(2)
    (wanted,) = torch.autograd.grad(total, images)
    assert metrics["loss"] == pytest.approx(total.item(), rel=1e-4)
    # float32, and square roots of nearly nothing where the two functions nearly agree
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


def test_groups_of_classes_do_not_change_a_step() -> None:
    from dataclasses import replace

    given = task(counts=(3, 3))
    small = replace(given, plan=given.plan.model_copy(update={"chunk": 3}))
    for options in ({}, {"sampler": "learned"}):
        one = method(**options)
        turn = Turn(0, 1.0, given.streams["step", 0])
        (whole, _), (split, _) = (one.step(each, one.init(each), turn) for each in (given, small))
        assert torch.allclose(whole["images.mean"], split["images.mean"], rtol=1e-3, atol=1e-5)


def test_pixels_stay_in_their_range_and_the_loss_falls() -> None:
    given = task(counts=(3, 3))
    made = run_method(method(steps=40, start="noise", calibration=0.0), given)
    low, high = (method().init(given)[side] for side in ("low", "high"))
    assert (made.images >= low).all()
    assert (made.images <= high).all()
    one = method(start="noise", calibration=0.0)
    state = one.init(given)
    losses = []
    for number in range(40):
        # the same extractor, frequencies and images each time, so that the loss is one function
        state, metrics = one.step(given, state, Turn(number, 1.0, given.streams["step", 0]))
        losses.append(metrics["loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_the_learned_sampler_raises_the_loss() -> None:
    given = task(counts=(3, 3))
    one = method(sampler="learned", sampler_lr=1e-2, image_lr=1e-9, calibration=0.0)
    state = one.init(given)
    losses = []
    for number in range(30):
        state, metrics = one.step(given, state, Turn(number, 1.0, given.streams["step", 0]))
        losses.append(metrics["loss"])
    assert losses[-1] > 1.05 * losses[0]


def test_sampled_frequencies_are_bounded_and_follow_their_noise() -> None:
    given = task(counts=(1, 1))
    state = method(sampler="learned").init(given)
    noise = torch.randn(16, state["sampler.bias0"].numel(), generator=torch.Generator().manual_seed(0))
    frequencies = sampled(noise, state)
    assert frequencies.shape == noise.shape
    assert frequencies.abs().max() <= 1


def test_misuse_is_one_sentence() -> None:
    with pytest.raises(OptionError, match="both have weight 0"):
        method(amplitude=0.0, phase=0.0)
    given = problem(task().train, (1, 1))
    with pytest.raises(OptionError, match="ncfm needs experts and their training, got none; use --experts N"):
        run_method(method(), given)
    from dataclasses import replace

    other = replace(task(counts=(1, 1)), network=network("mlp"))
    with pytest.raises(OptionError, match="ncfm needs experts of the architecture that it distills for, got experts of softmax for mlp"):
        run_method(method(), other)

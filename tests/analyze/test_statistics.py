"""Agreement, error consistency and intervals, against closed forms."""

import math

import numpy as np
import pytest

from limbeck.analyze.statistics import agreement, bootstrap_images, error_consistency, half_width, over_repeats, percentiles
from limbeck.types.evaluation import t_interval


def kappa(first: np.ndarray, second: np.ndarray) -> float:
    return float(error_consistency(np.asarray(agreement(first, second)), np.asarray(first.mean()), np.asarray(second.mean())))


def test_identical_networks_agree_and_err_alike() -> None:
    right = np.arange(100) % 3 > 0
    assert agreement(right, right) == 1
    assert kappa(right, right) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("first", "second"), [(0.9, 0.6), (0.5, 0.5), (0.2, 0.8)])
def test_independent_errors_have_no_consistency(first: float, second: float) -> None:
    rng = np.random.default_rng(0)
    images = 200_000
    one, other = rng.random(images) < first, rng.random(images) < second
    # the standard error of an agreement over so many images is below 0.0012
    assert agreement(one, other) == pytest.approx(first * second + (1 - first) * (1 - second), abs=0.005)
    assert kappa(one, other) == pytest.approx(0, abs=0.015)


def test_opposite_errors_have_the_least_consistency() -> None:
    right = np.arange(100) % 2 == 0
    assert kappa(right, ~right) == pytest.approx(-1)


def test_kappa_is_that_of_the_formula_by_hand() -> None:
    # 10 images: both right 5, only the first 2, only the second 1, both wrong 2; p = 0.7, q = 0.6, c_obs = 0.7, c_exp = 0.42 + 0.12
    first, second = np.array([1] * 7 + [0] * 3) == 1, np.array([1] * 5 + [0] * 2 + [1] + [0] * 2) == 1
    assert kappa(first, second) == pytest.approx((0.7 - 0.54) / (1 - 0.54))


def test_networks_without_errors_have_no_kappa() -> None:
    assert math.isnan(kappa(np.ones(5), np.ones(5)))


def test_resamples_hold_as_many_images_and_are_fair() -> None:
    counts = bootstrap_images(50, 400, np.random.default_rng(1))
    assert counts.shape == (400, 50)
    assert (counts.sum(1) == 50).all()
    assert np.abs(counts.mean(0) - 1).max() < 5 / math.sqrt(400)


def test_half_width_of_a_mean_is_that_of_the_t_interval_and_images_add_to_it() -> None:
    values = np.array([0.2, 0.5, 0.9])
    left_out = np.array([np.delete(values, place).mean() for place in range(3)])
    interval = t_interval(values, "values")
    still = np.full(50, 0.3)
    assert half_width(still, [left_out]) == pytest.approx((interval.high - interval.low) / 2)
    assert half_width(still, []) == pytest.approx(0, abs=1e-12)
    images = np.random.default_rng(0).normal(0, 0.1, 4000)
    assert half_width(images, []) == pytest.approx(0.196, rel=0.05)
    assert 0.196 < half_width(images, [left_out]) < half_width(still, [left_out])  # more variance, and better known


def test_percentiles_leave_out_what_has_no_value() -> None:
    replicates = np.stack([np.arange(101.0), np.where(np.arange(101) % 2, np.nan, np.arange(101.0)), np.full(101, np.nan)], axis=1)
    low, high = percentiles(replicates)
    assert (low[0], high[0]) == pytest.approx((2.5, 97.5))
    assert (low[1], high[1]) == pytest.approx((2.5, 97.5))
    assert np.isnan([low[2], high[2]]).all()


def test_repeats_give_the_t_interval_and_one_gives_none() -> None:
    values = np.array([[0.5, 0.52, 0.51], [0.1, 0.9, 0.5]])
    made = over_repeats(values, ("model",), "networks", "fraction")
    expected = t_interval(values[0], "networks")
    assert made.low is not None
    assert made.high is not None
    assert (made.values[0], made.low[0], made.high[0]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (made.low[1], made.high[1]) == (0, 1)  # an interval of a fraction ends where fractions do
    assert over_repeats(values[:, :1], ("model",), "networks", "fraction").low is None
    assert over_repeats(values[0], (), "networks", "points").values.shape == ()

"""Robust scores: closed forms, components, and accuracies that are no fractions."""

import math

import pytest

from limbeck.errors import OptionError
from limbeck.evaluate.robust import NATURAL_ZERO, AugmentationRobustness, LabelRobustness, normalized


@pytest.mark.parametrize(("advantage", "score"), [(-1.0, 0), (-0.1, 0.228), (0.0, 0.269), (0.05, 0.291), (1.0, 1)])
def test_the_scale(advantage: float, score: float) -> None:
    assert normalized(advantage) == pytest.approx(score, abs=5e-4)


def test_the_natural_zero_is_one_over_one_plus_e() -> None:
    assert normalized(0.0) == pytest.approx(NATURAL_ZERO, abs=1e-15)
    assert pytest.approx((1 - math.exp(-1)) / (math.e - math.exp(-1))) == NATURAL_ZERO


def test_label_robustness_written_out() -> None:
    scores = LabelRobustness(real_hard=0.85, set_hard=0.45, set_own=0.60, random_own=0.50)
    assert scores.hard_label_recovery == pytest.approx(0.40)
    assert scores.improvement_over_random == pytest.approx(0.10)
    assert scores.alpha == pytest.approx(-0.15)
    assert scores.score == pytest.approx((math.exp(-0.15) - math.exp(-1)) / (math.e - math.exp(-1)))
    assert LabelRobustness(0.85, 0.45, 0.60, 0.50, weight=1.0).alpha == pytest.approx(0.10)
    assert LabelRobustness(0.85, 0.45, 0.60, 0.50, weight=0.0).alpha == pytest.approx(-0.40)


def test_a_set_as_good_as_its_references_scores_the_natural_zero() -> None:
    assert LabelRobustness(0.7, 0.7, 0.6, 0.6).score == pytest.approx(NATURAL_ZERO)
    assert AugmentationRobustness(0.7, 0.7, 0.6, 0.6).score == pytest.approx(NATURAL_ZERO)


def test_augmentation_robustness_written_out() -> None:
    scores = AugmentationRobustness(set_augmented=0.7, random_augmented=0.6, set_plain=0.5, random_plain=0.55, weight=0.25)
    assert scores.beta == pytest.approx(0.25 * 0.1 + 0.75 * -0.05)
    assert scores.score == pytest.approx(normalized(scores.beta))


def test_scores_stay_between_zero_and_one_at_the_extremes() -> None:
    assert LabelRobustness(1.0, 0.0, 0.0, 1.0).score == pytest.approx(0, abs=1e-15)
    assert LabelRobustness(0.0, 1.0, 1.0, 0.0).score == pytest.approx(1)


def test_percentages_are_refused() -> None:
    with pytest.raises(OptionError, match=r"^robust scores need accuracies as fractions from 0 to 1, got 56.5; divide percentages by 100$"):
        LabelRobustness(56.5, 46.4, 50.0, 40.0)
    with pytest.raises(OptionError, match=r"^robust scores need accuracies as fractions from 0 to 1, got nan"):
        AugmentationRobustness(0.5, math.nan, 0.5, 0.5)
    with pytest.raises(OptionError, match=r"^the weight of a robust score lies between 0 and 1, got 2; use 0.5$"):
        AugmentationRobustness(0.5, 0.5, 0.5, 0.5, weight=2.0)

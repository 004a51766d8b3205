"""Attacks on a Gaussian score model whose optimal attack is known, exactness of the randomization test, and the resolution rule."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm

from limbeck.errors import OptionError
from limbeck.leak.membership import AttackResult, LabelAttack, Rate, auc_of, draw_design, judge_attack, label_margin, lira, rmia, tpr_at

SCORES = np.random.default_rng(5).normal(0, 1, (4, 6))


def gaussian_worlds(worlds: int, records: int, shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores N(mu_i, 1), and N(mu_i + shift, 1) for members; mu_i varies far more than the shift, so one global threshold is weak."""
    rng = np.random.default_rng(seed)
    design = draw_design(worlds, records, rng)
    return rng.normal(0, 3, records) + shift * design + rng.normal(0, 1, (worlds, records)), design


def test_a_design_has_equal_rows_that_are_drawn_apart() -> None:
    design = draw_design(500, 40, np.random.default_rng(0))
    assert (design.sum(1) == 20).all()
    assert abs(np.corrcoef(design[0], design[1])[0, 1]) < 0.6
    assert np.abs(design.mean(0) - 0.5).max() < 0.1


def test_lira_reaches_the_optimal_attack_of_the_gaussian_model() -> None:
    shift = 2.0
    scores, design = gaussian_worlds(60, 400, shift)
    found = lira(scores, design)
    assert auc_of(found, design) == pytest.approx(norm.cdf(shift / np.sqrt(2)), abs=0.015)
    for rate in (0.01, 0.1):
        assert tpr_at(found, design, rate) == pytest.approx(norm.cdf(shift - norm.isf(rate)), abs=0.05)
    # a threshold on the raw score, without shadows, does far worse at low rates
    assert tpr_at(scores, design, 0.01) < 0.5 * norm.cdf(shift - norm.isf(0.01))


def test_lira_with_its_own_variance_for_each_record() -> None:
    scores, design = gaussian_worlds(120, 100, 2.0)
    assert auc_of(lira(scores, design), design) == pytest.approx(norm.cdf(2 / np.sqrt(2)), abs=0.02)


def test_rmia_orders_the_gaussian_model_almost_as_well_with_few_shadows() -> None:
    scores, design = gaussian_worlds(9, 400, 2.0, seed=1)
    population = np.random.default_rng(2).normal(0, 3, 300) + np.random.default_rng(3).normal(0, 1, (9, 300))
    found = rmia(1 / (1 + np.exp(-scores)), 1 / (1 + np.exp(-population)), design)
    assert found.min() >= 0
    assert found.max() <= 1
    assert auc_of(found, design) > 0.75
    assert auc_of(found, design) > auc_of(scores, design) + 0.05


def test_labels_that_carry_each_record_a_little_are_attacked_at_their_optimum() -> None:
    rng = np.random.default_rng(4)
    design = draw_design(80, 20, rng)
    directions = rng.normal(0, 1, (20, 400))
    rows = design @ directions + rng.normal(0, 4, (80, 400))
    assert auc_of(LabelAttack(rows)(design), design) > 0.9
    assert abs(auc_of(LabelAttack(rng.normal(0, 4, (80, 400)))(design), design) - 0.5) < 0.06


@pytest.mark.parametrize("attack", ["lira", "rmia", "labels"])
def test_outputs_without_members_give_uniform_p_values(attack: str) -> None:
    rng = np.random.default_rng(7)
    p_values = []
    for _ in range(25):
        design = draw_design(5, 30, rng)
        scores, population, rows = rng.normal(0, 1, (5, 30)), rng.normal(0, 1, (5, 50)), rng.normal(0, 1, (5, 40))
        run = {
            "lira": lambda d, s=scores: lira(s, d),
            "rmia": lambda d, s=scores, z=population: rmia(norm.cdf(s), norm.cdf(z), d),
            "labels": LabelAttack(rows),
        }[attack]
        p_values.append(judge_attack(run, design, rng, alpha=0.05, redraws=49, bootstraps=1).p_value)
    assert 0.3 < np.mean(p_values) < 0.7


def test_a_real_effect_has_a_small_p_value_and_an_interval_around_the_truth() -> None:
    scores, design = gaussian_worlds(12, 200, 1.0)
    found = judge_attack(lambda d: lira(scores, d), design, np.random.default_rng(99), alpha=0.01, redraws=300, bootstraps=200)
    assert found.p_value == pytest.approx(1 / 301)
    assert found.auc_low < found.auc < found.auc_high
    assert found.auc > found.critical
    assert found.verdict(0.1) == "leak"
    assert (found.members, found.non_members, found.records, found.worlds) == (1200, 1200, 200, 12)
    curve = np.array(found.curve)
    assert (np.diff(curve, axis=0) >= 0).all()
    assert curve[-1].tolist() == [1.0, 1.0]


def test_a_rate_is_given_only_where_the_non_members_resolve_it() -> None:
    scores, design = gaussian_worlds(12, 200, 1.0)  # 1200 non-members
    found = judge_attack(lambda d: lira(scores, d), design, np.random.default_rng(0), alpha=0.01, redraws=20, bootstraps=20)
    assert found.rates["0.001"] is None
    assert found.rates["0.01"] is not None
    assert (found.tested, found.level) == ("0.01", 0.005)
    few = judge_attack(lambda d: lira(scores[:4], d), design[:4], np.random.default_rng(0), alpha=0.01, redraws=20, bootstraps=20)
    assert few.rates == {"0.001": None, "0.01": None}
    assert (few.tested, few.level) == (None, 0.01)


def test_a_few_records_that_are_fully_exposed_leak_though_the_area_hides_them() -> None:
    rng = np.random.default_rng(5)
    design = draw_design(9, 400, rng)
    scores = rng.normal(0, 1, (9, 400))
    scores[:, :12] += 20 * design[:, :12]
    found = judge_attack(lambda d: lira(scores, d), design, rng, alpha=0.005, redraws=400, bootstraps=100)
    assert found.p_value > 0.1
    assert found.auc_high < 0.6
    rate = found.rates["0.01"]
    assert rate is not None
    assert rate.p_value == pytest.approx(1 / 401)
    assert rate.low > 0.01
    assert rate.tpr >= rate.critical
    assert found.verdict(0.1) == "leak"


def result(**changes: Any) -> AttackResult:
    given: dict[str, Any] = {
        "auc": 0.5,
        "auc_low": 0.45,
        "auc_high": 0.55,
        "p_value": 0.5,
        "redraws": 100,
        "level": 0.01,
        "critical": 0.6,
        "tested": "0.01",
        "rates": {"0.001": None, "0.01": Rate(0.02, 0.0, 0.05, 0.4, 0.06)},
        "members": 9,
        "non_members": 9,
        "records": 2,
        "worlds": 9,
        "curve": (),
    }
    return AttackResult(**{**given, **changes})


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "clean"),
        ({"p_value": 0.01}, "leak"),
        ({"auc_high": 0.61}, "inconclusive"),
        ({"rates": {"0.01": Rate(0.03, 0.0, 0.05, 0.01, 0.02)}}, "leak"),
        ({"rates": {"0.01": Rate(0.03, 0.012, 0.05, 0.02, 0.06)}}, "inconclusive"),  # more than guessing, as it seems
        ({"rates": {"0.01": Rate(0.03, 0.0, 0.12, 0.2, 0.2)}}, "inconclusive"),  # an excess of 0.1 is not excluded
        ({"tested": None, "rates": {"0.01": None}}, "clean"),
    ],
)
def test_clean_needs_both_the_area_and_the_rate(changes: dict[str, Any], verdict: str) -> None:
    assert result(**changes).verdict(0.1) == verdict


@pytest.mark.parametrize("seed", range(3))
def test_the_critical_value_is_the_smallest_that_leaks(seed: int) -> None:
    """Values at it have a p-value of at most the level, and those one step below it do not: the k-th largest null value itself does not leak."""
    rng = np.random.default_rng(seed)
    design = draw_design(4, 6, rng)
    observed: list[np.ndarray] = []

    def attack(drawn: np.ndarray) -> np.ndarray:  # few records, so that null values tie often
        observed.append(drawn)
        return lira(SCORES, drawn)

    found = judge_attack(attack, design, rng, alpha=0.1, redraws=99, bootstraps=1)
    null = np.array([auc_of(lira(SCORES, drawn), drawn) for drawn in observed[1:]])
    step = 0.5 / (12 * 12)
    assert (1 + (null >= found.critical - 1e-9).sum()) / 100 <= found.level
    assert (1 + (null >= found.critical - step - 1e-9).sum()) / 100 > found.level


def test_the_area_under_the_curve_agrees_with_sklearn_on_ties() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, members = rng.integers(0, 5, 300).astype(float), rng.random(300) < 0.4
    assert auc_of(scores, members) == pytest.approx(roc_auc_score(members, scores), abs=1e-12)


def test_the_margin_is_the_logit_of_the_labels_probability_even_where_that_rounds_to_one() -> None:
    logits, labels = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), np.array([0, 1, 2, 3, 0, 1])
    p = logits.softmax(-1).numpy()[:, np.arange(6), labels]
    assert label_margin(logits.numpy(), labels) == pytest.approx(np.log(p / (1 - p)), abs=1e-10)
    assert label_margin(np.array([[800.0, 0.0]]), np.array([0])).tolist() == [800.0]


def test_a_single_world_is_refused() -> None:
    with pytest.raises(OptionError, match="at least 2 worlds and 2 records, got 1 and 10"):
        draw_design(1, 10, np.random.default_rng(0))

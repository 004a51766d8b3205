"""Exact randomization of labels, Newcombe's interval, and the false-alarm rate of the verdict."""

import numpy as np
import pytest
from scipy.stats import binom

from limbeck.errors import OptionError
from limbeck.leak.exposure import effective_records, exposure, hits_pmf, newcombe, upper_tail, votes, wilson


def predictions_of(students: int, records: int, classes: int, seed: int = 0) -> np.ndarray:
    """Students that agree with each other mostly, and favor some classes: nothing that a label test may be upset by."""
    rng = np.random.default_rng(seed)
    favored = rng.choice(classes, records, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    return np.where(rng.random((students, records)) < 0.8, favored, rng.integers(0, classes, (students, records)))


def halves(records: int) -> np.ndarray:
    return np.arange(records) < records // 2


def test_one_student_has_binomial_hits() -> None:
    pmf = hits_pmf(votes(predictions_of(1, 30, 7), 7))
    assert pmf == pytest.approx(binom.pmf(np.arange(31), 30, 1 / 7), abs=1e-14)
    assert upper_tail(pmf, 9) == pytest.approx(binom.sf(8, 30, 1 / 7), abs=1e-14)


def test_several_students_together_match_an_enumeration_of_all_labels() -> None:
    predictions = predictions_of(3, 4, 3, seed=2)
    counts = votes(predictions, 3)
    found = np.zeros(13)
    for labels in np.ndindex(3, 3, 3, 3):
        found[sum(counts[i, label] for i, label in enumerate(labels))] += 1 / 81
    assert hits_pmf(counts) == pytest.approx(found, abs=1e-14)


@pytest.mark.parametrize(
    ("first", "n", "second", "m", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        (56 / 70, 70, 48 / 80, 80, 0.0524, 0.3339),
        (9 / 10, 10, 3 / 10, 10, 0.1705, 0.8090),
        (6 / 7, 7, 2 / 7, 7, 0.0582, 0.8062),
        (5 / 56, 56, 0 / 29, 29, -0.0381, 0.1926),
        (0 / 10, 10, 0 / 20, 20, -0.1611, 0.2775),
        (10 / 10, 10, 0 / 20, 20, 0.6791, 1.0),
    ],
)
def test_newcombes_published_intervals(first: float, n: int, second: float, m: int, low: float, high: float) -> None:
    assert newcombe(first, n, second, m) == pytest.approx((low, high), abs=5e-5)


def test_wilson_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    expected = binomtest(13, 40).proportion_ci(method="wilson")
    assert wilson(13 / 40, 40) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_effective_records_are_those_whose_mean_varies_as_much() -> None:
    rng = np.random.default_rng(0)
    assert effective_records((rng.random(500) < 0.3).astype(float)) == pytest.approx(500, rel=0.01)
    apart = (rng.random((8, 20_000)) < 0.3).mean(0)  # eight students that err independently are worth eight times the records
    assert effective_records(apart) == pytest.approx(160_000, rel=0.05)
    assert effective_records(np.zeros(50)) == 50


def test_the_interval_of_a_mean_over_students_covers_the_truth_at_its_rate() -> None:
    rng, covered, rounds = np.random.default_rng(8), 0, 250
    labels, members = np.zeros(200, dtype=np.int64), halves(200)
    for _ in range(rounds):
        skill = np.where(members, rng.beta(2, 3, 200), rng.beta(1, 9, 200))  # 0.4 and 0.1 on average
        predictions = (rng.random((4, 200)) > skill).astype(np.int64)
        found = exposure(predictions, labels, members, 10, rng, alpha=0.01, redraws=1)
        covered += found.low <= 0.3 <= found.high
    assert 0.92 < covered / rounds < 0.99


def test_the_verdict_calls_clean_data_a_leak_at_its_stated_rate() -> None:
    records, classes, alpha, rounds = 120, 5, 0.05, 500
    predictions, rng = predictions_of(3, records, classes), np.random.default_rng(5)
    alarms = 0
    size = 0.0
    for _ in range(rounds):
        found = exposure(predictions, rng.integers(0, classes, records), halves(records), classes, rng, alpha=alpha, redraws=1)
        alarms += found.verdict(0.5) == "leak"
        size = found.size
        assert (found.verdict(0.5) == "leak") == (found.value >= found.critical - 1e-12)
    assert 0.03 < size <= alpha
    assert abs(alarms / rounds - size) < 4 * np.sqrt(size * (1 - size) / rounds)


def test_redrawn_labels_confirm_the_exact_rate() -> None:
    predictions, rng = predictions_of(2, 200, 10), np.random.default_rng(1)
    found = exposure(predictions, rng.integers(0, 10, 200), halves(200), 10, rng, alpha=0.01, redraws=20_000)
    assert abs(found.redraw_rate - found.size) < 4 * np.sqrt(0.01 / 20_000)


def test_students_that_know_a_fifth_of_the_canaries_are_found_and_the_interval_covers() -> None:
    rng = np.random.default_rng(3)
    labels, members = rng.integers(0, 10, 400), halves(400)
    predictions = rng.integers(0, 10, (2, 400))
    known = members & (rng.random(400) < 0.2)
    predictions[:, known] = labels[known]
    found = exposure(predictions, labels, members, 10, rng, alpha=0.01)
    assert found.verdict(0.1) == "leak"
    assert found.p_value < 1e-4
    assert found.low < 0.18 < found.high
    assert found.p_chance < 1e-4


def test_too_few_canaries_cannot_clear_anything() -> None:
    rng = np.random.default_rng(0)
    found = exposure(rng.integers(0, 10, (1, 20)), rng.integers(0, 10, 20), halves(20), 10, rng, alpha=0.01)
    assert found.verdict(0.1) == "inconclusive"
    assert found.detectable > 0.3


def test_unequal_groups_are_refused() -> None:
    with pytest.raises(OptionError, match="as many canaries as controls, got 3 of 10"):
        exposure(np.zeros((1, 10), int), np.zeros(10, int), np.arange(10) < 3, 5, np.random.default_rng(0), alpha=0.05)

"""The numbers of the agreement analysis from predictions that are known, and its refusals."""

import numpy as np
import pytest
import torch
from tests.small import gaussians, subject

from limbeck.analyze.agreement import Agreement, _Seen
from limbeck.analyze.subject import NotApplicable
from limbeck.progress import SILENT
from limbeck.types.measurement import Quantity

IMAGES, CLASSES = 600, 5
STEPS = np.array([0, 1, 3, 9])


def wrong_on(truth: np.ndarray, which: np.ndarray) -> np.ndarray:
    return np.where(which, (truth + 1) % CLASSES, truth)


def numbers(seen: _Seen, **options: float) -> dict[str, Quantity]:
    made = Agreement(Agreement.Options(resamples=50, **options))
    quantities, _ = made._quantities({"test": seen, "validation": seen}, STEPS, [5] * len(seen.subsets), np.random.default_rng(0))
    return quantities


def test_a_run_that_is_the_student_at_one_step_is_found_there() -> None:
    rng, truth = np.random.default_rng(2), np.arange(IMAGES) % CLASSES
    student = wrong_on(truth, rng.random(IMAGES) < 0.2)
    steps = [wrong_on(truth, rng.random(IMAGES) < share) for share in (0.8, 0.2)] + [student, wrong_on(truth, rng.random(IMAGES) < 0.05)]
    subset = wrong_on(truth, rng.random(IMAGES) < 0.2)  # as accurate as the student, and independent of it
    made = numbers(_Seen(student[None], np.stack(steps)[None], subset[None], truth))
    assert made["early_stop_step"].values == 3
    assert (made["early_stop_step"].low, made["early_stop_step"].high) == (3, 3)
    assert made["agreement_at"].values[0, 2] == 1
    assert made["kappa_at"].values[0, 2] == pytest.approx(1)
    assert made["agreement_at_early_stop"].values == 1
    assert made["kappa_at"].values[0, 1] == pytest.approx(0, abs=0.12)  # independent errors of the same rate: agreement, but no consistency
    assert made["agreement_at"].values[0, 1] == pytest.approx(0.68, abs=0.06)
    assert made["matched_kappa"].values[1] == pytest.approx(0, abs=0.12)
    assert made["early_minus_subset"].low is not None
    assert np.isnan(made["students_agree"].values)  # of one student there is no pair
    assert np.isnan(made["agreement_at"].values[1]).all()


def test_whole_numbers_of_resamples_make_agreement_exact_and_intervals_hold_the_value() -> None:
    rng, truth = np.random.default_rng(3), np.arange(IMAGES) % CLASSES
    draw = lambda share: wrong_on(truth, rng.random(IMAGES) < share)  # noqa: E731
    students, subsets = np.stack([draw(0.3) for _ in range(3)]), np.stack([draw(share) for share in (0.1, 0.2, 0.3, 0.4)])
    runs = np.stack([np.stack([draw(share) for share in (0.8, 0.5, 0.3, 0.1)]) for _ in range(2)])
    made = numbers(_Seen(students, runs, subsets, truth), nearest=1)
    direct = (students[:, None, None] == runs[None]).mean(-1).mean((0, 1))
    assert made["agreement_at"].values[0] == pytest.approx(direct, abs=1e-12)
    assert made["accuracy"].values[0] == pytest.approx((students == truth).mean())
    for name in ("agreement_at", "kappa_at", "accuracy_at", "matched_agreement", "early_minus_subset"):
        quantity = made[name]
        assert quantity.low is not None
        assert quantity.high is not None
        known = ~np.isnan(quantity.values)
        assert (quantity.low[known] <= quantity.values[known] + 0.02).all()
        assert (quantity.high[known] >= quantity.values[known] - 0.02).all()
    # the subset network of the same accuracy is the third, and the snapshot the third
    assert made["accuracy"].values[2] == pytest.approx((subsets[2] == truth).mean(), abs=0.06)
    assert made["accuracy_match_step"].values == 3


def test_networks_of_another_accuracy_are_not_compared() -> None:
    rng, truth = np.random.default_rng(4), np.arange(IMAGES) % CLASSES
    draw = lambda share: wrong_on(truth, rng.random(IMAGES) < share)  # noqa: E731
    runs = np.stack([np.stack([draw(share) for share in (0.8, 0.7, 0.6, 0.5)]) for _ in range(2)])
    made = Agreement(Agreement.Options(resamples=20))
    seen = _Seen(np.stack([draw(0.1), draw(0.1)]), runs, draw(0.1)[None], truth)
    quantities, notes = made._quantities({"test": seen, "validation": seen}, STEPS, [5], np.random.default_rng(0))
    assert np.isnan(quantities["early_minus_subset"].values)
    assert any(note.startswith("the early-stopped networks nearest in accuracy reach") and note.endswith("use more epochs") for note in notes)


def test_few_networks_make_wide_intervals() -> None:
    rng, truth = np.random.default_rng(5), np.arange(IMAGES) % CLASSES
    draw = lambda share: wrong_on(truth, rng.random(IMAGES) < share)  # noqa: E731
    students, subset = np.stack([draw(0.1), draw(0.3)]), draw(0.2)[None]
    runs = np.stack([draw(share) for share in (0.8, 0.5, 0.2, 0.1)])[None]
    both, one = (numbers(_Seen(part, runs, subset, truth), tolerance=1.0) for part in (students, students[:1]))
    low, high = both["accuracy"].low, both["accuracy"].high
    assert low is not None
    assert high is not None
    assert high[0] - low[0] > 0.9  # two students that differ by 20 points say next to nothing about a third
    assert one["accuracy"].high is not None
    assert one["accuracy"].high[0] - one["accuracy"].values[0] < 0.05


def test_without_validation_images_there_is_no_early_stop_point() -> None:
    given = subject(validation=gaussians(0))
    with pytest.raises(NotApplicable, match="^agreement finds the early-stop point on validation images, and there are none; use --validation 0.1$"):
        Agreement(Agreement.Options()).measure(given, SILENT)


def test_subsets_grow_from_the_size_of_the_set_and_hold_its_balance() -> None:
    given = subject()
    made, sizes = Agreement(Agreement.Options(subset_sizes=3, subset_seeds=2, subset_largest=4))._subsets(given)
    assert sizes == [6, 6, 12, 12, 24, 24]
    first, second = made[0].examples(), made[1].examples()
    assert torch.bincount(first.targets).tolist() == [3, 3]
    assert first.table.record_digests().tolist() != second.table.record_digests().tolist()  # type: ignore[union-attr]
    assert {one.recipe.steps for one in made} == {given.recipe.total_steps(6)}

"""The scaling law: known laws come back, intervals cover at their rate, and the front and the saving agree with reasoning by hand."""

import numpy as np
import pytest

from limbeck.errors import OptionError
from limbeck.labels.scaling import data_saving, fit_scaling, multipliers, pareto_front
from limbeck.types.evaluation import t_interval

BUDGETS = np.tile(np.repeat([1.0, 2, 5, 10, 20, 50], 3), 2)
SOFT = np.repeat([False, True], 18)


def published(images: np.ndarray, saving: float = 6.04) -> np.ndarray:
    """The label paper's two curves, section 4.3."""
    return (np.where(SOFT, saving, 1) * images / 29.9) ** 0.077 - 0.8


def test_the_published_law_comes_back() -> None:
    law = fit_scaling(BUDGETS, published(BUDGETS), SOFT, generator=np.random.default_rng(0), samples=20)
    assert law.saving is not None
    assert (law.exponent.value, law.saving.value, law.scale, law.offset) == pytest.approx((0.077, 6.04, 29.9, -0.8), rel=1e-6)
    assert law.residual < 1e-12
    assert law(np.array([10.0])) == pytest.approx((10 / 29.9) ** 0.077 - 0.8)
    assert law(np.array([10.0]), soft=True) == pytest.approx((60.4 / 29.9) ** 0.077 - 0.8)


@pytest.mark.parametrize("exponent", [-0.5, 0.0, 0.3])
def test_saturating_logarithmic_and_growing_laws_come_back(exponent: float) -> None:
    seen = np.where(SOFT, 4.0, 1.0) * BUDGETS
    truth = 0.2 + 0.1 * (np.log(seen) if exponent == 0 else (seen**exponent - 1) / exponent)
    law = fit_scaling(BUDGETS, truth, SOFT, generator=np.random.default_rng(0), samples=20)
    assert law.saving is not None
    assert law.exponent.value == pytest.approx(exponent, abs=1e-5)
    assert law.saving.value == pytest.approx(4, rel=1e-4)
    assert np.isnan(law.scale) == (exponent <= 0)


def test_intervals_cover_at_their_rate() -> None:
    rng, repeats = np.random.default_rng(3), 60
    truth = published(BUDGETS)
    covered = np.zeros(2)
    for number in range(repeats):
        noisy = truth + rng.normal(0, 0.005, len(truth))
        law = fit_scaling(BUDGETS, noisy, SOFT, generator=np.random.default_rng(number), samples=100)
        assert law.saving is not None
        covered += [law.exponent.low <= 0.077 <= law.exponent.high, law.saving.low <= 6.04 <= law.saving.high]
    # of 60 intervals at 95 %, 51 or fewer cover with probability 0.3 %
    assert (covered > 51).all()


def test_intervals_over_draws_cover_although_all_points_share_them() -> None:
    draws = 2
    budgets, soft = np.tile([1.0, 3, 10, 30], 2 * draws), np.tile(np.repeat([False, True], 4), draws)
    truth, draw = (np.where(soft, 6.04, 1) * budgets / 29.9) ** 0.077 - 0.8, np.repeat(np.arange(draws), 8)
    rng, covered = np.random.default_rng(3), np.zeros(2)
    for number in range(40):
        # images nest along the budgets, and soft labels lift some draws more than others
        nested = rng.normal(0, 0.003, (draws, 2, 4)).cumsum(2) + rng.normal(0, 0.01, (draws, 1, 1))
        law = fit_scaling(budgets, truth + nested.ravel(), soft, generator=np.random.default_rng(number), samples=100, repeats=[draw])
        assert law.saving is not None
        covered += [law.exponent.low <= 0.077 <= law.exponent.high, law.saving.low <= 6.04 <= law.saving.high]
    # of 40 intervals at 95 %, 33 or fewer cover with probability 0.3 %; single residuals as entries cover the saving in 29
    assert (covered > 33).all(), covered


def test_multipliers_make_students_interval() -> None:
    values = np.array([0.3, 0.5, 0.4])
    moved = multipliers([np.arange(3)], 200_000, np.random.default_rng(0)) @ (values - values.mean()) / 3
    expected = t_interval(values, "draws")
    assert np.quantile(moved, [0.025, 0.975]) + values.mean() == pytest.approx([expected.low, expected.high], rel=0.03)
    shared = multipliers([np.array([0, 0, 1]), np.array([0, 1, 0])], 2, np.random.default_rng(0))
    assert shared[:, 0] != pytest.approx(shared[:, 1])
    assert multipliers([], 10, np.random.default_rng(0)).size == 0


def test_one_curve_has_no_saving() -> None:
    law = fit_scaling(BUDGETS[:18], published(BUDGETS)[:18], SOFT[:18], generator=np.random.default_rng(0), samples=20)
    assert law.saving is None
    assert law.exponent.value == pytest.approx(0.077, rel=1e-5)


def test_too_little_to_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="a power law with 3 parameters needs more than 3 accuracies at 3 or more budgets, got 3 at 3; add images"):
        fit_scaling(np.array([1.0, 2, 3]), np.array([0.1, 0.2, 0.3]), np.zeros(3, dtype=bool), generator=np.random.default_rng(0))
    with pytest.raises(OptionError, match="images per class above 0 and finite accuracies"):
        fit_scaling(BUDGETS, np.full(36, np.nan), SOFT, generator=np.random.default_rng(0))


def test_the_saving_read_off_a_measured_curve() -> None:
    hard = np.array([1.0, 10, 100]), np.array([0.1, 0.2, 0.3])
    found = data_saving(*hard, np.array([1.0, 10, 1, 10]), np.array([0.2, 0.25, 0.05, 0.35]))
    assert found[:2] == pytest.approx([10, 10**0.5])
    assert np.isnan(found[2:]).all()
    dented = data_saving(np.array([1.0, 10, 100]), np.array([0.2, 0.1, 0.3]), np.array([1.0]), np.array([0.2]))
    assert dented == pytest.approx([1])


def test_the_front_holds_what_nothing_beats() -> None:
    cost, value = np.array([3.0, 1, 2, 2, 1, 4]), np.array([0.5, 0.2, 0.4, 0.3, 0.2, 0.5])
    assert pareto_front(cost, value).tolist() == [1, 2, 0]

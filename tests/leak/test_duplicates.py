"""Planted copies are found, clean controls pass at the stated rate, and averages are not taken for copies."""

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from limbeck.leak.duplicates import NearCopies, near_copies, nearest


def cloud(count: int, seed: int) -> torch.Tensor:
    """Points in 40 dimensions around five centers."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(0, 3, (5, 40))
    return torch.from_numpy(centers[rng.integers(0, 5, count)] + rng.normal(0, 1, (count, 40))).float()


def compared(published: torch.Tensor, controls: torch.Tensor, private: torch.Tensor) -> NearCopies:
    given = nearest(published, private).relative.numpy(), nearest(controls, private).relative.numpy()
    return near_copies(*given, space="pixels", half_level=0.01)


def test_neighbors_agree_with_a_dense_float64_reference() -> None:
    queries, private = cloud(30, 1), cloud(5000, 2)
    found = nearest(queries, private)
    distances = (queries.double()[:, None] - private.double()[None]).square().mean(2).sqrt().sort(1)
    assert torch.equal(found.index, distances.indices[:, 0])
    assert torch.allclose(found.distance.double(), distances.values[:, 0], rtol=1e-6)
    assert torch.allclose(found.around.double(), distances.values[:, 1:11].mean(1), rtol=1e-6)
    assert torch.allclose(found.relative.double(), distances.values[:, 0] / distances.values[:, 1:11].mean(1), rtol=1e-5)


def test_an_exact_copy_has_distance_zero_and_a_noisy_one_is_near() -> None:
    private = cloud(500, 2)
    noisy = private[7] + 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    found = nearest(torch.stack([private[3], noisy, private.mean(0)]), private)
    assert found.distance[0] == 0
    assert found.index[:2].tolist() == [3, 7]
    assert found.relative[1] < 0.1
    assert found.relative[2] > 0.8  # an average is about as near to many


def test_planted_copies_are_found_and_only_they() -> None:
    private, controls = cloud(2000, 2), cloud(400, 3)
    copies = private[:5] + 0.05 * torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    published = torch.cat([cloud(45, 4), copies])
    found = compared(published, controls, private)
    assert set(range(45, 50)) <= set(found.flagged)
    assert len(found.flagged) <= 7
    assert found.p_value < 1e-3


def test_clean_images_are_flagged_at_the_stated_rate_and_p_values_are_honest() -> None:
    private = cloud(1500, 2)
    p_values, flagged = [], []
    for seed in range(60):
        found = compared(cloud(50, 100 + seed), cloud(300, 500 + seed), private)
        p_values.append(found.p_value)
        flagged.append(len(found.flagged))
        assert found.rate == pytest.approx(3 / 301)
    assert abs(np.mean(flagged) - 50 * 3 / 301) < 0.6
    assert (np.array(p_values) <= 0.05).mean() < 0.15


def test_the_p_value_is_the_beta_binomial_tail() -> None:
    controls = np.arange(1, 101) / 100
    found = near_copies(np.array([0.005, 0.5, 0.7]), controls, space="pixels", half_level=0.001, rate=0.03)
    assert found.threshold == 0.03
    assert found.p_value == pytest.approx(betabinom.sf(0, 3, 3, 98))
    assert found.flagged == (0,)
    assert near_copies(np.array([0.9]), controls, space="pixels", half_level=0.001).p_value == 1.0


def test_a_tail_far_below_rounding_keeps_its_digits() -> None:
    found = near_copies(np.zeros(100), np.arange(1, 1001) / 1000, space="pixels", half_level=0.0001)
    assert found.p_value == pytest.approx(betabinom.pmf(100, 100, 10, 991), rel=1e-6)
    assert 0 < found.p_value < 1e-100


def test_an_image_below_half_of_the_least_control_counts_by_itself() -> None:
    controls = np.linspace(0.4, 1, 200)
    found = near_copies(np.array([0.9, 0.3, 0.19, 0.5]), controls, space="pixels", half_level=0.01)
    assert found.single == (2,)
    assert found.flagged == (1, 2)
    assert found.bar == pytest.approx(0.2)
    assert found.gray_levels == pytest.approx(10)  # half a gray level moves a copy by 0.01, so ten move it by 0.2


@pytest.mark.parametrize(("least", "calibrated", "finds_one"), [((0.0, 0.0), False, False), ((0.002, 0.5), True, False), ((0.4, 0.5), True, True)])
def test_private_images_that_are_much_alike_leave_nothing_to_tell_copies_by(least: tuple[float, float], calibrated: bool, finds_one: bool) -> None:
    found = near_copies(np.ones(5), np.array([*least, *np.linspace(0.6, 1, 198)]), space="pixels", half_level=0.01)
    assert (found.calibrated, found.finds_one) == (calibrated, finds_one)

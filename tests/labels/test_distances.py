"""Distances between labels: closed forms, metric properties, a float64 reference from Kullback-Leibler divergences."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import OptionError
from limbeck.labels.distances import (
    distances_over_epochs,
    entropies,
    js_distance,
    js_divergence,
    min_max,
    nearest_snapshot,
    pairwise_distances,
)


def rows_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def test_closed_forms() -> None:
    one, other, even = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5])
    assert float(js_distance(one, one)) == 0
    assert float(js_distance(one, other)) == pytest.approx(1)
    # H(3/4, 1/4) - H(1/2, 1/2) / 2 in bits
    assert float(js_divergence(one, even)) == pytest.approx(0.8112781244591328 - 0.5)
    assert float(js_distance(one, even)) == pytest.approx(0.31127812445913283**0.5)


@given(seed=st.integers(0, 1000))
def test_it_is_a_metric_and_agrees_with_its_definition(seed: int) -> None:
    p, q, r = rows_of(3, 5, 7, seed=seed)
    middle = (p + q) / 2
    reference = 0.5 * (p * (p / middle).log2()).sum(1) + 0.5 * (q * (q / middle).log2()).sum(1)
    assert torch.allclose(js_divergence(p, q), reference, atol=1e-12)
    assert torch.equal(js_distance(p, q), js_distance(q, p))
    assert bool((js_distance(p, r) <= js_distance(p, q) + js_distance(q, r) + 1e-12).all())


def test_min_max_is_by_image_and_finds_the_nearest_snapshot() -> None:
    labels = rows_of(4, 6)
    far = rows_of(4, 6, seed=1)
    by_epoch = torch.stack([far, (far + labels) / 2, labels, (far + 3 * labels) / 4])
    distances = distances_over_epochs(labels, by_epoch)
    normalized = min_max(distances)
    assert distances.shape == (4, 4)
    assert torch.equal(normalized[2], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(normalized[0], torch.ones(4, dtype=torch.float64))
    assert torch.allclose(normalized[1], (distances[1] - distances[2]) / (distances[0] - distances[2]))
    assert nearest_snapshot(normalized) == 2


def test_an_image_whose_distance_never_changes_has_no_scale() -> None:
    distances = torch.tensor([[0.5, 0.2], [0.5, 0.1]], dtype=torch.float64)
    normalized = min_max(distances)
    assert bool(normalized[:, 0].isnan().all())
    assert normalized[:, 1].tolist() == [1, 0]
    assert nearest_snapshot(normalized) == 1
    with pytest.raises(OptionError, match="no image's distance changes over the snapshots"):
        nearest_snapshot(min_max(torch.ones(2, 3, dtype=torch.float64)))


def test_pairs_of_experts() -> None:
    labels = rows_of(4, 5, 3)
    found = pairwise_distances(labels)
    assert found.shape == (6, 5)
    assert torch.equal(found[1], js_distance(labels[0], labels[2]))
    with pytest.raises(OptionError, match="distances between experts need at least 2 of them, got 1; train more with --experts 4"):
        pairwise_distances(labels[:1])


def test_entropies_are_in_nats() -> None:
    assert entropies(torch.tensor([[0.25] * 4, [1.0, 0, 0, 0]])).tolist() == pytest.approx([1.3862943611198906, 0])

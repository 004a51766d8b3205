"""Class-by-class mean labels: hand-made tables, an order that finds hidden blocks, mass on known relations."""

import numpy as np
import pytest
import torch

from limbeck.errors import OptionError
from limbeck.labels.classes import class_matrix, cluster_order, mass_on


def test_means_by_predicted_class_and_by_owner() -> None:
    rows = torch.tensor([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]])
    owners = torch.tensor([0, 1, 1])
    predicted = class_matrix(rows, owners)
    assert predicted[0] == pytest.approx([0, 0.2, 0.1])
    assert predicted[1] == pytest.approx([0.2, 0, 0.1])
    assert np.isnan(predicted[2]).all()
    assert class_matrix(rows, owners, "owner", diagonal=True)[1] == pytest.approx([0.5, 0.4, 0.1])


def test_the_order_brings_hidden_groups_together() -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat([0, 1, 2], 5))
    matrix = np.where(groups[:, None] == groups, 0.15, 0.01) + rng.uniform(0, 0.005, (15, 15))
    order = cluster_order(matrix)
    assert sorted(order) == list(range(15))
    assert int((np.diff(groups[order]) != 0).sum()) == 2


def test_the_order_survives_classes_without_images_and_tiny_tables() -> None:
    matrix = np.full((4, 4), np.nan)
    matrix[0] = [0, 0.5, 0.1, 0.0]
    assert sorted(cluster_order(matrix)) == [0, 1, 2, 3]
    assert cluster_order(np.zeros((2, 2))) == [0, 1]


def test_mass_on_relations_against_an_even_spread() -> None:
    related = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    matrix = np.array([[0, 0.3, 0.1], [0.2, 0, 0.2], [0.1, 0.1, 0]])
    found, even = mass_on(matrix, related)
    assert found == pytest.approx((0.75 + 0.5) / 2)
    assert even == pytest.approx(0.5)
    with pytest.raises(OptionError, match="no class has both images and relatives"):
        mass_on(matrix, np.zeros((3, 3), dtype=bool))
    with pytest.raises(OptionError, match=r"relations of classes need shape \(3, 3\), got \(2, 2\)"):
        mass_on(matrix, np.zeros((2, 2), dtype=bool))

"""The map and its distances, against closed forms; real networks recognize real images."""

import random
import sys
import types

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians, subject

from limbeck.analyze.recognition import Recognition, nearest_ratio, principal_axes
from limbeck.progress import SILENT


def recognition(**options: object) -> Recognition:
    return Recognition(Recognition.Options(**{**Recognition.smoke, **options}))


def test_principal_axes_are_those_of_the_covariance() -> None:
    values = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.2, 3.0])
    axes = principal_axes(values)
    _, vectors = torch.linalg.eigh(torch.cov(values.T))
    for column, expected in ((0, vectors[:, -1]), (1, vectors[:, -2])):
        assert float((axes[:, column] @ expected).abs()) == pytest.approx(1, abs=1e-9)
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_principal_axes_of_one_image_are_nothing() -> None:
    assert torch.equal(principal_axes(torch.ones(1, 3)), torch.zeros(3, 2, dtype=torch.float64)) or principal_axes(torch.ones(1, 3)).shape == (3, 2)


def test_distances_are_relative_to_those_among_real_images() -> None:
    real = torch.arange(6, dtype=torch.float64)[:, None]  # neighbors at distance 1
    assert nearest_ratio(torch.tensor([[7.5], [-2.5]], dtype=torch.float64), real) == pytest.approx(2.5)
    assert nearest_ratio(real[:3], real) == 0
    assert np.isnan(nearest_ratio(real, real[:1]))


def test_images_of_the_source_are_recognized_as_test_images_are_and_swapped_ones_are_not() -> None:
    table = gaussians(20, seed=3)
    made = recognition().measure(subject(distilled(table)), SILENT)
    assert made["recognized"].values == pytest.approx(made["real_accuracy"].values, abs=0.1)
    assert (made["recognized"].values > 0.9).all()
    assert (made["recognized_at"].values[:, -1] == made["recognized"].values).all()
    whole = distilled(table)
    swapped = distilled(table, owners=1 - whole.owners, labels=None)
    wrong = recognition().measure(subject(swapped), SILENT)
    assert wrong["recognized"].values == pytest.approx(1 - made["recognized"].values)


def test_classes_without_images_have_no_value() -> None:
    table = gaussians(4)
    some = table.labels == 0
    one = distilled(type(table)(table.images[some], table.labels[some], list(table.classes)))
    made = recognition(seeds=1).measure(subject(one), SILENT)
    assert np.isnan(made["recognized_of_class"].values[:, 1]).all()
    assert np.isfinite(made["recognized_of_class"].values[:, 0]).all()
    assert "the set has images of 1 of the 2 classes; the others have no value" in made.notes


def test_umap_is_drawn_where_it_is_installed_and_missed_where_not(monkeypatch: pytest.MonkeyPatch) -> None:
    class UMAP:
        def __init__(self, n_neighbors: int, random_state: int, n_jobs: int) -> None:
            assert n_neighbors == 5
            assert 0 <= random_state < 2**31
            assert n_jobs == 1

        def fit_transform(self, features: np.ndarray) -> np.ndarray:
            random.random()  # as the package does; the tests would see it moved
            np.random.rand()
            return features[:, :2].astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    made = recognition(seeds=1).measure(subject(), SILENT)
    assert made["umap"].values.shape == made["map"].values.shape
    assert not any("UMAP" in note for note in made.notes)
    monkeypatch.setitem(sys.modules, "umap", None)  # its import fails
    made = recognition(seeds=1).measure(subject(), SILENT)
    assert "umap" not in made.quantities
    assert any(note.startswith("UMAP is not installed") for note in made.notes)

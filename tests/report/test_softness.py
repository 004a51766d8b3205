import math

import pytest
import torch

from limbeck.data.views import Views
from limbeck.report.softness import shown_labels, softness
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe


def make(labels: Labels, owners: list[int], classes: int = 3) -> DistilledDataset:
    names = tuple("abcdefgh"[:classes])
    images = torch.zeros(len(owners), 1, 8, 8, dtype=torch.uint8)
    views = Views("flip", labels.views, 0, len(owners), (1, 8, 8)).spec if labels.views else None
    return DistilledDataset(images, torch.tensor(owners), labels, PixelSpace(), names, Recipe(epochs=1), views=views)


def test_closed_forms() -> None:
    rows = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    found = softness(make(Labels.encode(rows), [0, 0, 1]))
    assert found is not None
    torch.testing.assert_close(found.entropy, torch.tensor([math.log(2), 0.0, math.log(3)]))
    torch.testing.assert_close(found.own, torch.tensor([0.5, 1.0, 1 / 3]))
    torch.testing.assert_close(found.mean_label[:2], torch.tensor([[0.75, 0.25, 0.0], [1 / 3, 1 / 3, 1 / 3]]))
    assert found.mean_label[2].isnan().all()  # no image of class c
    assert [(owner, other) for owner, other, _ in found.shared(2)] == [(1, 0), (1, 2)]  # ties by class number
    assert len(found.shared(10)) == 3


def test_entropy_does_not_depend_on_the_kept_mass() -> None:
    rows = torch.tensor([[0.4, 0.4, 0.2]])
    found = softness(make(Labels.encode(rows, top_k=2, sums_to_one=False), [0]))
    assert found is not None
    assert found.entropy.item() == pytest.approx(math.log(2))
    assert found.own.item() == pytest.approx(0.4)


def test_log_probabilities_read_as_probabilities() -> None:
    rows = torch.tensor([[0.5, 0.25, 0.25]])
    dataset = make(Labels.encode(rows.log(), kind="log-probability"), [0])
    torch.testing.assert_close(shown_labels(dataset), rows)
    assert softness(dataset) is not None


def test_views_are_averaged() -> None:
    values = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
    torch.testing.assert_close(shown_labels(make(Labels(3, "probability", values), [0])), torch.tensor([[0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("kind", ["hard", "logit", "centered", "free"])
def test_what_is_no_distribution_has_no_softness(make_run, kind: str) -> None:
    _, dataset = make_run((2,) * 3, kind=kind)
    assert softness(dataset) is None

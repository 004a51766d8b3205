"""What the arms of the mixing analysis are trained on: disjoint draws, labels and cures."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.small import Oracle, distilled, gaussians, subject

from limbeck.analyze.mixing import BASES, CURES, Mixing, _Arm, _Draw, _places, _settings, matched
from limbeck.analyze.subject import NotApplicable, Subject
from limbeck.data.tables import ArrayTable
from limbeck.progress import SILENT
from limbeck.types.labels import Labels
from limbeck.types.recipe import Recipe

TRAIN = gaussians(30)


def soft_subject(**changes: Any) -> Subject:
    table = gaussians(3, seed=7)
    rows = torch.tensor([[0.7, 0.3], [0.2, 0.8]])[torch.from_numpy(table.labels.copy())]
    labeler = Oracle(TRAIN, 2 * torch.nn.functional.one_hot(torch.from_numpy(TRAIN.labels.copy()), 2).float())
    return subject(distilled(table, Labels.encode(rows)), **{"train": TRAIN, "labeler": labeler, **changes})


def draw(given: Subject, most: int = 5) -> _Draw:
    return _Draw(given, given.labeler, 0, most)


def test_base_and_added_images_are_disjoint_and_nested_and_none_of_the_set() -> None:
    rows = np.r_[np.flatnonzero(TRAIN.labels == 0)[:3], np.flatnonzero(TRAIN.labels == 1)[:3]]
    given = subject(distilled(ArrayTable(TRAIN.images[rows], TRAIN.labels[rows], list(TRAIN.classes))), train=TRAIN)
    made = draw(given, 20)
    assert len(set(made.base) | set(made.order)) == len(made.base) + len(made.order) == 6 + 40
    assert not (set(made.base) | set(made.order)) & set(rows)
    small, large = (set(made.order[made.place < count]) for count in (2, 10))
    assert small < large
    assert np.bincount(TRAIN.labels[list(small)]).tolist() == [2, 2]


def test_a_class_that_runs_out_gives_what_it_has() -> None:
    made = draw(subject(train=TRAIN), 50)
    assert made.notes == ["a class has 27 images to add, fewer than 50, and gives all of them"]


def test_places_number_records_within_their_class() -> None:
    assert _places(np.array([0, 0, 1, 0, 1])).tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("base", BASES)
def test_labels_are_the_class_or_the_sets_own_and_the_experts(base: str) -> None:
    given = soft_subject()
    made = draw(given)
    hard = made.examples(_Arm(base, "hard", 2))
    assert len(hard) == made.size(_Arm(base, "hard", 2)) == 6 + 4
    assert set(hard.targets.flatten().tolist()) == {0.0, 1.0}
    own = made.examples(_Arm(base, "own", 2))
    kept = given.dataset.targets() if base == "distilled" else torch.softmax(torch.tensor([2.0, 0.0]), 0).sort().values.expand(6, 2)
    assert own.targets[:6].sort(1).values == pytest.approx(kept.sort(1).values)
    assert torch.equal(own.targets[6:], hard.targets[6:])
    softened = made.examples(_Arm(base, "own", 2, CURES[1]))
    assert softened.targets[6:].amax(1) == pytest.approx(torch.full((4,), float(torch.sigmoid(torch.tensor(2.0)))))


def test_the_same_images_are_added_to_both_bases() -> None:
    made = draw(soft_subject())
    first, second = (made.examples(_Arm(base, "hard", 3)).table.read(range(6, 12)) for base in BASES)
    assert torch.equal(first, second)
    assert torch.equal(made.examples(_Arm("distilled", "hard", 0)).table.read(range(6)), made.subject.dataset.inputs())


def test_equal_weight_gives_base_and_added_half_of_the_loss_each() -> None:
    rows = draw(soft_subject()).examples(_Arm("distilled", "own", 5, "equal weight")).targets
    assert float(rows[:6].sum()) == pytest.approx(float(rows[6:].sum()))
    assert float(rows.sum()) == pytest.approx(len(rows), rel=1e-6)


def test_matched_images_have_the_others_mean_and_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(5, 2, 4, 4, generator=generator), 3 * torch.randn(9, 2, 4, 4, generator=generator) + 1
    made = matched(own, other)
    assert made.mean((0, 2, 3)) == pytest.approx(other.mean((0, 2, 3)), abs=1e-5)
    assert made.std((0, 2, 3)) == pytest.approx(other.std((0, 2, 3)), abs=1e-5)


def test_every_setting_but_the_standard_one_changes_the_recipe() -> None:
    recipe = Recipe(steps=100, schedule="step", decay_at=(0.5,))
    settings = _settings(recipe, 100, "crop_flip")
    changed = {name: recipe.with_(**changes) for name, changes in settings.items()}
    assert changed.pop("standard") == recipe
    assert all(one != recipe for one in changed.values())
    assert changed["adam"].optimizer == "adam"
    assert (changed["steps x 0.3"].steps, changed["steps x 3"].steps) == (30, 300)


def test_it_measures_every_cure_and_setting_and_adding_nothing_gains_nothing(tmp_path) -> None:  # type: ignore[no-untyped-def]
    options = {**Mixing.smoke, "sensitivity": True, "augment": "crop_flip", "seeds": 1, "steps": 3}
    made = Mixing(Mixing.Options(**options)).measure(soft_subject(cache=tmp_path, model="softmax"), SILENT)
    assert made.axes["labels"] == ("hard", "own")
    assert made.axes["added"] == (0, 2)
    assert made.axes["cure"] == CURES
    assert (made["gain"].values[..., 0] == 0).all()
    assert (made["cure_gain"].values[:, 0] == 0).all()
    assert made["sensitivity"].values[:, 0] == pytest.approx(made["accuracy"].values[:, 1, 0])
    assert made["cured"].values[:, 0] == pytest.approx(made["accuracy"].values[:, 1, 1])


def test_a_source_that_is_wholly_in_the_set_leaves_nothing_to_mix() -> None:
    table = gaussians(2)
    with pytest.raises(NotApplicable, match="^mixing needs real training images beside those of the set"):
        Mixing(Mixing.Options(**Mixing.smoke)).measure(subject(distilled(table), train=table, labeler=Oracle(table, torch.zeros(4, 2))), SILENT)

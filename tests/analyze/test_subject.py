"""What analyses are given."""

import pytest
import torch
from tests.small import distilled, gaussians, subject

from limbeck.analyze.subject import REAL_RECIPE, NotApplicable, early_steps, sample
from limbeck.data.splits import TestHandle
from limbeck.data.tables import ArrayTable
from limbeck.errors import OptionError
from limbeck.progress import SILENT


@pytest.mark.parametrize(("total", "count"), [(0, 5), (1, 5), (6, 24), (1000, 24), (5, 1)])
def test_early_steps_hold_both_ends_and_lie_in_the_run(total: int, count: int) -> None:
    steps = early_steps(total, count)
    assert steps[0] == 0
    assert steps[-1] == total
    assert list(steps) == sorted(set(steps))
    assert len(steps) <= count + 2


def test_early_steps_are_dense_at_the_start() -> None:
    steps = early_steps(1000, 20)
    assert {1, 2, 3} <= set(steps)
    assert steps[-1] - steps[-2] > 100


def test_a_sample_depends_on_content_and_seed_alone() -> None:
    table = gaussians(20)
    shuffled = ArrayTable(table.images.flip(0), table.labels[::-1].copy(), list(table.classes))
    picked = set(sample(table, 10, 3).record_digests().tolist())
    assert len(picked) == 10
    assert picked == set(sample(shuffled, 10, 3).record_digests().tolist())
    assert picked != set(sample(table, 10, 4).record_digests().tolist())
    assert sample(table, None, 3) is table is sample(table, 40, 3)


def test_a_real_trajectory_has_the_asked_snapshots_and_is_trained_once(tmp_path) -> None:  # type: ignore[no-untyped-def]
    given = subject(cache=tmp_path)
    recipe = REAL_RECIPE.with_(steps=7, batch_size=8)
    trajectory = given.real_trajectory(SILENT, recipe=recipe, steps=(0, 1, 2, 5, 7))
    assert [snapshot.step for snapshot in trajectory.snapshots] == [0, 1, 2, 5, 7]
    assert trajectory.at(2).step == 2
    again = given.real_trajectory(SILENT, recipe=recipe, steps=(0, 1, 2, 5, 7))
    assert again == trajectory
    other = given.real_trajectory(SILENT, recipe=recipe, steps=(0, 7))
    assert all(torch.equal(a, b) for a, b in zip(other.at(7).state.values(), trajectory.at(7).state.values(), strict=True))


def test_what_is_remembered_is_made_once(tmp_path) -> None:  # type: ignore[no-untyped-def]
    given, made = subject(cache=tmp_path), []

    def make() -> dict[str, torch.Tensor]:
        made.append(1)
        return {"x": torch.arange(3)}

    for _ in range(2):
        assert torch.equal(given.remembered({"part": 1}, make)["x"], torch.arange(3))
    assert len(made) == 1
    given.remembered({"part": 2}, make)
    subject(distilled(gaussians(2, seed=1)), cache=tmp_path).remembered({"part": 1}, make)
    assert len(made) == 3


def test_a_source_without_test_images_is_refused() -> None:
    given = subject(test=TestHandle(gaussians(0)))
    with pytest.raises(NotApplicable, match="^there are no test images, so nothing can be measured; use a source with more images$"):
        given.test_table()


def test_a_set_of_another_shape_is_refused() -> None:
    wide = ArrayTable(torch.zeros(2, 1, 8, 9, dtype=torch.uint8), gaussians(1).labels, ["band 0", "band 1"])
    with pytest.raises(OptionError, match="^the distilled images are 1x8x9"):
        subject(distilled(wide))


def test_a_set_of_one_class_is_named() -> None:
    table = gaussians(3)
    one = distilled(ArrayTable(table.images[table.labels == 0], table.labels[table.labels == 0], list(table.classes)))
    with pytest.raises(NotApplicable, match="^agreement needs images of at least two classes, and all of this set's are of 'band 0'$"):
        subject(one).need_classes("agreement")

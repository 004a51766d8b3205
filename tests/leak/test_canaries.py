"""The plant: who is where, what is drawn how, and what is refused."""

import numpy as np
import pytest
import torch
from tests.small import gaussians

from limbeck.data.tables import ArrayTable
from limbeck.errors import OptionError
from limbeck.leak.canaries import Plant, Relabeled
from limbeck.streams import Streams


def test_canaries_controls_and_the_rest_are_a_partition_and_pairs_share_their_class() -> None:
    train = gaussians(100, classes=3)
    plant = Plant.draw(train, 40, Streams(3))
    together = np.concatenate([plant.records, plant.rest])
    assert np.array_equal(np.sort(together), np.arange(300))
    true = train.labels[plant.records]
    assert np.array_equal(true[:40], true[40:])
    assert plant.members.sum() == plant.canaries == 40


def test_labels_are_uniform_and_independent_of_the_class() -> None:
    train = gaussians(1000, classes=4)
    plant = Plant.draw(train, 900, Streams(0))
    counts = np.bincount(plant.labels, minlength=4)
    assert ((counts - 450) ** 2 / 450).sum() < 16  # chi-square with 3 degrees of freedom, far tail
    assert abs((plant.labels == train.labels[plant.records]).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1800)


def test_the_planted_table_holds_the_canaries_last_and_never_a_control() -> None:
    train = gaussians(50)
    plant = Plant.draw(train, 10, Streams(1))
    planted = plant.planted()
    assert len(planted) == len(plant.rest) + 10
    assert planted.labels[list(plant.withheld())].tolist() == plant.labels[:10].tolist()
    assert torch.equal(planted.read(plant.withheld()), train.read(plant.records[:10]))
    assert not np.isin(planted.record_digests(), train.record_digests()[plant.records[10:]]).any()
    assert planted.digest != plant.clean.digest
    half = np.arange(20) % 2 == 0
    assert plant.planted(half).labels[-10:].tolist() == plant.labels[half].tolist()


def test_a_record_with_a_duplicate_is_never_drawn() -> None:
    single = gaussians(30)
    doubled = ArrayTable(torch.cat([single.images, single.images[:20]]), np.concatenate([single.labels, single.labels[:20]]), single.classes)
    for seed in range(5):
        drawn = Plant.draw(doubled, 10, Streams(seed)).records
        assert not ((drawn < 20) | (drawn >= 60)).any()


def test_the_same_stream_draws_the_same_plant_and_fewer_images_leave_the_controls_alone() -> None:
    train = gaussians(100)
    first, again, small = Plant.draw(train, 20, Streams(0)), Plant.draw(train, 20, Streams(0)), Plant.draw(train, 20, Streams(0), images=60)
    assert np.array_equal(first.records, again.records)
    assert np.array_equal(first.records, small.records)
    assert len(small.planted()) == 60
    assert np.isin(small.rest, first.rest).all()


@pytest.mark.parametrize(
    ("canaries", "images", "sentence"),
    [
        (0, None, "an audit needs at least 1 canary, got 0"),
        (60, None, "60 canaries and as many controls are more than half of the 200 training records that have no duplicate; use --canaries 50"),
        (20, 20, "must lie between the 20 canaries and 180, got 20; use another --train-images"),
    ],
)
def test_what_cannot_be_drawn_is_refused(canaries: int, images: int | None, sentence: str) -> None:
    with pytest.raises(OptionError, match=sentence):
        Plant.draw(gaussians(100), canaries, Streams(0), images=images)


def test_relabeling_changes_labels_alone() -> None:
    table = gaussians(5)
    other = Relabeled(table, 1 - table.labels)
    assert torch.equal(other.read(range(10)), table.read(range(10)))
    assert (other.labels == 1 - table.labels).all()
    assert other.digest != table.digest

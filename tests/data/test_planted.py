import numpy as np
import pytest
import torch
from tests.small import gaussians

from limbeck.data.opening import open_source
from limbeck.data.planted import PlantedTable, invert, planted_records, rotate, tint
from limbeck.data.splits import Splits
from limbeck.data.tables import ArrayTable, Source, Subset, digest_rows
from limbeck.errors import OptionError

BASE = gaussians(100)


def test_planted_records_are_transformed_and_others_left_alone() -> None:
    table = PlantedTable(BASE, "invert", 0.25)
    images = table.read(range(200))
    assert torch.equal(images[table.planted], 255 - BASE.images[table.planted])
    assert torch.equal(images[~table.planted], BASE.images[~table.planted])
    assert 30 < table.planted.sum() < 70
    assert table.digest != BASE.digest


def test_content_alone_decides_and_the_share_grows_from_the_inside() -> None:
    order = np.random.default_rng(0).permutation(200)
    shuffled = PlantedTable(ArrayTable(BASE.images[order], BASE.labels[order], BASE.classes), "invert", 0.25)
    table = PlantedTable(BASE, "invert", 0.25)
    assert (shuffled.planted == table.planted[order]).all()
    more = PlantedTable(BASE, "invert", 0.5)
    assert (more.planted | ~table.planted).all()
    assert 70 < more.planted.sum() < 130


def test_the_planted_are_known_behind_splits() -> None:
    table = PlantedTable(BASE, "rotate", 0.5)
    rows = np.arange(0, 200, 7)
    found = planted_records(Subset(Subset(table, rows), [2, 0]))
    assert found is not None
    assert (found == table.planted[rows[[2, 0]]]).all()
    assert planted_records(Subset(BASE, [0])) is None
    splits = Splits.make(Source("x", table), seed=0)
    assert planted_records(splits.train) is not None
    assert planted_records(splits.test.open_for_measurement()) is not None


def test_transformations() -> None:
    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    assert invert(image)[0, 0, 0, 0] == 255
    assert rotate(image)[0, 0].tolist() == [[1, 3], [0, 2]]
    assert torch.equal(rotate(rotate(torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3))), torch.arange(6, dtype=torch.uint8).view(1, 1, 2, 3))
    white = tint(torch.full((1, 3, 1, 1), 200, dtype=torch.uint8))
    assert white.flatten().tolist() == [200, 160, 70]


def test_it_is_a_source() -> None:
    source = open_source("planted:invert=0.1:digits")
    assert source.name == "planted:invert=0.1:digits"
    assert isinstance(source.train, PlantedTable)
    assert 0.05 < source.train.planted.mean() < 0.15
    assert source.options == {"source": "planted:invert=0.1:digits"}


@pytest.mark.parametrize("target", ["shear:digits", "invert", "invert=2:digits", "invert=x:digits", "invert:"])
def test_what_cannot_be_planted_is_refused(target: str) -> None:
    with pytest.raises(
        OptionError, match=r"^planted: needs one of invert, rotate, tint, a share 0 < s < 1 if any, and a source, got '.*'; write planted:"
    ):
        open_source(f"planted:{target}")


def test_a_tint_needs_color() -> None:
    with pytest.raises(OptionError, match=r"^a tint needs color images, got 1 channel; use --channels 3$"):
        open_source("planted:tint:digits")


def test_digests_are_of_the_pixels_so_that_a_set_is_known_in_its_source() -> None:
    table = PlantedTable(gaussians(20), "invert", 0.3)
    assert 0 < table.planted.sum() < len(table)
    images = table.read(range(len(table)))
    assert (table.record_digests() == digest_rows(images.flatten(1).numpy())).all()

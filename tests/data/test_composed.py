from pathlib import Path

import numpy as np
import pytest
import torch

from limbeck.data import ArrayTable, Splits, open_source
from limbeck.data.composed import ComposedTable, compose
from limbeck.data.resize import resize
from limbeck.errors import OptionError


def base(records: int = 30, classes: int = 3, side: int = 4) -> ArrayTable:
    pixels = np.random.default_rng(0).integers(0, 256, (records, 1, side, side), dtype=np.uint8)
    return ArrayTable(torch.from_numpy(pixels), np.arange(records) % classes, [f"c{label}" for label in range(classes)])


def test_halves_stand_side_by_side_and_the_class_is_their_ordered_pair() -> None:
    halves = base()
    table = compose(halves, 90, np.random.default_rng(1))
    assert table.shape == (1, 4, 8)
    assert table.classes[:4] == ("c0|c0", "c0|c1", "c0|c2", "c1|c0")
    assert np.bincount(table.labels).tolist() == [10] * 9
    images = table.read([50, 3])
    for image, index in zip(images, (50, 3), strict=True):
        left, right = table.base_groups[index]
        assert torch.equal(image, torch.cat([halves.images[left], halves.images[right]], dim=2))
        assert table.classes[table.labels[index]] == f"c{halves.labels[left]}|c{halves.labels[right]}"


def test_pairs_are_distinct_while_there_are_enough() -> None:
    table = compose(base(9), 81, np.random.default_rng(1))  # 3 x 3 pairs per class, 9 wanted: all of them.
    assert len(np.unique(table.base_groups, axis=0)) == 81
    assert len(compose(base(3), 27, np.random.default_rng(1))) == 27  # one pair per class, wanted three times


def test_record_digests_follow_the_halves() -> None:
    halves = base()
    pairs = np.array([[0, 1], [1, 0], [0, 1]])
    digests = ComposedTable(halves, pairs).record_digests()
    assert digests[0] == digests[2] != digests[1]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    rng = np.random.default_rng(3)
    arrays = {"x_train": rng.integers(0, 256, (200, 28, 20), dtype=np.uint8), "y_train": np.arange(200) % 2}
    np.savez(tmp_path / "x.npz", **arrays, x_test=rng.integers(0, 256, (40, 28, 20), dtype=np.uint8), y_test=np.arange(40) % 2)
    return tmp_path / "x.npz"


def test_pools_are_disjoint_and_larger_images_become_16_by_16(archive: Path) -> None:
    plain, source = open_source(str(archive)), open_source(f"composed:{archive}")
    train, validation, test = source.train, source.validation, source.test
    assert isinstance(train, ComposedTable)
    assert isinstance(validation, ComposedTable)
    assert isinstance(test, ComposedTable)
    assert train.shape == (1, 16, 32)
    assert [np.bincount(table.labels).tolist() for table in (train, validation, test)] == [[50] * 4, [5] * 4, [10] * 4]
    pools = [set(table.base.record_digests().tolist()) for table in (train, validation, test)]
    assert [len(pool) for pool in pools] == [180, 20, 40]
    assert not pools[0] & pools[1]
    assert not (pools[0] | pools[1]) & pools[2]
    assert plain.test is not None
    assert torch.equal(test.base.images, resize(plain.test.read(range(40)), (16, 16)))


def test_the_source_is_fixed_and_splits_take_it_as_it_is(archive: Path) -> None:
    first, again = (open_source(f"composed:{archive}") for _ in range(2))
    assert first.train.digest == again.train.digest
    splits = [Splits.make(first, seed=seed, validation=0.5) for seed in (0, 1)]
    assert splits[0].validation is first.validation
    assert splits[0].test.digest == splits[1].test.digest
    assert splits[0].train is first.train


def test_small_images_keep_their_size_and_a_given_size_is_the_half(archive: Path) -> None:
    digits = open_source("composed:digits")
    assert digits.train.shape == (1, 8, 16)
    assert digits.train.classes[57] == "5|7"
    assert [len(table) for table in (digits.train, digits.validation, digits.test) if table is not None] == [1400, 100, 300]
    assert open_source(f"composed:{archive}", size=10).train.shape == (1, 10, 20)


def test_misuse() -> None:
    with pytest.raises(OptionError) as caught:
        open_source("composed:composed:digits")
    assert str(caught.value) == "composed: needs a plain source of 2 or more classes, got 'composed:digits'; name another source"
    with pytest.raises(OptionError, match="^unknown data source 'digit', and no file or folder has that name; did you mean 'digits'"):
        open_source("composed:digit")

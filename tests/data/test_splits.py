import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.data import ArrayTable, ImageTable, Source, Splits, Subset, TestHandle
from limbeck.data.splits import carve, scores
from limbeck.errors import OptionError


def table(contents: list[int], labels: list[int]) -> ArrayTable:
    """Images of one pixel pair that spell `contents`, so that equal numbers are exact duplicates."""
    images = np.array(contents, dtype="<u2").view(np.uint8).reshape(-1, 1, 1, 2)
    return ArrayTable(torch.from_numpy(images.copy()), labels, [str(label) for label in range(max(labels) + 1)])


def contents(part: ImageTable) -> list[int]:
    return part.read(range(len(part))).numpy().reshape(-1, 2).copy().view("<u2").ravel().tolist()


def unbalanced() -> ArrayTable:
    labels = [0] * 50 + [1] * 15 + [2] * 1 + [3] * 4
    return table(list(range(len(labels))), labels)


def test_each_class_gives_its_share_and_keeps_one() -> None:
    kept, taken = carve(unbalanced(), 0.3, seed=1)
    assert np.bincount(taken.labels, minlength=4).tolist() == [15, round(4.5), 0, 1]
    kept_most, _ = carve(unbalanced(), 0.99, seed=1)
    assert np.bincount(kept_most.labels, minlength=4).tolist() == [1, 1, 1, 1]
    assert sorted(contents(kept) + contents(taken)) == list(range(70))


def test_same_seed_same_split_other_seed_another() -> None:
    source = Source("s", unbalanced())
    first, again, other = (Splits.make(source, seed=seed) for seed in (0, 0, 1))
    for part in ("train", "validation", "test"):
        assert getattr(first, part).digest == getattr(again, part).digest
    assert first.validation.digest != other.validation.digest
    assert first.test.digest != other.test.digest


def test_the_split_follows_records_not_their_order() -> None:
    base = unbalanced()
    order = np.random.default_rng(0).permutation(len(base))
    straight, shuffled = (carve(t, 0.3, seed=5)[1] for t in (base, Subset(base, order)))
    assert sorted(contents(straight)) == sorted(contents(shuffled))


def test_a_dropped_record_changes_no_more_than_the_border_of_its_class() -> None:
    base = unbalanced()
    whole = set(contents(carve(base, 0.3, seed=5)[1]))
    without = set(contents(carve(Subset(base, range(1, 70)), 0.3, seed=5)[1]))
    assert len(whole ^ without) <= 2


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), min_size=1, max_size=40), st.floats(0, 0.95), st.integers(0, 2**63 - 1))
def test_parts_are_disjoint_by_content_and_no_class_is_emptied(records: list[tuple[int, int]], fraction: float, seed: int) -> None:
    numbers, labels = map(list, zip(*records, strict=True))
    base = table(numbers, labels)
    kept, taken = carve(base, fraction, seed)
    assert not set(contents(kept)) & set(contents(taken))
    assert set(kept.labels.tolist()) == set(labels)
    assert len(kept) + len(taken) == len(base)
    assert (np.bincount(taken.labels, minlength=4) <= [round(fraction * labels.count(label)) for label in range(4)]).all()


def test_scores_are_a_bijection_that_mixes() -> None:
    consecutive = np.arange(10_000, dtype=np.uint64)
    mixed = scores(consecutive, seed=3)
    assert len(np.unique(mixed)) == 10_000
    rank = np.corrcoef(np.argsort(np.argsort(mixed)), np.arange(10_000))[0, 1]
    assert abs(rank) < 4 / np.sqrt(10_000)


def test_official_test_is_kept_and_duplicates_in_it_are_counted() -> None:
    source = Source("s", table([1, 2, 3, 3, 4], [0, 0, 0, 0, 0]), table([3, 9], [0, 0]), notes=("from the source",))
    splits = Splits.make(source, seed=0, validation=0)
    assert len(splits.validation) == 0
    assert splits.test.size == 2
    assert splits.notes == ("from the source", "2 of 5 train records have an exact duplicate in test")


def test_test_is_carved_first_and_noted() -> None:
    splits = Splits.make(Source("s", table(list(range(100)), [0] * 100)), seed=0)
    assert (len(splits.train), len(splits.validation), splits.test.size) == (72, 8, 20)
    assert splits.notes == ("s has no official test part, so 20 records were carved from train for it",)


def test_a_given_validation_is_used_as_it_is() -> None:
    own = table([7], [0])
    source = Source("s", table([1, 2], [0, 0]), table([3], [0]), validation=own)
    splits = Splits.make(source, seed=0, validation=0.5)
    assert splits.validation is own
    assert splits.train is source.train


def test_handle_only_measures() -> None:
    base = table([1, 2], [0, 1])
    handle = TestHandle(base)
    assert not isinstance(handle, ImageTable)
    for name in ("read", "labels", "table", "_table", "record_digests"):
        assert not hasattr(handle, name)
    assert (handle.size, handle.classes, handle.shape, handle.digest) == (2, ("0", "1"), (1, 1, 2), base.digest)
    assert repr(handle) == "TestHandle(2 records, measure-only)"
    assert handle.open_for_measurement() is base


def test_fractions_are_checked() -> None:
    source = Source("s", table([1, 2], [0, 0]))
    with pytest.raises(OptionError) as caught:
        Splits.make(source, seed=0, validation=1.5)
    assert str(caught.value) == "validation needs a fraction 0 <= f < 1 of train, got 1.5; use 0.1"
    with pytest.raises(OptionError) as caught:
        Splits.make(source, seed=0, test=0)
    assert str(caught.value) == "test needs a fraction 0 < f < 1 of the source, got 0; use 0.2"

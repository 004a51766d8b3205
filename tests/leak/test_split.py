"""The split by class and the control that shuffles within classes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.errors import OptionError
from limbeck.leak.split import share, stratified, within_class
from limbeck.streams import Streams


def test_the_first_of_every_class_are_seen():
    labels = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0, 2, 2])
    split = stratified(labels, 0.5)
    assert split.seen.tolist() == [0, 1, 2, 4, 8]
    assert split.held_out.tolist() == [3, 5, 6, 7, 9]


@given(st.lists(st.integers(0, 4), min_size=10, max_size=60), st.floats(0.2, 0.8))
def test_parts_are_disjoint_complete_and_of_the_published_sizes(labels, fraction):
    rows = torch.tensor(labels)
    try:
        split = stratified(rows, fraction)
    except OptionError:
        assert all(int(fraction * labels.count(k) + 1e-9) in (0, labels.count(k)) for k in set(labels))
        return
    assert sorted([*split.seen.tolist(), *split.held_out.tolist()]) == list(range(len(labels)))
    for number in set(labels):
        assert int((rows[split.seen] == number).sum()) == int(fraction * labels.count(number) + 1e-9)


def test_a_product_just_below_a_whole_number_counts_as_that_number():
    assert 0.29 * 100 < 29
    assert share(0.29, 100) == 29


def test_impossible_fractions():
    with pytest.raises(OptionError, match="the seen fraction rho needs 0 < rho < 1, got 1; use 0.7"):
        stratified(torch.tensor([0, 1]), 1.0)
    with pytest.raises(OptionError, match="a seen fraction of 0.4 leaves 0 seen and 4 held-out examples of 4; use more examples"):
        stratified(torch.tensor([0, 0, 1, 1]), 0.4)


def test_shuffling_maps_every_class_onto_itself_and_reaches_every_place():
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0])
    reached = torch.zeros(8, 8)
    for seed in range(300):
        permutation = within_class(labels, Streams(seed).torch("p"))
        assert sorted(permutation.tolist()) == list(range(8))
        assert torch.equal(labels[permutation], labels)
        reached[torch.arange(8), permutation] += 1
    assert torch.equal(reached > 0, labels[:, None] == labels)
    assert float((reached[0, [0, 2, 5, 7]] / 300 - 0.25).abs().max()) < 4 * (0.25 * 0.75 / 300) ** 0.5

"""Label treatments: the true tail cut, the published slip beside it, and the ones that every leak must not survive."""

import pytest
import torch

from limbeck.errors import OptionError
from limbeck.leak.treatments import TREATMENTS, parse_treatment
from limbeck.streams import Streams

ROWS = torch.tensor([[0.5, 0.1, 0.25, 0.15], [0.05, 0.15, 0.2, 0.6], [0.3, 0.4, 0.2, 0.1]])
OWNERS = torch.tensor([0, 3, 1])


def treat(text: str, rows: torch.Tensor = ROWS, owners: torch.Tensor = OWNERS) -> tuple[torch.Tensor, torch.Tensor]:
    return parse_treatment(text).apply(rows, owners, Streams(0).torch("t"))


def test_the_tail_cut_removes_the_smallest_entries():
    rows, kept = treat("tail-cut:fraction=0.5")
    assert rows.tolist() == torch.tensor([[0.5, 0, 0.25, 0], [0, 0, 0.2, 0.6], [0.3, 0.4, 0, 0]]).tolist()
    assert kept.tolist() == [0, 1, 2]
    torch.testing.assert_close(treat("tail-cut:fraction=0.5")[0], treat("top-k:k=2")[0])


def test_the_published_tail_cut_removes_as_many_but_others():
    rows, _ = treat("tail-cut-published:fraction=0.25")
    # by hand: classes in order of rank are 0 2 3 1, 3 2 1 0 and 1 0 2 3; the place of class 0 in them is 0, 3 and 1
    assert (rows == 0).nonzero().tolist() == [[0, 0], [1, 3], [2, 1]]
    assert rows[0, 0] == 0  # the largest entry
    many = torch.rand(500, 20, generator=Streams(0).torch("many")).softmax(1)
    owners = torch.zeros(500, dtype=torch.int64)
    true, slip = (treat(f"{name}:fraction=0.2", many, owners)[0] for name in ("tail-cut", "tail-cut-published"))
    assert torch.equal((true == 0).sum(1), (slip == 0).sum(1))
    assert float((many.max(1).values == true.max(1).values).double().mean()) == 1
    # the largest entry is as likely to go as any: 4 of 20, within four standard errors
    assert abs(float((many.max(1).values != slip.max(1).values).double().mean()) - 0.2) < 4 * (0.2 * 0.8 / 500) ** 0.5


def test_zeroing_and_dropping_a_class():
    rows, kept = treat("zero-class:classes=3")
    assert rows[:, 3].tolist() == [0, pytest.approx(0.6), 0]
    assert torch.equal(rows[:, :3], ROWS[:, :3])
    rows, kept = treat("drop-class:classes=3")
    assert kept.tolist() == [0, 2]
    assert torch.equal(rows, ROWS[[0, 2]])


def test_shuffling_within_classes_keeps_the_labels_of_each_class():
    rows = torch.rand(40, 4, generator=Streams(0).torch("r")).softmax(1)
    owners = torch.arange(40) % 4
    shuffled, kept = treat("within-class", rows, owners)
    assert kept.tolist() == list(range(40))
    for number in range(4):
        own = rows[owners == number]
        assert sorted(shuffled[owners == number].tolist()) == sorted(own.tolist())
    assert not torch.equal(shuffled, rows)


def test_noise_has_its_scale_and_keeps_distributions():
    rows = torch.full((20_000, 3), 1 / 3, dtype=torch.float64)
    noisy, _ = treat("logit-noise:scale=0.2", rows, torch.zeros(20_000, dtype=torch.int64))
    torch.testing.assert_close(noisy.sum(1), torch.ones(20_000, dtype=torch.float64))
    difference = noisy[:, 0].log() - noisy[:, 1].log()
    assert float(difference.std()) == pytest.approx(0.2 * 2**0.5, rel=4 / (2 * 20_000) ** 0.5)


def test_levels_round_and_never_lose_a_row():
    rows, _ = treat("levels:levels=4")
    torch.testing.assert_close(rows.sum(1), ROWS.sum(1))
    assert treat("levels:levels=1", torch.full((1, 4), 0.25), torch.tensor([0]))[0].tolist() == [[1, 0, 0, 0]]
    torch.testing.assert_close(treat("levels:levels=1000000")[0], ROWS, rtol=1e-5, atol=1e-6)


def test_every_treatment_of_the_table_leaves_the_given_rows_alone():
    given = {"tail-cut": ":fraction=0.5", "tail-cut-published": ":fraction=0.5", "top-k": ":k=2", "logit-noise": ":scale=1", "levels": ":levels=3"}
    for name in TREATMENTS:
        before = ROWS.clone()
        text = name + given.get(name, ":classes=0" if name.endswith("-class") and name != "within-class" else "")
        rows, kept = treat(text, before)
        assert torch.equal(before, ROWS)
        assert len(rows) == len(kept)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tailcut", "unknown label treatment 'tailcut'; did you mean 'tail-cut'?"),
        ("tail-cut:part=0.1", "label treatment tail-cut takes options as key=value, got 'part=0.1'; known: fraction"),
        ("tail-cut", "option fraction of label treatment tail-cut: field required, got nothing"),
        ("tail-cut:fraction=2", "option fraction of label treatment tail-cut: input should be less than 1, got '2'"),
        ("none:x=1", "label treatment none takes options as key=value, got 'x=1'; it has none"),
    ],
)
def test_unreadable_treatments(text, sentence):
    with pytest.raises(OptionError, match=sentence):
        parse_treatment(text)

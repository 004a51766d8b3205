"""Made-up data: arithmetic is right, randomness has its moments, and tables are read as they are."""

import numpy as np
import pytest
import torch

from limbeck.data.synthetic import AS_THEY_ARE, VectorTable, gaussian, modular, one_hot_pairs, sequences, square, standardized, turns
from limbeck.errors import OptionError
from limbeck.streams import Streams


@pytest.mark.parametrize(
    ("operation", "check"), [("add", lambda a, b, r: a + b - r), ("subtract", lambda a, b, r: a - b - r), ("multiply", lambda a, b, r: a * b - r)]
)
def test_modular_arithmetic(operation, check):
    inputs, labels = modular(7, operation)
    assert len(inputs) == 49
    assert len({tuple(row) for row in inputs.tolist()}) == 49
    assert (inputs[:, 2] == 7).all()
    assert (check(inputs[:, 0].long(), inputs[:, 1].long(), labels) % 7 == 0).all()


def test_division_is_multiplication_backwards_and_needs_a_prime():
    inputs, labels = modular(7, "divide")
    assert len(inputs) == 42
    assert (labels * inputs[:, 1].long() % 7 == inputs[:, 0].long()).all()
    with pytest.raises(OptionError, match="division modulo 6 is not defined for every pair; use a prime modulus"):
        modular(6, "divide")
    with pytest.raises(OptionError, match="modular arithmetic needs a modulus of at least 2, got 1; use a prime such as 31"):
        modular(1)


def test_pairs_as_one_hot_vectors():
    inputs, _ = modular(3)
    vectors = one_hot_pairs(inputs, 3)
    assert vectors.shape == (9, 6)
    assert (vectors.sum(1) == 2).all()
    assert torch.equal(vectors[:, :3].argmax(1), inputs[:, 0].long())


def test_gaussians_and_squares():
    x = gaussian(4000, 5, Streams(0).torch("x"))
    assert float(x.mean().abs()) < 4 / 20_000**0.5
    assert float(x.var() - 1) == pytest.approx(0, abs=4 * (2 / 20_000) ** 0.5)
    scaled = standardized(3 + 2 * x[:50])
    torch.testing.assert_close(scaled.mean(0), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.var(0, correction=0), torch.ones(5))
    points = square(1000, Streams(0).torch("p"))
    assert float(points.abs().max()) <= 1
    assert float(points.min()) < -0.9


def test_classes_in_turn_are_balanced_in_every_prefix_of_whole_turns():
    assert turns(7, 3).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_sequences_are_distinct():
    drawn = sequences(27, 3, 3, Streams(0).torch("s"))
    assert len({tuple(row) for row in drawn.tolist()}) == 27
    with pytest.raises(OptionError, match="28 distinct sequences need a vocabulary of more numbers than 3; use at most 27 rows"):
        sequences(28, 3, 3, Streams(0).torch("s"))


def test_a_vector_table_is_read_as_it_is():
    inputs = torch.tensor([[-1.5, 2.0], [3.0, 4.0], [0.0, 1e-3]])
    table = VectorTable(inputs, torch.tensor([1, 0, 1]), 2)
    assert table.shape == (1, 1, 2)
    assert torch.equal(AS_THEY_ARE(table.read([2, 0]))[:, 0, 0], inputs[[2, 0]])
    assert table.labels.tolist() == [1, 0, 1]
    assert len(np.unique(table.record_digests())) == 3
    assert table.digest != VectorTable(inputs + 1, [1, 0, 1], 2).digest

"""A linear teacher is read off its soft labels exactly, from as many of them on as there are inputs, and not before."""

import pytest
import torch

from limbeck.data.synthetic import gaussian, standardized, turns
from limbeck.leak.recovery import NestedLeastSquares, centered, recover_linear
from limbeck.leak.split import within_class
from limbeck.streams import Streams

STREAMS = Streams(0)


def teacher(features: int, classes: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = gaussian(rows, features, STREAMS.torch("x", rows)).double()
    return inputs, 3 * torch.randn(features, classes, generator=STREAMS.torch("w"), dtype=torch.float64)


@pytest.mark.parametrize(("temperature", "classes"), [(1.0, 2), (20.0, 5), (0.1, 3)])
def test_the_teacher_is_recovered_to_rounding_error_at_any_temperature(temperature, classes):
    inputs, weights = teacher(30, classes, 40)
    found = recover_linear(inputs, (inputs @ weights / temperature).log_softmax(1), temperature)
    assert found.determined
    assert found.rank == 30
    assert found.residual < 1e-11
    torch.testing.assert_close(found.weights, centered(weights), rtol=0, atol=1e-11 * found.condition)


@pytest.mark.parametrize(("rows", "known"), [(29, False), (30, True), (31, True)])
def test_as_many_labels_as_inputs_identify_the_teacher_and_fewer_do_not(rows, known):
    inputs, weights = teacher(30, 2, 60)
    found = recover_linear(inputs[:rows], (inputs[:rows] @ weights).log_softmax(1))
    assert found.determined == known
    fresh = gaussian(2000, 30, STREAMS.torch("fresh")).double()
    agreement = ((fresh @ found.weights).argmax(1) == (fresh @ weights).argmax(1)).double().mean()
    assert (agreement == 1) == known


def test_below_the_threshold_it_is_the_shortest_fit():
    inputs, weights = teacher(30, 3, 12)
    found = recover_linear(inputs, (inputs @ weights).log_softmax(1))
    torch.testing.assert_close(found.weights, torch.linalg.pinv(inputs) @ inputs @ centered(weights))


def test_nested_solutions_agree_with_singular_values_on_both_sides_of_the_threshold():
    inputs = standardized(gaussian(80, 25, STREAMS.torch("nested"))).double()
    targets = torch.randn(80, 3, generator=STREAMS.torch("targets"), dtype=torch.float64)
    solver = NestedLeastSquares(inputs[:70])
    for rows in (3, 10, 23, 26, 40, 70):
        torch.testing.assert_close(solver.solve(rows, targets[:rows]), torch.linalg.pinv(inputs[:rows]) @ targets[:rows], rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="rows must not decrease from call to call, got 40 after 70"):
        solver.solve(40, targets[:40])


def test_labels_shuffled_within_classes_leave_chance():
    accuracies = []
    for repeat in range(20):
        streams = Streams(repeat)
        inputs, labels = gaussian(120, 40, streams.torch("x")).double(), turns(120, 2)
        weights = torch.linalg.pinv(inputs[:60]) @ torch.nn.functional.one_hot(labels[:60], 2).double()
        logits = inputs @ weights  # a teacher of the first 60, asked about them
        shuffled = logits[:50][within_class(labels[:50], streams.torch("shuffle"))]
        student = torch.linalg.pinv(inputs[:50]) @ shuffled
        accuracies.append(((inputs[50:60] @ student).argmax(1) == labels[50:60]).double().mean())
    # 200 held-out labels: four standard errors of chance
    assert abs(float(torch.stack(accuracies).mean()) - 0.5) < 4 * 0.5 / 200**0.5

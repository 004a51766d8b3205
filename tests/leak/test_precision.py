"""Bits of stored labels, and the identification ratio."""

import pytest
import torch
from tests.small import network

from limbeck.labels.rules import LabelRule, make_labels
from limbeck.leak.precision import free_weights, identification_ratio, label_precision
from limbeck.leak.recovery import recover_linear
from limbeck.types.labels import Labels


def labels_of(precision: str = "float32", temperature: float = 1.0, scale: float = 1.0) -> Labels:
    logits = scale * torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    return make_labels(LabelRule(temperature=temperature, precision=precision), torch.zeros(50, dtype=torch.int64), logits, 8)  # type: ignore[arg-type]


def test_wider_storage_tells_more_apart() -> None:
    bits = {precision: label_precision(labels_of(precision)).bits for precision in ("float32", "float16", "uint8")}  # type: ignore[union-attr]
    assert bits["float32"] - bits["float16"] == pytest.approx(13, abs=0.1)  # 24 bits of mantissa against 11
    assert bits["float16"] > bits["uint8"] + 2


def test_low_temperatures_hide_entries_and_high_ones_lose_bits_of_the_rest() -> None:
    cold, warm = label_precision(labels_of("uint8", 1, 10)), label_precision(labels_of("uint8", 20, 10))
    assert cold is not None
    assert warm is not None
    assert cold.below > 0.5
    assert warm.below == 0
    assert warm.smallest > 0.01
    assert (warm.temperature, warm.storage, warm.bytes) == (20, "uint8", 50 * 8 + 50 * 4)
    assert label_precision(labels_of("float32", 20)).bits < label_precision(labels_of("float32", 1)).bits  # type: ignore[union-attr]


def test_hard_labels_and_labels_of_views_have_no_precision() -> None:
    assert label_precision(Labels.hard(torch.zeros(3, dtype=torch.int64), 4)) is None
    assert label_precision(Labels(4, "probability", torch.full((2, 3, 4), 0.25))) is None


def test_the_identification_ratio_counts_independent_numbers() -> None:
    assert identification_ratio(100, 10, None, 900.0) == 1.0
    assert identification_ratio(100, 10, 3, 900.0) == 3.0


@pytest.mark.parametrize(("images", "fixed"), [(64, False), (65, True), (66, True)])
@pytest.mark.parametrize("classes", [2, 10])
def test_it_reaches_1_just_where_a_linear_expert_is_recovered(images: int, fixed: bool, classes: int) -> None:
    """64 pixels and a bias: a softmax leaves a K-th part of the weights open, so N = 65 labels are enough whatever K is."""
    student = network("softmax", classes)
    assert student.parameter_count == 65 * classes
    assert (identification_ratio(images, classes, None, free_weights(student)) >= 1) == fixed
    generator = torch.Generator().manual_seed(0)
    inputs = torch.cat([torch.randn(images, 64, generator=generator, dtype=torch.float64), torch.ones(images, 1, dtype=torch.float64)], 1)
    weights = torch.randn(65, classes, generator=generator, dtype=torch.float64)
    found = recover_linear(inputs, (inputs @ weights).log_softmax(1))
    wrong = (found.weights - (weights - weights.mean(1, keepdim=True))).abs().max()
    assert (wrong < 1e-8) == fixed


def test_free_weights_of_a_hidden_layer_count_in_full() -> None:
    student = network("mlp:width=16,depth=1", 4)
    assert free_weights(student) == 16 * 65 + 17 * 4 - 17

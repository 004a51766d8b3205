import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.small import SHORT

from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule, label_entropy, make_labels, soften
from limbeck.types.distilled import DistilledDataset
from limbeck.types.pixels import PixelSpace

LOGITS = torch.from_numpy(5 * np.random.default_rng(0).normal(size=(6, 8))).float()
OWNERS = torch.arange(6)


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0, 100.0])
def test_soft_labels_are_the_tempered_softmax(temperature: float) -> None:
    labels = make_labels(LabelRule(temperature=temperature), OWNERS, LOGITS, 8, "an expert")
    assert np.allclose(labels.dense().numpy(), softmax(LOGITS.double().numpy() / temperature), atol=1e-7)
    assert (labels.kind, labels.temperature, labels.expert, labels.sums_to_one) == ("probability", temperature, "an expert", True)


def test_softening_survives_large_logits() -> None:
    assert soften(torch.tensor([[1e4, 0.0, -1e4]]), 1.0).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("renormalize", [True, False])
def test_truncated_rows_sum_to_one_only_when_renormalized(renormalize: bool) -> None:
    full = softmax(LOGITS.double().numpy())
    kept = np.where(full >= np.sort(full, axis=1)[:, -3:-2], full, 0)
    labels = make_labels(LabelRule(top_k=3, renormalize=renormalize), OWNERS, LOGITS, 8)
    assert np.allclose(labels.dense().numpy(), kept / kept.sum(1, keepdims=True) if renormalize else kept, atol=1e-6)
    assert labels.sums_to_one == renormalize


def test_all_classes_are_distributions_with_or_without_renormalizing() -> None:
    one, other = (make_labels(LabelRule(top_k=8, renormalize=flag), OWNERS, LOGITS, 8) for flag in (True, False))
    assert torch.equal(one.dense(), other.dense())
    assert other.sums_to_one


def test_hard_labels_need_no_expert_and_soft_ones_do() -> None:
    labels = make_labels(LabelRule(kind="hard", top_k=2), OWNERS, None, 8)
    assert labels.dense().argmax(1).tolist() == OWNERS.tolist()
    with pytest.raises(OptionError, match="^soft labels need an expert, got none; train one or use --labels hard$"):
        make_labels(LabelRule(), OWNERS, None, 8)
    with pytest.raises(OptionError, match="^top-k needs 1 <= k <= 8 classes, got k=9; use k=8 to keep all$"):
        make_labels(LabelRule(top_k=9), OWNERS, LOGITS, 8)


RULES = st.builds(
    LabelRule,
    kind=st.sampled_from(["soft", "hard"]),
    top_k=st.none() | st.integers(1, 300),
    renormalize=st.booleans(),
    precision=st.sampled_from(["float32", "float16", "uint8"]),
)


@given(RULES, st.integers(2, 300), st.integers(1, 5))
def test_bytes_per_image_are_what_a_set_stores(rule: LabelRule, classes: int, count: int) -> None:
    """A budget in bytes rests on this."""
    rule = rule.model_copy(update={"top_k": rule.top_k and min(rule.top_k, classes)})
    owners, logits = torch.arange(count) % classes, torch.from_numpy(np.random.default_rng(0).normal(size=(count, classes))).float()
    made = DistilledDataset(
        images=torch.zeros(count, 1, 2, 2, dtype=torch.uint8),
        owners=owners,
        labels=make_labels(rule, owners, logits, classes),
        pixels=PixelSpace(),
        classes=tuple(map(str, range(classes))),
        recipe=SHORT,
    )
    assert made.bytes["labels"] == count * rule.bytes_per_image(classes)


@pytest.mark.parametrize("wrong", [{"temperature": 0}, {"top_k": 0}, {"precision": "int4"}, {"kind": "fuzzy"}, {"softness": 1}])
def test_unknown_keys_and_impossible_values_are_errors(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LabelRule(**wrong)  # type: ignore[arg-type]


def test_entropy_is_in_nats() -> None:
    assert label_entropy(torch.full((3, 8), 1 / 8)) == pytest.approx(math.log(8))
    assert label_entropy(torch.eye(8)) == 0
    assert label_entropy(torch.tensor([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(math.log(2) / 2)

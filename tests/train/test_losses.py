import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limbeck.train.losses import make_loss, soft_cross_entropy, tempered_kl

LOSSES = [("cross-entropy", 1.0), ("kl", 1.0), ("kl", 20.0), ("mse", 1.0)]


def batch(seed: int = 0, count: int = 7, classes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Logits of students and of an expert, float64."""
    rng = np.random.default_rng(seed)
    return 3 * rng.normal(size=(count, classes)), 4 * rng.normal(size=(count, classes))


def softmax(values: np.ndarray) -> np.ndarray:
    shifted = np.exp(values - values.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def tensor(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values).float()


@given(st.integers(0, 2**32))
def test_soft_cross_entropy_is_its_float64_definition(seed: int) -> None:
    student, expert = batch(seed)
    labels = softmax(expert) * 0.7  # truncated rows weigh less: nothing renormalizes them
    assert soft_cross_entropy(tensor(student), tensor(labels)).item() == pytest.approx(-(labels * np.log(softmax(student))).sum(), rel=1e-5)


def test_soft_cross_entropy_of_one_hot_rows_is_cross_entropy() -> None:
    student, _ = batch()
    owners = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    expected = torch.nn.functional.cross_entropy(tensor(student), owners, reduction="sum")
    assert torch.allclose(soft_cross_entropy(tensor(student), torch.nn.functional.one_hot(owners, 5).float()), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 30.0])
def test_kl_tempers_the_experts_own_logits_from_its_probabilities(temperature: float) -> None:
    student, expert = batch()
    q, p = softmax(expert / temperature), softmax(student / temperature)
    expected = (q * np.log(q / p)).sum()
    assert tempered_kl(temperature)(tensor(student), tensor(softmax(expert))).item() == pytest.approx(expected, rel=1e-4)
    own = tempered_kl(temperature)(tensor(expert), tensor(softmax(expert)))
    assert abs(own.item()) < 1e-5


def test_kl_survives_exact_zeros() -> None:
    student = torch.zeros(2, 3, requires_grad=True)
    loss = tempered_kl(2.0)(student, torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()  # type: ignore[arg-type]


def test_mse_is_on_centered_labels_and_its_minimum_is_there() -> None:
    student, expert = batch()
    labels = softmax(expert)
    expected = 0.5 * ((student - (labels - 0.2)) ** 2).sum()
    assert make_loss("mse", 1.0)(tensor(student), tensor(labels)).item() == pytest.approx(expected, rel=1e-5)
    assert make_loss("mse", 1.0)(tensor(labels) - 0.2, tensor(labels)).item() == 0


@pytest.mark.parametrize(("name", "temperature"), LOSSES)
def test_chunks_of_a_batch_add_up_to_it(name: str, temperature: float) -> None:
    student, expert = batch()
    loss, logits, labels = make_loss(name, temperature), tensor(student), tensor(softmax(expert))
    parts = sum(loss(logits[part], labels[part]) for part in (slice(0, 1), slice(1, 4), slice(4, 7)))
    assert torch.allclose(parts, loss(logits, labels), rtol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "temperature"), LOSSES)
def test_gradients_are_their_closed_forms(name: str, temperature: float) -> None:
    student, expert = batch()
    labels = softmax(expert)
    expected = {
        "cross-entropy": softmax(student) - labels,
        "kl": (softmax(student / temperature) - softmax(expert / temperature)) / temperature,
        "mse": student - (labels - 0.2),
    }[name]
    logits = tensor(student).requires_grad_(True)
    make_loss(name, temperature)(logits, tensor(labels)).backward()
    assert np.allclose(logits.grad.numpy(), expected, atol=1e-5)  # type: ignore[union-attr]

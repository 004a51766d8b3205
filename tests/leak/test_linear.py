"""Students of one linear teacher under every protocol: the converged ones know nothing but their labels, and say where those are not enough."""

import pytest
import torch

from limbeck.data.synthetic import gaussian, turns
from limbeck.leak.linear import Students, Taught, teach
from limbeck.streams import Streams

STREAMS = Streams(0)
TEMPERATURES = torch.tensor([0.05, 3.0, 300.0], dtype=torch.float64)


@pytest.fixture(scope="module")
def students() -> dict[str, Students]:
    """Of a teacher of 70 examples in 40 dimensions that names 40 of them with margins of 8; students see 56."""
    x, labels = gaussian(70, 40, STREAMS.torch("x")).double(), turns(70, 2)
    teacher = torch.linalg.lstsq(x[:39], 8 * (2.0 * labels[:39, None].double() - 1)).solution
    weights = torch.cat([-teacher / 2, teacher / 2], 1)
    memorized = (x @ weights).argmax(1)
    taught = Taught(x, memorized, weights, gaussian(50, 40, STREAMS.torch("fresh")).double(), 56)
    return {protocol: teach(taught, TEMPERATURES, protocol, STREAMS) for protocol in ("converged", "exact")}


def test_converged_students_get_to_the_teacher_by_themselves(students):
    converged, exact = students["converged"], students["exact"]
    own = converged.measures["weights"][0]
    assert (own[1:] < 1e-4).all()
    assert not torch.equal(own[1:], exact.measures["weights"][0, 1:])  # they are not the least-squares solution under another name
    assert (converged.measures["held_out"][0, 1:] == 1).all()
    assert 0 < converged.change <= 1e-4
    assert 0 < converged.rounding <= 1e-2


def test_where_labels_are_hard_in_float64_only_least_squares_on_logits_answers(students):
    assert students["converged"].solved[0].tolist() == [False, True, True]
    assert students["converged"].measures["held_out"][0].isnan().tolist() == [True, False, False]
    assert (students["exact"].measures["held_out"][0] == 1).all()

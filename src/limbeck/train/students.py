"""Students: networks trained from fresh initializations on labelled images and scored on a GIVEN table. Methods, choosing and evaluation all call this."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.tables import ImageTable
from limbeck.progress import Tick
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import Job, fit_many, predict
from limbeck.train.network import Network, State
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


@dataclass(frozen=True)
class Score:
    """How a network did on M labelled images: predicted classes [M], accuracy (fraction), mean cross-entropy (nats), accuracy per class [K] (NaN when a
    class has no image), and whether the network is finite. A diverged network scores the class it names, usually chance."""

    predictions: Int[Tensor, " M"]
    accuracy: float
    loss: float
    class_accuracy: Float[Tensor, " K"]
    finite: bool


def score_logits(logits: Float[Tensor, "M K"], labels: Int[Tensor, " M"]) -> Score:
    """Scores logits against class numbers."""
    finite = bool(torch.isfinite(logits).all())
    predictions = logits.nan_to_num(nan=-torch.inf).argmax(1)
    right = (predictions == labels).double()
    classes = logits.shape[1]
    counts = torch.zeros(classes, dtype=torch.float64).scatter_add_(0, labels, torch.ones_like(right))
    per_class = torch.zeros(classes, dtype=torch.float64).scatter_add_(0, labels, right) / counts
    loss = float(torch.nn.functional.cross_entropy(logits.double(), labels)) if finite else float("inf")
    return Score(predictions, float(right.mean()), loss, per_class.float(), finite)


def train_student(
    network: Network, examples: Examples, recipe: Recipe, streams: Streams, plan: ExecutionPlan, *, tick: Tick = lambda units: None
) -> State:
    """A network trained from its own initialization (stream ``init``) on `examples`; the last state, on the CPU. Ticks once per step."""
    return train_students(network, [Student(examples, streams)], recipe, plan, tick=tick)[0]


@dataclass(frozen=True)
class Student:
    """One student to train: its examples, its streams, and its own learning rate where that is not the recipe's."""

    examples: Examples
    streams: Streams
    lr: float | None = None


def train_students(
    network: Network, students: Sequence[Student], recipe: Recipe, plan: ExecutionPlan, *, tick: Tick = lambda units: None
) -> list[State]:
    """Several students, as many at once as the plan says; their last states, on the CPU, in order."""
    jobs = [Job(network.init(student.streams), student.examples, student.streams, student.lr) for student in students]
    trained = fit_many(network, jobs, recipe, plan, tick=tick)
    return [{name: tensor.cpu() for name, tensor in state.network.items()} for state in trained]


def in_groups(count: int, plan: ExecutionPlan) -> Iterator[range]:
    """Consecutive numbers 0..count-1 in the groups that train at once. A group that is not wholly known is trained as a whole, so that its numbers do not
    depend on where an earlier run was stopped."""
    for start in range(0, count, plan.models):
        yield range(start, min(start + plan.models, count))


def score(network: Network, state: State, table: ImageTable, examples: Examples, plan: ExecutionPlan) -> Score:
    """Scores a trained state on a table, in the pixel space of the examples that it was trained on."""
    return score_logits(predict(network, state, table, examples.pixels, plan), torch.from_numpy(table.labels.copy()))

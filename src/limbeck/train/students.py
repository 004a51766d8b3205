"""Students: networks trained from fresh initializations on labelled images and scored on a GIVEN table. Methods, choosing and evaluation all call this."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.tables import ImageTable
from limbeck.progress import Tick
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import fit, predict
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
    trained = fit(network, network.init(streams), examples, recipe, streams, plan, tick=tick)
    return {name: tensor.cpu() for name, tensor in trained.network.items()}


def score(network: Network, state: State, table: ImageTable, examples: Examples, plan: ExecutionPlan) -> Score:
    """Scores a trained state on a table, in the pixel space of the examples that it was trained on."""
    return score_logits(predict(network, state, table, examples.pixels, plan), torch.from_numpy(table.labels.copy()))

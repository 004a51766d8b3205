"""Teachers and students that train through the engine on inputs in memory: networks of any architecture of the table, whole batches or small ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.synthetic import AS_THEY_ARE, VectorTable
from limbeck.data.tables import ImageTable, Subset
from limbeck.labels.rules import soften
from limbeck.leak.experiment import Bench
from limbeck.leak.split import Split
from limbeck.leak.treatments import parse_treatment
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import Job, TrainingState, fit_many, predict
from limbeck.train.network import Network, State
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

#: Numbers (activations and inputs of a whole batch) up to which several networks train as one program: beyond, a stack leaves the cache and gains nothing.
_STACK_VALUES = 4_000_000
_MOST_MODELS = 16


@dataclass(frozen=True)
class Memory:
    """What a teacher is trained to remember: a table with its labels, in a pixel space, and inputs that nobody sees (for agreement), as a table."""

    table: ImageTable
    fresh: ImageTable
    pixels: PixelSpace = AS_THEY_ARE

    @staticmethod
    def of_vectors(inputs: Float[Tensor, "N D"], labels: Int[Tensor, " N"], fresh: Float[Tensor, "M D"], classes: int) -> "Memory":
        """Vectors or number sequences as they are."""
        return Memory(VectorTable(inputs, labels, classes), VectorTable(fresh, torch.zeros(len(fresh), dtype=torch.int64), classes))

    @property
    def labels(self) -> Int[Tensor, " N"]:
        return torch.from_numpy(self.table.labels.copy())

    def network(self, model: str) -> Network:
        """The named architecture for these inputs."""
        return Network(parse_model(model), self.table.shape, len(self.table.classes))


def whole_batches(
    lr: float, steps: int, examples: int, *, weight_decay: float = 0.0, warmup: int = 0, betas: tuple[float, float] = (0.9, 0.999)
) -> Recipe:
    """Full-batch Adam (AdamW where there is weight decay), as the authors train on random data."""
    optimizer = "adamw" if weight_decay else "adam"
    return Recipe(
        optimizer=optimizer, lr=lr, weight_decay=weight_decay, betas=betas, batch_size=examples, steps=steps, warmup_steps=warmup, shuffle=False
    )


def stacked(plan: ExecutionPlan, network: Network, batch: int, jobs: int) -> ExecutionPlan:
    """The plan for `jobs` networks on batches of this size: as many at once as stay in the cache."""
    channels, height, width = network.shape
    each = batch * (network.activation_values() + channels * height * width)
    models = max(1, min(_MOST_MODELS, jobs, _STACK_VALUES // max(each, 1))) if network.can_stack else 1
    return plan.model_copy(update={"models": models, "chunk": 0})


def train_teachers(
    network: Network, memory: Memory, recipe: Recipe, streams: Sequence[Streams], plan: ExecutionPlan, stops: Sequence[int] = ()
) -> list[dict[int, State]]:
    """Networks trained on all of a memory's labels: for each stream, the states after the steps in `stops` (and the last)."""
    examples = Examples.of_table(memory.table, memory.pixels)
    last = recipe.total_steps(len(examples))
    kept: list[dict[int, State]] = [{} for _ in streams]

    def keep(index: int, live: TrainingState) -> None:
        kept[index][live.step] = {name: tensor.cpu().clone() for name, tensor in live.network.items()}

    jobs = [Job(network.init(stream), examples, stream) for stream in streams]
    fit_many(network, jobs, recipe, stacked(plan, network, recipe.batch_size, len(jobs)), observe_at={*stops, last}, observe=keep)
    return kept


def logits_of(network: Network, state: State, table: ImageTable, pixels: PixelSpace, plan: ExecutionPlan) -> Float[Tensor, "N K"]:
    """Logits of a whole table."""
    return predict(network, state, table, pixels, plan.model_copy(update={"models": 1}))


@dataclass(frozen=True)
class Cell:
    """One student to train: how labels are softened and treated, and its streams."""

    temperature: float
    treatment: str
    streams: Streams


def train_students(
    network: Network, memory: Memory, split: Split, teacher: Float[Tensor, "N K"], cells: Sequence[Cell], recipe: Recipe, plan: ExecutionPlan
) -> list[State]:
    """Students of the teacher's soft labels on the seen rows, one for each cell. Cells whose treatment keeps equally many examples train together."""
    jobs = []
    for cell in cells:
        labels = soften(teacher[split.seen], cell.temperature)
        rows, kept = parse_treatment(cell.treatment).apply(labels, memory.labels[split.seen], cell.streams.torch("treatment"))
        examples = Examples(_part(memory.table, split.seen[kept]), rows, memory.pixels)
        jobs.append(Job(network.init(cell.streams["student"]), examples, cell.streams["student"]))
    trained = fit_many(network, jobs, recipe, stacked(plan, network, recipe.batch_size, len(jobs)))
    return [{name: tensor.cpu() for name, tensor in state.network.items()} for state in trained]


def _part(table: ImageTable, rows: Tensor) -> ImageTable:
    return table.part(rows) if isinstance(table, VectorTable) else Subset(table, rows)


def measures(
    network: Network, state: State, memory: Memory, split: Split, teacher: Float[Tensor, "N K"], fresh: Float[Tensor, "M K"], plan: ExecutionPlan
) -> dict[str, float]:
    """Accuracy of a student on seen and held-out examples against the teacher's training labels, and agreement with the teacher on held-out examples and on
    fresh inputs. `teacher` and `fresh` are the teacher's logits."""
    own = logits_of(network, state, memory.table, memory.pixels, plan).argmax(1)
    unseen = logits_of(network, state, memory.fresh, memory.pixels, plan).argmax(1)
    right, same = (own == memory.labels).double(), (own == teacher.argmax(1)).double()
    return {
        "seen": float(right[split.seen].mean()),
        "held_out": float(right[split.held_out].mean()),
        "agreement": float(same[split.held_out].mean()),
        "fresh": float((unseen == fresh.argmax(1)).double().mean()),
    }


def taught(
    network: Network,
    memory: Memory,
    split: Split,
    teacher: Float[Tensor, "N K"],
    fresh: Float[Tensor, "M K"],
    cells: Sequence[Cell],
    recipe: Recipe,
    bench: Bench,
) -> dict[str, Tensor]:
    """Trains and measures the students of one teacher: measures [cells]."""
    states = train_students(network, memory, split, teacher, cells, recipe, bench.plan)
    found = [measures(network, state, memory, split, teacher, fresh, bench.plan) for state in states]
    return {name: torch.tensor([entry[name] for entry in found], dtype=torch.float64) for name in found[0]}


def accuracy(logits: Float[Tensor, "N K"], labels: Int[Tensor, " N"]) -> float:
    """Fraction of rows whose largest logit is their label's."""
    return float((logits.argmax(1) == labels).double().mean())


def packed(state: State, prefix: str = "") -> dict[str, Tensor]:
    """A state under a prefix, to keep it beside others."""
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def unpacked(tensors: dict[str, Tensor], prefix: str) -> State:
    """Inverse of `packed`."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

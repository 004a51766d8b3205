"""The one training loop. Experts, students, interim checks and a user's own model all go through `fit`."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.augment import parse_augment
from limbeck.data.tables import ImageTable
from limbeck.progress import Tick
from limbeck.streams import Streams
from limbeck.train.examples import Examples, StoredImages
from limbeck.train.network import Network, State, compiled_loss_of_state, loss_of_state
from limbeck.train.plan import threads
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


@dataclass
class TrainingState:
    """Everything that decides how training goes on: step, parameters and buffers, and the optimizer's tensors ``{parameter}.{slot}``."""

    step: int
    network: State
    optimizer: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether every number in the network is finite: divergence is returned, not raised."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.network.values() if tensor.is_floating_point())


def fit(
    network: Network,
    state: TrainingState | State,
    examples: Examples,
    recipe: Recipe,
    streams: Streams,
    plan: ExecutionPlan,
    *,
    observe_at: Collection[int] = (),
    observe: Callable[[TrainingState], None] | None = None,
    tick: Tick = lambda units: None,
) -> TrainingState:
    """Trains `network` on `examples` by `recipe` and returns the last state; `state` itself is not changed.

    Batches are passes over a fresh permutation of the examples, the last batch of a pass possibly smaller; the loss of a batch is its mean. Data order comes
    from the stream ``order/epoch`` and augmentation from ``augment/step``, so training that is resumed from any `TrainingState` continues exactly as if
    it had never stopped. `observe` is called with the live state before training (when 0 is in `observe_at`) and after the steps in `observe_at`; it must
    copy what it keeps. A state given as plain tensors starts at step 0.
    """
    device = torch.device(plan.device)
    live = _live_copy(state if isinstance(state, TrainingState) else TrainingState(0, state, {}), plan)
    total = recipe.total_steps(len(examples))
    parameters = [live.network[name].requires_grad_(True) for name in network.parameter_names]
    optimizer = _optimizer(recipe, parameters)
    _restore_optimizer(optimizer, network.parameter_names, live.optimizer)
    step_loss = (compiled_loss_of_state if plan.strategy == "compiled" else loss_of_state)(
        network, recipe.loss, recipe.temperature, plan.precision, device.type
    )
    plain_loss = loss_of_state(network, recipe.loss, recipe.temperature, plan.precision, device.type)
    augment, located = parse_augment(recipe.augment), examples.pixels.to(device)
    examples = Examples(examples.table, examples.targets, located)
    decay_steps = recipe.decay_steps(len(examples))

    def snapshot() -> None:
        if observe is not None and live.step in observe_at:
            live.optimizer = _optimizer_tensors(optimizer, network.parameter_names)
            with torch.no_grad():
                observe(TrainingState(live.step, {name: tensor.detach() for name, tensor in live.network.items()}, live.optimizer))

    with threads(plan.threads):
        if live.step == 0:
            snapshot()
        for images, labels in examples.batches(_order(len(examples), recipe, streams, live.step, total), device):
            _set_rate(optimizer, recipe, live.step, total, decay_steps)
            if augment is not None:
                images = augment(images, streams.torch("augment", live.step))
            optimizer.zero_grad(set_to_none=True)
            pieces = _pieces(len(images), plan.chunk)
            for start in range(0, len(images), pieces):
                part, rows = images[start : start + pieces], labels[start : start + pieces]
                # only whole pieces are compiled: a ragged last one would compile a second program for a few images
                (step_loss if len(part) == pieces else plain_loss)(live.network, part, rows).div(len(images)).backward()
            optimizer.step()
            live.step += 1
            tick(1)
            snapshot()
    live.optimizer = _optimizer_tensors(optimizer, network.parameter_names)
    live.network = {name: tensor.detach() for name, tensor in live.network.items()}
    return live


def predict(
    network: Network,
    state: State,
    table: ImageTable | StoredImages,
    pixels: PixelSpace,
    plan: ExecutionPlan,
    *,
    tick: Tick = lambda units: None,
    batch: int = 256,
) -> Float[Tensor, "M K"]:
    """Logits of every image of a table, on the CPU, float32, in evaluation mode. Always computed in float32: labels and scores are never rounded by a plan."""
    device = torch.device(plan.device)
    state = {name: tensor.to(device) for name, tensor in state.items()}
    examples = Examples(table, torch.zeros(len(table), dtype=torch.int64), pixels.to(device))
    size = min(batch, plan.chunk or batch) if device.type == "cpu" else batch
    logits = []
    with threads(plan.threads), torch.inference_mode():
        for images, _ in examples.batches(torch.arange(len(table)).split(size), device):
            logits.append(network.forward(state, images).float().cpu())
            tick(len(images))
    return torch.cat(logits).clone() if logits else torch.zeros(0, network.classes)


def _pieces(batch: int, chunk: int) -> int:
    """Size of the equal pieces that a batch is cut into: at most `chunk`, as equal as can be."""
    if chunk == 0 or batch <= chunk:
        return batch
    return -(-batch // -(-batch // chunk))


def _order(count: int, recipe: Recipe, streams: Streams, start: int, total: int) -> Iterator[Int[Tensor, " B"]]:
    per_epoch = recipe.steps_per_epoch(count)
    permutation = torch.empty(0, dtype=torch.int64)
    for step in range(start, total):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or step == start:
            permutation = torch.randperm(count, generator=streams.torch("order", epoch))
        yield permutation[position * recipe.batch_size : (position + 1) * recipe.batch_size]


def _optimizer(recipe: Recipe, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, recipe.lr, weight_decay=recipe.weight_decay)


def _set_rate(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, total: int, decay_steps: list[int]) -> None:
    rate = recipe.lr
    if recipe.schedule == "step":
        rate *= recipe.decay ** sum(step >= at for at in decay_steps)
        if recipe.restart_momentum_at_decay and step in decay_steps:
            optimizer.state.clear()
    elif recipe.schedule == "cosine":
        rate *= 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / total)).item())
    for group in optimizer.param_groups:
        group["lr"] = rate


def _optimizer_tensors(optimizer: torch.optim.Optimizer, names: tuple[str, ...]) -> dict[str, Tensor]:
    slots = optimizer.state_dict()["state"]
    return {f"{names[i]}.{slot}": value for i, state in slots.items() for slot, value in state.items() if isinstance(value, Tensor)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, names: tuple[str, ...], tensors: dict[str, Tensor]) -> None:
    if not tensors:
        return
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition(".")
        state.setdefault(names.index(name), {})[slot] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _live_copy(state: TrainingState, plan: ExecutionPlan) -> TrainingState:
    # compiled CPU convolutions are fastest on channels-last weights and images; the layout changes no number
    layout = torch.channels_last if plan.strategy == "compiled" else torch.contiguous_format
    network = {}
    for name, tensor in state.network.items():
        network[name] = tensor.detach().to(plan.device, copy=True, memory_format=layout if tensor.ndim == 4 else torch.contiguous_format)
    return TrainingState(state.step, network, dict(state.optimizer))

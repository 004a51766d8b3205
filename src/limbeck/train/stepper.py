"""One optimizer step of one model or of a stack of them: gradients, chunked; the update; and on a GPU the whole of it as one recorded program."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.train.network import Network, State, loss_of_state
from limbeck.train.plan import lanes
from limbeck.train.share import Share
from limbeck.train.updates import adam_step, sgd_step
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

Tensors = dict[str, Tensor]
_WARM_CALLS = 3  # ordinary calls before a CUDA graph is recorded: libraries choose their algorithms and allocate workspaces in these


class Stepper:
    """Holds the live tensors of S models and advances them. With S = 1 they have their own shapes; a stack has a leading axis S."""

    def __init__(
        self, network: Network, recipe: Recipe, plan: ExecutionPlan, starts: Sequence[tuple[State, Tensors]], share: Share | None = None
    ) -> None:
        self._names, self._recipe, self._plan, self._share = network.parameter_names, recipe, plan, share
        self._stacked = plan.models > 1
        device = torch.device(plan.device)
        self._network = {name: self._live(tensors) for name, tensors in _transposed([start for start, _ in starts]).items()}
        for name in self._names:
            self._network[name].requires_grad_(True)
        self._slots = self._zeros()
        for name, tensors in _transposed([slots for _, slots in starts]).items():
            self._slots[name].copy_(self._join(tensors))
        self._update = _update_of(recipe)
        make = partial(loss_of_state, network, recipe.loss, recipe.temperature, plan.precision, device.type, stacked=self._stacked)
        # a shorter last piece that cannot be filled up stays eager: compiling a second program for a few images would not pay
        self._plain = [make(lane=lane) for lane in range(plan.lanes)]
        self._fast = [make(lane=lane, compiled=plan.strategy == "compiled") for lane in range(plan.lanes)]
        self._shapes: set[torch.Size] = set()
        # a shorter last piece is filled up where a row of zero labels has no loss, so that it needs no program of its own
        self._pads = plan.strategy == "compiled" and recipe.loss != "mse" and not network.has_batch_statistics
        self._advance: Callable[..., None] = self._step
        if device.type == "cuda":
            self._plain, self._advance = self._fast, Recorded(self._step)

    def __call__(
        self,
        images: Float[Tensor, "S B C H W"],
        labels: Float[Tensor, "S B K"],
        rates: Float[Tensor, " S"],
        number: Float[Tensor, ""],
        weights: Float[Tensor, "S B"] | None = None,
    ) -> None:
        """Takes step `number` (from 1; a tensor, since a recorded program cannot be given another constant) on a batch of each model, at the rates of each.
        With `weights` the loss of a batch is the weighted mean."""
        given = (images, labels, rates, *(() if weights is None else (weights,)))
        images, labels, rates, *rest = given if self._stacked else (tensor[0] for tensor in given)
        self._advance(images, labels, rates, number, *rest)

    def close(self) -> None:
        """Frees what was recorded."""
        self._advance = self._step

    def forget(self) -> None:
        """Empties the optimizer's memory."""
        for slot in self._slots.values():
            slot.zero_()

    def states(self) -> list[tuple[State, Tensors]]:
        """Parameters and buffers, and the optimizer's tensors, of every model: views of the live ones."""
        network, slots = ({name: tensor.detach() for name, tensor in group.items()} for group in (self._network, self._slots))
        if not self._stacked:
            return [(network, slots)]
        count = len(next(iter(network.values())))
        return [({name: t[i] for name, t in network.items()}, {name: t[i] for name, t in slots.items()}) for i in range(count)]

    def _step(self, images: Tensor, labels: Tensor, rates: Tensor, number: Tensor, *weights: Tensor) -> None:
        axis = 1 if self._stacked else 0
        batch = images.shape[axis]
        size = _pieces(batch, self._plan.chunk, self._plan.lanes)
        parameters = [self._network[name] for name in self._names]

        pieces = list(zip(*(tensor.split(size, axis) for tensor in (images, labels, *weights)), strict=True)) if batch else []
        # a batch in which nothing counts has no gradient, and no mean; workers divide by the whole batch when they have added up
        count = torch.where(weights[0].sum(axis) > 0, weights[0].sum(axis), 1) if weights else batch if self._share is None else 1

        def gradient(lane: int) -> list[Tensor]:
            total: list[Tensor] = []
            for part in pieces[lane :: self._plan.lanes]:
                found = part[0].shape[axis]
                whole = self._pads and found < size
                given = [_padded(tensor, size, axis) for tensor in part] if whole else part
                loss = (self._fast if whole or found == size else self._plain)[lane](self._network, *given)
                new = list(torch.autograd.grad((loss / count).sum() if weights else loss.sum() / count, parameters))
                total = list(torch._foreach_add(total, new)) if total else new
            return total

        gradients: list[Tensor] = []
        for part in self._each(images.shape)(gradient, range(min(len(pieces), self._plan.lanes))):
            gradients = list(torch._foreach_add(gradients, part)) if gradients else part
        if self._share is not None:
            gradients = self._share.mean(gradients or [torch.zeros_like(parameter) for parameter in parameters], batch)
        with torch.no_grad():
            current = {name: self._network[name] for name in self._names}
            update = torch.func.vmap(self._update, in_dims=(0, 0, 0, 0, None)) if self._stacked else self._update
            moved, slots = update(current, dict(zip(self._names, gradients, strict=True)), self._slots, rates, number)
            for name, tensor in moved.items():
                current[name].copy_(tensor)
            for name, tensor in slots.items():
                self._slots[name].copy_(tensor)

    def _each(self, shape: torch.Size) -> Callable[[Callable[[int], list[Tensor]], Iterable[int]], Iterable[list[Tensor]]]:
        """`map`; over lanes at the same time once the programs for this batch shape are compiled."""
        if self._plan.lanes == 1 or shape not in self._shapes:
            self._shapes.add(shape)
            return map
        return lanes(self._plan.lanes).map

    def _zeros(self) -> Tensors:
        kinds = ("momentum",) * (self._recipe.momentum > 0) if self._recipe.optimizer == "sgd" else ("mean", "square")
        return {f"{name}.{kind}": torch.zeros_like(self._network[name]).detach() for name in self._names for kind in kinds}

    def _join(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).to(self._plan.device) if self._stacked else tensors[0].to(self._plan.device)

    def _live(self, tensors: Sequence[Tensor]) -> Tensor:
        # compiled CPU convolutions are fastest on channels-last weights and images; the layout changes no number
        narrow = self._plan.strategy == "compiled" and not self._stacked and tensors[0].ndim == 4
        layout = torch.channels_last if narrow else torch.preserve_format
        return self._join(tensors).detach().clone(memory_format=layout)


class Recorded:
    """A step on tensors of fixed shapes, recorded as a CUDA graph after a few ordinary calls of each shape and replayed from then on.

    The step must change state only in tensors that live as long as this object, and must not read a value back. Every call works on the same copies of its
    inputs, so what is recorded is what ran before. Recording costs one capture for every combination of input shapes; a replay is one launch for the hundreds of
    kernels of a training step.
    """

    def __init__(self, step: Callable[..., None]) -> None:
        self._step = step
        self._calls: Counter[tuple[torch.Size, ...]] = Counter()
        self._places: dict[tuple[torch.Size, ...], tuple[Tensor, ...]] = {}
        self._graphs: dict[tuple[torch.Size, ...], torch.cuda.CUDAGraph] = {}
        self._side: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, *inputs: Tensor) -> None:
        key = tuple(tensor.shape for tensor in inputs)
        if key not in self._places:
            self._places[key] = tuple(tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in inputs)
        else:
            for place, tensor in zip(self._places[key], inputs, strict=True):
                place.copy_(tensor, non_blocking=True)
        self._calls[key] += 1
        if self._calls[key] <= _WARM_CALLS:
            self._warm(self._places[key])
            return
        if key not in self._graphs:
            self._graphs[key] = self._record(self._places[key])
        self._graphs[key].replay()

    def _warm(self, places: tuple[Tensor, ...]) -> None:
        self._side, current = self._side or torch.cuda.Stream(), torch.cuda.current_stream()
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            self._step(*places)
        current.wait_stream(self._side)

    def _record(self, places: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()  # one for all shapes: nothing leaves it between steps
        # other threads may allocate meanwhile: batches from disk are decoded ahead
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._step(*places)
        return graph


Update = Callable[[Tensors, Tensors, Tensors, Tensor, Tensor], tuple[Tensors, Tensors]]


def _update_of(recipe: Recipe) -> Update:
    """``(parameters, gradients, slots, rate, number) -> (parameters, slots)`` of one model."""

    def sgd(parameters: Tensors, gradients: Tensors, slots: Tensors, rate: Tensor, number: Tensor) -> tuple[Tensors, Tensors]:
        return sgd_step(parameters, gradients, slots, lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay)

    def adam(parameters: Tensors, gradients: Tensors, slots: Tensors, rate: Tensor, number: Tensor) -> tuple[Tensors, Tensors]:
        decay = recipe.weight_decay
        if recipe.optimizer == "adamw":  # Loshchilov and Hutter 2019: the parameters decay, not the gradients
            parameters, decay = {name: tensor * (1 - rate * decay) for name, tensor in parameters.items()}, 0.0
        return adam_step(parameters, gradients, slots, lr=rate, betas=recipe.betas, number=number, weight_decay=decay)

    return sgd if recipe.optimizer == "sgd" else adam


def _transposed(members: Sequence[Tensors]) -> dict[str, list[Tensor]]:
    return {name: [member[name] for member in members] for name in members[0]}


def _padded(tensor: Tensor, size: int, axis: int) -> Tensor:
    """Filled up with zeros to `size` along `axis`."""
    return torch.cat([tensor, tensor.new_zeros(*tensor.shape[:axis], size - tensor.shape[axis], *tensor.shape[axis + 1 :])], axis)


def _pieces(batch: int, chunk: int, lanes: int = 1) -> int:
    """Size of the equal pieces that a batch is cut into: at most `chunk`, as equal as can be, and as many for every lane."""
    if chunk == 0 or batch == 0:
        return batch
    count = -(-batch // chunk)
    if count > 1:
        count = -(-count // lanes) * lanes
    return -(-batch // min(batch, count))

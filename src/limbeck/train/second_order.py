"""The loss of a batch as a function of parameters, images and labels, with the derivatives that differentiating through training needs.

Differentiating ``theta' = theta - lr grad_theta L(theta, X, Y)`` backwards takes, for a vector v of the size of theta, the derivatives of
``<grad_theta L(theta, X, Y), v>`` in theta (a Hessian-vector product), X and Y. `BatchLoss` gives them, and the gradient itself, for one batch at a time; no
autograd graph outlives a call.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from limbeck.data.augment import Augment, Params
from limbeck.train.losses import make_loss
from limbeck.train.network import Network, can_compile
from limbeck.train.updates import Tensors
from limbeck.types.plan import ExecutionPlan

SummedLoss = Callable[[Tensors, Tensor, Tensor], Tensor]
"""``(parameters, images [B, C, H, W], labels [B, K]) -> loss`` summed over the batch."""

_POSITIONS = {"parameters": 0, "images": 1, "labels": 2}


@dataclass(frozen=True)
class Batch:
    """Rows of a set of images and how they are augmented, so that a step can be taken again."""

    rows: Int[Tensor, " B"]
    augment: Augment | None
    params: Params

    def look(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "B C H W"]:
        """What the network is shown; differentiable."""
        shown = images[self.rows.to(images.device)]
        return shown if self.augment is None else self.augment.apply(shown, self.params)

    def pull(self, images: Float[Tensor, "N C H W"], by_shown: Float[Tensor, "B C H W"]) -> Float[Tensor, "N C H W"]:
        """Derivatives in the images from those in what the network was shown."""
        leaf = images.detach().requires_grad_()
        (by_images,) = torch.autograd.grad(self.look(leaf), leaf, by_shown)
        return by_images

    def labels(self, labels: Float[Tensor, "N K"]) -> Float[Tensor, "B K"]:
        """The label rows of what the network is shown."""
        return labels[self.rows.to(labels.device)]


@dataclass(frozen=True)
class Pulled:
    """Derivatives of ``<grad_theta L, v>``; None for those that were not wanted."""

    parameters: Tensors | None = None
    images: Float[Tensor, "B C H W"] | None = None
    labels: Float[Tensor, "B K"] | None = None


class BatchLoss:
    """The mean loss L of a batch: its gradient, and the derivatives of that gradient along a direction in `wanted` (parameters, images, labels).

    A batch passes in equal pieces of at most `chunk` images (0 for whole batches), over which derivatives are summed. `first` and `second` are the programs
    of `first_order` and `second_order`; under True the ones for pieces of a batch of `usual` images, under False those for any other.
    """

    def __init__(self, first: dict[bool, Any], second: dict[bool, Any], wanted: tuple[str, ...], *, chunk: int = 0, usual: int = 0) -> None:
        self._first, self._second, self._wanted, self._chunk, self._usual = first, second, wanted, chunk, usual

    @staticmethod
    def of_function(loss: SummedLoss, *wanted: str, chunk: int = 0) -> "BatchLoss":
        """Of any summed loss that can be differentiated twice, eagerly."""
        return BatchLoss({False: first_order(loss)}, {False: second_order(loss, wanted)}, wanted, chunk=chunk)

    @staticmethod
    def of_network(network: Network, buffers: Tensors, plan: ExecutionPlan, *wanted: str, loss: str = "cross-entropy", usual: int = 0) -> "BatchLoss":
        """Of a network in training mode, under a plan.

        Under a compiled plan, pieces of a batch of `usual` images are compiled. In bfloat16 it is only the second order that is: errors of a gradient
        would add up along the training and move the place at which all derivatives are taken, those of a derivative stay where they are.
        """
        device = torch.device(plan.device).type
        fast = plan.strategy == "compiled" and can_compile(device)
        first = {on: network_first_order(network, loss, "float32", device, on) for on in {False, fast}}
        second = {on: network_second_order(network, loss, plan.precision, device, wanted, on) for on in {False, fast}}
        chunk = 0 if network.has_batch_statistics else plan.chunk
        return BatchLoss(_bound(first, buffers), _bound(second, buffers), wanted, chunk=chunk, usual=usual)

    def gradient(self, parameters: Tensors, images: Float[Tensor, "B C H W"], labels: Float[Tensor, "B K"]) -> tuple[Float[Tensor, ""], Tensors]:
        """L and its gradient in the parameters."""
        total, loss = None, images.new_zeros(())
        for part, rows, usual in self._pieces(images, labels):
            new, value = self._first[usual](parameters, part, rows)
            total, loss = _sum(total, new), loss + value
        assert total is not None
        return loss / len(images), {name: tensor / len(images) for name, tensor in total.items()}

    def along(self, parameters: Tensors, images: Float[Tensor, "B C H W"], labels: Float[Tensor, "B K"], direction: Tensors) -> Pulled:
        """Derivatives of ``<grad_theta L, direction>``."""
        direction = {name: tensor / len(images) for name, tensor in direction.items()}
        by_parameters: Tensors | None = None
        parts: dict[str, list[Tensor]] = {name: [] for name in self._wanted if name != "parameters"}
        for part, rows, usual in self._pieces(images, labels):
            found = dict(zip(self._wanted, self._second[usual](parameters, part, rows, direction), strict=True))
            if "parameters" in found:
                by_parameters = _sum(by_parameters, found["parameters"])
            for name, kept in parts.items():
                kept.append(found[name])
        return Pulled(by_parameters, **{name: torch.cat(kept) for name, kept in parts.items()})

    def _pieces(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor, bool]]:
        """Equal pieces of at most a chunk, and whether each is of the usual size: a ragged one would cost a compilation of its own."""
        size, usual = _piece(len(images), self._chunk), _piece(self._usual, self._chunk)
        fast = True in self._first
        return [(part, rows, fast and len(part) == usual) for part, rows in zip(images.split(size), labels.split(size), strict=True)]


def first_order(loss: Callable[..., Tensor]) -> Callable[..., tuple[Tensors, Tensor]]:
    """``(parameters, images, labels, ...) -> gradient in the parameters, summed loss``."""
    return torch.func.grad_and_value(loss)


def second_order(loss: Callable[..., Tensor], wanted: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    """``(parameters, images, labels, direction, ...) -> derivatives of <grad_parameters loss, direction>`` in the arguments `wanted`, in their order."""
    gradient = torch.func.grad(loss)

    def along(parameters: Tensors, images: Tensor, labels: Tensor, direction: Tensors, *rest: Tensors) -> Tensor:
        followed = gradient(parameters, images, labels, *rest)
        return torch.stack([(followed[name] * vector).sum() for name, vector in direction.items()]).sum()

    return torch.func.grad(along, argnums=tuple(_POSITIONS[name] for name in wanted))


@lru_cache(maxsize=64)
def network_loss(network: Network, loss: str, precision: str, device_type: str) -> Callable[[Tensors, Tensor, Tensor, Tensors], Tensor]:
    """``(parameters, images, labels, buffers) -> summed loss`` in training mode; nothing is updated, so the same arguments always give the same value:
    batch normalization uses the statistics of the batch, and dropout is off."""
    module = copy.deepcopy(network.module).train()
    torch.func.replace_all_batch_norm_modules_(module)
    for layer in module.modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            layer.eval()
    kept = {name for name, _ in module.named_buffers()}
    criterion, narrow = make_loss(loss, 1.0), precision == "bfloat16"

    def summed_loss(parameters: Tensors, images: Tensor, labels: Tensor, buffers: Tensors) -> Tensor:
        state = parameters | {name: tensor for name, tensor in buffers.items() if name in kept}
        with torch.autocast(device_type, torch.bfloat16, enabled=narrow):
            logits = torch.func.functional_call(module, state, (images,))
        return criterion(logits.float() if narrow else logits, labels)

    return summed_loss


@lru_cache(maxsize=64)
def network_first_order(network: Network, loss: str, precision: str, device_type: str, compiled: bool) -> Callable[..., tuple[Tensors, Tensor]]:
    """`first_order` of `network_loss`, compiled or not: takes the buffers last."""
    return _program(first_order(network_loss(network, loss, precision, device_type)), compiled)


@lru_cache(maxsize=64)
def network_second_order(
    network: Network, loss: str, precision: str, device_type: str, wanted: tuple[str, ...], compiled: bool
) -> Callable[..., tuple[Any, ...]]:
    """`second_order` of `network_loss`, compiled or not: takes the buffers last."""
    return _program(second_order(network_loss(network, loss, precision, device_type), wanted), compiled)


def _program(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    """The function, compiled once for every shape where that is asked for."""
    if not compiled:
        return function
    from torch._dynamo import config

    config.recompile_limit = max(64, config.recompile_limit)
    program = torch.compile(function, dynamic=False)

    def laid_out(*given: Tensor | Tensors) -> Any:
        # compiled convolutions are fastest on channels-last images and weights, and a layout that changed would be compiled again; it changes no number
        return program(*({name: _last(tensor) for name, tensor in part.items()} if isinstance(part, dict) else _last(part) for part in given))

    return laid_out


def _bound(programs: dict[bool, Callable[..., Any]], buffers: Tensors) -> dict[bool, Callable[..., Any]]:
    """The programs with their last argument given."""
    return {on: lambda *given, program=program: program(*given, buffers) for on, program in programs.items()}


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()


def _piece(batch: int, chunk: int) -> int:
    return batch if chunk == 0 or batch <= chunk else -(-batch // -(-batch // chunk))


def _sum(total: Tensors | None, new: Tensors) -> Tensors:
    return new if total is None else {name: total[name] + tensor for name, tensor in new.items()}

"""Optimizer steps as maps from tensors to tensors, so that training can itself be differentiated: the formulas of `torch.optim.SGD` and `torch.optim.Adam`.

Nothing is changed in place. Under `torch.enable_grad` with gradients taken by ``create_graph=True`` the results depend differentiably on the parameters, the
gradients, the slots and the step size `lr` (a scalar tensor where it is to be learned). Slots are the optimizer's memory, ``{parameter}.{slot}``; an empty
dict is the memory of an optimizer that has taken no step.
"""

from torch import Tensor, where

Tensors = dict[str, Tensor]


def sgd_step(
    parameters: Tensors, gradients: Tensors, slots: Tensors, *, lr: Tensor | float, momentum: float = 0.0, weight_decay: float = 0.0
) -> tuple[Tensors, Tensors]:
    """``v' = momentum v + g + weight_decay theta`` and ``theta' = theta - lr v'``; the slot is ``{name}.momentum`` (v), absent when `momentum` is 0."""
    moved, memory = {}, {}
    for name, parameter in parameters.items():
        update = _decayed(gradients[name], parameter, weight_decay)
        if momentum:
            before = slots.get(f"{name}.momentum")
            update = update if before is None else momentum * before + update
            memory[f"{name}.momentum"] = update
        moved[name] = parameter - lr * update
    return moved, memory


def adam_step(
    parameters: Tensors,
    gradients: Tensors,
    slots: Tensors,
    *,
    lr: Tensor | float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    number: int | Tensor,
    weight_decay: float = 0.0,
) -> tuple[Tensors, Tensors]:
    """Kingma and Ba (2015), arXiv 1412.6980, algorithm 1: step `number` (from 1) with the slots ``{name}.mean`` (m) and ``{name}.square`` (v).

    ``m' = b1 m + (1 - b1) g``, ``v' = b2 v + (1 - b2) g^2``, ``theta' = theta - lr / (1 - b1^t) m' / (sqrt(v' / (1 - b2^t)) + eps)``, where g includes
    ``weight_decay theta``. The square root has derivative 0 where v' is 0, so a parameter that has had no gradient yet does not turn the derivative of the
    whole run into NaN.
    """
    moved, memory = {}, {}
    first, second = betas
    for name, parameter in parameters.items():
        gradient = _decayed(gradients[name], parameter, weight_decay)
        mean, square = (1 - first) * gradient, (1 - second) * gradient * gradient
        if f"{name}.mean" in slots:
            mean, square = first * slots[f"{name}.mean"] + mean, second * slots[f"{name}.square"] + square
        scale = _root(square) / (1 - second**number) ** 0.5 + eps
        moved[name] = parameter - lr / (1 - first**number) * mean / scale
        memory[f"{name}.mean"], memory[f"{name}.square"] = mean, square
    return moved, memory


def _decayed(gradient: Tensor, parameter: Tensor, weight_decay: float) -> Tensor:
    return gradient + weight_decay * parameter if weight_decay else gradient


def _root(square: Tensor) -> Tensor:
    # both branches of a `where` are differentiated, so the root must not see the zeros either
    positive = square > 0
    return where(positive, where(positive, square, 1.0).sqrt(), 0.0)

"""An expert trained with differential privacy (DP-SGD): the one defense with a proof."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.data.tables import ImageTable
from limbeck.errors import LimbeckError, OptionError
from limbeck.progress import Tick
from limbeck.streams import Streams
from limbeck.train.network import Network, State
from limbeck.train.updates import sgd_step
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

_AT_ONCE = 64  # gradients of single examples that are in memory together


def noise_multiplier(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The noise that makes `steps` steps of DP-SGD (epsilon, delta)-private, by the Renyi accountant of opacus (the extra ``privacy``)."""
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except Exception:
        raise LimbeckError("an expert with differential privacy needs the 'opacus' package; pip install 'limbeck[privacy]'") from None
    found: float = get_noise_multiplier(target_epsilon=epsilon, target_delta=delta, sample_rate=sample_rate, steps=steps, accountant="rdp")
    return found


def train_private(
    network: Network,
    recipe: Recipe,
    train: ImageTable,
    pixels: PixelSpace,
    streams: Streams,
    plan: ExecutionPlan,
    *,
    noise: float,
    clip: float = 1.0,
    tick: Tick = lambda units: None,
) -> State:
    """DP-SGD (Abadi and others 2016, arXiv 1607.00133, algorithm 1): every step draws each record with probability ``q = batch_size / n``, clips each
    record's gradient to norm `clip`, adds ``N(0, (noise clip)^2)`` to their sum and divides by ``q n``; momentum comes after, which costs no privacy.

    Cost: as an epoch of training without compilation, with one gradient for each example. Weight decay is left out, augmentation too. A network with batch
    statistics is refused: one record would enter the gradients of others.
    """
    if network.has_batch_statistics:
        raise OptionError(
            f"{network.spec} mixes the records of a batch, so their gradients cannot be clipped one by one; use a model without batch norm"
        )
    device = torch.device(plan.device)
    state = {name: tensor.to(device) for name, tensor in network.init(streams).items()}
    names = network.parameter_names
    slots: dict[str, Tensor] = {}
    rate = min(1.0, recipe.batch_size / len(train))
    labels = torch.from_numpy(train.labels.copy())
    for step in range(recipe.total_steps(len(train))):
        drawn = torch.nonzero(torch.rand(len(train), generator=streams.torch("sample", step)) < rate)[:, 0]
        total = {name: torch.zeros_like(state[name]) for name in names}
        for part in drawn.split(_AT_ONCE):
            images = pixels.to(device)(train.read(part).to(device))
            for name, gradient in clipped_sum(network, state, images, labels[part].to(device), clip).items():
                total[name] += gradient
        generator = streams.torch("noise", step)
        gradients = {
            name: (total[name] + noise * clip * torch.randn(total[name].shape, generator=generator).to(device)) / (rate * len(train))
            for name in names
        }
        changed, slots = sgd_step({name: state[name] for name in names}, gradients, slots, lr=recipe.lr, momentum=recipe.momentum)
        state = {**state, **changed}
        tick(1)
    return {name: tensor.cpu() for name, tensor in state.items()}


def clipped_sum(network: Network, state: State, images: Float[Tensor, "B C H W"], labels: Tensor, clip: float) -> dict[str, Tensor]:
    """``sum_i g_i min(1, clip / |g_i|)`` over single examples, the norm being that of all parameters together."""
    names, module = network.parameter_names, network.module
    module.train()
    others = {name: tensor for name, tensor in state.items() if name not in names}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits: Any = torch.func.functional_call(module, {**parameters, **others}, (image[None],))
        return -torch.nn.functional.log_softmax(logits, dim=1)[0].gather(0, label[None])[0]

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))({name: state[name] for name in names}, images, labels)
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients.values()]).sum(0).sqrt()
    factor = (clip / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp_max(1)
    return {name: torch.einsum("b,b...->...", factor, gradient) for name, gradient in gradients.items()}

"""Gradient matching: images whose training gradients, class by class, point where the gradients of the real images point."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from limbeck.data.augment import DSA, Params
from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.matching import apply, compiles, draw, on_device, pad, real_piece, siamese
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import finished, owners_of, real_batch, start_images
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import fit
from limbeck.train.losses import soft_cross_entropy
from limbeck.train.network import Network
from limbeck.train.network import State as Weights
from limbeck.train.updates import sgd_step
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.recipe import Recipe

Gradients = Sequence[Tensor]
ClassLoss = Callable[[Weights, Tensor, Tensor], Tensor]

LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
"""Published (outer, inner) by images per class."""

_COSINE_EPS = 1e-6
_STATISTICS_PER_CLASS = 16
_PREFIX = "network."


class GradientMatchingOptions(BaseModel):
    """The defaults are the published ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    iterations: int = Field(1000, ge=1, description="random networks that are matched on and trained, one after the other")
    outer: int | None = Field(None, ge=1, description="image steps per network; by default from the published table")
    inner: int | None = Field(None, ge=0, description="epochs on the synthetic images between image steps; by default from the published table")
    steps: int | None = Field(None, ge=1, description="image steps in all; by default iterations x outer")
    start: Literal["real", "noise"] = Field("noise", description="images start as random real ones, or as N(0, 1) noise in network space")
    image_lr: float = Field(0.1, gt=0, description="step size of the pixels, in network space")
    momentum: float = Field(0.5, ge=0, lt=1, description="momentum of the pixels")
    real_batch: int = Field(256, ge=1, description="real images of each class in a step")
    distance: Literal["ours", "mse", "cosine"] = Field("ours", description="between gradients: ours (row by row cosine), mse or cosine of the whole")
    network_lr: float = Field(0.01, gt=0, description="step size of the networks on the synthetic images")
    network_batch: int = Field(256, ge=1, description="synthetic images in a step of a network")
    image_precision: Literal["float32", "float16"] = Field("float32", description="how the finished images are stored")


class SiameseGradientMatchingOptions(GradientMatchingOptions):
    """As published: the images start as real ones and are augmented."""

    start: Literal["real", "noise"] = Field("real", description="images start as random real ones, or as N(0, 1) noise in network space")
    augment: str = Field("dsa", description="augmentation shared by the real and synthetic images of a class: none, dsa or dsa:STRATEGY")


class GradientMatching:
    """Dataset condensation by gradient matching (Zhao, Mopuri and Bilen 2021, arXiv 2006.05929, algorithm 1).

    A random network theta is drawn; then `outer` times the images S descend

        ``L = sum_k D(grad_theta CE(theta, S_k), grad_theta CE(theta, X_k))``,  ``D = sum over tensors and output rows of (1 - cosine)``

    by SGD with momentum, where X_k are `real_batch` real images of class k and both losses are means, and between these steps theta is trained for `inner`
    epochs on S. Then comes the next network. A step of the driver is one image step with the training that follows it; the network is in the state until its
    last step. In D tensors with one axis (biases, norm scales and shifts) count nothing, and a row's cosine is ``<g, h> / (|g| |h| + 1e-6)``; ``distance=mse``
    is the squared distance and ``distance=cosine`` one minus the cosine of all tensors taken together. The derivative of D with respect to the images is
    exact: it goes through the gradient.

    `outer` and `inner` follow the published table (images per class: outer, inner): 1: 1, 1; 10: 10, 50; 20: 20, 25; 30: 30, 20; 40: 40, 15; 50: 50, 10. In
    between they are interpolated linearly and rounded, above 50 they stay; unequal counts enter as their mean. At 1 image per class no network is ever trained.

    Cost: a step takes forward and backward passes of K x `real_batch` real images and of `inner` epochs of S, both chunked, compiled and in the precision of
    the plan, and a second-order pass over S in float32, uncompiled. The second-order graph is that of one class and is freed before the next class.

    Networks with batch normalization take their statistics from 16 real images of each class before every image step, and these stay fixed while gradients
    are matched. Deviations: the published code moves its running statistics a tenth of the way to those of the
    16 images, here they are set to them; it steps once more after the last evaluation, and refuses images per class that are not in the table. Its graph of
    all classes lives until the step; here it is one class's, with the same sum. Classes with fewer images than `real_batch` use all they have.
    """

    Options: ClassVar[type[GradientMatchingOptions]] = GradientMatchingOptions
    publishes: ClassVar[str] = "no training image"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10-ipc1": {},
        "cifar10-ipc10": {},
        "cifar10-ipc50": {},
        "fashion-mnist-cpu": {"iterations": 40, "real_batch": 128},
        "smoke": {"iterations": 10, "outer": 2, "inner": 2, "real_batch": 16, "image_lr": 10.0},
    }

    def __init__(self, options: GradientMatchingOptions, augment: str = "none") -> None:
        self.options = options
        self._augment = siamese(augment)

    def total_steps(self, problem: Problem) -> int:
        """`iterations` times `outer`, unless `steps` says otherwise."""
        return self.options.steps or self.options.iterations * self._loops(_mean_count(problem))[0]

    def work(self, size: Size) -> float:
        """For an image step 3 passes of the real images and 9 of the synthetic ones; 3 of these for every epoch of the network, which it skips once in `outer`."""
        outer, inner = self._loops(size.images / size.classes)
        steps = self.options.steps or self.options.iterations * outer
        return float(steps * (3 * size.real(self.options.real_batch) + 9 * size.images + 3 * inner * size.images * (outer - 1) / outer))

    def init(self, problem: Problem) -> State:
        """The images; their velocity and the network come with the first step."""
        return {"images": start_images(problem, self.options.start)}

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """One image step and the training of the network that follows it; the metric ``loss`` is L before the step."""
        options = self.options
        outer, inner = self._loops(_mean_count(problem))
        position = turn.number % outer
        kept = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items() if name.startswith(_PREFIX)}
        weights = kept if position else problem.network.init(turn.streams["network"])
        weights = on_device(weights, problem.plan)
        if problem.network.has_batch_statistics:
            weights = with_real_statistics(problem, weights, turn.streams["statistics"])
        gradient, loss = self._image_gradient(problem, state["images"], weights, turn)
        moved, slots = sgd_step({"images": state["images"]}, {"images": gradient}, state, lr=options.image_lr * turn.scale, momentum=options.momentum)
        new = {**moved, **slots}
        # images that are not finite cannot be trained on: the driver sees them and takes the step again
        if position < outer - 1 and bool(new["images"].isfinite().all()):
            weights = self._trained(problem, weights, new["images"], inner, turn)
            new |= {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in weights.items()}
        return new, {"loss": loss}

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """The images under the problem's label rule."""
        return finished(problem, state["images"], precision=self.options.image_precision, options=self.options.model_dump(mode="json"))

    def _loops(self, ipc: float) -> tuple[int, int]:
        outer, inner = loops(ipc)
        return self.options.outer or outer, inner if self.options.inner is None else self.options.inner

    def _image_gradient(self, problem: Problem, images: Tensor, weights: Weights, turn: Turn) -> tuple[Float[Tensor, "N C H W"], float]:
        options, network, plan = self.options, problem.network, problem.plan
        device = images.device.type
        fast = compiles(plan)
        first_order = class_loss(network, plan.precision, device, fast)
        second_order = class_loss(network, "float32", device, False)
        live = {name: tensor.detach() for name, tensor in weights.items()}
        # row by row cosines ignore tensors with one axis, so their gradients are not even taken
        matched = [live[name] for name in network.parameter_names if options.distance != "ours" or live[name].ndim > 1]
        for tensor in matched:
            tensor.requires_grad_(True)
        size = real_piece(problem, options.real_batch)
        parts, losses = [], []
        for number, part in enumerate(images.split(list(problem.counts))):
            if not len(part):
                continue
            row = torch.nn.functional.one_hot(torch.tensor([number]), network.classes).float().to(images.device)
            shown = draw(self._augment, problem, turn, number)
            real = real_batch(problem, problem.members(number), options.real_batch, turn.streams.torch("real", number))
            real = apply(self._augment, real, shown)
            target = mean_gradient(first_order, live, matched, real, row.expand(len(real), -1), size, padded=fast)
            gradient, loss = match(second_order, live, matched, part, row, target, options.distance, self._augment, shown)
            parts.append(gradient)
            losses.append(loss)
        return torch.cat(parts), float(torch.stack(losses).sum())

    def _trained(self, problem: Problem, weights: Weights, images: Tensor, epochs: int, turn: Turn) -> Weights:
        options = self.options
        recipe = Recipe(
            lr=options.network_lr * turn.scale,
            momentum=0,
            weight_decay=0,
            batch_size=options.network_batch,
            epochs=epochs,
            augment="none" if self._augment is None else str(replace(self._augment, siamese=False)),
        )
        shown = finished(problem, images, labels=Labels.hard(owners_of(problem), problem.network.classes))
        return fit(problem.network, weights, Examples.of_distilled(shown), recipe, turn.streams["train"], problem.plan).network


class SiameseGradientMatching(GradientMatching):
    """Gradient matching under differentiable Siamese augmentation, DSA (Zhao and Bilen 2021, arXiv 2102.08259).

    As `dc`, with one augmentation a_k for each class and step, whose parameters all real and synthetic images of the class share,

        ``L = sum_k D(grad_theta CE(theta, a_k(S_k)), grad_theta CE(theta, a_k(X_k)))``,

    and the derivative with respect to S goes through a_k. Images start as real ones. The networks train on synthetic images that are augmented too, each with
    parameters of its own. The strategy leaves out ``flip`` where mirroring changes the class (``augment=dsa:color_crop_cutout_scale_rotate`` for digits).

    Cost: that of `dc`; the augmentation adds little. Deviations: those of `dc`, and seeds are streams, where the published code takes the clock in
    milliseconds.
    """

    Options = SiameseGradientMatchingOptions
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        **GradientMatching.recipes,
        "smoke": {**GradientMatching.recipes["smoke"], "image_lr": 1.0, "augment": "dsa:color_crop_cutout_scale_rotate"},
    }

    def __init__(self, options: SiameseGradientMatchingOptions) -> None:
        super().__init__(options, options.augment)


def _mean_count(problem: Problem) -> float:
    """Images of a class, on average over those that get any."""
    present = [count for count in problem.counts if count]
    return sum(present) / len(present)


def loops(ipc: float) -> tuple[int, int]:
    """(outer, inner) for images per class: the published table, linear in between and rounded, constant above it."""
    known = sorted(LOOPS)
    outer, inner = (round(float(np.interp(ipc, known, [LOOPS[key][column] for key in known]))) for column in (0, 1))
    return outer, inner


def row_cosine_distance(made: Gradients, real: Gradients) -> Float[Tensor, ""]:
    """``sum_l sum_o 1 - <g_lo, h_lo> / (|g_lo| |h_lo| + 1e-6)`` over output rows o of every tensor l with more than one axis."""
    pairs = [(g.flatten(1), h.flatten(1)) for g, h in zip(made, real, strict=True) if g.ndim > 1]
    return torch.stack([(1 - _cosine(g, h)).sum() for g, h in pairs]).sum()


def squared_distance(made: Gradients, real: Gradients) -> Float[Tensor, ""]:
    """``|g - h|^2`` over all tensors."""
    return torch.stack([(g - h).square().sum() for g, h in zip(made, real, strict=True)]).sum()


def cosine_distance(made: Gradients, real: Gradients) -> Float[Tensor, ""]:
    """``1 - <g, h> / (|g| |h| + 1e-6)`` of all tensors as one vector."""
    return 1 - _cosine(*(torch.cat([tensor.flatten() for tensor in tensors]) for tensors in (made, real)))


DISTANCES: dict[str, Callable[[Gradients, Gradients], Tensor]] = {
    "ours": row_cosine_distance,
    "mse": squared_distance,
    "cosine": cosine_distance,
}


def mean_gradient(
    loss: ClassLoss,
    weights: Weights,
    parameters: Gradients,
    images: Float[Tensor, "B C H W"],
    rows: Float[Tensor, "B K"],
    size: int,
    *,
    padded: bool = False,
) -> tuple[Tensor, ...]:
    """Gradient of the mean loss with respect to `parameters` (entries of `weights`), summed over pieces of `size` images.

    When `padded`, a smaller last piece is filled with blank images under label rows of zeros: their loss is zero whatever the network says.
    """
    total: tuple[Tensor, ...] | None = None
    for part, labels in zip(images.split(size), rows.split(size), strict=True):
        if padded:
            part, labels = pad(part, size), pad(labels, size)
        new = torch.autograd.grad(loss(weights, part, labels) / len(images), list(parameters))
        total = new if total is None else tuple(torch._foreach_add(total, new))
    assert total is not None
    return total


def match(
    loss: ClassLoss,
    weights: Weights,
    parameters: Gradients,
    images: Float[Tensor, "n C H W"],
    row: Float[Tensor, "1 K"],
    target: Gradients,
    distance: str,
    augment: DSA | None = None,
    drawn: Params | None = None,
) -> tuple[Float[Tensor, "n C H W"], Float[Tensor, ""]]:
    """``d/dS D(grad mean loss(a(S)), target)`` and D, for images S of one class with label row `row`; exact."""
    leaf = images.detach().requires_grad_()
    shown = apply(augment, leaf, drawn or {})
    value = loss(weights, shown, row.expand(len(images), -1)) / len(images)
    made = torch.autograd.grad(value, list(parameters), create_graph=True)
    apart = DISTANCES[distance](made, target)
    (gradient,) = torch.autograd.grad(apart, leaf)
    return gradient, apart.detach()


@lru_cache(maxsize=16)
def class_loss(network: Network, precision: str, device_type: str, compiled: bool) -> ClassLoss:
    """``(weights, images, label rows) -> summed cross-entropy`` with batch statistics held fixed; with bfloat16 the network runs under autocast."""
    module, narrow = network.module, precision == "bfloat16"

    def summed(weights: Weights, images: Tensor, rows: Tensor) -> Tensor:
        module.eval()
        with torch.autocast(device_type, torch.bfloat16, enabled=narrow):
            logits = torch.func.functional_call(module, weights, (images,))
        return soft_cross_entropy(logits.float() if narrow else logits, rows)

    if not compiled:
        return summed
    from torch._dynamo import config

    config.recompile_limit = max(64, config.recompile_limit)
    program = torch.compile(summed, dynamic=False)
    return lambda weights, images, rows: program(weights, images.contiguous(memory_format=torch.channels_last), rows)


@torch.no_grad()
def with_real_statistics(problem: Problem, weights: Weights, streams: Streams) -> Weights:
    """The weights with the batch statistics of 16 real images of each class (all of a smaller class)."""
    batches = [
        real_batch(problem, problem.members(number), _STATISTICS_PER_CLASS, streams.torch("real", number))
        for number, count in enumerate(problem.counts)
        if count
    ]
    layers = {name: layer for name, layer in problem.network.module.named_modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    own = {name for name in weights if name.rpartition(".")[0] in layers and name not in problem.network.parameter_names}
    fresh = {name: torch.zeros_like(tensor) if name in own else tensor for name, tensor in weights.items()}
    problem.network.forward(fresh, torch.cat(batches), training=True)
    # from zero, one pass leaves the layer's momentum times the statistics of its batch; without a momentum, the statistics themselves
    factors = {name: layers[name.rpartition(".")[0]].momentum or 1.0 for name in own}
    return {name: tensor / factors[name] if name in own and tensor.is_floating_point() else tensor for name, tensor in fresh.items()}


def _cosine(made: Float[Tensor, "*rows n"], real: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows"]:
    # vector_norm has the derivative 0 at 0, where the square root of a sum has none
    norms = torch.linalg.vector_norm(made, dim=-1) * torch.linalg.vector_norm(real, dim=-1)
    return (made * real).sum(-1) / (norms + _COSINE_EPS)

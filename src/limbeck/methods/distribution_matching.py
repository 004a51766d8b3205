"""Distribution matching: images whose mean embedding under random networks is that of the real images of their class."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.data.augment import DSA, Params, parse_augment
from limbeck.errors import OptionError
from limbeck.methods.driver import Metrics, State, Turn
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import SyntheticOptions, finished, real_batch, start_images
from limbeck.train.network import Network, can_compile
from limbeck.train.network import State as Weights
from limbeck.train.updates import sgd_step
from limbeck.types.distilled import DistilledDataset
from limbeck.types.plan import ExecutionPlan

Embed = Callable[[Tensor], Tensor]


class DistributionMatchingOptions(SyntheticOptions):
    """The defaults are the published ones for up to 50 images per class."""

    steps: int = Field(20_000, ge=1, description="steps, each under a random network of its own")
    image_lr: float = Field(1.0, gt=0, description="step size of the pixels, in network space")
    momentum: float = Field(0.5, ge=0, lt=1, description="momentum of the pixels")
    real_batch: int = Field(256, ge=1, description="real images of each class in a step")
    augment: str = Field("dsa", description="augmentation shared by the real and synthetic images of a class: none, dsa or dsa:STRATEGY")


class DistributionMatching:
    """Distribution matching (Zhao and Bilen 2023, arXiv 2110.04181).

    A step draws a random network with embedding f (the input of its head), `real_batch` real images x of each class k and one augmentation a_k for each
    class, whose parameters all real and synthetic images s of the class share. The images descend

        ``L = sum_k || mean_i f(a_k(x_ki)) - mean_j f(a_k(s_kj)) ||^2``

    by SGD with momentum on the pixels. No network is trained and no second derivative is taken.

    Cost: a step is one forward pass of K x `real_batch` real images and one forward and backward pass of the synthetic ones. Real images pass in chunks that
    keep nothing for a backward pass, synthetic ones in groups of whole classes within ``plan.chunk``, each freed before the next; the longest graph is that of
    one chunk or one class. Under a compiled plan both run compiled and in its precision.

    As published: networks with batch normalization embed all real images in one batch and all synthetic ones in another, under the statistics of that batch
    (uncompiled, and the activations of K x `real_batch` images are in memory). Deviations: classes with fewer images than `real_batch` use all they have; the
    published code takes one step more than it is asked for, after the last evaluation; its augmentation seeds are the clock in milliseconds, so that classes
    handled within one share theirs.
    """

    Options = DistributionMatchingOptions
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10-ipc1": {},
        "cifar10-ipc10": {},
        "cifar10-ipc50": {},
        "cifar10-ipc100": {"image_lr": 10.0},
        "fashion-mnist-cpu": {"steps": 2000},
        "smoke": {"steps": 20, "real_batch": 16},
    }

    def __init__(self, options: DistributionMatchingOptions) -> None:
        self.options = options
        self._augment = siamese(options.augment)

    def total_steps(self, problem: Problem) -> int:
        """As asked."""
        return self.options.steps

    def init(self, problem: Problem) -> State:
        """The images; their velocity comes with the first step."""
        return {"images": start_images(problem, self.options.start)}

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """One step; the metric ``loss`` is L under this step's network."""
        options, network, plan = self.options, problem.network, problem.plan
        weights = on_device(network.init(turn.streams["network"]), plan)
        classes = [number for number, count in enumerate(problem.counts) if count]
        drawn = {number: draw(self._augment, problem, turn, number) for number in classes}
        whole = network.has_batch_statistics
        compiled = compiles(plan) and not whole

        def real(number: int) -> Tensor:
            images = real_batch(problem, problem.members(number), options.real_batch, turn.streams.torch("real", number))
            return apply(self._augment, images, drawn[number])

        embed = embedding(network, plan, weights)
        with torch.no_grad():
            if whole:
                targets = joint_means(embed, [real(number) for number in classes])
            else:
                size = real_piece(problem, options.real_batch)
                targets = torch.stack([chunked_mean(embed, real(number), size, padded=compiled) for number in classes])

        images, sizes = state["images"], [problem.counts[number] for number in classes]
        groups = [(0, len(classes))] if whole else list(groups_within(sizes, plan.chunk))
        longest = max(sum(sizes[first:end]) for first, end in groups)
        parts = images.split(sizes)
        gradients: list[Tensor] = []
        gaps: list[Tensor] = []
        for first, end in groups:
            leaves = [part.detach().requires_grad_() for part in parts[first:end]]
            shown = [apply(self._augment, leaf, drawn[number]) for leaf, number in zip(leaves, classes[first:end], strict=True)]
            means = joint_means(embed, shown, size=longest if compiled else None)
            gap = (means - targets[first:end]).square().sum()
            gradients += torch.autograd.grad(gap, leaves)
            gaps.append(gap.detach())
        moved, slots = sgd_step(
            {"images": images}, {"images": torch.cat(gradients)}, state, lr=options.image_lr * turn.scale, momentum=options.momentum
        )
        return {**moved, **slots}, {"loss": float(torch.stack(gaps).sum())}

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """The images under the problem's label rule."""
        return finished(problem, state["images"], precision=self.options.image_precision, options=self.options.model_dump(mode="json"))


def siamese(text: str) -> DSA | None:
    """The augmentation of an option `augment`, with parameters that all images share. Raises `OptionError` for one that is no DSA."""
    augment = parse_augment(text)
    if augment is None:
        return None
    if not isinstance(augment, DSA):
        raise OptionError(
            f"matching shows real and synthetic images under one augmentation, none or dsa, got augment={text!r}; use for example augment=dsa:color_crop"
        )
    return replace(augment, siamese=True)


def draw(augment: DSA | None, problem: Problem, turn: Turn, number: int) -> Params:
    """This step's parameters for class `number`."""
    return {} if augment is None else augment.draw(1, problem.network.shape, turn.streams.torch("augment", number))


def apply(augment: DSA | None, images: Float[Tensor, "B C H W"], drawn: Params) -> Float[Tensor, "B C H W"]:
    """The images under the parameters that `draw` gave for their class."""
    return images if augment is None else augment.apply(images, drawn)


def on_device(weights: Weights, plan: ExecutionPlan) -> Weights:
    """Weights on the plan's device, in the memory layout in which its convolutions are fastest; the layout changes no number."""
    layout = torch.channels_last if plan.strategy == "compiled" else torch.contiguous_format
    return {name: tensor.to(plan.device, memory_format=layout if tensor.ndim == 4 else torch.contiguous_format) for name, tensor in weights.items()}


def compiles(plan: ExecutionPlan) -> bool:
    """Whether passes run compiled, and so have to come in one shape."""
    return plan.strategy == "compiled" and can_compile(torch.device(plan.device).type)


def real_piece(problem: Problem, count: int) -> int:
    """Images per pass when `count` real images of a class, or all of the largest class, pass in equal pieces of at most ``plan.chunk``."""
    batch, chunk = min(count, int(np.bincount(problem.train.labels).max())), problem.plan.chunk
    return -(-batch // -(-batch // chunk)) if chunk else batch


def pad(rows: Float[Tensor, "B *rest"], size: int) -> Float[Tensor, "size *rest"]:
    """`rows` followed by zeros up to `size` rows, so that a compiled program sees one shape."""
    return F.pad(rows, [0] * (2 * rows.ndim - 1) + [size - len(rows)])


def groups_within(sizes: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive classes (first, end) with at most `limit` images together, a larger class alone; 0 is no limit."""
    first, total = 0, 0
    for number, size in enumerate(sizes):
        if limit and number > first and total + size > limit:
            yield first, number
            first, total = number, 0
        total += size
    yield first, len(sizes)


def joint_means(embed: Embed, batches: Sequence[Float[Tensor, "_ C H W"]], size: int | None = None) -> Float[Tensor, "k F"]:
    """Mean embedding of each batch, from one pass over all of them, padded to `size` images."""
    sizes = [len(batch) for batch in batches]
    joint = torch.cat(list(batches))
    rows = embed(joint if size is None else pad(joint, size))[: sum(sizes)]
    return torch.stack([part.mean(0) for part in rows.split(sizes)])


def chunked_mean(embed: Embed, images: Float[Tensor, "B C H W"], size: int, *, padded: bool) -> Float[Tensor, " F"]:
    """Mean embedding, `size` images at a time; a last piece that is smaller is filled up when `padded`."""
    rows = [embed(pad(part, size) if padded else part)[: len(part)] for part in images.split(size)]
    return torch.cat(rows).mean(0)


def embedding(network: Network, plan: ExecutionPlan, weights: Weights) -> Embed:
    """``images [B, C, H, W] -> features [B, F]`` in float32, in training mode only where a batch has statistics."""
    if network.has_batch_statistics or not hasattr(network.module, "features"):  # `Network.features` refuses the latter in its own words
        return lambda images: network.features(weights, images, training=True)
    features = _features(network, plan.precision, torch.device(plan.device).type, compiles(plan))
    return lambda images: features(weights, images)


class _Embedder(nn.Module):
    """A classifier whose forward pass stops at the embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        rows: Tensor = self.model.features(images)  # type: ignore[operator]
        return rows


@lru_cache(maxsize=16)
def _features(network: Network, precision: str, device_type: str, compiled: bool) -> Callable[[Weights, Tensor], Tensor]:
    embedder, narrow = _Embedder(network.module), precision == "bfloat16"

    def features(weights: Weights, images: Tensor) -> Tensor:
        embedder.eval()
        with torch.autocast(device_type, torch.bfloat16, enabled=narrow):
            rows = torch.func.functional_call(embedder, {f"model.{name}": tensor for name, tensor in weights.items()}, (images,))
        return rows.float() if narrow else rows

    if not compiled:
        return features
    from torch._dynamo import config

    config.recompile_limit = max(64, config.recompile_limit)
    program = torch.compile(features, dynamic=False)
    return lambda weights, images: program(weights, images.contiguous(memory_format=torch.channels_last))

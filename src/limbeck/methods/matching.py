"""What methods that match real and synthetic images share: augmentations that both see, embeddings, and passes in pieces of one shape."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.data.augment import DSA, Params, parse_augment
from limbeck.errors import OptionError
from limbeck.experts.expert import Expert
from limbeck.experts.trajectory import Snapshot, Trajectory
from limbeck.methods.driver import Turn
from limbeck.methods.problem import Problem
from limbeck.train.network import Network, can_compile
from limbeck.train.network import State as Weights
from limbeck.types.plan import ExecutionPlan

Embed = Callable[[Tensor], Tensor]


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


def chunked(embed: Embed, images: Float[Tensor, "B C H W"], size: int, *, padded: bool) -> Float[Tensor, "B F"]:
    """Embeddings, `size` images at a time; a last piece that is smaller is filled up when `padded`."""
    return torch.cat([embed(pad(part, size) if padded else part)[: len(part)] for part in images.split(size)])


def embedding(network: Network, plan: ExecutionPlan, weights: Weights, *, training: bool) -> Embed:
    """``images [B, C, H, W] -> features [B, F]`` in float32; `training` is whether a network with batch norm uses the statistics of the batch."""
    if network.has_batch_statistics or not hasattr(network.module, "features"):  # `Network.features` refuses the latter in its own words
        return lambda images: network.features(weights, images, training=training)
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


def check_experts_to_come(problem: Problem, name: str, expert: Network | None, epochs: int | None) -> None:
    """Raises `OptionError` unless there will be trajectories (`epochs` is not None) of the problem's architecture."""
    if expert is None or epochs is None:
        raise OptionError(f"{name} needs experts and their training, got none; use --experts N, such as --experts 5")
    if expert != problem.network:
        raise OptionError(
            f"{name} needs experts of the architecture that it distills for, got experts of {expert.spec} for {problem.network.spec}; use --model {expert.spec}"
        )


def check_experts(problem: Problem, name: str) -> None:
    """Raises `OptionError` unless there are trajectories, all of the problem's architecture and pixel space."""
    if not problem.trajectories:
        check_experts_to_come(problem, name, None, None)
    for trajectory in problem.trajectories:
        first = expert_at(trajectory, trajectory.snapshots[0].step, problem.plan.device)
        check_experts_to_come(problem, name, first.network, int(trajectory.last.epoch))
        if first.pixels.header()["steps"] != problem.pixels.header()["steps"]:
            raise OptionError(
                f"the experts see pixels after {first.pixels.header()['steps']} but the images are after "
                f"{problem.pixels.header()['steps']}; use the same --pixels for both"
            )


def expert_at(trajectory: Trajectory, step: int, device: str) -> Expert:
    """A snapshot with its weights on the device."""
    return _read(trajectory.folder, trajectory.key, trajectory.snapshots, step, device)


@lru_cache(maxsize=8)
def _read(folder: Path, key: str, snapshots: tuple[Snapshot, ...], step: int, device: str) -> Expert:
    # a read costs milliseconds of a step of seconds, so only a few are kept
    expert = Trajectory(folder, key, snapshots).at(step)
    return Expert(expert.network, {name: tensor.to(device) for name, tensor in expert.state.items()}, expert.pixels, expert.step, expert.digest)

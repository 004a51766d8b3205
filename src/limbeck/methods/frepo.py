"""FRePo: images and labels whose kernel ridge regression, on the features of a pool of networks trained online on them, predicts real images."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import SyntheticOptions, finished, one_hot, owners_of, start_images
from limbeck.streams import Streams
from limbeck.train.network import Network, can_compile, loss_of_state
from limbeck.train.updates import adam_step
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.recipe import Recipe

STUDENT = Recipe(
    optimizer="adam",
    lr=3e-4,
    weight_decay=0,
    batch_size=500,
    steps=1000,
    schedule="cosine",
    warmup_steps=500,
    loss="mse",
    augment="dsa:color_crop_cutout_scale_rotate",
)
"""The training recommended with a set when the problem's own recipe has another loss: protocol ``frepo`` without mirroring, which no source forbids."""

_LAMB_EPS = 1e-6


class FRePoOptions(SyntheticOptions):
    """The defaults are for a CPU; the recipe ``published`` holds the authors' settings."""

    steps: int = Field(5000, ge=1, description="steps of the outer optimization")
    batch: int = Field(512, ge=1, description="real images a step")
    optimizer: Literal["adam", "lamb"] = Field("adam", description="outer optimizer; lamb scales each step to the norm of what it changes")
    image_lr: float = Field(0.01, gt=0, description="step size of the pixels, in network space")
    label_lr: float = Field(0.003, ge=0, description="step size of the labels; 0 keeps them")
    last_rate: float = Field(0.1, ge=0, le=1, description="both step sizes fall along a cosine to this fraction at the last step; 1 keeps them")
    ridge: float = Field(1e-6, gt=0, description="lambda: ridge in units of the mean diagonal entry of the kernel")
    margin: bool = Field(True, description="reward a gap of up to 1/K between a label row's two largest entries")
    flip: bool = Field(False, description="the mirror images of the prototypes predict too")
    pool: int = Field(10, ge=1, description="networks in the pool")
    pool_lr: float = Field(3e-4, gt=0, description="Adam step size of the networks' online training")
    pool_batch: int = Field(1000, ge=1, description="most prototypes in one online step of a network")
    reset_after: int = Field(100, ge=1, description="online steps after which a network is drawn anew")


class FRePo:
    """Neural feature regression with a pool (Zhou, Nezhadarya and Ba 2022, arXiv 2206.00719).

    A step draws one network of the pool and a batch of B real images X_t with one-hot labels T. With phi its flattened features, before the head, the
    N prototypes (X, Y) predict

        ``P = phi(X_t) W``,  ``W = phi(X)' (K + lambda tr(K)/N I)^-1 Y``,  ``K = phi(X) phi(X)'``,

    and images and labels descend ``1/(2B) sum ||P - (T - 1/K)||^2 - mean_i min(top1(Y_i) - top2(Y_i), 1/K)`` (`margin` off: without the second term). Then
    that network takes one Adam step of the same squared loss on the prototypes; when it has taken `reset_after` of them, a new one takes its place. The
    first networks are replaced earlier, each at another time, so that the pool holds all ages.
    Rows of Y start as ``(one-hot - 1/K) / sqrt(K/10)`` and are learned freely. The file stores ``Y + 1/K``, labels of kind ``free``: the loss ``mse`` of a
    recipe subtracts 1/K from every label row, learned or one-hot, so a student sees Y.

    Cost: for a step, one forward pass of B images and two forward and backward passes of N; nothing is differentiated twice and nothing unrolled. The N x N
    system is formed, solved (Cholesky) and differentiated in float64: O(N^2 F + N^3) with F features. Memory: the activations of N images, and three copies
    of the parameters for every network of the pool.

    Deviations: the network is the problem's, the same in distilling and evaluation, with PyTorch's initialization, where the authors distill with widths of
    128, 256, 512 and batch norm and evaluate without norm. Adam by default, as LAMB's published rate needs 500,000 steps. A network takes exactly `reset_after`
    steps; in published code one more. The authors report the checkpoint that is best on test, and the student's averaged weights; here the last set is the
    result, and the student's last weights are tested.
    """

    Options = FRePoOptions
    publishes: ClassVar[str] = "no training image"
    student_loss: ClassVar[str] = "mse"
    recipes: ClassVar[dict[str, dict[str, object]]] = {
        "published": {"steps": 500_000, "batch": 1024, "optimizer": "lamb", "image_lr": 3e-4, "label_lr": 3e-4, "last_rate": 0.1, "pool": 10},
        # ridges by validation accuracy, 1,200 steps: 75.9 % with 0.05, 75.4 with 0.015, 72.5 with 0.3, 66.2 with 1 (3 students); docs/results/fashion-mnist.md
        "fashion-mnist-cpu-ipc1": {"steps": 10_000, "batch": 128, "pool": 5, "ridge": 0.05},
        "fashion-mnist-cpu-ipc10": {"steps": 4500, "batch": 256, "ridge": 0.02},
        "smoke": {"steps": 60, "batch": 32, "image_lr": 0.05, "label_lr": 0.02, "pool": 2, "reset_after": 10},
    }

    def __init__(self, options: FRePoOptions) -> None:
        self.options = options
        self.label_default = "learned" if options.label_lr else "hard"

    def total_steps(self, problem: Problem) -> int:
        """As asked for."""
        return self.options.steps

    def work(self, size: Size) -> float:
        """A pass of the real batch, three of the images (mirrored, twice as many) and three of those that the network sees, a step."""
        options = self.options
        shown = size.images * (2 if options.flip else 1)
        return float(options.steps * (min(options.batch, size.train) + 3 * shown + 3 * min(options.pool_batch, size.images)))

    def init(self, problem: Problem) -> State:
        """Images and labels, and of network i of the pool ``pool.{i}.{name}``: parameters, buffers and Adam's memory. ``pool.updates`` [pool] counts the online
        steps of each and ``pool.left`` [pool] those until it is drawn anew."""
        options, classes = self.options, problem.network.classes
        labels = (one_hot(owners_of(problem), problem) - 1 / classes) / math.sqrt(classes / 10) + 1 / classes
        head_start = options.reset_after // options.pool * torch.arange(options.pool)
        state = {"images": start_images(problem, options.start), "labels": labels}
        state |= {"pool.updates": torch.zeros(options.pool, dtype=torch.int64), "pool.left": options.reset_after - head_start}
        for i in range(options.pool):
            state |= _within(f"pool.{i}.", _fresh(problem, problem.streams["pool", i]))
        return state

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """One step of images and labels under one network, then one of that network."""
        i = int(torch.randint(self.options.pool, (), generator=turn.streams.torch("network")))
        member = _below(f"pool.{i}.", state)
        network = {name: member[name] for name in _names(problem.network)}
        gradients, metrics = self.gradients(problem, state, network, turn.streams)
        learned = self._descend(state, gradients, turn)
        updates, left = state["pool.updates"].clone(), state["pool.left"].clone()
        if left[i] > 0:
            updates[i] += 1
            left[i] -= 1
            member = self._train(problem, member, learned["images"], learned["labels"], int(updates[i]), turn)
        else:
            updates[i], left[i] = 0, self.options.reset_after
            member = _fresh(problem, turn.streams["network"])
        return {**state, **learned, "pool.updates": updates, "pool.left": left, **_within(f"pool.{i}.", member)}, metrics

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """Images in network space and labels of kind ``free``, in full; a soft label rule says their precision where it is float16."""
        precision: Literal["float32", "float16"] = "float16" if problem.rule.precision == "float16" else "float32"
        labels = Labels.encode(state["labels"].cpu(), kind="free", precision=precision, sums_to_one=False)
        recipe = problem.recipe if problem.recipe.loss == "mse" else STUDENT
        options = self.options.model_dump(mode="json")
        return finished(problem, state["images"], labels=labels, precision=self.options.image_precision, recipe=recipe, options=options)

    def gradients(self, problem: Problem, state: State, network: State, streams: Streams) -> tuple[State, Metrics]:
        """Of the loss with respect to ``images`` and ``labels`` under one network, on a batch from the stream ``real``. Metrics: the loss, its squared error,
        and the fraction of the batch that is predicted rightly."""
        options, plan, center = self.options, problem.plan, 1 / problem.network.classes
        chosen = torch.randperm(len(problem.train), generator=streams.torch("real"))[: options.batch]
        real = problem.pixels.to(plan.device)(problem.train.read(chosen).to(plan.device))
        targets = one_hot(torch.from_numpy(problem.train.labels[chosen.numpy()]), problem).double() - center
        embed = _embedder(problem)
        with torch.no_grad():
            seen = embed(network, real).double()
        images, labels = (state[name].detach().requires_grad_() for name in ("images", "labels"))
        shown, rows = (torch.cat([images, images.flip(3)]), labels.repeat(2, 1)) if options.flip else (images, labels)
        predicted = seen @ ridge_weights(embed(network, shown).double(), rows.double() - center, options.ridge)
        error = 0.5 * (predicted - targets).square().sum(1).mean()
        loss = error - label_margin(labels.double()) if options.margin else error
        gradients = dict(zip(("images", "labels"), torch.autograd.grad(loss, (images, labels)), strict=True))
        right = (predicted.argmax(1) == targets.argmax(1)).double().mean()
        return gradients, dict(zip(("loss", "error", "accuracy"), torch.stack([loss, error, right]).tolist(), strict=True))

    def _descend(self, state: State, gradients: State, turn: Turn) -> State:
        """Images and labels after an Adam or LAMB step, with their memory."""
        options = self.options
        fall = options.last_rate + (1 - options.last_rate) * 0.5 * (1 + math.cos(math.pi * turn.number / options.steps))
        slots = {name: state[name] for kind in ("images", "labels") for name in (f"{kind}.mean", f"{kind}.square") if name in state}
        lamb = options.optimizer == "lamb"
        # from zero, Adam's parameters after a unit step are its direction
        zeros = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
        directions, slots = adam_step(zeros, gradients, slots, lr=1.0, eps=_LAMB_EPS if lamb else 1e-8, number=turn.number + 1)
        for name, rate, origin in (("images", options.image_lr, 0.0), ("labels", options.label_lr, 1 / state["labels"].shape[1])):
            trust = trust_ratio(state[name] - origin, directions[name]) if lamb else 1.0
            slots[name] = state[name] + rate * fall * turn.scale * trust * directions[name]
        return slots

    def _train(
        self, problem: Problem, member: State, images: Float[Tensor, "N C H W"], labels: Float[Tensor, "N K"], number: int, turn: Turn
    ) -> State:
        """The network and its memory after its online step `number` (from 1) on the prototypes."""
        if len(images) > self.options.pool_batch:
            chosen = torch.randperm(len(images), generator=turn.streams.torch("online"))[: self.options.pool_batch].to(images.device)
            images, labels = images[chosen], labels[chosen]
        plan, names = problem.plan, problem.network.parameter_names
        device_type, compiled = torch.device(plan.device).type, plan.strategy == "compiled"
        # a copy, because batch statistics are updated in place and the state that was given must stay as it is
        network = {name: member[name].clone() for name in _names(problem.network)}
        network = {name: tensor.requires_grad_(name in names) for name, tensor in (_laid_out(network) if compiled else network).items()}
        plain, fast = (loss_of_state(problem.network, "mse", 1.0, plan.precision, device_type, compiled=on) for on in (False, compiled))
        gradients: dict[str, Tensor] = {}
        size = _piece(len(images), plan.chunk)
        for part, rows in zip(images.split(size), labels.split(size), strict=True):
            loss = (fast if len(part) == size else plain)(network, part, rows) / len(images)
            for name, gradient in zip(names, torch.autograd.grad(loss, [network[name] for name in names]), strict=True):
                gradients[name] = gradients[name] + gradient if name in gradients else gradient
        slots = {name: tensor for name, tensor in member.items() if name not in network}
        with torch.no_grad():
            moved, slots = adam_step({name: network[name] for name in names}, gradients, slots, lr=self.options.pool_lr * turn.scale, number=number)
        return {**network, **moved, **slots}


def ridge_weights(features: Float[Tensor, "N F"], labels: Float[Tensor, "N K"], ridge: float) -> Float[Tensor, "F K"]:
    """``phi' (K + ridge tr(K)/N I)^-1 Y`` with ``K = phi phi'``: weights of the linear predictor of kernel ridge regression. NaN where K is not finite.

    Weights instead of predictions from the kernel between real images and prototypes: O(B F K) in place of O(B F N).
    """
    kernel = features @ features.T
    scale = ridge * kernel.diagonal().mean()
    factor, failed = torch.linalg.cholesky_ex(kernel + scale * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device))
    weights = features.T @ torch.cholesky_solve(labels, factor)
    return torch.where(failed == 0, weights, torch.nan)


def label_margin(labels: Float[Tensor, "N K"]) -> Float[Tensor, ""]:
    """``mean_i min(top1(Y_i) - top2(Y_i), 1/K)``: unchanged when a constant is added to all entries."""
    first, second = labels.topk(2, dim=1).values.unbind(1)
    return (first - second).clamp_max(1 / labels.shape[1]).mean()


def trust_ratio(values: Tensor, direction: Tensor) -> Tensor:
    """LAMB's factor ``|values| / |direction|``, and 1 where either is zero (You et al. 2020, arXiv 1904.00962)."""
    size, step = values.norm(), direction.norm()
    return torch.where((size > 0) & (step > 0), size / step, torch.ones_like(size))


def _fresh(problem: Problem, streams: Streams) -> State:
    """A new network without a past."""
    network = {name: tensor.to(problem.plan.device) for name, tensor in problem.network.init(streams).items()}
    memory = {f"{name}.{slot}": torch.zeros_like(network[name]) for name in problem.network.parameter_names for slot in ("mean", "square")}
    return network | memory


def _names(network: Network) -> tuple[str, ...]:
    return tuple(network.module.state_dict())


def _within(prefix: str, tensors: State) -> State:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _below(prefix: str, tensors: State) -> State:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


Embed = Callable[[State, Float[Tensor, "B C H W"]], Float[Tensor, "B F"]]


def _embedder(problem: Problem) -> Embed:
    """Features of any number of images, in evaluation mode, in pieces that fit the plan; differentiable where gradients are on."""
    plan, device_type = problem.plan, torch.device(problem.plan.device).type
    plain, fast = (_features(problem.network, plan.precision, device_type, on) for on in (False, plan.strategy == "compiled"))

    def embed(network: State, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        size = _piece(len(images), plan.chunk)
        # a ragged last piece would cost a compilation of its own
        return torch.cat([(fast if len(part) == size else plain)(network, part) for part in images.split(size)])

    return embed


class _Features(nn.Module):
    """A classifier whose forward pass stops at the embedding."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.model.features(images)  # type: ignore[operator]
        return embedding


@lru_cache(maxsize=64)
def _features(network: Network, precision: str, device_type: str, compiled: bool) -> Embed:
    module, narrow = _Features(network.module), precision == "bfloat16"

    def features(state: State, images: Tensor) -> Tensor:
        module.eval()
        with torch.autocast(device_type, torch.bfloat16, enabled=narrow):
            embedding = torch.func.functional_call(module, {f"model.{name}": tensor for name, tensor in state.items()}, (images,))
        return embedding.float()

    if not compiled or not can_compile(device_type):
        return features
    from torch._dynamo import config

    config.recompile_limit = max(64, config.recompile_limit)
    program = torch.compile(features, dynamic=False)

    return lambda state, images: program(_laid_out(state), images.contiguous(memory_format=torch.channels_last))


def _laid_out(state: State) -> State:
    """In the memory layout in which compiled CPU convolutions are fastest; it changes no number."""
    return {name: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor for name, tensor in state.items()}


def _piece(count: int, chunk: int) -> int:
    """Size of the equal pieces of at most `chunk` that `count` images are cut into; `chunk` 0 means all at once."""
    return count if chunk == 0 or count <= chunk else -(-count // -(-count // chunk))

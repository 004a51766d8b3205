"""`sre2l`: images that a trained network recognizes and whose batch statistics are those of its training data; Yin, Xing and Shen 2023 (arXiv 2306.13092)."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.data.views import split_mixing
from limbeck.errors import OptionError
from limbeck.experts.expert import Ensemble, Expert
from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import SyntheticOptions, finished, owners_of, start_images
from limbeck.methods.views import ViewOptions, before_views, check_views, with_views
from limbeck.models import parse_model
from limbeck.train.examples import Examples
from limbeck.train.fit import fit
from limbeck.train.network import Network
from limbeck.types.distilled import DistilledDataset
from limbeck.types.pixels import PixelSpace, Scale, Standardize
from limbeck.types.recipe import Recipe

_BETAS, _EPS = (0.5, 0.9), 1e-8
_RANGE_IMAGES = 1000  # real images that show the range of a pixel space whose range has no closed form
_TEACHER_BATCH = 128
_TEACHER = "teacher."
_NO_EXPERT = (
    "sre2l inverts a trained expert, got none; give the problem an expert, or name a network to train first: sre2l:teacher=convnet:norm=batch"
)


class SRe2LOptions(SyntheticOptions, ViewOptions):
    """`teacher` is for when the problem's expert has no batch normalization: such a network is trained first, on train alone."""

    steps: int = Field(1000, ge=1, description="iterations for every block of images")
    start: Literal["real", "noise"] = Field("noise", description="images start as N(0, 1) noise in network space, or as random real ones")
    batch: int = Field(100, ge=1, description="most images of a block; its batch statistics are compared with the teacher's")
    image_lr: float = Field(0.25, gt=0, description="Adam's rate on the images at the start; it falls to 0 along a cosine")
    bn_weight: float = Field(0.01, ge=0, description="weight of the batch statistics beside the cross-entropy")
    first_bn: float = Field(10.0, ge=0, description="weight of the first batch normalization among all, which count 1")
    augment: str = Field("none", description="what the teacher is shown instead of the images: resized_crop+flip is SRe2L's multi-crop")
    jitter: int = Field(4, ge=0, description="images are rolled by up to so many pixels, rows and columns for themselves")
    teacher: str | None = Field(None, description="train this network as the teacher, convnet:norm=batch say; none: the expert is the teacher")
    teacher_steps: int = Field(2000, ge=1, description=f"steps of that training, in batches of {_TEACHER_BATCH}")
    teacher_lr: float = Field(0.05, gt=0, description="its SGD rate at the start; it falls to 0 along a cosine")

    @field_validator("augment")
    @classmethod
    def _for_each_image(cls, text: str) -> str:
        if split_mixing(text)[1] is not None:
            raise OptionError(
                f"sre2l makes every image for itself, so its augment cannot mix images, got {text!r}; use for example resized_crop+flip"
            )
        return text


class SRe2L:
    """Squeeze, recover, relabel: inverts a trained teacher (Yin, Xing and Shen 2023, arXiv 2306.13092, sections 3.2 and 3.3). Images x of classes y minimize

    ``CE(z(A(x)), y) + bn_weight sum_l w_l (||var_l - var(A(x))_l||_2 + ||mean_l - mean(A(x))_l||_2)``

    over the teacher's batch-normalization layers l in the order of their definition, with w = `first_bn` for the first and 1 for the others; mean_l and
    var_l are the running statistics (the teacher is in evaluation mode) and mean(.)_l and var(.)_l those of the layer's input over the block (biased
    variance). A rolls the block, after `augment`, alike for all its images. Adam with betas (0.5, 0.9), rate along a cosine to 0, pixels clamped to the range
    of valid images after every iteration. A block holds up to `batch` images, as many classes as possible once, then all once more, so that its statistics
    are those of mixed classes. One step is one iteration of one block; blocks are made one after the other. Finally the expert labels the images:
    once, or with `views` for every augmented view.

    Cost: ``steps ceil(N / batch)`` forward and backward passes of the teacher over a block; one block's activations are in memory; no real image is read
    unless the images start as real ones. Labels per view cost a forward pass of the expert each, and their bytes.

    Deviations. From the published code: blocks are filled with several images per class where there are fewer than 100 classes (there, one per class, so 10
    images decide the statistics of 10 classes); images are stored as they are, not as JPEG; labels per view do not depend on the batch (`limbeck.data.views`).
    As there: the last iterate is kept (its "best" one is overwritten by it), total variation and L2 terms are zero. The published roll is 0..32 at ImageNet-1K,
    0..4 at CIFAR-100 and -4..4 at Tiny-ImageNet; a roll wraps around, and here it is always symmetric, -jitter..jitter. Where a pixel
    space mixes pixels (whitening), the valid range is that of a thousand real images. With an ensemble of experts, the first one is inverted and all label.
    `teacher` has no counterpart in the paper, whose experts all have batch normalization: it trains a network for recovery only, while the problem's
    expert gives the labels.
    """

    Options = SRe2LOptions
    publishes: ClassVar[str] = "no training image"
    label_default: ClassVar[str] = "soft"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet-1k": {"steps": 4000, "augment": "resized_crop+flip", "jitter": 32, "views": 300},
        "tiny-imagenet": {"steps": 4000, "image_lr": 0.1, "bn_weight": 1.0, "augment": "resized_crop+flip", "views": 300},
        "cifar100": {"views": 400, "view_augment": "crop_flip:pad=4+mixup:alpha=0.8"},
        "fashion-mnist-cpu": {"steps": 300, "image_lr": 0.1, "jitter": 2, "teacher": "convnet:norm=batch", "teacher_steps": 500, "views": 100},
        "smoke": {"steps": 20, "start": "real", "image_lr": 0.1, "jitter": 0, "teacher": "convnet-d1-w8:norm=batch", "teacher_steps": 30},
    }

    def __init__(self, options: SRe2LOptions) -> None:
        self.options = options
        self.wants_expert = options.teacher is None
        self._augment = split_mixing(options.augment)[0]

    def total_steps(self, problem: Problem) -> int:
        """`steps` iterations for each block."""
        return self.options.steps * len(make_blocks(problem.counts, self.options.batch))

    def work(self, size: Size) -> float:
        """Three passes of every image for each of its iterations, and the training of a teacher, which counts as large as the expert."""
        options = self.options
        teacher = 3 * options.teacher_steps * min(_TEACHER_BATCH, size.train) if options.teacher else 0
        return float(3 * options.steps * size.images + teacher + options.views * size.images)

    def unmade(self, problem: Problem, steps: int) -> int:
        """Images of the blocks that have not had all their iterations."""
        return sum(len(block) for block in make_blocks(problem.counts, self.options.batch)[steps // self.options.steps :])

    def check(self, problem: Problem, expert: Network | None, epochs: int | None) -> None:
        """Raises `OptionError` for a network to invert without batch normalization, and for labels that cannot be made."""
        check_views(problem.rule, expert is not None, self.options)
        self._normalized(problem, expert)

    def init(self, problem: Problem) -> State:
        """``images`` [N, C, H, W]; ``block``, the numbers of those under way, with their ``pixels`` and Adam's ``mean`` and ``square``; the valid range
        ``low`` and ``high`` [C, 1, 1]; the teacher's state."""
        check_views(problem.rule, problem.expert is not None, self.options)
        network = self._teacher(problem)
        low, high = valid_range(problem)
        teacher = {f"{_TEACHER}{name}": tensor.to(problem.plan.device) for name, tensor in self._teacher_state(problem, network).items()}
        images = start_images(problem, self.options.start)
        return self._enter({"images": images, "low": low, "high": high, **teacher}, make_blocks(problem.counts, self.options.batch)[0])

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """One iteration of the block whose turn it is."""
        number, iteration = divmod(turn.number, self.options.steps)
        if iteration == 0 and number:
            state = self._enter({**state, "images": _with_block(state)}, make_blocks(problem.counts, self.options.batch)[number])
        pixels = state["pixels"].detach().clone().requires_grad_(True)
        teacher = {name.removeprefix(_TEACHER): tensor for name, tensor in state.items() if name.startswith(_TEACHER)}
        narrow = problem.plan.precision == "bfloat16"
        with torch.autocast(torch.device(problem.plan.device).type, torch.bfloat16, enabled=narrow):
            logits, mismatch = forward_with_statistics(self._teacher(problem), teacher, self._shown(pixels, turn), self.options.first_bn)
        owners = owners_of(problem)[state["block"].cpu()].to(logits.device)
        entropy = F.cross_entropy(logits.float(), owners)
        loss = entropy + self.options.bn_weight * mismatch
        (gradient,) = torch.autograd.grad(loss, pixels)
        rate = turn.scale * self.options.image_lr * 0.5 * (1 + math.cos(math.pi * iteration / self.options.steps))
        new = {**state, **adam(state, gradient, rate, iteration + 1)}
        new["pixels"] = torch.minimum(torch.maximum(new["pixels"], state["low"]), state["high"])
        return new, {"loss": loss.item(), "cross_entropy": entropy.item(), "statistics": mismatch.item()}

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """The images, those of blocks whose turn has not come as they started, with their labels."""
        made = finished(before_views(problem, self.options), _with_block(state), precision=self.options.image_precision)
        return with_views(made, problem, self.options)

    def _teacher(self, problem: Problem) -> Network:
        return self._normalized(problem, None if self.options.teacher is not None else _first_expert(problem).network)

    def _normalized(self, problem: Problem, expert: Network | None) -> Network:
        """The network to invert, the expert's or the one that is trained for it. Raises `OptionError` where it has no batch normalization."""
        network = expert
        if self.options.teacher is not None:
            network = Network(parse_model(self.options.teacher), problem.network.shape, problem.network.classes)
        if network is None:
            raise OptionError(_NO_EXPERT)
        if not _layers(network.module):
            raise OptionError(
                f"sre2l matches the running statistics of batch normalization, which {network.spec} lacks; use --expert-model convnet:norm=batch or "
                "resnet18-bn, or name a network to train first: sre2l:teacher=convnet:norm=batch"
            )
        return network

    def _teacher_state(self, problem: Problem, network: Network) -> State:
        if self.options.teacher is None:
            return _first_expert(problem).state
        recipe = Recipe(lr=self.options.teacher_lr, batch_size=_TEACHER_BATCH, steps=self.options.teacher_steps, schedule="cosine")
        streams, whole = problem.streams["teacher"], problem.plan.model_copy(update={"chunk": 0})
        return fit(network, network.init(streams), Examples.of_table(problem.train, problem.pixels), recipe, streams, whole).network

    def _enter(self, state: State, block: Int[Tensor, " b"]) -> State:
        pixels = state["images"][block.to(state["images"].device)]
        return {**state, "block": block, "pixels": pixels, "mean": torch.zeros_like(pixels), "square": torch.zeros_like(pixels)}

    def _shown(self, pixels: Float[Tensor, "b C H W"], turn: Turn) -> Float[Tensor, "b C H W"]:
        channels, height, width = pixels.shape[1:]
        if self._augment is not None:
            drawn = self._augment.draw(1, (channels, height, width), turn.streams.torch("augment"))
            pixels = self._augment.apply(pixels, drawn)
        reach = self.options.jitter
        rows, columns = torch.randint(-reach, reach + 1, (2,), generator=turn.streams.torch("jitter")).tolist()
        return pixels.roll((rows, columns), (2, 3))


def _first_expert(problem: Problem) -> Expert:
    expert = problem.expert.members[0] if isinstance(problem.expert, Ensemble) else problem.expert
    if not isinstance(expert, Expert):
        raise OptionError(_NO_EXPERT)
    return expert


def make_blocks(counts: tuple[int, ...], most: int) -> list[Int[Tensor, " b"]]:
    """Numbers of the images (as in `owners_of`) that are made together: the first of every class, then the second and so on, cut into as few and as equal
    blocks of at most `most` as can be."""
    ranks = torch.cat([torch.arange(count) for count in counts])
    order = torch.sort(ranks, stable=True).indices
    return list(torch.tensor_split(order, -(-len(order) // most)))


def forward_with_statistics(
    network: Network, state: State, images: Float[Tensor, "b C H W"], first_weight: float
) -> tuple[Float[Tensor, "b K"], Float[Tensor, ""]]:
    """Logits in evaluation mode, and how far the inputs of the batch-normalization layers are from their running statistics:
    ``sum_l w_l (||var_l - var||_2 + ||mean_l - mean||_2)`` with biased variances over images and places, w = `first_weight` for the first layer, else 1."""
    terms: list[Tensor] = []

    def compare(weight: float) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            maps = inputs[0].float() if inputs[0].dtype == torch.bfloat16 else inputs[0]
            over = [0, *range(2, maps.ndim)]
            variance, mean = torch.var_mean(maps, over, correction=0)
            wanted = layer.get_buffer("running_var"), layer.get_buffer("running_mean")
            terms.append(weight * (torch.linalg.vector_norm(wanted[0] - variance) + torch.linalg.vector_norm(wanted[1] - mean)))

        return hook

    with ExitStack() as hooks:
        for number, layer in enumerate(_layers(network.module)):
            hooks.callback(layer.register_forward_pre_hook(compare(first_weight if number == 0 else 1.0)).remove)
        logits = network.forward(state, images)
    return logits, torch.stack(terms).sum()


def adam(state: State, gradient: Tensor, rate: float, iteration: int) -> State:
    """The next ``pixels``, ``mean`` and ``square`` by Adam (Kingma and Ba 2015, arXiv 1412.6980) with SRe2L's betas; `iteration` counts from 1."""
    mean = torch.lerp(gradient, state["mean"], _BETAS[0])
    square = torch.lerp(gradient.square(), state["square"], _BETAS[1])
    root = (square / (1 - _BETAS[1] ** iteration)).sqrt()
    return {"pixels": state["pixels"] - rate / (1 - _BETAS[0] ** iteration) * mean / (root + _EPS), "mean": mean, "square": square}


def valid_range(problem: Problem) -> tuple[Float[Tensor, "C 1 1"], Float[Tensor, "C 1 1"]]:
    """Least and largest value of each channel in network space: exact where each pixel is mapped for itself, else the range of some real images."""
    steps = problem.pixels.steps
    if all(isinstance(step, Scale | Standardize) for step in steps):
        extremes = torch.zeros(2, *problem.network.shape)
        extremes[1] = 1
        shown = PixelSpace(steps, "raw")(extremes)
    else:
        some = torch.randperm(len(problem.train), generator=problem.streams.torch("range"))[:_RANGE_IMAGES]
        shown = problem.pixels(problem.train.read(some))
    low, high = shown.amin(dim=(0, 2, 3)), shown.amax(dim=(0, 2, 3))
    return low[:, None, None].to(problem.plan.device), high[:, None, None].to(problem.plan.device)


def _with_block(state: State) -> Float[Tensor, "N C H W"]:
    """All images, those under way as they are now."""
    return state["images"].index_copy(0, state["block"].to(state["images"].device), state["pixels"])


def _layers(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None]

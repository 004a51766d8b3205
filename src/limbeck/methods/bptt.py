"""Back-propagation through training: images and labels descend the loss on real data of a network that was just trained on them (`BPTT`, `LabelLearning`)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.data.augment import Augment, parse_augment
from limbeck.errors import OptionError
from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.problem import Problem
from limbeck.methods.selectors import random_order
from limbeck.methods.synthetic import SyntheticOptions, finished, one_hot, owners_of, start_images
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.network import Network, can_compile
from limbeck.train.second_order import Batch, BatchLoss, network_first_order, network_second_order
from limbeck.train.updates import Tensors, adam_step, sgd_step
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.plan import ExecutionPlan

_DECAY = 0.9  # of the running mean of gradient norms
_PUBLISHED: dict[str, Any] = {
    "steps": 60_000,
    "start": "noise",
    "project": True,
    "real_batch": 5000,
    "augment": "dsa:flip_rotate",
    "inner_augment": "dsa:flip_rotate",
}


class BPTTOptions(SyntheticOptions):
    """The defaults are RaT-BPTT's, but for real starting images, a real batch of 1,000 and no augmentation."""

    learn: Literal["images", "labels", "both"] = Field("images", description="what is learned")
    label_form: Literal["free", "simplex"] = Field("free", description="learned label rows: free and non-negative, or distributions (a softmax)")
    label_start: float = Field(0.9, gt=0, lt=1, description="on the simplex, the probability of the own class at the start")
    unroll: int = Field(200, ge=1, description="inner training steps T, the window included")
    window: int = Field(60, ge=1, description="the last steps W, through which gradients flow")
    window_place: Literal["random", "end"] = Field("random", description="training ends after W to T steps, drawn every step, or always after T")
    inner: Literal["adam", "sgd"] = Field("adam", description="optimizer of the inner training")
    inner_lr: float = Field(1e-3, gt=0, description="its step size")
    inner_momentum: float = Field(0.9, ge=0, lt=1, description="its momentum (sgd)")
    inner_weight_decay: float = Field(0.0, ge=0, description="its weight decay")
    inner_augment: str = Field("none", description="augmentation of inner batches, such as dsa:flip_rotate")
    batch_per_class: int | None = Field(None, ge=1, description="distilled images of a class in an inner batch; none takes all")
    batch_classes: int | None = Field(None, ge=1, description="classes in an inner batch, drawn every inner step; none takes all")
    loss: Literal["cross-entropy", "mse"] = Field("cross-entropy", description="loss of the inner training and of the real batch")
    real_batch: int = Field(1000, ge=1, description="real images a step")
    augment: str = Field("none", description="augmentation of the real batch, such as dsa:flip_rotate")
    outer: Literal["adam", "sgd"] = Field("adam", description="optimizer of images and labels; sgd is plain gradient descent")
    image_lr: float = Field(1e-3, gt=0, description="step size of the pixels, in network space")
    label_lr: float = Field(1e-3, gt=0, description="step size of the labels")
    clip: float | None = Field(2.0, gt=0, description="longest pixel gradient, in units of the running mean of its norm; none does not clip")
    clip_labels: bool = Field(False, description="clip the label gradient in the same way")
    project: bool = Field(False, description="scale every starting image to unit L2 norm, for pixel spaces that do so")
    stages: int = Field(1, ge=1, description="boosting: the images of a class come into play in this many blocks, one after the other")
    boost_factor: float = Field(0.1, ge=0, le=1, description="boosting: step sizes of earlier blocks are multiplied by this; 0 freezes them")


class LabelLearningOptions(BPTTOptions):
    """The defaults are those of the label paper's algorithm 1, with numbers that it leaves open."""

    learn: Literal["labels"] = Field("labels", description="what is learned")
    unroll: int = Field(60, ge=1, description="inner training steps T, the window included")
    window: int = Field(20, ge=1, description="the last steps M, through which gradients flow")
    window_place: Literal["random", "end"] = Field("end", description="training ends after M to T steps, drawn every step, or always after T")
    inner: Literal["adam", "sgd"] = Field("sgd", description="optimizer of the inner training")
    inner_lr: float = Field(0.01, gt=0, description="its step size alpha 1")
    label_lr: float = Field(0.01, gt=0, description="step size alpha 2 of the labels")


class BPTT:
    """Random truncated back-propagation through time, RaT-BPTT (Feng, Vedantam and Kempe 2024, arXiv 2311.07025).

    A step draws a network, R real images and a number of warm-up steps s ~ U{0, ..., T - W}. It trains the network on the distilled set (X, Y),

        ``(theta', m') = opt(theta, m, g)`` with ``g = grad_theta 1/B sum_b loss(f(theta, A(x_b)), y_b)``,  s + W times,

    and moves X and Y down the gradient of ``1/R sum_r loss(f(theta, A(x_r)), y_r)`` at the end. Only the window, the last W steps, is differentiated: theta
    and m before it count as constants. A is an augmentation; opt is Adam, or SGD with momentum, and m its memory, which is differentiated like theta. The
    norm of the pixels' gradient is clipped to `clip` times its running mean (decay 0.9). Learned label rows start one-hot and stay non-negative (``free``), or
    are a softmax (``simplex``).

    The gradient is exact, by recomputation. The window is walked backwards with the adjoints of (theta', m'): the update is elementwise, and its transposed
    Jacobian gives the adjoint v of g; a second pass over the batch gives ``grad_(theta, X, Y) <g, v>``. Its graph is built for one step and one piece of
    the batch at a time, so memory does not depend on T, and grows with W by what the walk starts from: parameters, optimizer memory and gradients.

    `stages` is the paper's boosting: the images of each class come into play in blocks, one after the other, each for an equal share of the steps, while
    earlier blocks go on at `boost_factor` times the rate; so the set of every stage is a useful set of its own. Every stage starts the outer optimizer anew.

    Cost: for a step, 3 (s + W) B + 9 W B + 3 R forward passes of one image; the plain unrolled window takes 3 s B + 9 W B + 3 R. Memory: the second-order graph
    of one piece of a batch, and for each step of the window 4 numbers a parameter with Adam or 3 with SGD; the plain window keeps W whole graphs.
    Under a plan in bfloat16 all passes run in it, as ordinary training does; ``docs/methods/bptt.md`` says how little that disturbs the gradient.

    Deviations: the window is drawn at every step, where the published code draws it once per pass over the real data (10 steps), and real batches are drawn
    independently of each other. The published runs have no length (they are ended by hand and keep the set that is best on test): the recipes take
    60,000 steps and keep the last. Batch normalization uses the statistics of each batch, never running ones, and dropout is off. A step that is taken again
    with smaller step sizes shrinks those of the inner training too.
    """

    Options: type[BPTTOptions] = BPTTOptions
    publishes: ClassVar[str] = "no training image"
    label_default: str = "hard"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10-ipc10": _PUBLISHED,
        "cifar100-ipc1": {**_PUBLISHED, "learn": "both", "window": 90, "unroll": 130, "window_place": "end", "image_lr": 3e-4, "label_lr": 3e-4},
        "cifar100-ipc10": {**_PUBLISHED, "learn": "both", "window": 100, "unroll": 300, "batch_per_class": 1},
        "tiny-imagenet-ipc10": {
            **_PUBLISHED,
            "learn": "both",
            "window": 100,
            "unroll": 300,
            "batch_per_class": 1,
            "batch_classes": 50,
            "real_batch": 1000,
            "image_lr": 3e-4,
            "label_lr": 3e-4,
        },
        "imagenet64-ipc1": {
            **_PUBLISHED,
            "learn": "both",
            "window": 80,
            "unroll": 280,
            "window_place": "end",
            "batch_classes": 50,
            "real_batch": 1500,
            "image_lr": 3e-4,
            "label_lr": 3e-4,
        },
        "fashion-mnist-cpu": {
            "steps": 500,
            "learn": "both",
            "window": 15,
            "unroll": 60,
            "real_batch": 256,
            "image_lr": 0.01,
            "label_lr": 0.005,
        },
        "smoke": {"steps": 20, "learn": "both", "window": 4, "unroll": 8, "inner_lr": 0.01, "real_batch": 16, "image_lr": 0.02, "label_lr": 0.02},
    }

    def __init__(self, options: BPTTOptions) -> None:
        if options.window > options.unroll:
            raise OptionError(
                f"the window is part of the inner training, got window={options.window} and unroll={options.unroll} steps; use window={options.unroll} or less"
            )
        if options.stages > options.steps:
            raise OptionError(f"every stage needs a step, got stages={options.stages} and steps={options.steps}; use stages={options.steps} or less")
        self.options = options
        self.label_default = "hard" if options.learn == "images" else "learned"
        self._augment, self._inner_augment = parse_augment(options.augment), parse_augment(options.inner_augment)

    def total_steps(self, problem: Problem) -> int:
        """As asked for."""
        return self.options.steps

    def work(self, size: Size) -> float:
        """``3 (s + W) B + 9 W B + 3 R`` passes a step, s at its mean and all images in play."""
        options = self.options
        classes = min(options.batch_classes or size.classes, size.classes)
        batch = size.images if options.batch_per_class is None else min(options.batch_per_class * size.classes, size.images)
        warm_up = (options.unroll - options.window) / (2 if options.window_place == "random" else 1)
        inner = (3 * (warm_up + options.window) + 9 * options.window) * batch * classes / size.classes
        return float(options.steps * (inner + 3 * min(options.real_batch, size.train)))

    def init(self, problem: Problem) -> State:
        """``images``; ``labels`` (one-hot, or on the simplex the logits of the rows); the running means of the gradient norms, 0 before the first step."""
        images = start_images(problem, self.options.start)
        if self.options.project:
            images = images / images.flatten(1).norm(dim=1)[:, None, None, None].clamp_min(torch.finfo(images.dtype).tiny)
        labels = one_hot(owners_of(problem), problem)
        if self._simplex:
            share, others = self.options.label_start, problem.network.classes - 1
            labels = torch.log(labels * share + (1 - labels) * (1 - share) / others)
        return {"images": images, "labels": labels, "images.norm": images.new_zeros(()), "labels.norm": images.new_zeros(())}

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """One inner training and one step of what is learned."""
        options, streams = self.options, turn.streams
        stage = turn.number * options.stages // options.steps
        batches = Batches(problem.counts, _blocks(problem.counts, options.stages) <= stage, options.batch_per_class, options.batch_classes)
        fresh = {name: tensor.to(problem.plan.device) for name, tensor in problem.network.init(streams).items()}
        loop = InnerLoop(problem.network, fresh, problem.plan, options, batch=batches.size, scale=turn.scale)
        longest = options.unroll - options.window
        random = options.window_place == "random"
        warm_up = int(torch.randint(longest + 1, (), generator=streams.torch("window"))) if random else longest

        images, labels = state["images"], self._shown(state["labels"])
        real, targets = self._real(problem, streams)
        drawn = batches.all(streams.torch("batches"), self._inner_augment, problem.network.shape)
        loss, by_images, by_labels = loop.derivatives(images, labels, drawn, warm_up, options.window, real, targets)

        new, metrics = dict(state), {"loss": float(loss), "inner_steps": float(warm_up + options.window)}
        rates = self._rates(problem, stage).to(images.device) * turn.scale
        first = -(-stage * options.steps // options.stages)
        if options.learn in ("images", "both"):
            by_images, norm, mean = clipped(by_images, state["images.norm"], options.clip)
            new |= self._descend("images", state, by_images, rates[:, None, None, None] * options.image_lr, turn.number - first)
            new["images.norm"], metrics["image_gradient"] = mean, float(norm)
        if options.learn in ("labels", "both"):
            if self._simplex:  # through the softmax
                by_labels = labels * (by_labels - (labels * by_labels).sum(1, keepdim=True))
            by_labels, norm, mean = clipped(by_labels, state["labels.norm"], options.clip if options.clip_labels else None)
            new |= self._descend("labels", state, by_labels, rates[:, None] * options.label_lr, turn.number - first)
            new["labels"] = new["labels"] if self._simplex else new["labels"].clamp_min(0)
            new["labels.norm"], metrics["label_gradient"] = mean, float(norm)
        return new, metrics

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """Images in network space. Learned labels are stored in full, in the label rule's precision; otherwise the rule makes them. The recommended recipe is
        the problem's with the inner training's optimizer and loss."""
        options = self.options
        labels = None
        if options.learn != "images":
            kind: Literal["probability", "free"] = "probability" if self._simplex else "free"
            rows = self._shown(state["labels"]).cpu()
            labels = Labels.encode(rows, kind=kind, precision=problem.rule.precision, sums_to_one=self._simplex)
        recipe = problem.recipe.with_(
            optimizer=options.inner,
            lr=options.inner_lr,
            momentum=options.inner_momentum,
            weight_decay=options.inner_weight_decay,
            loss=options.loss,
            schedule="constant",
        )
        return finished(problem, state["images"], labels=labels, precision=options.image_precision, recipe=recipe)

    @property
    def _simplex(self) -> bool:
        return self.options.label_form == "simplex" and self.options.learn != "images"

    def _shown(self, labels: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The rows that a student is trained on."""
        return labels.softmax(1) if self._simplex else labels

    def _rates(self, problem: Problem, stage: int) -> Float[Tensor, " N"]:
        """A factor on the step size of each image: 1 for the stage's own block, less for earlier ones, 0 for those to come."""
        blocks = _blocks(problem.counts, self.options.stages)
        return torch.where(blocks == stage, 1.0, torch.where(blocks < stage, self.options.boost_factor, 0.0))

    def _real(self, problem: Problem, streams: Streams) -> tuple[Float[Tensor, "R C H W"], Float[Tensor, "R K"]]:
        device = torch.device(problem.plan.device)
        chosen = torch.randperm(len(problem.train), generator=streams.torch("real"))[: self.options.real_batch]
        images, targets = Examples.of_table(problem.train, problem.pixels.to(device)).batch(chosen, device)
        return (images if self._augment is None else self._augment(images, streams.torch("augment"))), targets

    def _descend(self, name: str, state: State, gradient: Tensor, rate: Tensor, taken: int) -> State:
        """The tensor after one step of the outer optimizer, and its slots; `taken` steps of this stage came before."""
        value, slots = {name: state[name]}, {key: state[key] for key in (f"{name}.mean", f"{name}.square") if taken and key in state}
        if self.options.outer == "adam":
            moved, slots = adam_step(value, {name: gradient}, slots, lr=rate, number=taken + 1)
        else:
            moved, slots = sgd_step(value, {name: gradient}, {}, lr=rate)
        return {**moved, **slots}


class LabelLearning(BPTT):
    """Labels of random real images, learned by truncated back-propagation through training (Qin, Deng and Alvarez-Melis 2024, arXiv 2406.10485,
    appendix D.2, algorithm 1).

    It is `BPTT` with the images frozen: random real images, labels that start one-hot, a fresh student for every step, T steps of SGD on the set, of which
    the last M are differentiated, and a step of the labels down the loss on a real batch.

    Cost: that of `BPTT`. The images are stored as they are in the source (uint8), and their training indices in the provenance.

    Deviations: the paper gives no value of T, M, its step sizes or batches, so the defaults here are this package's own. It says to follow the training
    recipe of Feng, Vedantam and Kempe (2024), so the labels move by Adam, stay non-negative, and the inner SGD has momentum 0.9, as students have; the
    algorithm's plain steps are ``outer=sgd,inner_momentum=0``. Rows that stay distributions are ``label_form=simplex``.
    """

    Options = LabelLearningOptions
    publishes: ClassVar[str] = "whole training images"
    label_default: str = "learned"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "fashion-mnist-cpu": {"steps": 500, "real_batch": 256},
        "smoke": {"steps": 20, "window": 4, "unroll": 8, "inner_lr": 0.05, "real_batch": 16, "label_lr": 0.02},
    }

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """The chosen real images as they are in the source, under the learned labels."""
        made = super().finish(problem, state)
        if self.options.start != "real":
            return made
        indices = torch.cat([random_order(problem, number, count, None) for number, count in enumerate(problem.counts) if count])
        real = {"images": problem.train.read(indices), "pixels": problem.pixels, "provenance": {**made.provenance, "indices": indices.tolist()}}
        return DistilledDataset(**{**vars(made), **real})


def clipped(gradient: Tensor, mean: Float[Tensor, ""], factor: float | None) -> tuple[Tensor, Float[Tensor, ""], Float[Tensor, ""]]:
    """The gradient, no longer than `factor` times the running mean of its norm; the norm before; the new mean. A mean of 0 has not begun: it becomes the norm."""
    norm = gradient.norm()
    mean = torch.where(mean > 0, _DECAY * mean + (1 - _DECAY) * norm, norm)
    if factor is not None:
        gradient = gradient * (factor * mean / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
    return gradient, norm, mean


def _blocks(counts: Sequence[int], stages: int) -> Int[Tensor, " N"]:
    """The stage at which each image comes into play: image r of the n of its class at ``floor(r stages / n)``."""
    return torch.cat([torch.arange(count) * stages // count for count in counts if count])


class Batches:
    """Draws inner batches: all images that are in play, or some classes, or some images of each."""

    def __init__(self, counts: Sequence[int], playing: Tensor, per_class: int | None, classes: int | None) -> None:
        rows = torch.arange(len(playing)).split([count for count in counts if count])
        self._rows = [own[playing[own]] for own in rows]
        self._per_class, self._classes = per_class, min(classes or len(rows), len(rows))
        taken = sorted((len(own) if per_class is None else min(per_class, len(own)) for own in self._rows), reverse=True)
        self.size = sum(taken[: self._classes])

    def all(self, generator: torch.Generator, augment: Augment | None, shape: tuple[int, int, int]) -> Iterator[Batch]:
        """One batch after the other, without end."""
        while True:
            yield self._draw(generator, augment, shape)

    def _draw(self, generator: torch.Generator, augment: Augment | None, shape: tuple[int, int, int]) -> Batch:
        chosen = self._rows
        if self._classes < len(self._rows):
            chosen = [self._rows[i] for i in torch.randperm(len(self._rows), generator=generator)[: self._classes].sort().values]
        if self._per_class is not None:
            chosen = [own[torch.randperm(len(own), generator=generator)[: self._per_class]] for own in chosen]
        rows = torch.cat(chosen)
        return Batch(rows, augment, {} if augment is None else augment.draw(len(rows), shape, generator))


@dataclass(frozen=True)
class Moment:
    """One inner step as the walk back needs it: its number, what it started from, the gradients that it followed, and its batch."""

    number: int
    parameters: Tensors
    slots: Tensors
    gradients: Tensors
    batch: Batch


class InnerLoop:
    """Training of one network on labelled images, step by step, and the walk back through it.

    Nothing keeps an autograd graph from one call to the next: a moment holds plain tensors.
    """

    def __init__(self, network: Network, state: State, plan: ExecutionPlan, options: BPTTOptions, *, batch: int, scale: float = 1.0) -> None:
        self._options, self._rate = options, options.inner_lr * scale
        names = set(network.parameter_names)
        self._start = {name: tensor for name, tensor in state.items() if name in names}
        buffers = {name: tensor for name, tensor in state.items() if name not in names}
        self._student = _batch_loss(network, buffers, plan, options, batch)
        self._judge = _batch_loss(network, buffers, plan, options, options.real_batch)

    def derivatives(
        self,
        images: Float[Tensor, "N C H W"],
        labels: Float[Tensor, "N K"],
        batches: Iterator[Batch],
        warm_up: int,
        window: int,
        real: Float[Tensor, "R C H W"],
        targets: Float[Tensor, "R K"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "N C H W"], Float[Tensor, "N K"]]:
        """Mean loss on real images after `warm_up` and `window` steps of training on the next batches, and its derivatives in the distilled images and labels
        through the window; zeros for what is not learned."""
        parameters, slots = self._start, Tensors()
        moments = []
        for number in range(1, warm_up + window + 1):
            parameters, slots, moment = self.advance(images, labels, next(batches), parameters, slots, number)
            if number > warm_up:
                moments.append(moment)
        loss, adjoint = self._judge.gradient(parameters, real, targets)
        return loss, *self.walk_back(images, labels, moments, adjoint)

    def advance(
        self, images: Float[Tensor, "N C H W"], labels: Float[Tensor, "N K"], batch: Batch, parameters: Tensors, slots: Tensors, number: int
    ) -> tuple[Tensors, Tensors, Moment]:
        """Parameters and slots after step `number` (from 1), and the step's moment."""
        _, gradients = self._student.gradient(parameters, batch.look(images), batch.labels(labels))
        moved, memory = self._update(number)(parameters, gradients, slots)
        return moved, memory, Moment(number, parameters, slots, gradients, batch)

    def walk_back(
        self, images: Float[Tensor, "N C H W"], labels: Float[Tensor, "N K"], moments: list[Moment], adjoint: Tensors
    ) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N K"]]:
        """Derivatives in images and labels of a loss whose gradient in the parameters after the last moment is `adjoint`; zeros for what is not learned.

        Empties `moments`, so that memory falls as it goes.
        """
        by_images, by_labels = torch.zeros_like(images), torch.zeros_like(labels)
        by_memory: Tensors | None = None
        while moments:
            moment = moments.pop()
            (_, memory), through = torch.func.vjp(self._update(moment.number), moment.parameters, moment.gradients, moment.slots)  # type: ignore[misc]
            if by_memory is None:  # nothing looks at the optimizer's memory after the last step
                by_memory = {name: torch.zeros_like(tensor) for name, tensor in memory.items()}
            direct, by_gradients, by_memory = through((adjoint, by_memory))
            batch = moment.batch
            found = self._student.along(moment.parameters, batch.look(images), batch.labels(labels), by_gradients)
            assert found.parameters is not None
            adjoint = {name: tensor + found.parameters[name] for name, tensor in direct.items()}
            if found.images is not None:
                by_images += batch.pull(images, found.images)
            if found.labels is not None:
                by_labels.index_add_(0, batch.rows.to(labels.device), found.labels)
        return by_images, by_labels

    def _update(self, number: int) -> Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]:
        options, rate = self._options, self._rate

        def update(parameters: Tensors, gradients: Tensors, slots: Tensors) -> tuple[Tensors, Tensors]:
            if options.inner == "adam":
                return adam_step(parameters, gradients, slots, lr=rate, number=number, weight_decay=options.inner_weight_decay)
            return sgd_step(parameters, gradients, slots, lr=rate, momentum=options.inner_momentum, weight_decay=options.inner_weight_decay)

        return update


def _batch_loss(network: Network, buffers: Tensors, plan: ExecutionPlan, options: BPTTOptions, usual: int) -> BatchLoss:
    """The loss of a batch, with all its derivatives in the plan's precision: a window may begin anywhere, so that rounding on the way there is one more draw."""
    device = torch.device(plan.device).type
    wanted = ("parameters", *(("images", "labels") if options.learn == "both" else (options.learn,)))
    first, second = {}, {}
    for on in {False, plan.strategy == "compiled" and can_compile(device)}:
        gradient = network_first_order(network, options.loss, plan.precision, device, on)
        along = network_second_order(network, options.loss, plan.precision, device, wanted, on)
        first[on] = lambda *given, program=gradient: program(*given, buffers)
        second[on] = lambda *given, program=along: program(*given, buffers)
    return BatchLoss(first, second, wanted, chunk=0 if network.has_batch_statistics else plan.chunk, usual=usual)

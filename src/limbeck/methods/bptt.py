"""Back-propagation through training: images and labels descend the loss on real data of a network that was just trained on them (`BPTT`, `LabelLearning`)."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from limbeck.data.augment import Augment, Params, parse_augment
from limbeck.errors import OptionError
from limbeck.methods.driver import Metrics, State, Turn
from limbeck.methods.problem import Problem
from limbeck.methods.selectors import random_order
from limbeck.methods.synthetic import SyntheticOptions, finished, one_hot, owners_of, start_images
from limbeck.train.examples import Examples
from limbeck.train.losses import make_loss
from limbeck.train.network import Network, can_compile
from limbeck.train.updates import adam_step, sgd_step
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.plan import ExecutionPlan

Tensors = dict[str, Tensor]

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

    learn: Literal["images", "labels", "both"] = Field("labels", description="what is learned")
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

    Deviations: the window is drawn at every step, where the published code draws it once per pass over the real data (10 steps), and real batches are drawn
    independently of each other. The published runs have no length (they are ended by hand and keep the set that is best on test): the recipes take
    60,000 steps and keep the last. Batch normalization uses the statistics of each batch, never running ones, and dropout is off. A step that is taken again
    with smaller step sizes shrinks those of the inner training too.
    """

    Options: type[BPTTOptions] = BPTTOptions
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

    def _real(self, problem: Problem, streams: Any) -> tuple[Float[Tensor, "R C H W"], Float[Tensor, "R K"]]:
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
    recipe of Feng, Vedantam and Kempe (2024), so the labels move by Adam (``outer=sgd`` is the algorithm's plain step) and stay non-negative; rows that stay
    distributions are ``label_form=simplex``.
    """

    Options = LabelLearningOptions
    label_default: str = "learned"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "fashion-mnist-cpu": {"steps": 500, "inner_momentum": 0.9, "real_batch": 256},
        "smoke": {"steps": 20, "window": 4, "unroll": 8, "inner_lr": 0.05, "real_batch": 16, "label_lr": 0.02},
    }

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """The chosen real images as they are in the source, under the learned labels."""
        made = super().finish(problem, state)
        if self.options.start != "real" or self.options.learn != "labels":
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


@dataclass(frozen=True)
class Batch:
    """The distilled images of an inner step, by row, and how they are augmented; so that the step can be taken again."""

    rows: Int[Tensor, " B"]
    augment: Augment | None
    params: Params

    def look(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "B C H W"]:
        """What the network is shown; differentiable."""
        shown = images[self.rows.to(images.device)]
        return shown if self.augment is None else self.augment.apply(shown, self.params)


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
        self._options, self._plan, self._batch, self._rate = options, plan, batch, options.inner_lr * scale
        self._chunk = 0 if network.has_batch_statistics else plan.chunk
        names = set(network.parameter_names)
        self._start = {name: tensor for name, tensor in state.items() if name in names}
        self._buffers = {name: tensor for name, tensor in state.items() if name not in names}
        wanted = {"images": (0, 1), "labels": (0, 2), "both": (0, 1, 2)}[options.learn]
        given = (network, options.loss, plan.precision, torch.device(plan.device).type)
        fast = plan.strategy == "compiled"
        self._first = {on: _first_order(*given, on) for on in {False, fast}}
        self._second = {on: _second_order(*given, wanted, on) for on in {False, fast}}
        self._fast, self._wanted = fast, wanted

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
        loss, adjoint = self.gradient(parameters, real, targets, batch=self._options.real_batch)
        return loss, *self.walk_back(images, labels, moments, adjoint)

    def gradient(
        self, parameters: Tensors, images: Float[Tensor, "B C H W"], labels: Float[Tensor, "B K"], *, batch: int
    ) -> tuple[Float[Tensor, ""], Tensors]:
        """Mean loss of the images and its gradient in the parameters. Pieces are compiled as those of a batch of `batch` images are."""
        total, loss = None, images.new_zeros(())
        for part, rows, compiled in self._pieces(images, labels, batch):
            new, value = self._first[compiled](parameters, part, rows, self._buffers)
            total, loss = _sum(total, new), loss + value
        assert total is not None
        return loss / len(images), {name: tensor / len(images) for name, tensor in total.items()}

    def advance(
        self, images: Float[Tensor, "N C H W"], labels: Float[Tensor, "N K"], batch: Batch, parameters: Tensors, slots: Tensors, number: int
    ) -> tuple[Tensors, Tensors, Moment]:
        """Parameters and slots after step `number` (from 1), and the step's moment."""
        _, gradients = self.gradient(parameters, batch.look(images), labels[batch.rows.to(labels.device)], batch=self._batch)
        moved, memory = self._update(number)(parameters, gradients, slots)
        return moved, memory, Moment(number, parameters, slots, gradients, batch)

    def walk_back(
        self, images: Float[Tensor, "N C H W"], labels: Float[Tensor, "N K"], moments: list[Moment], adjoint: Tensors
    ) -> tuple[Float[Tensor, "N C H W"], Float[Tensor, "N K"]]:
        """Derivatives in images and labels of a loss whose gradient in the parameters after the last moment is `adjoint`; zeros for what is not learned.

        Empties `moments`, so that memory falls as it goes.
        """
        by_images, by_labels = torch.zeros_like(images), torch.zeros_like(labels)
        memory: Tensors | None = None
        while moments:
            moment = moments.pop()
            adjoint, memory, by_shown, by_rows = self._pull(images, labels, moment, adjoint, memory)
            rows = moment.batch.rows.to(images.device)
            if by_shown is not None:
                _, through = torch.func.vjp(moment.batch.look, images)
                by_images += through(by_shown)[0]
            if by_rows is not None:
                by_labels.index_add_(0, rows, by_rows)
        return by_images, by_labels

    def _pull(
        self, images: Tensor, labels: Tensor, moment: Moment, by_moved: Tensors, by_memory: Tensors | None
    ) -> tuple[Tensors, Tensors, Tensor | None, Tensor | None]:
        """The adjoints before a moment from those after it, and those of the images and label rows that it was shown."""
        (_, memory), through = torch.func.vjp(self._update(moment.number), moment.parameters, moment.gradients, moment.slots)
        if by_memory is None:  # nothing looks at the optimizer's memory after the last step
            by_memory = {name: torch.zeros_like(tensor) for name, tensor in memory.items()}
        by_parameters, by_gradients, by_slots = through((by_moved, by_memory))
        shown, rows = moment.batch.look(images), labels[moment.batch.rows.to(labels.device)]
        direction = {name: tensor / len(shown) for name, tensor in by_gradients.items()}
        parts: list[list[Tensor]] = [[], []]
        for part, targets, compiled in self._pieces(shown, rows, self._batch):
            new, *others = self._second[compiled](moment.parameters, part, targets, self._buffers, direction)
            by_parameters = _sum(by_parameters, new)
            for kept, other in zip(parts, others, strict=False):
                kept.append(other)
        found = dict(zip(self._wanted[1:], (torch.cat(kept) for kept in parts if kept), strict=True))
        return by_parameters, by_slots, found.get(1), found.get(2)

    def _update(self, number: int) -> Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]:
        options, rate = self._options, self._rate

        def update(parameters: Tensors, gradients: Tensors, slots: Tensors) -> tuple[Tensors, Tensors]:
            if options.inner == "adam":
                return adam_step(parameters, gradients, slots, lr=rate, number=number, weight_decay=options.inner_weight_decay)
            return sgd_step(parameters, gradients, slots, lr=rate, momentum=options.inner_momentum, weight_decay=options.inner_weight_decay)

        return update

    def _pieces(self, images: Tensor, labels: Tensor, batch: int) -> list[tuple[Tensor, Tensor, bool]]:
        """Equal pieces of at most a chunk, and whether each is compiled: those of a usual size are, a ragged one would cost a program of its own."""
        size = batch if self._chunk == 0 else -(-batch // -(-batch // self._chunk))
        return [(part, rows, self._fast and len(part) == size) for part, rows in zip(images.split(size), labels.split(size), strict=True)]


def _sum(total: Tensors | None, new: Tensors) -> Tensors:
    return new if total is None else {name: total[name] + tensor for name, tensor in new.items()}


Loss = Callable[[Tensors, Tensor, Tensor, Tensors], Tensor]


@lru_cache(maxsize=64)
def _summed_loss(network: Network, loss: str, precision: str, device_type: str) -> Loss:
    """``(parameters, images, labels, buffers) -> summed loss``; nothing is updated, so the same arguments always give the same value."""
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
def _first_order(network: Network, loss: str, precision: str, device_type: str, compiled: bool) -> Callable[..., tuple[Tensors, Tensor]]:
    """``(parameters, images, labels, buffers) -> gradient in the parameters, summed loss``."""
    return _program(torch.func.grad_and_value(_summed_loss(network, loss, precision, device_type)), device_type, compiled)


@lru_cache(maxsize=64)
def _second_order(
    network: Network, loss: str, precision: str, device_type: str, wanted: tuple[int, ...], compiled: bool
) -> Callable[..., tuple[Any, ...]]:
    """``(parameters, images, labels, buffers, direction) -> derivatives of <grad_parameters loss, direction>`` in the arguments `wanted`."""
    gradient = torch.func.grad(_summed_loss(network, loss, precision, device_type))

    def along(parameters: Tensors, images: Tensor, labels: Tensor, buffers: Tensors, direction: Tensors) -> Tensor:
        followed = gradient(parameters, images, labels, buffers)
        return torch.stack([(followed[name] * vector).sum() for name, vector in direction.items()]).sum()

    return _program(torch.func.grad(along, argnums=wanted), device_type, compiled)


def _program(function: Callable[..., Any], device_type: str, compiled: bool) -> Callable[..., Any]:
    """The function, compiled once for every shape where that is asked for and possible."""
    if not compiled or not can_compile(device_type):
        return function
    from torch._dynamo import config

    config.recompile_limit = max(64, config.recompile_limit)
    program = torch.compile(function, dynamic=False)

    def laid_out(*given: Tensor | Tensors) -> Any:
        # compiled convolutions are fastest on channels-last images and weights, and a layout that changed would be compiled again; it changes no number
        return program(*({name: _last(tensor) for name, tensor in part.items()} if isinstance(part, dict) else _last(part) for part in given))

    return laid_out


def _last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()

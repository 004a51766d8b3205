"""Trajectory matching: images on which a student moves from one snapshot of an expert to a later one (`TrajectoryMatching`, `TESLA`)."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from limbeck.data.augment import Augment, parse_augment
from limbeck.errors import OptionError
from limbeck.experts.expert import Expert
from limbeck.experts.trajectory import Trajectory
from limbeck.labels.rules import make_labels
from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.matching import check_experts, check_experts_to_come, expert_at
from limbeck.methods.problem import Problem
from limbeck.methods.selectors import random_order
from limbeck.methods.synthetic import SyntheticOptions, finished, one_hot, owners_of, start_images
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.train.second_order import Batch, BatchLoss, SummedLoss, network_loss
from limbeck.train.updates import Tensors, sgd_step
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.recipe import Recipe

GradientKind = Literal["unrolled", "recomputed", "tesla"]

_NAME = "trajectory matching (mtt, tesla)"
_FREE_LABEL_LR = 0.1
_REMEMBERED = 100  # steps whose target logits make up the labels of the finished set
_MOST_CHANGE = math.log(2)  # of the logarithm of the inner step size in one step


class TrajectoryMatchingOptions(SyntheticOptions):
    """The defaults are the published ones where the published settings agree, otherwise those of CIFAR-10 at 10 images per class."""

    steps: int = Field(5000, ge=1, description="steps of the outer optimization")
    student_steps: int = Field(30, ge=1, description="inner training steps N of the student")
    expert_epochs: int = Field(2, ge=1, description="epochs M of the expert that they are to match")
    max_start_epoch: int = Field(
        20, ge=1, description="the student starts where the expert was after 0 ... max_start_epoch - 1 epochs, drawn every step"
    )
    batch: int | None = Field(None, ge=1, description="distilled images in an inner step; none takes all")
    augment: str | None = Field("students", description="augmentation of inner batches, such as dsa; students: that of the students' recipe")
    step_size: float = Field(0.01, gt=0, description="step size of the inner training at the start; it is learned and stored with the set")
    step_size_lr: float = Field(1e-5, ge=0, description="step size of that step size, in the published unit; 0 keeps it fixed")
    image_lr: float = Field(100.0, gt=0, description="step size of the pixels, in network space")
    label_lr: float = Field(10.0, gt=0, description="step size of learned labels; 0.1 unless given where rows are free")
    momentum: float = Field(0.5, ge=0, lt=1, description="momentum of pixels, labels and inner step size")
    learn: Literal["images", "labels", "both"] = Field("images", description="what is learned, beside the inner step size")
    label_form: Literal["simplex", "free"] = Field("simplex", description="learned label rows: distributions (a softmax), or free and non-negative")
    label_start: float = Field(0.9, gt=0, lt=1, description="on the simplex, the probability of the own class at the start")
    labels: Literal["class", "target"] = Field(
        "class", description="labels of the student while images are learned: the class, or softly what the expert says at the target epoch"
    )
    gradient: GradientKind = Field(
        "recomputed", description="exact with the memory of one step (recomputed) or of all (unrolled), or TESLA's approximation (tesla)"
    )

    @model_validator(mode="before")
    @classmethod
    def _rate_of_free_rows(cls, given: Any) -> Any:
        # a softmax bounds what a step does to a row; a free row goes as far as the step
        return {"label_lr": _FREE_LABEL_LR, **given} if isinstance(given, dict) and given.get("label_form") == "free" else given


class TESLAOptions(TrajectoryMatchingOptions):
    """The defaults are the published ones where the published settings agree."""

    steps: int = Field(10_000, ge=1, description="steps of the outer optimization")
    labels: Literal["class", "target"] = Field(
        "target", description="labels of the student while images are learned: the class, or softly what the expert says at the target epoch"
    )
    gradient: GradientKind = Field(
        "tesla", description="exact with the memory of one step (recomputed) or of all (unrolled), or TESLA's approximation (tesla)"
    )


def _published(
    student_steps: int, expert_epochs: int, max_start_epoch: int, image_lr: float, step_size_lr: float, step_size: float
) -> dict[str, Any]:
    return {
        "student_steps": student_steps,
        "expert_epochs": expert_epochs,
        "max_start_epoch": max_start_epoch,
        "image_lr": image_lr,
        "step_size_lr": step_size_lr,
        "step_size": step_size,
    }


_SMALL = _published(20, 1, 2, 100.0, 1e-5, 0.02)


class TrajectoryMatching:
    """Matching training trajectories, MTT (Cazenavette, Wang, Torralba, Efros and Zhu 2022, arXiv 2203.11932, equation 2 and algorithm 1).

    A step draws an expert and a start epoch t ~ U{0, ..., `max_start_epoch` - 1}. A student starts at the expert's parameters theta*_t and takes N =
    `student_steps` steps of plain SGD on the distilled set, ``theta' = theta - alpha grad CE(A(X), Y)``, with A an augmentation drawn every inner step. The
    images X (or the labels, or both) and alpha descend, by SGD with momentum,

        ``L = || theta_N - theta*_{t+M} ||^2 / || theta*_t - theta*_{t+M} ||^2``,  M = `expert_epochs`.

    **Gradient.** ``recomputed`` is exact and keeps one inner step's graph: the student is trained without a graph, then the steps are walked backwards with
    ``a_N = dL/dtheta_N`` and ``a_i = a_{i+1} - alpha H_i a_{i+1}``, and each adds ``-alpha d<g_i, a_{i+1}>/dX`` to the images' derivative and
    ``-<g_i, a_{i+1}>`` to alpha's (g_i and H_i: gradient and Hessian of the student's loss at step i). ``unrolled`` differentiates through all N graphs, as
    published, and gives the same numbers. ``tesla`` puts a_N in place of every a_i; see `TESLA`.

    **Inner step size.** alpha is positive because its logarithm u is what moves: ``u' = u - r alpha dL/dalpha`` with ``r = step_size_lr / step_size^2``, which
    to first order is the published ``alpha' = alpha - step_size_lr dL/dalpha`` as long as alpha is near its start. One step at most doubles or halves it.
    It is stored with the set as its learning rate.

    **Labels.** While images are learned, the student sees hard labels (or ``labels=target``, see `TESLA`) and the finished set gets those of the label rule.
    With ``learn=labels`` the images are random real ones that stay as they are: the label paper's "MTT labels" (Qin, Deng and Alvarez-Melis 2024,
    arXiv 2406.10485). A label row is a softmax that starts with `label_start` on its class, or is free, starts one-hot and stays non-negative.

    **Experts** should be trained by `expert_recipe`: plain SGD without momentum, which is what a student of N plain steps can follow. Snapshots at whole epochs
    are read from disk as they are drawn; a few stay in memory.

    Cost: for a step, with B images in an inner step: 3 N B forward passes of one image for the student and 9 N B for the walk back (unrolled: 9 N B in all;
    tesla: 3 N B and 8 N B). Memory: the graph of one chunk of one step, and two numbers a parameter for every inner step; unrolled keeps N graphs of whole
    batches. Under a compiled plan in bfloat16 the walk back is in bfloat16, the student's training stays in float32.

    Deviations: alpha moves in its logarithm, where the published one may turn negative. The pixels' rate for CIFAR-10 at 10 images per class is 100; the
    published table says 100,000, which its author calls a misprint. The published code saves snapshots that, on a CPU, are all the last one. Batch
    normalization uses the statistics of each batch and only parameters are matched; the published code loses the experts' running statistics.
    """

    Options: ClassVar[type[TrajectoryMatchingOptions]] = TrajectoryMatchingOptions
    publishes: ClassVar[str] = "no training image"
    label_default: str = "hard"
    expert_recipe: ClassVar[Recipe] = Recipe(
        optimizer="sgd",
        lr=0.01,
        momentum=0.0,
        weight_decay=0.0,
        batch_size=256,
        epochs=50,
        augment="dsa:color_crop_cutout_flip_scale_rotate,align_corners=true",
    )
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10-ipc1": _published(50, 2, 2, 1e2, 1e-7, 0.01),
        "cifar10-ipc10": _published(30, 2, 20, 1e2, 1e-5, 0.001),
        "cifar10-ipc50": _published(30, 2, 40, 1e3, 1e-5, 0.001),
        "cifar100-ipc1": _published(20, 3, 20, 1e3, 1e-5, 0.01),
        "cifar100-ipc10": _published(20, 2, 20, 1e3, 1e-5, 0.01),
        "cifar100-ipc50": {**_published(80, 2, 40, 1e3, 1e-5, 0.01), "batch": 125},
        "tiny-imagenet-ipc1": _published(10, 2, 10, 1e4, 1e-4, 0.01),
        "tiny-imagenet-ipc10": {**_published(20, 2, 40, 1e4, 1e-4, 0.01), "batch": 200},
        "tiny-imagenet-ipc50": {**_published(20, 2, 40, 1e4, 1e-4, 0.01), "batch": 300},
        "fashion-mnist-cpu-ipc1": {**_SMALL, "steps": 400},
        "smoke": {**_published(5, 3, 2, 1.0, 1e-4, 0.1), "steps": 20},
    }

    def __init__(self, options: TrajectoryMatchingOptions) -> None:
        if options.labels == "target" and options.learn != "images":
            raise OptionError(
                f"labels are either learned or taken from the expert at the target epoch, got learn={options.learn} and labels=target; use labels=class"
            )
        self.options = options
        self.labels_itself = options.labels == "target"  # by the expert that is matched, at the target epoch
        self.label_default = "learned" if options.learn != "images" else "soft" if options.labels == "target" else "hard"
        if options.augment not in (None, "students"):
            parse_augment(options.augment)

    def total_steps(self, problem: Problem) -> int:
        """As asked for."""
        return self.options.steps

    def work(self, size: Size) -> float:
        """``3 N B`` passes a step for the student, and 9, 8 or 6 N B for the gradient; N more where the expert says the labels."""
        options = self.options
        gradient = {"recomputed": 12, "tesla": 11, "unrolled": 9}[options.gradient]
        labels = size.images if self.labels_itself else 0
        return float(options.steps * (gradient * options.student_steps * min(options.batch or size.images, size.images) + labels))

    def check(self, problem: Problem, expert: Network | None, epochs: int | None) -> None:
        """Raises `OptionError` where the experts will not do, because they are others or too short."""
        check_experts_to_come(problem, _NAME, expert, epochs)
        assert epochs is not None
        _check_epochs(self.options, range(epochs + 1))

    def init(self, problem: Problem) -> State:
        """``images``; ``labels`` when they are learned (on the simplex, logits of the rows); ``target_logits``, the running mean of what the experts say of the
        images; ``step_size`` and its logarithm; velocities, at rest. Raises `OptionError` where experts are missing, do not fit or are too short."""
        _check_experts(problem, self.options)
        images, log = start_images(problem, self.options.start), torch.tensor(math.log(self.options.step_size), device=problem.plan.device)
        state = {"images": images, "step_size": log.exp(), "step_size.log": log, "step_size.momentum": torch.zeros_like(log)}
        if self.options.learn != "labels":
            state["images.momentum"] = torch.zeros_like(images)
        rows = one_hot(owners_of(problem), problem)
        if self._softens(problem):
            state["target_logits"] = torch.zeros_like(rows)
        if self.options.learn != "images":
            share, others = self.options.label_start, problem.network.classes - 1
            start = torch.log(rows * share + (1 - rows) * (1 - share) / others) if self.options.label_form == "simplex" else rows
            state |= {"labels": start, "labels.momentum": torch.zeros_like(start)}
        return state

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """One inner training and one step of what is learned; the metric ``loss`` is L before it, ``step_size`` the alpha that was used."""
        options = self.options
        found = self.match(problem, state, turn)
        alpha = found.segment.step_size
        velocity = options.momentum * state["step_size.momentum"] + alpha * found.matched.step_size  # dL/du = alpha dL/dalpha
        rate = options.step_size_lr / options.step_size**2 * turn.scale
        log = state["step_size.log"] - (rate * velocity).clamp(-_MOST_CHANGE, _MOST_CHANGE)
        new = dict(state) | {"step_size": log.exp() * turn.scale, "step_size.log": log, "step_size.momentum": velocity}
        learned = {"images": (found.matched.images, options.image_lr), "labels": (found.matched.labels, options.label_lr)}
        for name, (gradient, lr) in learned.items():
            if gradient is not None:
                moved, slots = sgd_step({name: state[name]}, {name: gradient}, state, lr=lr * turn.scale, momentum=options.momentum)
                new |= {**moved, **slots}
        if options.learn != "images" and options.label_form == "free":
            new["labels"] = new["labels"].clamp_min(0)
        if found.target_logits is not None:
            mean = state["target_logits"]
            new["target_logits"] = mean + (found.target_logits - mean) / min(turn.number + 1, _REMEMBERED)
        return new, {"loss": float(found.matched.loss), "step_size": float(alpha)}

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """The set with its learned step size. Labels: learned ones in full, in the label rule's precision; under ``labels=target`` the rule applied to the mean
        of the target logits of about the last 100 steps; otherwise what the rule makes. Images that were not learned are stored as they are in the source."""
        options = self.options
        labels = None
        if options.learn != "images":
            simplex = options.label_form == "simplex"
            kind: Literal["probability", "free"] = "probability" if simplex else "free"
            labels = Labels.encode(self._shown(state["labels"]).cpu(), kind=kind, precision=problem.rule.precision, sums_to_one=simplex)
        elif "target_logits" in state:
            labels = make_labels(problem.rule, owners_of(problem), state["target_logits"].cpu(), problem.network.classes)
        about: dict[str, Any] = {
            "options": options.model_dump(mode="json"),
            "matched_experts": [trajectory.key for trajectory in problem.trajectories],
        }
        made = finished(problem, state["images"], labels=labels, precision=options.image_precision, step_size=float(state["step_size"]), **about)
        if options.learn != "labels" or options.start != "real":
            return made
        indices = torch.cat([random_order(problem, number, count, None) for number, count in enumerate(problem.counts) if count])
        real = {"images": problem.train.read(indices), "pixels": problem.pixels, "provenance": {**made.provenance, "indices": indices.tolist()}}
        return DistilledDataset(**{**vars(made), **real})

    def match(self, problem: Problem, state: State, turn: Turn, gradient: GradientKind | None = None, wanted: Sequence[str] | None = None) -> "Found":
        """What a step computes before it moves anything: L and its derivatives in `wanted` (images, labels; by default what is learned) and in alpha, by the
        given kind of gradient (by default the method's own)."""
        options, network, plan = self.options, problem.network, problem.plan
        kind = gradient or options.gradient
        learned = tuple(wanted or {"images": ("images",), "labels": ("labels",), "both": ("images", "labels")}[options.learn])
        start, target = self._draw_experts(problem, turn.streams.torch("experts"))
        logits = _eval_logits(network, target.state, state["images"], plan.chunk) if self._softens(problem) else None
        rows = self._rows(problem, state, logits)
        names = set(network.parameter_names)
        segment = Segment(
            start={name: tensor for name, tensor in start.state.items() if name in names},
            target={name: tensor for name, tensor in target.state.items() if name in names},
            batches=self._batches(problem, turn.streams),
            step_size=state["step_size.log"].exp() * turn.scale,
        )
        buffers = {name: tensor for name, tensor in start.state.items() if name not in names}
        if kind == "unrolled":
            plain = network_loss(network, "cross-entropy", "float32", torch.device(plan.device).type)
            matched = unrolled(lambda parameters, shown, labels: plain(parameters, shown, labels, buffers), segment, state["images"], rows)
        else:
            parts = (*(("parameters",) if kind == "recomputed" else ()), *learned)
            student = BatchLoss.of_network(network, buffers, plan, *parts, usual=min(options.batch or len(rows), len(rows)))
            matched = recomputed(student, segment, state["images"], rows)
        by_labels = matched.labels
        if by_labels is not None and options.label_form == "simplex":  # through the softmax
            by_labels = rows * (by_labels - (rows * by_labels).sum(1, keepdim=True))
        kept = {"images": matched.images if "images" in learned else None, "labels": by_labels if "labels" in learned else None}
        return Found(segment, Matched(matched.loss, matched.step_size, **kept), logits)

    def _softens(self, problem: Problem) -> bool:
        return self.options.labels == "target" and problem.rule.kind == "soft"

    def _shown(self, labels: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """The rows of learned labels."""
        return labels.softmax(1) if self.options.label_form == "simplex" else labels

    def _rows(self, problem: Problem, state: State, logits: Tensor | None) -> Float[Tensor, "N K"]:
        """The labels of the student."""
        if self.options.learn != "images":
            return self._shown(state["labels"])
        if logits is None:
            return one_hot(owners_of(problem), problem)
        rows: Tensor = make_labels(problem.rule, owners_of(problem), logits.cpu(), problem.network.classes).dense().to(logits.device)
        return rows

    def _draw_experts(self, problem: Problem, generator: torch.Generator) -> tuple[Expert, Expert]:
        """An expert at its start and target epochs."""
        options = self.options
        trajectory = problem.trajectories[int(torch.randint(len(problem.trajectories), (), generator=generator))]
        start = int(torch.randint(options.max_start_epoch, (), generator=generator))
        steps = _whole_epochs(trajectory)
        first, second = (expert_at(trajectory, steps[epoch], problem.plan.device) for epoch in (start, start + options.expert_epochs))
        return first, second

    def _batches(self, problem: Problem, streams: Streams) -> list[Batch]:
        """The batches of the inner training: passes over fresh permutations of the set, the last batch of a pass possibly smaller."""
        options, count = self.options, sum(problem.counts)
        augment = self._augment(problem)
        order, draws = streams.torch("order"), streams.torch("augment")
        pending: list[Tensor] = []
        batches = []
        for _ in range(options.student_steps):
            if not pending:
                pending = list(torch.randperm(count, generator=order).split(options.batch or count))
            rows = pending.pop(0)
            batches.append(Batch(rows, augment, {} if augment is None else augment.draw(len(rows), problem.network.shape, draws)))
        return batches

    def _augment(self, problem: Problem) -> Augment | None:
        text = problem.recipe.augment if self.options.augment == "students" else self.options.augment
        return None if text is None else parse_augment(text)


class TESLA(TrajectoryMatching):
    """Trajectory matching with TESLA's gradient and soft labels (Cui, Wang, Si and Hsieh 2023, arXiv 2211.10586, section 3).

    It is `TrajectoryMatching` with two changes. The gradient treats the student's parameters at every inner step as constants: with G the sum of the N
    gradients, ``L = || theta*_t - alpha G - theta*_{t+M} ||^2 / D`` and each gradient depends on the images directly but not through the parameters at which
    it is taken. In the terms of `TrajectoryMatching`: ``a_i = a_N`` for all i, the factors ``1 - alpha H_j`` are left out. For N = 1 this is exact; the error
    grows with ``alpha N`` times the curvature. `gradient_agreement` measures it.

    And at every step the student's labels are the label rule applied to what the expert says of the images at the target epoch t + M (images not augmented,
    evaluation mode). Under hard labels the student sees the class alone.

    Cost: a student's N steps, and a second-order pass for each without the Hessian-vector product, about a tenth less than ``recomputed``; memory is alike.

    Deviations: the finished set's labels come from the mean of the target logits over about the last 100 steps, where the published ones are those of the
    last expert and epoch drawn; the published code fails with soft labels outside ImageNet, on the concatenation of an empty list.
    """

    Options = TESLAOptions
    label_default: str = "soft"
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10-ipc1": {**_published(50, 2, 5, 1e3, 1e-7, 0.01), "labels": "class"},
        "cifar100-ipc50": {**_published(80, 2, 40, 1e3, 1e-5, 0.01), "batch": 125, "labels": "class"},
        "imagenet64-ipc1": {**_published(10, 3, 10, 1e4, 1e-4, 0.01), "batch": 100},
        "fashion-mnist-cpu-ipc1": {**_SMALL, "steps": 400, "labels": "class"},
        "smoke": {**_published(5, 3, 2, 1.0, 1e-4, 0.1), "steps": 20},
    }


@dataclass(frozen=True)
class Segment:
    """A student's training: parameters at its start, those that it is to reach, the batches of its steps, and their step size."""

    start: Tensors
    target: Tensors
    batches: Sequence[Batch]
    step_size: Float[Tensor, ""]


@dataclass(frozen=True)
class Matched:
    """The matching loss and its derivatives in the step size, images and labels; None for what was not wanted."""

    loss: Float[Tensor, ""]
    step_size: Float[Tensor, ""]
    images: Float[Tensor, "N C H W"] | None = None
    labels: Float[Tensor, "N K"] | None = None


@dataclass(frozen=True)
class Found:
    """One step's training and what matching it gave; the target expert's logits of the images where they are the student's labels."""

    segment: Segment
    matched: Matched
    target_logits: Float[Tensor, "N K"] | None


def unrolled(loss: SummedLoss, segment: Segment, images: Float[Tensor, "N C H W"], labels: Float[Tensor, "N K"]) -> Matched:
    """L and its exact derivatives by differentiating through the whole training at once; memory grows with the number of steps."""

    def matching(images: Tensor, labels: Tensor, step_size: Tensor) -> Tensor:
        parameters = segment.start
        for batch in segment.batches:
            gradients = torch.func.grad(loss)(parameters, batch.look(images), batch.labels(labels))
            parameters, _ = sgd_step(parameters, gradients, {}, lr=step_size / len(batch.rows))
        return _distance(parameters, segment.target) / _distance(segment.start, segment.target)

    (by_images, by_labels, by_step_size), value = torch.func.grad_and_value(matching, argnums=(0, 1, 2))(images, labels, segment.step_size)
    return Matched(value, by_step_size, by_images, by_labels)


def recomputed(student: BatchLoss, segment: Segment, images: Float[Tensor, "N C H W"], labels: Float[Tensor, "N K"]) -> Matched:
    """L and its derivatives by walking the training backwards, one step's graph at a time.

    Exact when `student` gives derivatives in its parameters. Without them the adjoint stays that of the last step, which is TESLA's gradient.
    """
    alpha, path, parameters = segment.step_size, [], segment.start
    for batch in segment.batches:
        _, gradients = student.gradient(parameters, batch.look(images), batch.labels(labels))
        path.append((parameters, gradients))
        parameters, _ = sgd_step(parameters, gradients, {}, lr=alpha)
    scale = _distance(segment.start, segment.target)
    adjoint = {name: 2 * (tensor - segment.target[name]) / scale for name, tensor in parameters.items()}
    loss, by_step_size = _distance(parameters, segment.target) / scale, torch.zeros_like(alpha)
    by_images: Tensor | None = None
    by_labels: Tensor | None = None
    for batch in reversed(segment.batches):
        parameters, gradients = path.pop()
        by_step_size = by_step_size - _inner(gradients, adjoint)
        direction = {name: -alpha * tensor for name, tensor in adjoint.items()}
        pulled = student.along(parameters, batch.look(images), batch.labels(labels), direction)
        if pulled.images is not None:
            by_images = (torch.zeros_like(images) if by_images is None else by_images) + batch.pull(images, pulled.images)
        if pulled.labels is not None:
            rows = batch.rows.to(labels.device)
            by_labels = (torch.zeros_like(labels) if by_labels is None else by_labels).index_add(0, rows, pulled.labels)
        if pulled.parameters is not None:
            adjoint = {name: tensor + pulled.parameters[name] for name, tensor in adjoint.items()}
    return Matched(loss, by_step_size, by_images, by_labels)


def gradient_agreement(method: TrajectoryMatching, problem: Problem, state: State, turn: Turn) -> dict[str, float]:
    """How TESLA's derivative in the images compares with the exact one, for the expert, epoch and batches that `turn` draws: ``cosine`` of the angle between
    them, ``norm_ratio`` (TESLA's over the exact), and the matching ``loss``. Both in the plan's arithmetic."""
    exact, tesla = (method.match(problem, state, turn, kind, ("images",)).matched for kind in ("recomputed", "tesla"))
    assert exact.images is not None
    assert tesla.images is not None
    one, other = exact.images.double().flatten(), tesla.images.double().flatten()
    return {
        "cosine": float(torch.nn.functional.cosine_similarity(one, other, dim=0)),
        "norm_ratio": float(other.norm() / one.norm()),
        "loss": float(exact.loss),
    }


def _distance(one: Tensors, other: Tensors) -> Float[Tensor, ""]:
    """Squared Euclidean distance of all parameters."""
    return torch.stack([(tensor - other[name]).square().sum() for name, tensor in one.items()]).sum()


def _inner(one: Tensors, other: Tensors) -> Float[Tensor, ""]:
    return torch.stack([(tensor * other[name]).sum() for name, tensor in one.items()]).sum()


def _eval_logits(network: Network, state: Tensors, images: Float[Tensor, "N C H W"], chunk: int) -> Float[Tensor, "N K"]:
    """Logits in evaluation mode, in float32."""
    with torch.no_grad():
        return torch.cat([network.forward(state, part) for part in images.split(chunk or len(images))])


def _whole_epochs(trajectory: Trajectory) -> dict[int, int]:
    """The step of every snapshot at the end of an epoch, and at the start, by epoch."""
    return {int(snapshot.epoch): snapshot.step for snapshot in trajectory.snapshots if float(snapshot.epoch).is_integer()}


def _check_experts(problem: Problem, options: TrajectoryMatchingOptions) -> None:
    check_experts(problem, _NAME)
    for trajectory in problem.trajectories:
        _check_epochs(options, _whole_epochs(trajectory))


def _check_epochs(options: TrajectoryMatchingOptions, kept: Collection[int]) -> None:
    last = options.max_start_epoch - 1 + options.expert_epochs
    if any(epoch not in kept for epoch in range(last + 1)):
        raise OptionError(
            f"matching {options.expert_epochs} epochs from starts before epoch {options.max_start_epoch} needs experts of {last} epochs, got {max(kept)}; "
            f"use --expert-epochs {last}, or smaller max_start_epoch or expert_epochs"
        )

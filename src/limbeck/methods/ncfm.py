"""NCFM: images whose features have, class by class, the characteristic function of the real ones."""

import math
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.experts.trajectory import EXPERT_RECIPE
from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.matching import (
    apply,
    check_experts,
    check_experts_to_come,
    chunked,
    compiles,
    draw,
    embedding,
    expert_at,
    groups_within,
    on_device,
    pad,
    real_piece,
    siamese,
)
from limbeck.methods.problem import Problem
from limbeck.methods.sre2l import valid_range
from limbeck.methods.synthetic import SyntheticOptions, finished, real_batch, start_images
from limbeck.train.network import Network
from limbeck.train.updates import adam_step
from limbeck.types.distilled import DistilledDataset
from limbeck.types.recipe import Recipe

WEIGHT = 300.0
"""Factor of the discrepancy, as published. Adam's steps do not depend on it; reported losses do."""

_LEAST = 1e-12  # under the square roots, where a derivative would be unbounded
_LAYERS = 3


class NCFMOptions(SyntheticOptions):
    """The defaults are those of the authors' settings for CIFAR-10, without their multi-formation."""

    steps: int = Field(20_000, ge=1, description="steps, each under an extractor of its own")
    image_lr: float = Field(0.01, gt=0, description="Adam step size of the pixels, in units of [0, 1] pixels")
    real_batch: int = Field(1024, ge=1, description="real images of each class in a step")
    frequencies: int = Field(4096, ge=1, description="frequencies at which characteristic functions are compared")
    amplitude: float = Field(0.5, ge=0, description="weight of the squared gap in amplitude (realism)")
    phase: float = Field(0.5, ge=0, description="weight of the gap in phase (diversity)")
    calibration: float = Field(1.0, ge=0, description="whether each step is followed by one of the trained expert's cross-entropy; 0 leaves it out")
    sampler: Literal["gaussian", "learned"] = Field(
        "gaussian", description="frequencies are N(0, 1), or come from a network that raises the discrepancy"
    )
    sampler_lr: float = Field(1e-3, gt=0, description="Adam step size of that network")
    augment: str = Field(
        "dsa:color_crop_cutout", description="augmentation shared by the real and synthetic images of a class: none, dsa or dsa:STRATEGY"
    )


class NCFM:
    """Neural characteristic function matching (Wang, Yang, Liu, Sun, Hu, He and Zhang 2025, arXiv 2502.20653).

    The characteristic function of a class's features is ``Phi(t) = mean_i exp(i <t, f_i>)`` with f normalized to length 1. For real images x and synthetic
    images s of a class the discrepancy at a frequency t is ``sqrt(a (|Phi_x| - |Phi_s|)^2 + 2 b (|Phi_x| |Phi_s| - Re Phi_x conj Phi_s))`` with a =
    `amplitude` and b = `phase`; with a = b = 1/2 that is ``|Phi_x - Phi_s| / sqrt(2)``. A step descends, by Adam on the pixels,

        ``L = sum_k 300 mean_t discrepancy_k(t)``

    under one extractor, ``(1 - u) theta_0 + u theta_T`` with u uniform in [0, 1], between the first and the last snapshot of an expert that is drawn; then,
    with `calibration`, the cross-entropy of the synthetic images under theta_T, by another step of the same Adam. Pixels stay within their valid range.
    Frequencies are N(0, 1), or those of a small network (three linear layers with batch norm, LeakyReLU and a last tanh) that ascends L.

    Cost: a step is one forward pass of K x `real_batch` real images, one forward and backward pass of the synthetic ones (two with calibration), and
    ``2 (K B + N) F T`` operations for T frequencies of F features. Memory: real features [K B, F] and their projections of one class; real images keep
    nothing for a backward pass unless the sampler is learned.

    Chosen over DATM as the strongest recent method that runs well on a small machine: it needs no unrolled training, its cost is that of distribution
    matching, and its published accuracies are higher. Deviations: one step moves all classes (published: one class after another, under one Adam, which moves
    every class by its momentum K times); no weight decay on pixels; step sizes do not fall; networks with batch norm use running statistics; one image
    is stored as one image (published: each holds four at half the size). The learned sampler ascends the loss, as the paper says.
    """

    Options = NCFMOptions
    publishes: ClassVar[str] = "no training image"
    expert_recipe: ClassVar[Recipe] = EXPERT_RECIPE
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar10": {},
        "cifar10-minmax": {"sampler": "learned"},
        "fashion-mnist-cpu": {"steps": 1500, "real_batch": 128, "frequencies": 1024},
        "smoke": {"steps": 20, "real_batch": 16, "frequencies": 32, "image_lr": 0.05},
    }

    def __init__(self, options: NCFMOptions) -> None:
        if options.amplitude == options.phase == 0:
            raise OptionError("ncfm compares amplitudes and phases, and both have weight 0; use for example amplitude=0.5,phase=0.5")
        self.options = options
        self._augment = siamese(options.augment)

    def total_steps(self, problem: Problem) -> int:
        """As asked."""
        return self.options.steps

    def work(self, size: Size) -> float:
        """A pass of the real images and three of the synthetic ones a step, three more with calibration, and two of the real ones with a learned sampler.
        The products with the frequencies are left out: they depend on the features."""
        options = self.options
        real = size.real(options.real_batch) * (3 if options.sampler == "learned" else 1)
        return float(options.steps * (real + 3 * size.images * (2 if options.calibration else 1)))

    def check(self, problem: Problem, expert: Network | None, epochs: int | None) -> None:
        """Raises `OptionError` where the experts will not do."""
        check_experts_to_come(problem, "ncfm", expert, epochs)

    def init(self, problem: Problem) -> State:
        """The images, their valid range and scale; with a learned sampler its parameters."""
        check_experts(problem, "ncfm")
        low, high = valid_range(problem)
        state = {"images": start_images(problem, self.options.start), "low": low, "high": high}
        if self.options.sampler == "learned":
            state |= {f"sampler.{name}": tensor.to(problem.plan.device) for name, tensor in _sampler(problem).items()}
        return state

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """One step of matching and one of calibration; the metrics are L and, with calibration, the mean cross-entropy of the images (nats)."""
        options, plan = self.options, problem.plan
        generator = turn.streams.torch("extractor")
        trajectory = problem.trajectories[int(torch.randint(len(problem.trajectories), (), generator=generator))]
        first, last = (expert_at(trajectory, step, plan.device).state for step in (0, trajectory.last.step))
        share = float(torch.rand((), generator=generator))
        mixed = {name: torch.lerp(tensor, last[name], share) if tensor.is_floating_point() else last[name] for name, tensor in first.items()}
        frequencies, inputs = self._frequencies(problem, state, turn)
        gradients, loss, ascent = self._match(problem, state["images"], on_device(mixed, plan), frequencies, inputs, turn)
        new = self._descend(state, gradients, turn, passed=0)
        if ascent is not None:
            new |= _ascend(state, ascent, options.sampler_lr * turn.scale, turn.number + 1)
        metrics = {"loss": loss}
        if options.calibration:
            gradients, metrics["cross_entropy"] = self._calibrate(problem, new["images"], on_device(last, plan), turn)
            new |= self._descend({**state, **new}, options.calibration * gradients, turn, passed=1)
        return {**state, **new}, metrics

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """The images under the problem's label rule."""
        about: dict[str, Any] = {
            "options": self.options.model_dump(mode="json"),
            "extractors": [trajectory.key for trajectory in problem.trajectories],
        }
        return finished(problem, state["images"], precision=self.options.image_precision, **about)

    def _frequencies(self, problem: Problem, state: State, turn: Turn) -> tuple[Float[Tensor, "T F"], dict[str, Tensor]]:
        """The frequencies of a step, and what they are differentiated by."""
        size = (self.options.frequencies, _features_of(problem.network))
        noise = torch.randn(size, generator=turn.streams.torch("frequencies")).to(problem.plan.device)
        if self.options.sampler == "gaussian":
            return noise, {}
        names = [f"sampler.{name}{number}" for number in range(_LAYERS) for name in ("weight", "bias", "scale", "shift")]
        inputs = {name: state[name].detach().requires_grad_() for name in names}
        return sampled(noise, inputs), inputs

    def _match(
        self,
        problem: Problem,
        images: Float[Tensor, "N C H W"],
        weights: dict[str, Tensor],
        frequencies: Float[Tensor, "T F"],
        inputs: dict[str, Tensor],
        turn: Turn,
    ) -> tuple[Float[Tensor, "N C H W"], float, dict[str, Tensor] | None]:
        options, plan = self.options, problem.plan
        embed = embedding(problem.network, plan, weights, training=False)
        classes = [number for number, count in enumerate(problem.counts) if count]
        drawn = {number: draw(self._augment, problem, turn, number) for number in classes}
        compiled, piece = compiles(plan), real_piece(problem, options.real_batch)
        targets = []
        for number in classes:
            real = real_batch(problem, problem.members(number), options.real_batch, turn.streams.torch("real", number))
            with torch.no_grad():
                rows = F.normalize(chunked(embed, apply(self._augment, real, drawn[number]), piece, padded=compiled), dim=1)
            targets.append(characteristic(rows, frequencies))
        sizes = [problem.counts[number] for number in classes]
        groups = list(groups_within(sizes, plan.chunk))
        longest = max(sum(sizes[first:end]) for first, end in groups)
        parts, total = images.split(sizes), 0.0
        gradients: list[Tensor] = []
        ascent: dict[str, Tensor] = {}
        for first, end in groups:
            leaves = [part.detach().requires_grad_() for part in parts[first:end]]
            shown = torch.cat([apply(self._augment, leaf, drawn[number]) for leaf, number in zip(leaves, classes[first:end], strict=True)])
            rows = F.normalize(embed(pad(shown, longest) if compiled else shown)[: len(shown)], dim=1).split(sizes[first:end])
            gaps = [
                discrepancy(target, characteristic(part, frequencies), options.amplitude, options.phase)
                for target, part in zip(targets[first:end], rows, strict=True)
            ]
            loss = WEIGHT * torch.stack(gaps).sum()
            found = torch.autograd.grad(loss, [*leaves, *inputs.values()], retain_graph=bool(inputs) and end < len(classes))
            gradients += found[: len(leaves)]
            ascent = {name: ascent.get(name, 0) + gradient for name, gradient in zip(inputs, found[len(leaves) :], strict=True)}
            total += float(loss.detach())
        return torch.cat(gradients), total, ascent or None

    def _calibrate(
        self, problem: Problem, images: Float[Tensor, "N C H W"], weights: dict[str, Tensor], turn: Turn
    ) -> tuple[Float[Tensor, "N C H W"], float]:
        """Gradient and value of the mean cross-entropy of the images under a trained network, in groups within ``plan.chunk``."""
        owners = torch.arange(len(problem.counts)).repeat_interleave(torch.tensor(problem.counts)).to(images.device)
        drawn = {} if self._augment is None else self._augment.draw(1, problem.network.shape, turn.streams.torch("calibrate"))
        gradients: list[Tensor] = []
        total, size = 0.0, problem.plan.chunk or len(images)
        for part, classes in zip(images.split(size), owners.split(size), strict=True):
            leaf = part.detach().requires_grad_()
            loss = F.cross_entropy(problem.network.forward(weights, apply(self._augment, leaf, drawn)), classes, reduction="sum") / len(images)
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            total += float(loss.detach())
        return torch.cat(gradients), total

    def _descend(self, state: State, gradients: Float[Tensor, "N C H W"], turn: Turn, *, passed: int) -> State:
        """An Adam step of the pixels within their range, the `passed`-th of this turn. One unit of [0, 1] pixels is ``high - low`` in network space."""
        each = 2 if self.options.calibration else 1
        unit = state["high"] - state["low"]
        number = each * turn.number + passed + 1
        moved, slots = adam_step(
            {"images": state["images"] / unit}, {"images": gradients * unit}, state, lr=self.options.image_lr * turn.scale, number=number
        )
        return {"images": torch.minimum(torch.maximum(moved["images"] * unit, state["low"]), state["high"]), **slots}


def characteristic(rows: Float[Tensor, "B F"], frequencies: Float[Tensor, "T F"]) -> tuple[Float[Tensor, " T"], Float[Tensor, " T"]]:
    """Real and imaginary part of the empirical characteristic function ``mean_i exp(i <t, f_i>)`` of feature rows f."""
    angles = rows @ frequencies.T
    return angles.cos().mean(0), angles.sin().mean(0)


def discrepancy(
    first: tuple[Float[Tensor, " T"], Float[Tensor, " T"]], second: tuple[Float[Tensor, " T"], Float[Tensor, " T"]], amplitude: float, phase: float
) -> Float[Tensor, ""]:
    """Mean over frequencies of ``sqrt(a (|P| - |Q|)^2 + 2 b (|P| |Q| - Re P conj Q))``; what is under a root stays above 1e-12, where it has a derivative."""
    sizes = [(real.square() + imaginary.square()).clamp_min(_LEAST).sqrt() for real, imaginary in (first, second)]
    apart = 2 * (sizes[0] * sizes[1] - first[0] * second[0] - first[1] * second[1])
    return (amplitude * (sizes[0] - sizes[1]).square() + phase * apart).clamp_min(_LEAST).sqrt().mean()


def sampled(noise: Float[Tensor, "T F"], parameters: dict[str, Tensor]) -> Float[Tensor, "T F"]:
    """Frequencies that a network makes of noise: linear layers, each with the batch's own normalization, LeakyReLU(0.2) between them and tanh at the end."""
    rows = noise
    for number in range(_LAYERS):
        weight, bias, scale, shift = (parameters[f"sampler.{name}{number}"] for name in ("weight", "bias", "scale", "shift"))
        rows = F.batch_norm(F.linear(rows, weight, bias), None, None, scale, shift, training=True)
        rows = F.leaky_relu(rows, 0.2) if number < _LAYERS - 1 else torch.tanh(rows)
    return rows


def _sampler(problem: Problem) -> dict[str, Tensor]:
    """PyTorch's initialization of linear layers and batch norm."""
    width, generator = _features_of(problem.network), problem.streams.torch("sampler")
    bound = 1 / math.sqrt(width)
    made = {}
    for number in range(_LAYERS):
        made[f"weight{number}"] = torch.empty(width, width).uniform_(-bound, bound, generator=generator)
        made[f"bias{number}"] = torch.empty(width).uniform_(-bound, bound, generator=generator)
        made[f"scale{number}"], made[f"shift{number}"] = torch.ones(width), torch.zeros(width)
    return made


def _ascend(state: State, gradients: dict[str, Tensor], lr: float, number: int) -> State:
    moved, slots = adam_step(
        {name: state[name] for name in gradients}, {name: -gradient for name, gradient in gradients.items()}, state, lr=lr, number=number
    )
    return {**moved, **slots}


@lru_cache(maxsize=16)
def _features_of(network: Network) -> int:
    with torch.no_grad():
        return int(network.features(network.module.state_dict(), torch.zeros(1, *network.shape)).shape[1])

"""Distribution matching: images whose mean embedding under random networks is that of the real images of their class."""

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.matching import apply, chunked, compiles, draw, embedding, groups_within, joint_means, on_device, real_piece, siamese
from limbeck.methods.problem import Problem
from limbeck.methods.synthetic import SyntheticOptions, finished, real_batch, start_images
from limbeck.train.updates import sgd_step
from limbeck.types.distilled import DistilledDataset


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
    publishes: ClassVar[str] = "no training image"
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

    def work(self, size: Size) -> float:
        """A pass of the real images and three of the synthetic ones a step."""
        return float(self.options.steps * (size.real(self.options.real_batch) + 3 * size.images))

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

        embed = embedding(network, plan, weights, training=True)
        with torch.no_grad():
            if whole:
                targets = joint_means(embed, [real(number) for number in classes])
            else:
                size = real_piece(problem, options.real_batch)
                targets = torch.stack([chunked(embed, real(number), size, padded=compiled).mean(0) for number in classes])

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

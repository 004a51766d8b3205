"""Exact influence: a network trained anew without each image of the set, from the same initialization, with everything else as it was."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from limbeck.analyze.subject import AnalysisOptions, NotApplicable, Subject
from limbeck.data.tables import ImageTable, Subset
from limbeck.progress import Reporter
from limbeck.train.examples import Examples
from limbeck.train.fit import Job, fit_many, predict
from limbeck.train.network import Network, State
from limbeck.train.students import in_groups
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


class LeaveOneOutOptions(AnalysisOptions):
    """The training that is repeated without each image: full batches, as in Yang et al. 2024 (arXiv 2406.04284)."""

    model: str | None = Field("convnet:width=32", description="network that is trained on the set; none: the students' own")
    seeds: int = Field(1, ge=1, description="initializations, over which influence is averaged")
    steps: int = Field(300, ge=1, description="full-batch steps")
    lr: float = Field(0.01, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum")
    points: int | None = Field(None, ge=1, description="images of the set that are left out in turn, drawn at random; none: every one")
    noise_points: int = Field(
        3, ge=1, description="omissions that are trained again with the images in another order, for the floor of rounding errors"
    )
    test_images: int | None = Field(1000, ge=2, description="test images on which influence is measured; none: all")

    @property
    def recipe(self) -> Recipe:
        """Full batches in one order, constant rate, no weight decay, no augmentation; the batch size is set by the set."""
        return Recipe(lr=self.lr, momentum=self.momentum, weight_decay=0, steps=self.steps, shuffle=False)

    def trained(self, images: int) -> float:
        """How many images the trainings on a set of `images` images go through."""
        return float(self.seeds * (min(self.points or images, images) + self.noise_points + 2) * self.steps * images)


@dataclass(frozen=True)
class Retrained:
    """Losses on M test images of networks trained on N images of the set but one.

    `influence` [S, N, M] is ``loss without the image - loss with all`` in nats, so what is positive, the image helped; `reordered` [S, n, M] the same of the
    omissions number `again` [n] with the images in another order, which changes nothing but rounding errors. `points` [N] are numbers of images of the set,
    `rows` [M] of the whole test table, and `test` the table of those rows.
    """

    influence: Float[Tensor, "S N M"]
    reordered: Float[Tensor, "S n M"]
    again: Int[Tensor, " n"]
    points: Int[Tensor, " N"]
    rows: Int[Tensor, " M"]
    test: ImageTable
    finite: bool

    @property
    def mean(self) -> Float[Tensor, "N M"]:
        """Averaged over initializations."""
        return self.influence.mean(0)

    @property
    def noise(self) -> float:
        """Root mean square of what reordering changes, as a fraction of the root mean square influence of the same points."""
        own = self.influence[:, self.again]
        size = float(own.square().mean().sqrt())
        return float((self.reordered - own).square().mean().sqrt()) / size if size > 0 else float("inf")


def leave_one_out(subject: Subject, options: LeaveOneOutOptions, reporter: Reporter) -> Retrained:
    """Trains N + 1 networks of every initialization, and 1 + `noise_points` more for the floor; kept group by group, whatever analysis asks.

    An omitted image has weight 0 (`limbeck.train.examples.Examples.weights`), so initialization, order, batches and programs are the same for all, and the
    loss is the mean over the others. Always float32: in bfloat16 rounding errors would be larger than most influences.
    """
    network = subject.network_of(options.model)
    if network.has_batch_statistics:
        raise NotApplicable(f"leaving out an image needs a network without batch statistics, and {network.spec} has them; use one with norm=instance")
    if len(subject.dataset) < 2:
        raise NotApplicable("leaving out an image needs a set of at least two, and this one has one")
    test = subject.test_table(options.test_images)
    streams = subject.streams["leave-one-out"]
    points = torch.randperm(len(subject.dataset), generator=streams.torch("points"))[: options.points].sort().values
    again = torch.randperm(len(points), generator=streams.torch("again"))[: options.noise_points].sort().values
    examples, recipe, plan = examples_of(subject), options.recipe.with_(batch_size=len(subject.dataset)), plan_of(subject, network, options)
    tasks: list[tuple[int | None, bool]] = [
        (None, False),
        *((point, False) for point in points.tolist()),
        (None, True),
        *((point, True) for point in points[again].tolist()),
    ]
    found = []
    with reporter.task("networks without one image each", options.seeds * len(tasks)) as tick:
        for number in range(options.seeds):
            start, order = network.init(streams[number]), streams[number, "order"]

            def losses(members: Sequence[tuple[int | None, bool]], start: State = start, order=order) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
                made: list[Tensor] = []
                for shuffle in sorted({again for _, again in members}):
                    jobs = [Job(start, without(examples, point), order) for point, again in members if again == shuffle]
                    trained = fit_many(network, jobs, recipe.with_(shuffle=shuffle), plan)
                    made += [test_losses(network, one.network, test, examples, plan) for one in trained]
                return {"losses": torch.stack(made)}

            rows = []
            for group in in_groups(len(tasks), plan):
                members = [tasks[i] for i in group]
                task = {
                    "what": "leave one out",
                    "number": number,
                    "members": members,
                    "model": network.identity,
                    "recipe": recipe.model_dump(mode="json"),
                    "plan": plan.model_dump(exclude={"reason"}),
                    "test": test.digest,
                }
                rows.append(subject.remembered(task, lambda members=members, losses=losses: losses(members))["losses"])  # type: ignore[misc]
                tick(len(members))
            found.append(torch.cat(rows))
    all_losses, count = torch.stack(found), len(points) + 1
    own, other = all_losses[:, :count], all_losses[:, count:]
    drawn = test is not subject.test_table() and isinstance(test, Subset)
    at = torch.from_numpy(test.indices.copy()) if drawn else torch.arange(len(test))  # type: ignore[attr-defined]
    return Retrained(own[:, 1:] - own[:, :1], other[:, 1:] - other[:, :1], again, points, at, test, bool(torch.isfinite(all_losses).all()))


def examples_of(subject: Subject) -> Examples:
    """The set as it is trained on here: plain images under their labels, or under the mean of their labels per view."""
    return replace(Examples.of_distilled(subject.dataset), views=None)


def without(examples: Examples, point: int | None) -> Examples:
    """The examples with weight 0 for one of them (None: with equal weights for all)."""
    weights = torch.ones(len(examples))
    if point is not None:
        weights[point] = 0
    return replace(examples, weights=weights)


def plan_of(subject: Subject, network: Network, options: LeaveOneOutOptions) -> ExecutionPlan:
    """How the networks are trained: the plan of so much work, in float32."""
    images = len(subject.dataset)
    networks = (min(options.points or images, images) + 2 + options.noise_points) * options.seeds
    return subject.plan_for(network, images * options.steps * networks, images).model_copy(update={"precision": "float32"})


def test_losses(network: Network, state: State, test: ImageTable, examples: Examples, plan: ExecutionPlan) -> Float[Tensor, " M"]:
    """Cross-entropy of every test image, in nats; NaN where the network diverged."""
    logits = predict(network, {name: tensor.detach().clone() for name, tensor in state.items()}, test, examples.pixels, plan)
    labels = torch.from_numpy(np.array(test.labels))
    return torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")

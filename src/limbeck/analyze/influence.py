"""Which test images does each image of the set help, and do cheap estimates of that agree with training anew without it?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from limbeck.analyze.approximations import ekfac, influence_functions, need_kronfluence, tracin
from limbeck.analyze.leave_one_out import LeaveOneOutOptions, Retrained, examples_of, leave_one_out, plan_of, without
from limbeck.analyze.operators import Curvature, chunk_for
from limbeck.analyze.statistics import over_repeats
from limbeck.analyze.subject import Analysis, Plot, Size, Subject, Work
from limbeck.progress import Reporter
from limbeck.train.examples import Examples
from limbeck.train.fit import TrainingState, fit
from limbeck.train.network import Network, State
from limbeck.train.plan import on_device, threads
from limbeck.types.measurement import Measurement, Quantity
from limbeck.types.plan import ExecutionPlan

_NOISY = 0.5  # of the influence: where reordering changes more, single numbers mean little


class InfluenceOptions(LeaveOneOutOptions):
    """Leaving out, and what is compared with it."""

    seeds: int = Field(2, ge=1, description="initializations, over which influence is averaged")
    checkpoints: int = Field(10, ge=1, description="moments of the training that TracIn sums over")
    damping: float = Field(0.01, gt=0, description="added to the curvature matrix of influence functions")
    cg_steps: int = Field(100, ge=1, description="conjugate gradient steps at most")
    cg_tolerance: float = Field(1e-3, gt=0, description="relative residual at which they end")
    ekfac: bool = Field(False, description="also EK-FAC, which needs the extra limbeck[analysis]")
    shown: int = Field(9, ge=1, description="most influenced test images that are shown for each image of the set")


@dataclass(frozen=True)
class _Estimates:
    """Estimated influence [N, M] of every initialization by name, and the largest residual of the linear systems."""

    values: dict[str, list[Float[Tensor, "N M"]]]
    residual: float


class Influence(Analysis):
    """Influence ``loss of x without image j - loss of x with all`` [nats], by training anew without j, and the rank correlation of its estimates with it.

    Claim to test: single distilled images carry information beyond their class, which shows in the test images that they influence most (Yang, Zhu, Deng
    and Russakovsky 2024, "What is Dataset Distillation Learning?", arXiv 2406.04284, section 5). As in their code, "influence" is exact: N + 1 networks
    are trained by full batches from one initialization. An image is left out by weight 0, so that nothing else changes, and some omissions are trained again
    with the images in another order, which changes nothing but rounding: `noise` is how much of the influence that is.

    Estimates, all of the network that saw all images: damped influence functions (Koh and Liang 2017, arXiv 1703.04730) by conjugate gradients on the
    generalized Gauss-Newton matrix; TracIn over the trajectory (Pruthi et al. 2020, arXiv 2002.08484); EK-FAC (Grosse et al. 2023, arXiv 2308.03296).
    Each is compared with the exact influence of the same initialization by Spearman's rank correlation over test images, for every image of the set, averaged
    over initializations: over all test images, where "same class" (1 for test images of the image's class, else 0) says what the class alone explains, and
    within the image's own class. "Another initialization" compares exact influences of two initializations, which says how much of influence belongs to the
    image and not to the network; an estimate knows the network, so it may do better.

    Departures from the paper: several initializations, the floor of rounding errors, the estimates and their correlation.

    Cost: `seeds` x (N + `noise_points` + 3) trainings of `steps` full-batch steps; for TracIn one gradient of every test image at each checkpoint; for
    influence functions K gradients of every image of the set and products with a matrix of N K rows. On two CPU cores use a width of 32 and at most three
    initializations; a ConvNet of width 128 is for a GPU.
    """

    name = "influence"
    title = "Influence"
    summary = "Which test images does each image of the set help, and do cheap estimates of influence agree with training anew?"
    version = 2
    Options = InfluenceOptions
    smoke: ClassVar[dict[str, Any]] = {
        "model": "mlp:width=4,depth=1", "seeds": 2, "steps": 8, "lr": 0.1, "points": 4, "noise_points": 1, "test_images": 20, "checkpoints": 2, "shown": 3,
    }  # fmt: skip
    headline = ("rank_correlation_mean", "rank_correlation_within", "noise", "own_class_influence")
    plots = (
        Plot(
            "top_images",
            "Test images that each image of the set helps most",
            x="image",
            kind="gallery",
            reading="Look for what the images of a row share beyond their class.",
        ),
        Plot(
            "rank_correlation",
            "Rank correlation with exact influence",
            x="estimate",
            kind="dots",
            reading="1: orders the test images as training anew does; 0: says nothing. An estimate that is no better than 'same class' has found the class "
            "alone; 'another initialization' says how much of influence is the image's and not the network's.",
        ),
        Plot(
            "influence_on_class",
            "Mean influence on the test images of each class",
            x="class",
            kind="heat",
            color="image",
            reading="Positive: the image lowers the loss of that class's test images.",
        ),
    )

    def __init__(self, options: InfluenceOptions) -> None:
        self.options = options

    def work(self, size: Size) -> Work:
        """Training anew without each image; the estimates from checkpoints and curvature are small beside it."""
        return {self.options.model: self.options.trained(size.images)}

    def measure(self, subject: Subject, reporter: Reporter) -> Measurement:
        options, started = self.options, time.monotonic()
        subject.need_classes("influence")
        if options.ekfac:
            need_kronfluence()
        exact = leave_one_out(subject, options, reporter)
        network, recipe = subject.network_of(options.model), options.recipe
        estimates = self._estimates(subject, network, exact, reporter)
        notes = self._notes(subject, exact, estimates)
        labels = torch.from_numpy(np.array(exact.test.labels))
        owners = subject.dataset.owners.long()[exact.points]
        same = owners[:, None] == labels[None]
        rivals: dict[str, list[tuple[Tensor, Tensor]]] = {
            name: [(exact.influence[s], part) for s, part in enumerate(parts)] for name, parts in estimates.values.items()
        }
        rivals["same class"] = [(one, same.double()) for one in exact.influence]
        rivals["another initialization"] = [(exact.influence[a], exact.influence[b]) for a, b in combinations(range(options.seeds), 2)]
        correlations = np.stack([_mean_correlation(pairs, len(owners)) for pairs in rivals.values()])
        within = np.stack([_mean_correlation(pairs, len(owners), same) for pairs in rivals.values()])
        by_class = torch.stack([exact.mean[:, labels == k].mean(1) for k in range(len(subject.dataset.classes))], 1).numpy()
        own = same.double()
        shown = min(options.shown, len(exact.rows))
        top = exact.rows[torch.sort(exact.mean.nan_to_num(nan=-torch.inf), dim=1, descending=True, stable=True).indices[:, :shown]]
        aside = [(exact.mean * share).sum(1) / share.sum(1) for share in (own, 1 - own)]
        return Measurement(
            analysis=self.name,
            title=self.title,
            quantities={
                "top_images": Quantity(top.double().numpy(), ("image", "rank"), "row of the test table"),
                "rank_correlation": Quantity(correlations, ("estimate", "image"), "Spearman's rank correlation"),
                "rank_correlation_mean": _over_images(correlations),
                "rank_correlation_within": _over_images(within, unit="Spearman's rank correlation over test images of the image's class"),
                "influence_on_class": Quantity(by_class, ("image", "class"), "nats"),
                "own_class_influence": _over_images(np.stack([part.numpy() for part in aside]), ("of",), "nats"),
                "influence_size": Quantity(exact.mean.square().mean(1).sqrt().numpy(), ("image",), "nats, root mean square over test images"),
                "noise": Quantity(np.array(exact.noise), (), "fraction of the influence"),
            },
            axes={
                "image": tuple(exact.points.tolist()),
                "rank": tuple(range(1, shown + 1)),
                "estimate": tuple(rivals),
                "class": subject.dataset.classes,
                "of": ("own class", "other classes"),
            },
            settings={
                **options.model_dump(mode="json"),
                "model": str(network.spec),
                "recipe": recipe.model_dump(mode="json"),
                "test_images_used": len(exact.rows),
                "images_left_out": len(exact.points),
            },
            residuals={"conjugate gradients": estimates.residual, "noise": exact.noise},
            converged=bool(estimates.residual <= 2 * options.cg_tolerance and exact.noise <= _NOISY and exact.finite),
            notes=tuple(notes),
            seconds=time.monotonic() - started,
        )

    def _estimates(self, subject: Subject, network: Network, exact: Retrained, reporter: Reporter) -> _Estimates:
        options = self.options
        found: list[dict[str, Tensor]] = []
        with reporter.task("estimates of influence", options.seeds) as tick:
            for number in range(options.seeds):
                plan = plan_of(subject, network, options)
                task = {"what": self.name, "version": self.version, "number": number, "options": options.model_dump(mode="json")}
                task |= {"model": network.identity, "plan": plan.model_dump(exclude={"reason"}), "test": exact.test.digest}
                found.append(subject.remembered(task, lambda number=number, plan=plan: self._estimate(subject, network, plan, exact, number)))  # type: ignore[misc]
                tick(1)
        values = {name: [part[name] for part in found] for name in sorted(found[0]) if name != "residual"}
        return _Estimates(values, max(float(part["residual"]) for part in found))

    def _estimate(self, subject: Subject, network: Network, plan: ExecutionPlan, exact: Retrained, number: int) -> dict[str, Tensor]:
        options, device = self.options, torch.device(plan.device)
        streams = subject.streams["leave-one-out"]
        examples, recipe = examples_of(subject), options.recipe.with_(batch_size=len(subject.dataset))
        states: dict[int, State] = {}

        def keep(live: TrainingState) -> None:
            states[live.step] = {name: tensor.detach().clone() for name, tensor in live.network.items()}

        steps = checkpoint_steps(options.steps, options.checkpoints)
        start = network.init(streams[number])
        fit(network, start, without(examples, None), recipe, streams[number, "order"], plan, observe_at={*steps, options.steps}, observe=keep)
        sides = [_batch(part, device) for part in (examples, Examples.of_table(exact.test, examples.pixels))]
        chunk = chunk_for(network, device)

        def pair(step: int) -> tuple[Curvature, Curvature]:
            training, test = (Curvature(network, states[step], *side, chunk=chunk) for side in sides)
            return training, test

        # momentum passes a gradient on, in all 1 / (1 - momentum) times
        rate = options.lr / (1 - options.momentum) * options.steps / len(steps)
        with threads(plan.threads), on_device(plan.device):
            solved, solution = influence_functions(
                *pair(options.steps), exact.points, damping=options.damping, tolerance=options.cg_tolerance, most=options.cg_steps
            )
            found = {"influence functions": solved, "TracIn": tracin([(*pair(step), rate) for step in steps], exact.points)}
            if options.ekfac:
                generator = subject.streams[self.name].torch("ekfac", number)
                found["EK-FAC"] = ekfac(network, states[options.steps], sides[0], sides[1], exact.points, generator, options.damping)
        return {**{name: values.double().cpu() for name, values in found.items()}, "residual": torch.tensor(solution.residual)}

    def _notes(self, subject: Subject, exact: Retrained, estimates: _Estimates) -> list[str]:
        options = self.options
        notes = []
        if not exact.finite:
            notes.append(f"a network diverged at the learning rate {options.lr:g}, and its influences are not numbers; use a smaller lr")
        if exact.noise > _NOISY:
            notes.append(f"training again with the images in another order changes influences by {exact.noise:.0%}: single numbers mean little here")
        if estimates.residual > 2 * options.cg_tolerance:
            notes.append(
                f"conjugate gradients stopped after {options.cg_steps} steps with a relative residual of {estimates.residual:.2g}, wanted "
                f"{options.cg_tolerance:g}; use more cg_steps or a larger damping"
            )
        if options.seeds == 1:
            notes.append("with one initialization nothing is known about how influence varies between them; use seeds=2")
        if subject.dataset.views is not None:
            notes.append("networks are trained on the plain images under the means of their labels per view")
        return notes


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """The first steps of `count` equal stretches of a run (fewer where it is shorter)."""
    return sorted({int(edge) for edge in np.linspace(0, steps, min(count, steps), endpoint=False)})


def rank_correlations(first: Float[Tensor, "N M"], second: Float[Tensor, "N M"]) -> np.ndarray:
    """Spearman's correlation of two rows of M numbers, for each of N pairs; ties share their mean rank. NaN where a row is constant or not finite."""
    from scipy.stats import rankdata

    found = np.full(len(first), np.nan)
    for index, (a, b) in enumerate(zip(first.numpy(), second.numpy(), strict=True)):
        if np.isfinite(a).all() and np.isfinite(b).all() and np.ptp(a) > 0 and np.ptp(b) > 0:
            found[index] = np.corrcoef(rankdata(a), rankdata(b))[0, 1]
    return found


def _mean_correlation(pairs: Sequence[tuple[Tensor, Tensor]], images: int, among: Tensor | None = None) -> np.ndarray:
    """Rank correlations [N] of rows of pairs, averaged over the pairs; with `among` [N, M], each row over the test images that it marks. NaN without pairs."""
    found = []
    for first, second in pairs:
        if among is None:
            found.append(rank_correlations(first, second))
        else:
            rows = [
                rank_correlations(a[keep][None], b[keep][None])[0] if keep.sum() > 2 else np.nan
                for a, b, keep in zip(first, second, among, strict=True)
            ]
            found.append(np.array(rows))
    return np.mean(found, axis=0) if found else np.full(images, np.nan)


def _batch(examples: Examples, device: torch.device) -> tuple[Tensor, Tensor]:
    return examples.batch(torch.arange(len(examples)), device)


def _over_images(values: np.ndarray, axes: tuple[str, ...] = ("estimate",), unit: str = "Spearman's rank correlation") -> Quantity:
    """The mean of every row over the images of which it is known, with an interval."""
    parts = [
        over_repeats(row[np.isfinite(row)], (), "images of the set", unit) if np.isfinite(row).any() else Quantity(np.array(np.nan)) for row in values
    ]
    means = np.array([float(part.values) for part in parts])
    low, high = (np.array([np.nan if (edge := getattr(part, side)) is None else float(edge) for part in parts]) for side in ("low", "high"))
    return Quantity(means, axes, unit, low, high, "images of the set")

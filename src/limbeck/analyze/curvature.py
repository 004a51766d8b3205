"""How curved is the loss of the set, and of real images, along training on real data?"""

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.analyze.lanczos import lanczos_runs, spectral_mass
from limbeck.analyze.operators import Curvature as Operators
from limbeck.analyze.operators import chunk_for
from limbeck.analyze.students import draw_balanced, real_examples
from limbeck.analyze.subject import REAL_RECIPE, Analysis, AnalysisOptions, Plot, Size, Subject, Work, early_steps
from limbeck.analyze.trace import ESTIMATORS, LEAST, Trace, mean_trace, samples_of
from limbeck.errors import OptionError
from limbeck.experts.trajectory import Trajectory
from limbeck.progress import Reporter
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.train.plan import on_device, threads
from limbeck.types.measurement import Measurement, Quantity
from limbeck.types.plan import ExecutionPlan

TOLERANCE = 1e-2  # of the largest eigenvalue: Ritz values with larger residuals have not converged
_EDGES = (-100.0, -10.0, -1.0, -0.1, -0.01, 0.01, 0.1, 1.0, 10.0, 100.0)
_BINS = (
    "< -100",
    "-100 to -10",
    "-10 to -1",
    "-1 to -0.1",
    "-0.1 to -0.01",
    "-0.01 to 0.01",
    "0.01 to 0.1",
    "0.1 to 1",
    "1 to 10",
    "10 to 100",
    "> 100",
)


class CurvatureOptions(AnalysisOptions):
    """Which network, at which moments, and how exactly."""

    model: str | None = Field("convnet:width=32", description="network that is trained on real images; none: the students' own")
    seeds: int = Field(1, ge=1, description="networks, each with an initialization of its own")
    steps: int = Field(300, ge=0, description="steps of training on real images")
    snapshots: int = Field(8, ge=2, description="moments at which curvature is measured, evenly on a logarithmic scale")
    lr: float = Field(REAL_RECIPE.lr, gt=0, description="learning rate of that training")
    batch_size: int = Field(REAL_RECIPE.batch_size, ge=1, description="batch size of that training")
    subsets: int = Field(2, ge=1, description="random real subsets of the set's size")
    estimator: Literal["images", "hutchinson", "hutch++", "xtrace"] = Field(
        "images", description="of the traces on the set and on real subsets: random signs for each image, or products with the whole matrix"
    )
    probes: int = Field(4, ge=2, description="random sign vectors of each image, or products with the whole matrix")
    images: int = Field(1000, ge=2, description="real images drawn anew at each moment for the curvature on all real data")
    eigenvalues: int = Field(5, ge=1, description="largest eigenvalues of the Hessian")
    lanczos_steps: int = Field(30, ge=2, description="products with the Hessian for its eigenvalues")
    lanczos_runs: int = Field(1, ge=1, description="Lanczos runs, over which the spectrum's bins are averaged")
    lanczos_images: int = Field(500, ge=1, description="real images that stand for all real data in the Lanczos runs")


@dataclass(frozen=True)
class _Data:
    """Network inputs with label rows, and whether they are a sample of more."""

    images: Tensor
    labels: Tensor
    sampled: bool


class Curvature(Analysis):
    """Hessian and Fisher information of the mean cross-entropy, along training on real images, on the set, on real subsets of its size and on all real images.

    Claim to test: distilled data hold what is learned early, because along real training the curvature on them falls to low values soon, while it stays
    higher on real images (Yang, Zhu, Deng and Russakovsky 2024, "What is Dataset Distillation Learning?", arXiv 2406.04284, section 4.3). The Hessian is
    ``H = G + R``: G is the generalized Gauss-Newton matrix, which is the Fisher information of the model; R is the curvature of the logits themselves,
    weighted by the errors (equations in `limbeck.analyze.operators`). The empirical Fisher is the mean outer product of the gradients under the given labels.

    Traces are sums over images, so each image gets random signs of its own: ``tr G_i = E ||J_i^T B_i u||^2`` with K signs, for the cost of one gradient, and
    ``tr R_i = E v^T R_i v``. On all real images every sample has a fresh image AND fresh signs, so that the standard error covers both; no pass over all
    data is made. ``estimator`` takes Hutchinson's loop, Hutch++ (Meyer et al. 2021, arXiv 2010.09649) or XTrace (Epperly, Tropp and Webber 2024,
    arXiv 2301.07825) on products with the whole matrix instead. Eigenvalues come from Lanczos with full reorthogonalization, with residuals; the
    spectrum's bins are the quadrature of the same runs.

    Departures from the paper, which computed the Hessian's trace alone, by Hutchinson's loop on all data at each of 300 steps: also the Fisher matrices,
    eigenvalues and intervals; real subsets of the set's size as a control; fewer moments. Networks are in evaluation mode, as there.

    Cost: `seeds` trainings of `steps` steps, and at each moment, in gradients of one image: about ``8 probes`` for each image of the set and of the subsets,
    8 for each of `images`, and ``4 lanczos_steps lanczos_runs`` for each image of the set, of the subsets and of `lanczos_images`. Lanczos keeps
    `lanczos_steps` vectors of parameters in float64.
    """

    name = "curvature"
    title = "Curvature"
    summary = "How curved is the loss on the set, and on real images, as a network learns from real data?"
    version = 2
    Options = CurvatureOptions
    smoke: ClassVar[dict[str, Any]] = {
        "model": "mlp:width=4,depth=1", "steps": 4, "snapshots": 2, "batch_size": 16, "subsets": 1, "probes": 2, "images": 6, "eigenvalues": 2,
        "lanczos_steps": 4, "lanczos_images": 6,
    }  # fmt: skip
    headline = ("hessian_trace_left", "left_beyond_real", "peak_step", "last_top_eigenvalue")
    plots = (
        Plot(
            "hessian_trace",
            "Trace of the Hessian along training on real images",
            x="step",
            log=True,
            color="data",
            reading="Where the line of the set falls far below its peak while that of all real images does not, the set has nothing more to teach there.",
        ),
        Plot("fisher_trace", "Trace of the Fisher information (generalized Gauss-Newton)", x="step", log=True, color="data"),
        Plot("empirical_fisher_trace", "Trace of the empirical Fisher: mean squared gradient of an image", x="step", log=True, color="data"),
        Plot("top_eigenvalue", "Largest eigenvalue of the Hessian", x="step", log=True, color="data"),
        Plot(
            "spectrum",
            "Share of the Hessian's eigenvalues in each range",
            x="step",
            kind="heat",
            color="range",
            panel="data",
            reading="Nearly all eigenvalues are near 0; the few outliers carry the curvature.",
        ),
        Plot("loss", "Cross-entropy along training on real images", x="step", log=True, color="data"),
    )

    def __init__(self, options: CurvatureOptions) -> None:
        if options.probes < LEAST.get(options.estimator, 0):
            raise OptionError(f"the estimator {options.estimator} needs probes >= {LEAST[options.estimator]}, got {options.probes}; use more probes")
        self.options = options

    def work(self, size: Size) -> Work:
        """The trainings, and at each moment the traces and the Lanczos runs on the set, on the subsets and on images drawn from all."""
        options = self.options
        fixed = size.images * (1 + options.subsets)
        lanczos = 4 * options.lanczos_steps * options.lanczos_runs * (fixed + min(options.lanczos_images, size.train))
        moment = 8 * (options.probes * fixed + min(options.images, size.train)) + lanczos
        return {options.model: options.seeds * (options.steps * options.batch_size + options.snapshots * moment)}

    def measure(self, subject: Subject, reporter: Reporter) -> Measurement:
        options, started = self.options, time.monotonic()
        network = subject.network_of(options.model)
        recipe = REAL_RECIPE.with_(steps=options.steps, lr=options.lr, batch_size=options.batch_size)
        steps = early_steps(options.steps, options.snapshots)
        plan = subject.plan_for(network, len(subject.dataset), len(subject.dataset))
        names = ("distilled set", *(f"real subset {i + 1}" for i in range(options.subsets)), "all real images")
        trajectories = [
            subject.real_trajectory(reporter, model=options.model, number=number, recipe=recipe, steps=steps) for number in range(options.seeds)
        ]
        found: list[dict[str, Tensor]] = []
        with reporter.task("curvature: moments of training", len(trajectories) * len(steps)) as tick:
            for number, trajectory in enumerate(trajectories):
                for step in steps:
                    found.append(self._at(subject, network, plan, trajectory, number, step))
                    tick(1)
        sides = (len(trajectories), len(steps))
        grid = {name: np.stack([part[name].numpy() for part in found]).reshape(*sides, *found[0][name].shape) for name in found[0]}
        quantities = _quantities(grid, np.array(steps))
        worst = grid["relative_residual"].max()
        return Measurement(
            analysis=self.name,
            title=self.title,
            quantities=quantities,
            axes={
                "network": tuple(range(len(trajectories))),
                "step": steps,
                "data": names,
                "rank": tuple(range(1, options.eigenvalues + 1)),
                "range": _BINS,
            },
            settings={
                **options.model_dump(mode="json"),
                "model": str(network.spec),
                "parameters": network.parameter_count,
                "networks": [trajectory.last.digest for trajectory in trajectories],
                "images_drawn": min(options.images, len(subject.train)),
                "lanczos_images_drawn": min(options.lanczos_images, len(subject.train)),
            },
            residuals={"lanczos": float(worst)},
            converged=bool(worst <= TOLERANCE),
            notes=tuple(self._notes(subject, grid)),
            seconds=time.monotonic() - started,
        )

    def _at(self, subject: Subject, network: Network, plan: ExecutionPlan, trajectory: Trajectory, number: int, step: int) -> dict[str, Tensor]:
        """All numbers of one network at one step, [data, ...]."""
        parts = []
        for place in range(self.options.subsets + 2):
            streams = subject.streams[self.name]["network", number, "step", step, "data", place]
            task = {"what": self.name, "version": self.version, "network": number, "step": step, "place": place}
            task |= {"options": self.options.model_dump(mode="json"), "snapshots": trajectory.key, "plan": plan.model_dump(exclude={"reason"})}
            parts.append(subject.remembered(task, partial(self._of, subject, network, plan, trajectory, step, place, streams)))
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    def _of(
        self, subject: Subject, network: Network, plan: ExecutionPlan, trajectory: Trajectory, step: int, place: int, streams: Streams
    ) -> dict[str, Tensor]:
        options, device = self.options, torch.device(plan.device)
        state = {name: tensor.to(device) for name, tensor in trajectory.at(step).state.items()}
        chunk = chunk_for(network, device)

        def curvature(data: _Data) -> Operators:
            return Operators(network, state, data.images.to(device), data.labels.to(device), chunk=chunk)

        with threads(plan.threads), on_device(plan.device):
            data = self._data(subject, place, streams, options.images)
            given = curvature(data)
            generator = streams.torch("probes")
            ggn, hessian = sampled_traces(given, generator, 1 if data.sampled else options.probes, data.sampled)
            if options.estimator != "images" and not data.sampled:
                ggn, hessian = (
                    _widened(ESTIMATORS[options.estimator](product, given.dimension, options.probes, generator, given.like), options, given.dimension)
                    for product in (given.ggn, given.hessian)
                )
            fisher = mean_trace(given.fisher_samples().cpu(), 0)
            loss = mean_trace(given.losses.cpu(), 0)
            outer = curvature(self._data(subject, place, streams, options.lanczos_images)) if data.sampled else given
            runs = lanczos_runs(outer.hessian, outer.dimension, options.lanczos_runs, options.lanczos_steps, streams.torch("lanczos"), outer.like)
        values, residuals, _ = runs[0].largest(options.eigenvalues, TOLERANCE)
        scale = max(float(runs[0].values.abs().max()), torch.finfo(torch.float64).tiny)
        # of a sum over given images nothing is left to chance
        exact = torch.tensor([1.0 if data.sampled else 0.0], dtype=torch.float64)
        return {
            "hessian_trace": _pair(hessian),
            "fisher_trace": _pair(ggn),
            "empirical_fisher_trace": _pair(fisher) * torch.cat([torch.ones_like(exact), exact]),
            "loss": _pair(loss) * torch.cat([torch.ones_like(exact), exact]),
            "eigenvalues": values,
            "eigenvalue_residuals": residuals,
            "smallest_eigenvalue": runs[0].values[0].double(),
            "relative_residual": residuals.nan_to_num(0).max() / scale,
            "spectrum": spectral_mass(runs, torch.tensor(_EDGES)).mean(0),
        }

    def _data(self, subject: Subject, place: int, streams: Streams, most: int) -> _Data:
        """The set (place 0), a real subset with the set's classes, which is the same at every step, or images drawn from all real ones (the last place)."""
        dataset = subject.dataset
        if place == 0:
            return _Data(dataset.inputs(), dataset.targets(), False)
        if place <= self.options.subsets:
            counts = np.bincount(dataset.owners.numpy(), minlength=len(dataset.classes)).tolist()
            rows = draw_balanced(subject.train, counts, subject.streams[self.name].torch("subset", place))
        else:
            rows = torch.randperm(len(subject.train), generator=streams.torch("images", most)).numpy()[:most]
        images, labels = real_examples(subject, rows).batch(torch.arange(len(rows)), torch.device("cpu"))
        return _Data(images, labels, place > self.options.subsets)

    def _notes(self, subject: Subject, grid: dict[str, np.ndarray]) -> list[str]:
        options, dataset = self.options, subject.dataset
        notes = []
        if (grid["relative_residual"] > TOLERANCE).any():
            notes.append(
                f"Lanczos did not converge in {options.lanczos_steps} steps at {int((grid['relative_residual'] > TOLERANCE).sum())} of "
                f"{grid['relative_residual'].size} places: an eigenvalue's residual exceeds {TOLERANCE:g} of the largest; use more lanczos_steps"
            )
        if len(subject.train) > options.lanczos_images:
            notes.append(
                f"eigenvalues and spectrum on all real images are those of {options.lanczos_images} drawn images; "
                "the largest eigenvalue of a sample is too large on average"
            )
        if dataset.views is not None:
            notes.append("the set's labels are the means of its labels per view")
        sums = dataset.targets().sum(1)
        if bool((sums - 1).abs().max() > 1e-3):
            notes.append("the set's label rows do not sum to one, so on the set the generalized Gauss-Newton matrix is not a Fisher information")
        return notes


def sampled_traces(curvature: Operators, generator: torch.Generator, repeats: int, drawn: bool) -> tuple[Trace, Trace]:
    """Traces of G and H from random signs for each image, `repeats` times.

    For images that are a set of their own the standard error is that of the signs, ``sqrt(sum_i var_i / (repeats n^2))``, which needs two repeats. For `drawn`
    ones it is that of a mean of independent images, each with its own signs, and so covers the draw as well.
    """
    ggn = torch.stack([curvature.ggn_samples(generator) for _ in range(repeats)]).double().cpu()
    hessian = ggn + torch.stack([curvature.remainder_samples(generator) for _ in range(repeats)]).double().cpu()
    cost = repeats * len(curvature)
    if drawn:
        return mean_trace(ggn.mean(0), cost), mean_trace(hessian.mean(0), cost)

    def over_signs(samples: Tensor) -> Trace:
        error = math.sqrt(float(samples.var(0).sum()) / repeats) / samples.shape[1] if repeats > 1 else math.nan
        return Trace(float(samples.mean()), error, cost)

    return over_signs(ggn), over_signs(hessian)


def _widened(trace: Trace, options: CurvatureOptions, dimension: int) -> Trace:
    """A trace whose standard error, times 1.96, is the half-width of Student's interval: it comes from few samples."""
    from scipy.stats import t

    samples = samples_of(options.estimator, options.probes, dimension)
    factor = float(t.ppf(0.975, samples - 1)) / 1.96 if samples > 1 else math.inf
    return replace(trace, standard_error=trace.standard_error * factor if trace.standard_error > 0 else trace.standard_error)


def _pair(trace: Trace) -> Tensor:
    return torch.tensor([trace.value, trace.standard_error], dtype=torch.float64)


def _quantities(grid: dict[str, np.ndarray], steps: np.ndarray) -> dict[str, Quantity]:
    """Of arrays [network, step, data, ...]."""
    axes = ("network", "step", "data")
    covers = "random signs; on all real images also the draw of the images"
    quantities = {}
    for name, unit in (
        ("hessian_trace", "nats"),
        ("fisher_trace", "nats"),
        ("empirical_fisher_trace", "nats squared"),
        ("loss", "nats"),
    ):
        value, error = grid[name][..., 0], grid[name][..., 1]
        quantities[name] = Quantity(value, axes, unit, value - 1.96 * error, value + 1.96 * error, covers)
    quantities["eigenvalues"] = Quantity(grid["eigenvalues"], (*axes, "rank"), "nats")
    quantities["eigenvalue_residuals"] = Quantity(grid["eigenvalue_residuals"], (*axes, "rank"), "nats")
    quantities["top_eigenvalue"] = Quantity(grid["eigenvalues"][..., 0], axes, "nats")
    quantities["smallest_eigenvalue"] = Quantity(grid["smallest_eigenvalue"], axes, "nats")
    quantities["spectrum"] = Quantity(grid["spectrum"].mean(0), ("step", "data", "range"), "fraction of eigenvalues")
    networks = len(grid["hessian_trace"])
    traces = grid["hessian_trace"][..., 0].mean(0)
    errors = np.sqrt((grid["hessian_trace"][..., 1] ** 2).sum(0)) / networks
    left, error = _left(traces, errors)
    covers += "; not the choice of the peak"
    quantities["hessian_trace_left"] = Quantity(left, ("data",), "last trace / largest", left - 1.96 * error, left + 1.96 * error, covers)
    gap, error = np.asarray(left[0] - left[-1]), np.asarray(np.hypot(error[0], error[-1]))
    quantities["left_beyond_real"] = Quantity(
        gap, (), "last trace / largest, set minus all real images", np.asarray(gap - 1.96 * error), np.asarray(gap + 1.96 * error), covers
    )
    quantities["peak_step"] = Quantity(steps[traces.argmax(0)].astype(float), ("data",), "step of the largest trace")
    quantities["last_top_eigenvalue"] = Quantity(grid["eigenvalues"][:, -1, :, 0].mean(0), ("data",), "nats")
    return quantities


def _left(traces: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last trace over the largest [data] of traces [step, data], with the standard error of a ratio of independent estimates; NaN where none is positive."""
    peak, columns = traces.argmax(0), np.arange(traces.shape[1])
    top, last = traces[peak, columns], traces[-1]
    top = np.where(top > 0, top, np.nan)
    left = last / top
    at_peak = np.where(peak == len(traces) - 1, 0.0, 1.0)  # a ratio of a trace to itself is certain
    return left, at_peak * np.sqrt(errors[-1] ** 2 + (left * errors[peak, columns]) ** 2) / top

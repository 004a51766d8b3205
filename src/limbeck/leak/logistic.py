"""The phase diagram of binary logistic regression: how much of what a linear teacher memorized its soft labels give away, by load and seen fraction."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.synthetic import gaussian, turns
from limbeck.leak.experiment import Bench, Chart, Experiment, LeakOptions, Work, crossing, over_repeats
from limbeck.leak.recovery import NestedLeastSquares
from limbeck.leak.solvers import adam_operations, default_start, linear_adam
from limbeck.leak.split import share, within_class
from limbeck.types.measurement import Measurement, Quantity

#: What is measured in every cell; each also under the control, "..._shuffled".
MEASURES = ("student_seen", "student_held_out", "agreement_held_out", "agreement_fresh", "error_held_out", "error_fresh")
LEVEL = 0.99  # the published meaning of "matches" and "memorizes"


class LogisticOptions(LeakOptions):
    """Grid, size and teacher. Loads are n / (2 d), so alpha = n / d runs over twice their values."""

    features: int = Field(200, ge=4, description="input dimension d")
    least_load: float = Field(0.2, gt=0, description="smallest n / (2 d)")
    most_load: float = Field(3.5, gt=0, description="largest n / (2 d)")
    loads: int = Field(50, ge=2, description="loads, evenly spaced")
    least_rho: float = Field(0.05, gt=0, lt=1, description="smallest seen fraction")
    most_rho: float = Field(0.95, gt=0, lt=1, description="largest seen fraction")
    rhos: int = Field(50, ge=2, description="seen fractions, evenly spaced")
    teacher_lr: float = Field(1e-3, gt=0, description="Adam step size of the teacher")
    teacher_steps: int = Field(10_000, ge=1, description="full-batch steps of the teacher")
    standardize: bool = Field(True, description="scale every feature to mean 0 and variance 1 over the teacher's examples")
    fresh: int = Field(1000, ge=1, description="inputs that nobody saw, to compare teacher and student on")


def sizes(options: LogisticOptions) -> tuple[list[int], list[float]]:
    """Examples per class of every load, and the seen fractions."""
    loads = np.linspace(options.least_load, options.most_load, options.loads)
    return [share(load, options.features) for load in loads], np.linspace(options.least_rho, options.most_rho, options.rhos).tolist()


def logistic(options: LogisticOptions, bench: Bench) -> Measurement:
    """Teachers are trained by full-batch Adam as published; students are exact: the shortest least-squares fit to the teacher's logits on the seen part.

    All loads of a repeat share their inputs (a load has the first rows), so that one matrix product trains all of a repeat's teachers, and columns of the diagram
    differ by the load alone. Repeats are independent.
    """
    per_class, rhos = sizes(options)
    parts = []
    with bench.reporter.task("logistic: teachers and exact students", options.repeats * (len(per_class) * (options.teacher_steps + 1))) as tick:
        for repeat in range(options.repeats):
            task = {"experiment": "logistic", "version": LOGISTIC.version, "options": options.model_dump(exclude={"repeats"}), "repeat": repeat}
            parts.append(bench.remembered(task, lambda r=repeat: _repeat(options, per_class, rhos, bench.within("repeat", r), tick)))  # type: ignore[misc]
    alphas = [2 * count / options.features for count in per_class]
    stacked = {name: np.stack([part[name].numpy() for part in parts]) for name in parts[0]}
    quantities = {name: over_repeats(stacked[name], ("load",)) for name in ("teacher", "teacher_fresh")}
    for name in MEASURES:
        unit = "mean squared logit" if name.startswith("error") else "fraction"
        for control in ("", "_shuffled"):
            quantities[name + control] = over_repeats(stacked[name + control], ("load", "rho"), unit)
    ratios = np.array([[2 * share(rho, count) / options.features for rho in rhos] for count in per_class])
    quantities["identification"] = Quantity(ratios, ("load", "rho"), "seen labels per weight")
    quantities["separable"] = Quantity(np.array([separable(2 * count, options.features) for count in per_class]), ("load",), "probability")
    quantities |= readouts(np.array(alphas), ratios, quantities)
    top = alphas[-1]
    curves = {
        "rho alpha = 1": [[alpha, 1 / alpha] for alpha in np.linspace(1.02, top, 80) if rhos[0] <= 1 / alpha <= rhos[-1]],
        "teacher's capacity": [[float(quantities["capacity"].values), rho] for rho in (rhos[0], rhos[-1])],
    }
    chance = 0.5
    return Measurement(
        "logistic",
        LOGISTIC.title,
        quantities,
        {"load": tuple(alphas), "rho": tuple(rhos)},
        {"curves": curves, "chance": chance, "per_class": per_class, "axis_titles": {"load": "load alpha = n / d", "rho": "seen fraction rho"}},
        notes=(
            f"{options.repeats} repeats; held-out accuracy is on {2 * per_class[0] - 2 * share(rhos[-1], per_class[0])} to "
            f"{2 * per_class[-1] - 2 * share(rhos[0], per_class[-1])} examples of a repeat",
            "loads of a repeat share their inputs; intervals cover repeats",
        ),
    )


def _repeat(options: LogisticOptions, per_class: list[int], rhos: list[float], bench: Bench, tick) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    d, most = options.features, 2 * max(per_class)
    x = gaussian(most, d, bench.streams.torch("inputs")).to(bench.plan.device)
    labels = turns(most, 2).to(x.device)
    counts = torch.tensor([2 * count for count in per_class])
    moments = [torch.std_mean(x[:count], dim=0, correction=0) for count in counts.tolist()]
    means = torch.stack([mean for _, mean in moments]) if options.standardize else None
    deviations = torch.stack([deviation for deviation, _ in moments]) if options.standardize else None
    start = default_start(len(counts), d, 2, bench.streams.torch("teachers")).to(x.device)
    weights = linear_adam(
        x, labels, counts, start, lr=options.teacher_lr, steps=options.teacher_steps, means=means, deviations=deviations, tick=tick
    ).double()
    fresh = gaussian(options.fresh, d, bench.streams.torch("fresh")).double().to(x.device)
    shape = (len(per_class), len(rhos))
    found = {name + control: torch.zeros(shape, dtype=torch.float64) for name in MEASURES for control in ("", "_shuffled")}
    found["teacher"], found["teacher_fresh"] = torch.zeros(shape[0], dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
    for place, count in enumerate(counts.tolist()):
        inputs, truth = x[:count].double(), labels[:count]
        if means is not None and deviations is not None:
            inputs = (inputs - means[place].double()) / deviations[place].double()
        teacher = weights[place, :, 1] - weights[place, :, 0]  # the one logit of two classes
        logit, fresh_logit = inputs @ teacher, fresh @ teacher
        found["teacher"][place] = _accuracy(logit, truth)
        found["teacher_fresh"][place] = _accuracy(fresh_logit, turns(len(fresh), 2).to(x.device))
        seen_rows = [2 * share(rho, per_class[place]) for rho in rhos]
        solver = NestedLeastSquares(inputs[: max(seen_rows)])
        for column, rows in enumerate(seen_rows):
            if rows == 0:  # nothing was seen: a student at chance
                for name in MEASURES:
                    value = float("nan") if name.startswith("error") else 0.5
                    found[name][place, column] = found[f"{name}_shuffled"][place, column] = value
                continue
            order = within_class(truth[:rows].cpu(), bench.streams.torch("shuffle", place, column)).to(x.device)
            students = solver.solve(rows, torch.stack([logit[:rows], logit[:rows][order]], 1))
            given, unseen = inputs @ students, fresh @ students
            for index, control in enumerate(("", "_shuffled")):
                found["student_seen" + control][place, column] = _accuracy(given[:rows, index], truth[:rows])
                found["student_held_out" + control][place, column] = _accuracy(given[rows:, index], truth[rows:])
                found["agreement_held_out" + control][place, column] = _same(given[rows:, index], logit[rows:])
                found["agreement_fresh" + control][place, column] = _same(unseen[:, index], fresh_logit)
                found["error_held_out" + control][place, column] = (given[rows:, index] - logit[rows:]).square().mean()
                found["error_fresh" + control][place, column] = (unseen[:, index] - fresh_logit).square().mean()
        tick(1)
    return found


def _accuracy(logit: Tensor, labels: Tensor) -> Tensor:
    return ((logit > 0).long() == labels).double().mean()


def _same(first: Tensor, second: Tensor) -> Tensor:
    return ((first > 0) == (second > 0)).double().mean()


def separable(points: int, features: int) -> float:
    """The probability that a hyperplane through the origin splits random labels of points in general position: ``P(Bin(n - 1, 1/2) <= d - 1)`` (Cover 1965,
    Geometrical and statistical properties of systems of linear inequalities). One half at n = 2 d; at d = 200 it falls from 0.98 at n = 1.8 d to 0.03 at 2.2 d."""
    from scipy.stats import binom

    return float(binom.cdf(features - 1, points - 1, 0.5))


def readouts(alphas: np.ndarray, ratios: np.ndarray, quantities: dict[str, Quantity]) -> dict[str, Quantity]:
    """The thresholds of the diagram, interpolated at 99 %: the teacher's capacity; by seen fraction the number of seen labels per weight from which the student
    matches the teacher on fresh inputs, and over all cells the last that does not match and the first after it; and the lowest and highest load with a perfect
    leak."""
    teacher = quantities["teacher"].values
    agreement, held_out = quantities["agreement_fresh"].values, quantities["student_held_out"].values
    columns = range(agreement.shape[1])
    threshold = np.array([crossing(ratios[:, j], agreement[:, j], LEVEL, rising=True) for j in columns])
    lowest = np.array([crossing(alphas, held_out[:, j], LEVEL, rising=True) for j in columns])
    highest = np.full(len(lowest), np.nan)
    for j in columns:
        above = np.flatnonzero(held_out[:, j] >= LEVEL)
        if len(above):
            highest[j] = crossing(alphas[above[0] :], held_out[above[0] :, j], LEVEL, rising=False)
    known = threshold[~np.isnan(threshold)]
    short = ratios[agreement < LEVEL]
    last = float(short.max()) if len(short) else float("nan")
    beyond = ratios[ratios > last]
    return {
        "capacity": Quantity(np.array(crossing(alphas, teacher, LEVEL, rising=False)), (), "n / d"),
        "capacity_on_grid": Quantity(np.array(max(alphas[teacher >= LEVEL], default=float("nan"))), (), "n / d"),
        "threshold": Quantity(threshold, ("rho",), "seen labels per weight"),
        "threshold_mean": Quantity(np.array(known.mean() if len(known) else float("nan")), (), "seen labels per weight"),
        "last_mismatch": Quantity(np.array(last), (), "seen labels per weight"),
        "matches_from": Quantity(np.array(beyond.min() if len(beyond) else float("nan")), (), "seen labels per weight"),
        "window_low": Quantity(lowest, ("rho",), "n / d"),
        "window_high": Quantity(highest, ("rho",), "n / d"),
    }


def logistic_work(options: LogisticOptions) -> Work:
    """Teachers by Adam and students by nested Cholesky factors."""
    per_class, rhos = sizes(options)
    # teachers share their products, which all go over the rows of the largest
    adam = len(per_class) * adam_operations(options.features, 2, 2 * max(per_class), options.teacher_steps)
    each = options.features**3 / 3 + 8.0 * options.features * (np.mean(per_class) * 2 + options.fresh)
    solving = len(per_class) * len(rhos) * each + 2 * sum(2 * count * options.features**2 for count in per_class)
    return Work(adam, float(solving), cells=2 * len(per_class) * len(rhos)) * options.repeats


_HEAT = {"kind": "heat", "x": "load", "y": "rho", "curves": ("rho alpha = 1", "teacher's capacity")}

LOGISTIC = Experiment(
    name="logistic",
    title="Binary logistic regression on random labels",
    question="From which load and seen fraction on do a linear teacher's soft labels give away labels of examples that are not among them?",
    source="Behrens and Zdeborova 2025, arXiv 2506.14457, figures 3 and 10",
    options=LogisticOptions,
    scales={
        "smoke": LogisticOptions(features=40, loads=8, rhos=6, repeats=2, teacher_lr=1e-2, teacher_steps=300, fresh=200),
        "cpu": LogisticOptions(),
        "paper": LogisticOptions(features=1600),
    },
    run=logistic,
    work=logistic_work,
    charts=(
        Chart(
            "held-out",
            "Held-out accuracy of the student, by load and seen fraction",
            "student_held_out",
            reading="Dark: the student names labels that only its teacher ever saw. Chance is 50 %.",
            **_HEAT,  # type: ignore[arg-type]
        ),
        Chart(
            "held-out-shuffled",
            "The same with soft labels shuffled within classes (control)",
            "student_held_out_shuffled",
            reading="Nothing may be left here: shuffled labels say nothing about their own example.",
            **_HEAT,  # type: ignore[arg-type]
        ),
        Chart(
            "agreement",
            "Agreement of student and teacher on fresh inputs",
            "agreement_fresh",
            reading="Beyond the curve the student is the teacher, also where the teacher could not memorize.",
            **_HEAT,  # type: ignore[arg-type]
        ),
        Chart("teacher", "Training accuracy of the teacher", "teacher", "lines", "load", reading="It falls below 99 % at the teacher's capacity."),
        Chart(
            "separable",
            "Probability that random labels can be memorized at all (Cover's theorem)",
            "separable",
            "lines",
            "load",
            reading="A handful of repeats falls where this curve falls: the measured capacity is a draw from it.",
        ),
    ),
    headline=("capacity", "threshold_mean", "last_mismatch", "matches_from"),
)

"""The temperature diagram: what a linear teacher's soft labels give away, by load and temperature, and how much of that is the student's optimizer."""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.synthetic import gaussian, turns
from limbeck.leak.experiment import Bench, Chart, Experiment, LeakOptions, Work, over_repeats
from limbeck.leak.linear import LABELS, MEASURES, Protocol, Taught, capacity, teach
from limbeck.leak.solvers import adam_operations, default_start, linear_adam, newton_operations
from limbeck.leak.split import share
from limbeck.types.measurement import Measurement, Quantity


class TemperatureOptions(LeakOptions):
    """Grid, sizes and both optimizers. A load a means ``n / K = int(a d K)`` examples per class."""

    features: int = Field(1000, ge=4, description="input dimension d")
    classes: int = Field(2, ge=2, description="classes K")
    least_load: float = Field(0.3, gt=0, description="smallest a")
    most_load: float = Field(1.25, gt=0, description="largest a")
    loads: int = Field(20, ge=2, description="loads, evenly spaced")
    rho: float = Field(0.8, gt=0, lt=1, description="seen fraction")
    least_tau: float = Field(-0.5, description="log10 of the smallest temperature")
    most_tau: float = Field(3.5, description="log10 of the largest temperature")
    taus: int = Field(40, ge=1, description="temperatures, evenly spaced in their logarithm")
    protocols: tuple[Protocol, ...] = Field(("authors", "converged", "exact"), min_length=1, description="how students learn")
    teacher_lr: float = Field(1e-3, gt=0, description="Adam step size of the teacher")
    student_lr: float = Field(1e-4, gt=0, description="Adam step size of students of the protocol authors")
    steps: int = Field(10_000, ge=1, description="full-batch steps of teachers, and of students of the protocol authors")
    fresh: int = Field(1000, ge=1, description="inputs that nobody saw, to compare teacher and student on")


def grid(options: TemperatureOptions) -> tuple[list[int], torch.Tensor]:
    """Examples per class of every load, and the temperatures."""
    loads = np.linspace(options.least_load, options.most_load, options.loads)
    per_class = [share(load, options.features * options.classes) for load in loads]
    return per_class, torch.logspace(options.least_tau, options.most_tau, options.taus, dtype=torch.float64)


def temperature(options: TemperatureOptions, bench: Bench) -> Measurement:
    """Teachers by full-batch Adam; students at every temperature under each protocol, with own and with shuffled labels. Kept by repeat, load and protocol."""
    per_class, taus = grid(options)
    alphas = [options.classes * count / options.features for count in per_class]
    cells = {name: np.full((options.repeats, len(options.protocols), 2, len(per_class), len(taus)), np.nan) for name in (*MEASURES, "solved")}
    teacher = np.zeros((options.repeats, len(per_class)))
    change = rounding = 0.0
    fixed = options.model_dump(exclude={"repeats", "protocols"})
    total = options.repeats * len(per_class) * (1 + len(options.protocols))
    with bench.reporter.task("temperature: teachers and students", total) as tick:
        for repeat in range(options.repeats):
            own = bench.within("repeat", repeat)
            task: dict[str, Any] = {"experiment": "temperature", "version": TEMPERATURE.version, "options": fixed, "repeat": repeat}
            weights = bench.remembered(task, lambda own=own: {"weights": _teachers(options, per_class, own)})["weights"]  # type: ignore[misc]
            tick(len(per_class))
            for place, count in enumerate(per_class):
                taught = _taught(options, count, weights[place], max(per_class), own)
                teacher[repeat, place] = float(((taught.inputs @ taught.weights).argmax(1) == taught.labels).double().mean())
                for number, protocol in enumerate(options.protocols):
                    part = bench.remembered(
                        {**task, "load": place, "protocol": protocol},
                        lambda taught=taught, protocol=protocol, place=place, own=own: _students(  # type: ignore[misc]
                            options, taught, taus, protocol, own.within("load", place)
                        ),
                    )
                    for name in cells:
                        cells[name][repeat, number, :, place] = part[name].numpy()
                    change, rounding = max(change, float(part["change"])), max(rounding, float(part["rounding"]))
                    tick(1)
    axes = ("protocol", "labels", "load", "tau")
    quantities = {name: over_repeats(cells[name], axes, "relative" if name == "weights" else "fraction") for name in cells}
    quantities["teacher"] = over_repeats(teacher, ("load",))
    quantities |= _readouts(options, quantities, alphas)
    low, high = float(taus[0]), float(taus[-1])
    curves = {"rho n = d": [[low, 1 / options.rho], [high, 1 / options.rho]]}
    missing = int(np.isnan(cells["held_out"]).sum())
    return Measurement(
        "temperature",
        TEMPERATURE.title,
        quantities,
        {"protocol": options.protocols, "labels": LABELS, "load": tuple(alphas), "tau": tuple(taus.tolist())},
        {
            "curves": curves,
            "chance": 1 / options.classes,
            "per_class": per_class,
            "axis_titles": {"load": "load n / d", "tau": "temperature (divides the teacher's logits)"},
        },
        residuals={
            "largest last step of a converged student, relative to its weights": change,
            "largest predicted change of a converged student's weights by rounding of its labels": rounding,
        },
        converged=missing == 0,
        notes=(
            f"{missing} of {cells['held_out'].size} cells have no answer"
            + (", all of the protocol converged: float64 labels do not determine the student's weights there, or Newton's method did not get to them")
            * (missing > 0),
            "loads of a repeat share their inputs, and temperatures share their teacher and shuffle; intervals cover repeats",
        ),
    )


def _teachers(options: TemperatureOptions, per_class: list[int], bench: Bench) -> Tensor:
    x, labels = _data(options, max(per_class), bench)
    counts = torch.tensor([options.classes * count for count in per_class])
    start = default_start(len(counts), options.features, options.classes, bench.streams.torch("teachers")).to(x.device)
    return linear_adam(x, labels, counts, start, lr=options.teacher_lr, steps=options.steps).cpu()


def _data(options: TemperatureOptions, per_class: int, bench: Bench) -> tuple[Tensor, Tensor]:
    rows = options.classes * per_class
    return gaussian(rows, options.features, bench.streams.torch("inputs")).to(bench.plan.device), turns(rows, options.classes).to(bench.plan.device)


def _taught(options: TemperatureOptions, count: int, weights: Tensor, most: int, bench: Bench) -> Taught:
    x, labels = _data(options, most, bench)
    fresh = gaussian(options.fresh, options.features, bench.streams.torch("fresh")).double().to(x.device)
    rows = options.classes * count
    seen = options.classes * share(options.rho, count)
    return Taught(x[:rows].double(), labels[:rows], weights.double().to(x.device), fresh, seen)


def _students(options: TemperatureOptions, taught: Taught, taus: Tensor, protocol: Protocol, bench: Bench) -> dict[str, Tensor]:
    students = teach(taught, taus, protocol, bench.streams, lr=options.student_lr, steps=options.steps)
    return {
        **students.measures,
        "solved": students.solved.double(),
        "change": torch.tensor(students.change),
        "rounding": torch.tensor(students.rounding),
    }


def _readouts(options: TemperatureOptions, quantities: dict[str, Quantity], alphas: list[float]) -> dict[str, Quantity]:
    """Mean gaps between protocols over the cells that more than determine the teacher (rho n > d), where information is not the limit, and that both answer; and
    how many of those cells the converged students answer."""
    inside = np.flatnonzero(np.array(alphas) * options.rho > 1)
    values: dict[str, np.ndarray] = {protocol: quantities["held_out"].values[number, 0][inside] for number, protocol in enumerate(options.protocols)}
    found = {}
    if "converged" in values and len(inside):
        found["answered"] = Quantity((~np.isnan(values["converged"])).mean(0), ("tau",), "fraction of loads")
        for name, more, less in (("optimizer_gap", "converged", "authors"), ("precision_gap", "exact", "converged")):
            if {more, less} <= set(values):
                found[name] = Quantity(_mean_of_known(values[more] - values[less]), ("tau",), "accuracy")
    return found


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.where(known.any(0), np.where(known, values, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def temperature_work(options: TemperatureOptions) -> Work:
    """Teachers by Adam; students of two kinds of labels at every temperature. Converged students cost most where the teacher memorized its labels and the
    temperature leaves them nearly hard, measured below 6."""
    per_class, taus = grid(options)
    d, c, total = options.features, options.classes, Work()
    for count in per_class:
        total += Work(adam=adam_operations(d, c, c * (max(per_class) if c == 2 else count), options.steps))
        seen, students = c * share(options.rho, count), 2 * options.taus
        if "authors" in options.protocols:
            total += Work(adam=students * adam_operations(d, c, seen, options.steps), cells=students)
        if "converged" in options.protocols:
            hard = 2 * int((taus < 6).sum()) if c * count < d * capacity(c) else 0
            solving = hard * newton_operations(d, c, seen, nearly_hard=True) + (students - hard) * newton_operations(d, c, seen)
            total += Work(newton=solving + 2.0 * seen * d**2 + 4.0 * d**3, cells=students)
        if "exact" in options.protocols:
            total += Work(newton=2.0 * seen * d**2, cells=students)
    return total * options.repeats


def _heat(name: str, title: str, quantity: str, labels: str, reading: str) -> Chart:
    return Chart(
        name, title, quantity, "heat", "tau", "load", panel="protocol", where={"labels": labels}, curves=("rho n = d",), log_x=True, reading=reading
    )


TEMPERATURE = Experiment(
    name="temperature",
    title="Temperature: linear teachers of random labels",
    question="Which temperatures expose what a teacher memorized, and is what limits the student the information in the labels or its optimizer?",
    source="Behrens and Zdeborova 2025, arXiv 2506.14457, figures 4a and 13",
    options=TemperatureOptions,
    scales={
        "smoke": TemperatureOptions(features=40, loads=4, taus=4, repeats=2, steps=200, fresh=200),
        "cpu": TemperatureOptions(features=200, loads=10, taus=17, repeats=3),
        "paper": TemperatureOptions(),
    },
    run=temperature,
    work=temperature_work,
    charts=(
        _heat(
            "held-out",
            "Held-out accuracy of the student, by load and temperature",
            "held_out",
            "own",
            "A line across a cell: no answer, as float64 labels do not determine that student, or the solver did not get to it. The palest shade is chance or less.",
        ),
        _heat(
            "held-out-shuffled",
            "The same with labels shuffled within classes (control)",
            "held_out",
            "shuffled",
            "Chance, or there is a leak by class.",
        ),
        _heat("agreement", "Agreement of student and teacher on fresh inputs", "fresh", "own", "1 means that the student is the teacher."),
        Chart(
            "optimizer-gap",
            "Held-out accuracy of converged students minus that of the published optimizer",
            "optimizer_gap",
            "lines",
            "tau",
            log_x=True,
            reading="Mean over the loads at which the labels determine the teacher and that have an answer. What is above zero is optimization, not information.",
        ),
        Chart(
            "answered",
            "Loads beyond the threshold at which the converged student has an answer",
            "answered",
            "lines",
            "tau",
            log_x=True,
            reading="Below one, float64 labels are too hard to determine the student at some loads; the gap is a mean over the others.",
        ),
    ),
    version=3,
)

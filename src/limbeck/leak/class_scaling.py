"""How the thresholds of linear teachers move with the number of classes."""

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.synthetic import gaussian, turns
from limbeck.leak.experiment import Bench, Chart, Experiment, LeakOptions, Work, crossing, over_repeats
from limbeck.leak.linear import Protocol, Taught, capacity, teach
from limbeck.leak.solvers import adam_operations, default_start, linear_adam, newton_operations
from limbeck.leak.split import share
from limbeck.types.measurement import Measurement, Quantity

LEVEL = 0.99
_CURVES = ("teacher", "fresh", "held_out", "seen_shuffled")


class ClassScalingOptions(LeakOptions):
    """Class counts, the scan of loads, and the optimizers. Loads run from `least` examples per weight to `most` times ``d K / log K`` examples."""

    features: int = Field(1000, ge=4, description="input dimension d")
    classes: tuple[int, ...] = Field((2, 10, 20, 30, 40, 50), min_length=1, description="numbers of classes")
    rho: float = Field(0.55, gt=0, lt=1, description="seen fraction")
    tau: float = Field(10.0, gt=0, description="temperature")
    least: float = Field(0.7, gt=0, description="smallest n / d")
    most: float = Field(1.4, gt=0, description="largest n log K / (d K)")
    loads: int = Field(16, ge=2, description="loads, evenly spaced in their logarithm")
    protocol: Protocol = Field("converged", description="how students learn: authors, converged or exact")
    teacher_lr: float = Field(1e-3, gt=0, description="Adam step size of the teacher")
    student_lr: float = Field(1e-4, gt=0, description="Adam step size of students of the protocol authors")
    steps: int = Field(10_000, ge=1, description="full-batch steps of teachers, and of students of the protocol authors")
    fresh: int = Field(1000, ge=1, description="inputs that nobody saw, to compare teacher and student on")


def per_class(options: ClassScalingOptions, classes: int) -> list[int]:
    """Examples per class of every load: whole numbers, each once, and enough that the student sees one and one is held out."""
    high = options.most * options.features / math.log(classes)
    counts = np.geomspace(options.least * options.features / classes, max(high, 3), options.loads)
    return sorted({max(2, round(count)) for count in counts})


def class_scaling(options: ClassScalingOptions, bench: Bench) -> Measurement:
    """Teachers over a scan of loads for every number of classes, their students with own and with shuffled labels, and the three thresholds of each."""
    quantities: dict[str, Quantity] = {}
    axes: dict[str, tuple[Any, ...]] = {"classes": tuple(options.classes)}
    thresholds: dict[str, list[float]] = {name: [] for name in ("capacity", "identification", "seen_per_weight", "shuffled")}
    fixed = options.model_dump(exclude={"repeats", "classes"})
    missing = 0
    with bench.reporter.task("class scaling: teachers and students", len(options.classes) * options.repeats) as tick:
        for classes in options.classes:
            counts = per_class(options, classes)
            parts = []
            for repeat in range(options.repeats):
                own = bench.within("classes", classes, "repeat", repeat)
                task = {"experiment": "class-scaling", "version": CLASS_SCALING.version, "options": fixed, "classes": classes, "repeat": repeat}
                parts.append(bench.remembered(task, lambda c=classes, n=counts, own=own: _repeat(options, c, n, own)))  # type: ignore[misc]
                tick(1)
            loads = np.array([classes * count / options.features for count in counts])
            seen = np.array([classes * share(options.rho, count) / options.features for count in counts])
            axes[f"load_{classes}"] = tuple(loads.tolist())
            for name in _CURVES:
                quantities[f"{name}_{classes}"] = over_repeats(np.stack([part[name].numpy() for part in parts]), (f"load_{classes}",))
            values = {name: quantities[f"{name}_{classes}"].values for name in _CURVES}
            missing += sum(int(part[name].isnan().sum()) for part in parts for name in ("fresh", "seen_shuffled"))
            thresholds["capacity"].append(crossing(loads, values["teacher"], LEVEL, rising=False))
            thresholds["identification"].append(crossing(loads, values["fresh"], LEVEL, rising=True))
            thresholds["seen_per_weight"].append(crossing(seen, values["fresh"], LEVEL, rising=True))
            thresholds["shuffled"].append(crossing(loads, values["seen_shuffled"], LEVEL, rising=False))
    students = 2 * options.repeats * sum(len(axes[f"load_{classes}"]) for classes in options.classes)
    k = np.array(options.classes, dtype=float)
    logs, roots = np.log(k), np.sqrt(k)
    found = {name: np.array(values) for name, values in thresholds.items()}
    quantities |= {
        "capacity": Quantity(found["capacity"], ("classes",), "n / d"),
        "capacity_scaled": Quantity(found["capacity"] / k * logs, ("classes",), "n log K / (d K)"),
        "identification": Quantity(found["identification"], ("classes",), "n / d"),
        "seen_per_weight": Quantity(found["seen_per_weight"], ("classes",), "rho n / d"),
        "shuffled": Quantity(found["shuffled"], ("classes",), "n / d"),
        "shuffled_scaled": Quantity(found["shuffled"] / k * roots, ("classes",), "n sqrt K / (d K)"),
    }
    return Measurement(
        "class-scaling",
        CLASS_SCALING.title,
        quantities,
        axes,
        {"chance": [1 / c for c in options.classes], "axis_titles": {"classes": "classes K"}},
        converged=missing == 0,
        notes=(
            f"{missing} of {students} students have no answer"
            + (" and are left out of thresholds: Newton's method did not get to their weights, or float64 labels do not determine them")
            * (missing > 0),
            "thresholds are interpolated at 99 % on means over repeats; NaN where the scan does not cross it, or begins beyond it",
            "examples per class are whole numbers, so rho is rounded down: identification counts all examples, seen_per_weight those that were really seen",
        ),
    )


def _repeat(options: ClassScalingOptions, classes: int, counts: list[int], bench: Bench) -> dict[str, Tensor]:
    rows = classes * max(counts)
    x = gaussian(rows, options.features, bench.streams.torch("inputs")).to(bench.plan.device)
    labels = turns(rows, classes).to(x.device)
    fresh = gaussian(options.fresh, options.features, bench.streams.torch("fresh")).double().to(x.device)
    start = default_start(len(counts), options.features, classes, bench.streams.torch("teachers")).to(x.device)
    sizes = torch.tensor([classes * count for count in counts])
    weights = linear_adam(x, labels, sizes, start, lr=options.teacher_lr, steps=options.steps).double()
    found = {name: torch.zeros(len(counts), dtype=torch.float64) for name in _CURVES}
    for place, size in enumerate(sizes.tolist()):
        taught = Taught(x[:size].double(), labels[:size], weights[place], fresh, classes * share(options.rho, counts[place]))
        students = teach(
            taught, torch.tensor([options.tau]), options.protocol, bench.streams["load", place], lr=options.student_lr, steps=options.steps
        )
        found["teacher"][place] = ((taught.inputs @ taught.weights).argmax(1) == taught.labels).double().mean()
        found["fresh"][place] = students.measures["fresh"][0, 0]
        found["held_out"][place] = students.measures["held_out"][0, 0]
        found["seen_shuffled"][place] = students.measures["seen"][1, 0]
    return found


def class_scaling_work(options: ClassScalingOptions) -> Work:
    """Teachers by Adam, two students each."""
    total = Work()
    for classes in options.classes:
        for count in per_class(options, classes):
            rows, seen = classes * count, classes * share(options.rho, count)
            total += Work(adam=adam_operations(options.features, classes, rows, options.steps), cells=2)
            if options.protocol == "authors":
                total += Work(adam=2 * adam_operations(options.features, classes, seen, options.steps))
            else:
                hard = options.tau < 6 and rows < options.features * capacity(classes)
                total += Work(newton=2 * newton_operations(options.features, classes, seen, nearly_hard=hard) + 2.0 * seen * options.features**2)
    return total * options.repeats


def _line(name: str, title: str, reading: str) -> Chart:
    return Chart(name.replace("_", "-"), title, name, "lines", "classes", reading=reading)


CLASS_SCALING = Experiment(
    name="class-scaling",
    title="Thresholds of linear teachers by number of classes",
    question="How do a teacher's capacity, the number of labels that identify it, and the capacity for shuffled labels grow with the number of classes?",
    source="Behrens and Zdeborova 2025, arXiv 2506.14457, figure 4b",
    options=ClassScalingOptions,
    scales={
        "smoke": ClassScalingOptions(features=40, classes=(2, 5), loads=6, repeats=2, teacher_lr=1e-2, steps=300, fresh=200),
        "cpu": ClassScalingOptions(features=100, classes=(2, 10, 20, 30, 50), repeats=3),
        "paper": ClassScalingOptions(),
    },
    run=class_scaling,
    work=class_scaling_work,
    charts=(
        _line(
            "capacity_scaled",
            "Teacher's capacity, n log K / (d K)",
            "Flat where the capacity grows as K / log K (published: near 0.92 from 10 classes on).",
        ),
        _line("seen_per_weight", "Seen labels per weight from which the student is the teacher", "Theory: 1 for every number of classes."),
        _line("shuffled_scaled", "Capacity for shuffled labels, n sqrt K / (d K)", "Flat where it grows as the root of K (published: near 0.66)."),
    ),
    version=3,
)

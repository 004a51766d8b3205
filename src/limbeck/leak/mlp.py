"""Teachers with a hidden layer on random data: the four phases by load and seen fraction, and what each treatment of the labels leaves of a leak."""

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.synthetic import gaussian, turns
from limbeck.leak.experiment import Bench, Chart, Experiment, LeakOptions, Work, over_repeats
from limbeck.leak.split import stratified
from limbeck.leak.students import Cell, Memory, accuracy, logits_of, taught, train_teachers, whole_batches
from limbeck.leak.treatments import parse_treatment
from limbeck.train.network import Network
from limbeck.types.measurement import Measurement, Quantity

MEASURES = ("seen", "held_out", "agreement", "fresh")
LEVEL = 0.99
#: Phases by number, from no memory to full recovery.
PHASES = (
    "teacher cannot memorize",
    "student cannot memorize the soft labels",
    "student memorizes the soft labels only",
    "student recovers the teacher",
)


class _NetworkOptions(LeakOptions):
    features: int = Field(1000, ge=2, description="input dimension d")
    classes: int = Field(100, ge=2, description="classes K")
    tau: float = Field(20.0, gt=0, description="temperature")
    teacher_width: int = Field(500, ge=1, description="hidden units of the teacher")
    student_width: int = Field(500, ge=1, description="hidden units of the student")
    teacher_lr: float = Field(1e-3, gt=0, description="Adam step size of the teacher")
    teacher_steps: int = Field(2000, ge=1, description="full-batch steps of the teacher")
    student_lr: float = Field(1e-4, gt=0, description="Adam step size of the students")
    student_steps: int = Field(10_000, ge=1, description="full-batch steps of the students")
    fresh: int = Field(1000, ge=1, description="inputs that nobody saw, to compare teacher and student on")


class MLPLeakOptions(_NetworkOptions):
    """Grid, sizes and both optimizers."""

    per_class: tuple[int, ...] = Field((50, 150, 300, 500, 750, 1000, 1500, 2000, 2500), min_length=1, description="teacher's examples per class")
    rhos: tuple[float, ...] = Field(tuple(np.linspace(0.05, 0.95, 10).round(3).tolist()), min_length=1, description="seen fractions")


class TreatmentsOptions(_NetworkOptions):
    """One load and seen fraction, and the list of treatments."""

    per_class: int = Field(500, ge=2, description="teacher's examples per class")
    rho: float = Field(0.7, gt=0, lt=1, description="seen fraction")
    treatments: tuple[str, ...] = Field(
        (
            "none",
            "tail-cut:fraction=0.01",
            "tail-cut:fraction=0.02",
            "tail-cut:fraction=0.1",
            "tail-cut:fraction=0.5",
            "tail-cut-published:fraction=0.02",
            "tail-cut-published:fraction=0.1",
            "tail-cut-published:fraction=0.5",
            "zero-class:classes=0",
            "drop-class:classes=0",
            "logit-noise:scale=0.01",
            "logit-noise:scale=0.1",
            "levels:levels=255",
            "levels:levels=65535",
            "hard",
            "within-class",
        ),
        min_length=1,
        description="label treatments, see docs/leak/treatments.md",
    )


def _model(width: int) -> str:
    return f"mlp:width={width},depth=1"


def _memory(options: _NetworkOptions, per_class: int, bench: Bench) -> Memory:
    rows = options.classes * per_class
    inputs = gaussian(rows, options.features, bench.streams.torch("inputs"))
    return Memory.of_vectors(
        inputs, turns(rows, options.classes), gaussian(options.fresh, options.features, bench.streams.torch("fresh")), options.classes
    )


def _teacher(options: _NetworkOptions, memory: Memory, bench: Bench) -> Tensor:
    """The teacher's logits of the memory and of the fresh inputs, one above the other."""
    network = memory.network(_model(options.teacher_width))
    recipe = whole_batches(options.teacher_lr, options.teacher_steps, len(memory.table))
    (kept,) = train_teachers(network, memory, recipe, [bench.streams["teacher"]], bench.plan)
    state = kept[options.teacher_steps]
    return torch.cat([logits_of(network, state, table, memory.pixels, bench.plan) for table in (memory.table, memory.fresh)])


def mlp(options: MLPLeakOptions, bench: Bench) -> Measurement:
    """One teacher for each load and repeat, one student for each seen fraction, and one more under the control. Kept by repeat and load."""
    shape = (options.repeats, len(options.per_class), len(options.rhos))
    found = {name + control: np.full(shape, np.nan) for name in MEASURES for control in ("", "_shuffled")}
    teacher = np.zeros(shape[:2])
    fixed = options.model_dump(exclude={"repeats", "per_class", "rhos"})
    with bench.reporter.task("mlp: teachers and students", shape[0] * shape[1] * (1 + shape[2])) as tick:
        for repeat in range(options.repeats):
            for place, count in enumerate(options.per_class):
                own = bench.within("repeat", repeat, "per-class", count)
                memory = _memory(options, count, own)
                task = {"experiment": "mlp", "version": MLP_LEAK.version, "options": fixed, "repeat": repeat, "per_class": count}
                logits = bench.remembered(task, lambda memory=memory, own=own: {"logits": _teacher(options, memory, own)})["logits"]  # type: ignore[misc]
                tick(1)
                known, fresh = logits[: len(memory.table)], logits[len(memory.table) :]
                teacher[repeat, place] = accuracy(known, memory.labels)
                network = memory.network(_model(options.student_width))
                for column, rho in enumerate(options.rhos):
                    cells = [Cell(options.tau, treatment, own.streams["rho", str(rho)]) for treatment in ("none", "within-class")]
                    recipe = whole_batches(options.student_lr, options.student_steps, len(memory.table))
                    part = bench.remembered(
                        {**task, "rho": rho},
                        lambda network=network, memory=memory, known=known, fresh=fresh, cells=cells, recipe=recipe, rho=rho: taught(  # type: ignore[misc]
                            network, memory, stratified(memory.labels, rho), known, fresh, cells, recipe, bench
                        ),
                    )
                    for name in MEASURES:
                        found[name][repeat, place, column], found[f"{name}_shuffled"][repeat, place, column] = part[name].tolist()
                    tick(1)
    quantities = {name: over_repeats(values, ("load", "rho")) for name, values in found.items()}
    quantities["teacher"] = over_repeats(teacher, ("load",))
    quantities["phase"] = Quantity(phases(quantities), ("load", "rho"), "phase")
    loads = tuple(options.classes * count / options.features for count in options.per_class)
    return Measurement(
        "mlp",
        MLP_LEAK.title,
        quantities,
        {"load": loads, "rho": options.rhos},
        {
            "chance": 1 / options.classes,
            "phases": list(PHASES),
            "axis_titles": {"load": "load n / d", "rho": "seen fraction rho"},
            "parameters": _parameters(options, options.student_width),
        },
        notes=("phases on the mean over repeats, at 99 %: " + "; ".join(f"{number} {words}" for number, words in enumerate(PHASES)),),
    )


def phases(quantities: dict[str, Quantity]) -> np.ndarray:
    """The phase of every cell: see `PHASES`."""
    teacher, seen, held_out = (quantities[name].values for name in ("teacher", "seen", "held_out"))
    phase = np.where(held_out >= LEVEL, 3.0, np.where(seen >= LEVEL, 2.0, 1.0))
    return np.where(teacher[:, None] >= LEVEL, phase, 0.0)


def treatments(options: TreatmentsOptions, bench: Bench) -> Measurement:
    """One teacher for each repeat and one student for each treatment of its labels, from the same initialization. Kept by repeat and treatment."""
    for text in options.treatments:
        parse_treatment(text)
    found = {name: np.zeros((options.repeats, len(options.treatments))) for name in MEASURES}
    teacher = np.zeros(options.repeats)
    fixed = options.model_dump(exclude={"repeats", "treatments"})
    with bench.reporter.task("treatments: teachers and students", options.repeats * (1 + len(options.treatments))) as tick:
        for repeat in range(options.repeats):
            own = bench.within("repeat", repeat)
            memory = _memory(options, options.per_class, own)
            task: dict[str, Any] = {"experiment": "treatments", "version": TREATMENTS_LEAK.version, "options": fixed, "repeat": repeat}
            logits = bench.remembered(task, lambda memory=memory, own=own: {"logits": _teacher(options, memory, own)})["logits"]  # type: ignore[misc]
            tick(1)
            known, fresh = logits[: len(memory.table)], logits[len(memory.table) :]
            teacher[repeat] = accuracy(known, memory.labels)
            network, split = memory.network(_model(options.student_width)), stratified(memory.labels, options.rho)
            recipe = whole_batches(options.student_lr, options.student_steps, len(memory.table))
            for column, text in enumerate(options.treatments):
                part = bench.remembered(
                    {**task, "treatment": text},
                    lambda network=network, memory=memory, split=split, known=known, fresh=fresh, text=text, recipe=recipe, own=own: taught(  # type: ignore[misc]
                        network, memory, split, known, fresh, [Cell(options.tau, text, own.streams["student"])], recipe, bench
                    ),
                )
                for name in MEASURES:
                    found[name][repeat, column] = float(part[name])
                tick(1)
    quantities = {name: over_repeats(values, ("treatment",)) for name, values in found.items()}
    quantities["teacher"] = over_repeats(teacher, ())
    return Measurement(
        "treatments",
        TREATMENTS_LEAK.title,
        quantities,
        {"treatment": options.treatments},
        {"chance": 1 / options.classes, "axis_titles": {"treatment": "treatment of the soft labels"}},
        notes=("a student's examples of a dropped class are gone from what it sees; its held-out examples are measured with all others",),
    )


def _flops(options: _NetworkOptions, width: int) -> int:
    return _network(options, width).flops()


def _parameters(options: _NetworkOptions, width: int) -> int:
    return _network(options, width).parameter_count


def _network(options: _NetworkOptions, width: int) -> Network:
    return Memory.of_vectors(
        torch.zeros(1, options.features), torch.zeros(1, dtype=torch.int64), torch.zeros(1, options.features), options.classes
    ).network(_model(width))


def mlp_work(options: MLPLeakOptions) -> Work:
    """Two students for each cell, a teacher for each load."""
    total = Work()
    for count in options.per_class:
        rows = options.classes * count
        total += Work(network=3.0 * _flops(options, options.teacher_width) * rows * options.teacher_steps, steps=options.teacher_steps)
        students = 2.0 * sum(options.rhos) * 3 * _flops(options, options.student_width) * rows * options.student_steps
        total += Work(network=students, steps=len(options.rhos) * options.student_steps, cells=2 * len(options.rhos))
    return total * options.repeats


def treatments_work(options: TreatmentsOptions) -> Work:
    """A student for each treatment."""
    rows = options.classes * options.per_class
    teacher = 3.0 * _flops(options, options.teacher_width) * rows * options.teacher_steps
    student = 3.0 * _flops(options, options.student_width) * rows * options.rho * options.student_steps
    steps = options.teacher_steps + len(options.treatments) * options.student_steps
    return Work(network=teacher + len(options.treatments) * student, steps=steps, cells=len(options.treatments)) * options.repeats


_SMALL: dict[str, Any] = {
    "features": 100,
    "classes": 10,
    "teacher_width": 50,
    "student_width": 50,
    "teacher_lr": 5e-3,
    "student_lr": 2e-3,
    "student_steps": 4000,
}
_SMOKE: dict[str, Any] = {
    "features": 10,
    "classes": 3,
    "teacher_width": 8,
    "student_width": 8,
    "teacher_lr": 2e-2,
    "student_lr": 1e-2,
    "teacher_steps": 60,
    "student_steps": 60,
    "fresh": 50,
    "repeats": 2,
}

MLP_LEAK = Experiment(
    name="mlp",
    title="A hidden layer on random labels: four phases",
    question="When does a network's student recover it, merely memorize its soft labels, or neither, and when can the teacher itself no longer memorize?",
    source="Behrens and Zdeborova 2025, arXiv 2506.14457, figures 5 and 6",
    options=MLPLeakOptions,
    scales={
        "smoke": MLPLeakOptions(per_class=(5, 20), rhos=(0.4, 0.8), **_SMOKE),
        "cpu": MLPLeakOptions(per_class=(100, 300, 330, 450), rhos=(0.35, 0.95, 0.98), repeats=2, **_SMALL),
        "paper": MLPLeakOptions(),
    },
    run=mlp,
    work=mlp_work,
    charts=(
        Chart(
            "held-out",
            "Held-out accuracy of the student",
            "held_out",
            "heat",
            "load",
            "rho",
            reading="Dark: the student names labels that only its teacher ever saw.",
        ),
        Chart("seen", "Accuracy of the student on what it saw", "seen", "heat", "load", "rho", reading="Light: the student cannot even memorize."),
        Chart("phase", "Phases", "phase", "regions", "load", "rho", reading="Phases are told apart at 99 %, on means over repeats."),
        Chart("held-out-shuffled", "Held-out accuracy, labels shuffled within classes (control)", "held_out_shuffled", "heat", "load", "rho"),
        Chart("teacher", "Training accuracy of the teacher", "teacher", "lines", "load"),
    ),
)

TREATMENTS_LEAK = Experiment(
    name="treatments",
    title="What treatments of soft labels leave of a leak",
    question="Which part of a soft label carries what its teacher memorized, and does cutting, rounding or noise stop it?",
    source="Behrens and Zdeborova 2025, arXiv 2506.14457, figure 16",
    options=TreatmentsOptions,
    scales={
        "smoke": TreatmentsOptions(per_class=20, treatments=("none", "tail-cut:fraction=0.5", "drop-class:classes=0", "within-class"), **_SMOKE),
        "cpu": TreatmentsOptions(per_class=100, repeats=3, **_SMALL),
        "paper": TreatmentsOptions(),
    },
    run=treatments,
    work=treatments_work,
    charts=(
        Chart(
            "held-out",
            "Held-out accuracy by treatment",
            "held_out",
            "lines",
            "treatment",
            reading="At chance nothing leaks; the control is within-class.",
        ),
        Chart("fresh", "Agreement of student and teacher on fresh inputs", "fresh", "lines", "treatment"),
        Chart("seen", "Accuracy on seen examples", "seen", "lines", "treatment"),
    ),
)

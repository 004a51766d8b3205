"""The 2-D picture: a network memorizes random labels of points in a square, and its student redraws the regions of points that it never saw."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.synthetic import square, turns
from limbeck.leak.experiment import Bench, Chart, Experiment, LeakOptions, Work, over_repeats
from limbeck.leak.split import stratified
from limbeck.leak.students import Cell, Memory, accuracy, logits_of, train_students, train_teachers, whole_batches
from limbeck.types.measurement import Measurement, Quantity

TREATMENTS = ("none", "within-class", "hard")


class PictureOptions(LeakOptions):
    """Points, classes, width and training."""

    points: int = Field(60, ge=6, description="points of the square with random labels, balanced")
    classes: int = Field(3, ge=2, description="classes")
    width: int = Field(150, ge=1, description="hidden ReLU units of teacher and student")
    rho: float = Field(0.6, gt=0, lt=1, description="seen fraction")
    tau: float = Field(10.0, gt=0, description="temperature")
    lr: float = Field(1e-3, gt=0, description="Adam step size")
    steps: int = Field(4000, ge=1, description="full-batch steps of teacher and student")
    grid: int = Field(61, ge=5, description="places along each side of the picture")


def picture(options: PictureOptions, bench: Bench) -> Measurement:
    """Teachers and students of soft, shuffled and hard labels; the regions are those of the first repeat. Kept by repeat."""
    side = torch.linspace(-1, 1, options.grid)
    plane = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2)
    parts = []
    with bench.reporter.task("picture: teachers and students", options.repeats) as tick:
        for repeat in range(options.repeats):
            own = bench.within("repeat", repeat)
            points = square(options.points, own.streams.torch("points"))
            memory = Memory.of_vectors(points, turns(options.points, options.classes), plane, options.classes)
            task = {"experiment": "picture", "version": PICTURE.version, "options": options.model_dump(exclude={"repeats"}), "repeat": repeat}
            parts.append(bench.remembered(task, lambda memory=memory, own=own: _repeat(options, memory, own)))  # type: ignore[misc]
            tick(1)
    quantities = {name: over_repeats(np.stack([part[name].numpy() for part in parts]), ("labels",)) for name in ("seen", "held_out", "plane")}
    quantities["teacher"] = over_repeats(np.stack([part["teacher"].numpy() for part in parts]), ())
    square_shape = (options.grid, options.grid)
    regions = {"teacher": parts[0]["teacher_region"], **{name: parts[0]["regions"][i] for i, name in enumerate(TREATMENTS)}}
    for name, region in regions.items():
        quantities[f"region_{name.replace('-', '_')}"] = Quantity(region.double().view(square_shape).numpy(), ("x", "y"), "class")
    first = bench.within("repeat", 0)
    points = square(options.points, first.streams.torch("points"))
    labels = turns(options.points, options.classes)
    held_out = set(stratified(labels, options.rho).held_out.tolist())
    marks = [{"x": float(x), "y": float(y), "label": str(int(labels[i])), "held_out": i in held_out} for i, (x, y) in enumerate(points.tolist())]
    return Measurement(
        "picture",
        PICTURE.title,
        quantities,
        {"labels": TREATMENTS, "x": tuple(side.tolist()), "y": tuple(side.tolist())},
        {"points": marks, "chance": 1 / options.classes, "axis_titles": {"labels": "labels of the student"}},
        notes=(
            f"{len(held_out)} held-out points of {options.points} in each of {options.repeats} repeats; chance is {1 / options.classes:.2f}",
            "plane: share of the square's area where student and teacher name the same class",
        ),
    )


def _repeat(options: PictureOptions, memory: Memory, bench: Bench) -> dict[str, Tensor]:
    network = memory.network(f"mlp:width={options.width},depth=1")
    recipe = whole_batches(options.lr, options.steps, len(memory.table))
    (kept,) = train_teachers(network, memory, recipe, [bench.streams["teacher"]], bench.plan)
    teacher = kept[options.steps]
    logits = logits_of(network, teacher, memory.table, memory.pixels, bench.plan)
    region = logits_of(network, teacher, memory.fresh, memory.pixels, bench.plan).argmax(1)
    split = stratified(memory.labels, options.rho)
    cells = [Cell(options.tau, treatment, bench.streams["student"]) for treatment in TREATMENTS]
    found: dict[str, list[Tensor]] = {name: [] for name in ("seen", "held_out", "plane", "regions")}
    for state in train_students(network, memory, split, logits, cells, recipe, bench.plan):
        own = logits_of(network, state, memory.table, memory.pixels, bench.plan)
        drawn = logits_of(network, state, memory.fresh, memory.pixels, bench.plan).argmax(1)
        right = (own.argmax(1) == memory.labels).double()
        found["seen"].append(right[split.seen].mean())
        found["held_out"].append(right[split.held_out].mean())
        found["plane"].append((drawn == region).double().mean())
        found["regions"].append(drawn.to(torch.int16))
    stacks = {name: torch.stack(values) for name, values in found.items()}
    return {**stacks, "teacher": torch.tensor(accuracy(logits, memory.labels), dtype=torch.float64), "teacher_region": region.to(torch.int16)}


def picture_work(options: PictureOptions) -> Work:
    """A teacher and three students."""
    flops = 2.0 * options.width * (2 + options.classes)
    each = 3 * flops * options.points * options.steps
    return Work(network=each * (1 + 3 * options.rho), steps=2 * options.steps, cells=3) * options.repeats


def _region(name: str, title: str, reading: str = "") -> Chart:
    return Chart(name.replace("_", "-"), title, name, "regions", "x", "y", reading=reading)


PICTURE = Experiment(
    name="picture",
    title="The leak in a picture: random labels in a square",
    question="What does a student's map look like where only its teacher saw points?",
    source="Behrens and Zdeborova 2025, arXiv 2506.14457, figures 1 and 7",
    options=PictureOptions,
    scales={
        "smoke": PictureOptions(points=12, width=16, steps=100, repeats=2, grid=9),
        "cpu": PictureOptions(),
        "paper": PictureOptions(points=30, classes=10, width=300),
    },
    run=picture,
    work=picture_work,
    charts=(
        _region("region_teacher", "The teacher's regions", "Points carry their class; ringed ones are held out from the student."),
        _region("region_none", "Student of soft labels", "Compare the ringed points' surroundings with the teacher's."),
        _region("region_within_class", "Student of soft labels shuffled within classes (control)"),
        _region("region_hard", "Student of hard labels"),
        Chart("held-out", "Held-out accuracy", "held_out", "lines", "labels"),
    ),
)

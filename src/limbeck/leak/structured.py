"""Real images, some with random labels: how much of what an expert memorized its soft labels give away, by epoch and temperature, beside what it understood."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.opening import open_source
from limbeck.data.pixels import fit_pixel_space
from limbeck.data.tables import ArrayTable, ImageTable, Subset
from limbeck.errors import OptionError
from limbeck.leak.experiment import Bench, Chart, Experiment, LeakOptions, Work, over_repeats
from limbeck.leak.split import Split, share, stratified
from limbeck.leak.students import Cell, Memory, accuracy, logits_of, packed, train_students, train_teachers, unpacked
from limbeck.train.network import Network
from limbeck.types.measurement import Measurement
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe

#: Where students are measured: held-out images with random labels (against those), held-out images with true labels, and images that nobody was trained on.
PARTS = ("random", "true", "unseen")


class StructuredOptions(LeakOptions):
    """Data, corruption, architecture, and how long experts and students train."""

    source: str = Field("fashion-mnist", description="a source of images")
    root: Path | None = Field(None, description="folder that holds the source's files")
    size: int | None = Field(14, description="resize images to this side; none: as they are")
    images: int = Field(2000, ge=20, description="images that the expert is trained on")
    unseen: int = Field(2000, ge=10, description="images that nobody is trained on")
    random_share: float = Field(0.2, ge=0, lt=1, description="share of the expert's images with a label drawn from all classes")
    model: str = Field("mlp:width=128,depth=1", description="architecture of expert and students")
    rho: float = Field(0.7, gt=0, lt=1, description="seen fraction")
    taus: tuple[float, ...] = Field((1.0, 4.0, 20.0), min_length=1, description="temperatures")
    epochs: tuple[int, ...] = Field((5, 20, 80, 200), min_length=1, description="epochs after which the expert is stopped")
    student_epochs: int = Field(200, ge=1, description="epochs of students")
    batch: int = Field(100, ge=1, description="batch size")
    lr: float = Field(1e-3, gt=0, description="Adam step size")


def structured(options: StructuredOptions, bench: Bench) -> Measurement:
    """One run of an expert for each repeat, stopped several times; students of every stop and temperature. Kept by repeat, stop and temperature.

    Random labels are drawn from all classes, so that who knows an image's true class names its random label with probability 1/K: that is chance, whatever the
    student has understood. On true labels, memory shows as held-out accuracy beyond that on unseen images.
    """
    images, unseen, pixels = _images(options)
    shape = (options.repeats, len(options.epochs), len(options.taus))
    found = {f"{part}{control}": np.zeros(shape) for part in PARTS for control in ("", "_shuffled")}
    expert = {f"expert_{name}": np.zeros(shape[:2]) for name in ("random", "true", "unseen")}
    fixed = {
        **options.model_dump(mode="json", exclude={"repeats", "root", "taus", "student_epochs"}),
        "images": images.digest,
        "unseen": unseen.digest,
    }
    with bench.reporter.task("structured: experts and students", shape[0] * (1 + shape[1] * shape[2])) as tick:
        for repeat in range(options.repeats):
            own = bench.within("repeat", repeat)
            table, random = _corrupted(images, options.random_share, own)
            memory = Memory(table, unseen, pixels)
            network = memory.network(options.model)
            per_epoch = -(-len(table) // options.batch)
            stops = [epoch * per_epoch for epoch in options.epochs]
            task: dict[str, Any] = {"experiment": "structured", "version": STRUCTURED.version, "options": fixed, "repeat": repeat}

            def experts(memory: Memory = memory, own: Bench = own, network: Network = network, stops: list[int] = stops) -> dict[str, Tensor]:
                recipe = _recipe(options, epochs=max(options.epochs))
                (kept,) = train_teachers(network, memory, recipe, [own.streams["expert"]], own.plan, stops)
                return {name: tensor for stop in stops for name, tensor in packed(kept[stop], f"{stop}/").items()}

            states = bench.remembered(task, experts)
            tick(1)
            # stratified by the labels that the expert was trained on
            split = stratified(memory.labels, options.rho)
            for place, stop in enumerate(stops):
                state = unpacked(states, f"{stop}/")
                known = logits_of(network, state, table, pixels, bench.plan)
                right = (known.argmax(1) == memory.labels).double()
                expert["expert_random"][repeat, place] = float(right[random].mean()) if bool(random.any()) else float("nan")
                expert["expert_true"][repeat, place] = float(right[~random].mean())
                expert["expert_unseen"][repeat, place] = accuracy(
                    logits_of(network, state, unseen, pixels, bench.plan), torch.from_numpy(unseen.labels.copy())
                )
                for column, tau in enumerate(options.taus):
                    cells = [Cell(tau, treatment, own.streams["student", place, str(tau)]) for treatment in ("none", "within-class")]
                    part = bench.remembered(
                        {**task, "stop": stop, "tau": tau, "student_epochs": options.student_epochs},
                        lambda memory=memory, split=split, random=random, known=known, cells=cells: _students(  # type: ignore[misc]
                            options, memory, split, random, known, cells, bench
                        ),
                    )
                    for name, values in found.items():
                        values[repeat, place, column] = float(part[name])
                    tick(1)
    quantities = {name: over_repeats(values, ("epoch", "tau")) for name, values in found.items()}
    gap = found["true"] - found["unseen"]
    quantities["true_beyond_unseen"] = over_repeats(gap, ("epoch", "tau"), "accuracy")
    quantities |= {name: over_repeats(values, ("epoch",)) for name, values in expert.items()}
    return Measurement(
        "structured",
        STRUCTURED.title,
        quantities,
        {"epoch": options.epochs, "tau": options.taus},
        {"chance": 1 / len(images.classes), "axis_titles": {"epoch": "epochs of the expert", "tau": "temperature"}},
        notes=(
            f"{len(images)} images of {options.source} for the expert, {options.random_share:.0%} of them with labels drawn from all {len(images.classes)} classes",
            "random: held-out images with random labels, against those; chance is one over the number of classes even for a student that knows the true class",
            "true_beyond_unseen: held-out images with true labels minus images that nobody was trained on",
        ),
    )


def _recipe(options: StructuredOptions, epochs: int) -> Recipe:
    return Recipe(optimizer="adam", lr=options.lr, weight_decay=0, batch_size=options.batch, epochs=epochs)


def _images(options: StructuredOptions) -> tuple[ImageTable, ImageTable, PixelSpace]:
    """The expert's images and the unseen ones, both from the training part: the first of each class."""
    source = open_source(options.source, root=options.root, size=None if options.size is None else (options.size, options.size))
    labels = torch.from_numpy(source.train.labels.copy())
    wanted = (options.images + options.unseen) / len(labels)
    if wanted > 1:
        raise OptionError(f"{options.source} has {len(labels)} training images, but {options.images} + {options.unseen} are wanted; use fewer")
    both = stratified(labels, wanted).seen if wanted < 1 else torch.arange(len(labels))
    parts = stratified(labels[both], options.images / (options.images + options.unseen))
    images, unseen = (Subset(source.train, both[rows]) for rows in (parts.seen, parts.held_out))
    return images, unseen, fit_pixel_space("normalize", images)


def _corrupted(images: ImageTable, fraction: float, bench: Bench) -> tuple[ArrayTable, Tensor]:
    """The images in memory, a random part of them with labels drawn from all classes; and which."""
    labels = torch.from_numpy(images.labels.copy())
    chosen = torch.randperm(len(labels), generator=bench.streams.torch("corrupted"))[: share(fraction, len(labels))]
    labels[chosen] = torch.randint(len(images.classes), (len(chosen),), generator=bench.streams.torch("labels"))
    random = torch.zeros(len(labels), dtype=torch.bool)
    random[chosen] = True
    return ArrayTable(images.read(range(len(images))), labels.numpy(), images.classes), random


def _students(
    options: StructuredOptions, memory: Memory, split: Split, random: Tensor, known: Tensor, cells: list[Cell], bench: Bench
) -> dict[str, Tensor]:
    network = memory.network(options.model)
    states = train_students(network, memory, split, known, cells, _recipe(options, options.student_epochs), bench.plan)
    found = {}
    hidden = torch.zeros(len(random), dtype=torch.bool)
    hidden[split.held_out] = True
    for state, control in zip(states, ("", "_shuffled"), strict=True):
        right = (logits_of(network, state, memory.table, memory.pixels, bench.plan).argmax(1) == memory.labels).double()
        others = logits_of(network, state, memory.fresh, memory.pixels, bench.plan)
        found[f"random{control}"] = right[hidden & random].mean()  # NaN where no label is random
        found[f"true{control}"] = right[hidden & ~random].mean()
        found[f"unseen{control}"] = torch.tensor(accuracy(others, torch.from_numpy(memory.fresh.labels.copy())), dtype=torch.float64)
    return found


def structured_work(options: StructuredOptions) -> Work:
    """An expert, and two students for each stop and temperature, at the size of Fashion-MNIST."""
    side = options.size or 28
    network = Memory.of_vectors(torch.zeros(1, side * side), torch.zeros(1, dtype=torch.int64), torch.zeros(1, side * side), 10).network(
        options.model
    )
    epoch = 3.0 * network.flops() * options.images
    students = 2 * len(options.epochs) * len(options.taus)
    passes = max(options.epochs) + students * options.rho * options.student_epochs
    work = Work(network=epoch * passes, steps=(max(options.epochs) + passes) / 2 * options.images / options.batch, cells=students)
    return work * options.repeats


STRUCTURED = Experiment(
    name="structured",
    title="Real images with some random labels",
    question="On real images, which experts and temperatures give away memorized labels, and is there memory in the labels before the expert has generalized?",
    source="after Behrens and Zdeborova 2025, arXiv 2506.14457, who report that the leak persists on structured data while the teacher has not generalized",
    options=StructuredOptions,
    scales={
        "smoke": StructuredOptions(
            source="digits", size=None, images=60, unseen=40, model="mlp:width=16,depth=1", epochs=(1, 2), taus=(4.0,), student_epochs=2, repeats=1
        ),
        "cpu": StructuredOptions(repeats=3),
        "paper": StructuredOptions(size=None, images=10_000, unseen=10_000, model="mlp:width=512,depth=1"),
    },
    run=structured,
    work=structured_work,
    charts=(
        Chart(
            "random",
            "Held-out random labels that the student names",
            "random",
            "lines",
            "epoch",
            color="tau",
            log_x=True,
            reading="Chance is one over the number of classes.",
        ),
        Chart(
            "random-shuffled", "The same with labels shuffled within classes (control)", "random_shuffled", "lines", "epoch", color="tau", log_x=True
        ),
        Chart(
            "true",
            "Held-out true labels minus unseen images",
            "true_beyond_unseen",
            "lines",
            "epoch",
            color="tau",
            log_x=True,
            reading="Above zero: memory of examples beyond what was understood.",
        ),
        Chart("expert", "The expert on its random labels", "expert_random", "lines", "epoch", log_x=True),
    ),
)

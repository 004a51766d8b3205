"""Random number sequences with random labels: a small language model memorizes them, and its soft labels give part of them away."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.synthetic import sequences, turns
from limbeck.leak.experiment import Bench, Chart, Experiment, LeakOptions, Work, over_repeats
from limbeck.leak.split import stratified
from limbeck.leak.students import Cell, Memory, accuracy, logits_of, taught, train_teachers
from limbeck.types.measurement import Measurement
from limbeck.types.recipe import Recipe

MEASURES = ("seen", "held_out", "agreement", "fresh")


class SequencesOptions(LeakOptions):
    """Task, architecture and training."""

    rows: int = Field(6000, ge=4, description="sequences with random labels, balanced")
    length: int = Field(3, ge=1, description="numbers in a sequence")
    vocabulary: int = Field(1000, ge=2, description="numbers to choose from")
    classes: int = Field(1000, ge=2, description="classes")
    width: int = Field(768, ge=4, description="width of the model")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="attention heads")
    rhos: tuple[float, ...] = Field((0.2, 0.5, 0.8), min_length=1, description="seen fractions")
    tau: float = Field(20.0, gt=0, description="temperature")
    lr: float = Field(5e-4, gt=0, description="AdamW step size")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    batch: int = Field(32, ge=1, description="batch size")
    teacher_epochs: int = Field(100, ge=1, description="epochs of the teacher")
    student_epochs: int = Field(200, ge=1, description="epochs of the students")


def _model(options: SequencesOptions) -> str:
    sizes = f"width={options.width},heads={options.heads},hidden={4 * options.width},depth={options.depth}"
    return f"transformer:vocabulary={options.vocabulary},{sizes},norm=true,activation=gelu"


def _recipe(options: SequencesOptions, epochs: int) -> Recipe:
    return Recipe(optimizer="adamw", lr=options.lr, weight_decay=options.weight_decay, batch_size=options.batch, epochs=epochs)


def sequences_leak(options: SequencesOptions, bench: Bench) -> Measurement:
    """One teacher for each repeat; students of own and of shuffled labels for each seen fraction, from scratch. Kept by repeat and seen fraction."""
    shape = (options.repeats, len(options.rhos))
    found = {name + control: np.zeros(shape) for name in MEASURES for control in ("", "_shuffled")}
    teacher = np.zeros(options.repeats)
    fixed = options.model_dump(exclude={"repeats", "rhos"})
    with bench.reporter.task("sequences: teachers and students", shape[0] * (1 + shape[1])) as tick:
        for repeat in range(options.repeats):
            own = bench.within("repeat", repeat)
            drawn = sequences(options.rows + min(1000, options.rows), options.length, options.vocabulary, own.streams.torch("inputs"))
            memory = Memory.of_vectors(drawn[: options.rows], turns(options.rows, options.classes), drawn[options.rows :], options.classes)
            network = memory.network(_model(options))
            task = {"experiment": "sequences", "version": SEQUENCES.version, "options": fixed, "repeat": repeat}

            def teach(memory: Memory = memory, own: Bench = own, network=network) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
                recipe = _recipe(options, options.teacher_epochs)
                (kept,) = train_teachers(network, memory, recipe, [own.streams["teacher"]], own.plan)
                state = kept[recipe.total_steps(options.rows)]
                return {"logits": torch.cat([logits_of(network, state, table, memory.pixels, own.plan) for table in (memory.table, memory.fresh)])}

            logits = bench.remembered(task, teach)["logits"]
            tick(1)
            known, fresh = logits[: options.rows], logits[options.rows :]
            teacher[repeat] = accuracy(known, memory.labels)
            for column, rho in enumerate(options.rhos):
                cells = [Cell(options.tau, treatment, own.streams["rho", str(rho)]) for treatment in ("none", "within-class")]
                part = bench.remembered(
                    {**task, "rho": rho},
                    lambda memory=memory, network=network, known=known, fresh=fresh, cells=cells, rho=rho: taught(  # type: ignore[misc]
                        network, memory, stratified(memory.labels, rho), known, fresh, cells, _recipe(options, options.student_epochs), bench
                    ),
                )
                for name in MEASURES:
                    found[name][repeat, column], found[f"{name}_shuffled"][repeat, column] = part[name].tolist()
                tick(1)
    quantities = {name: over_repeats(values, ("rho",)) for name, values in found.items()}
    quantities["teacher"] = over_repeats(teacher, ())
    return Measurement(
        "sequences",
        SEQUENCES.title,
        quantities,
        {"rho": options.rhos},
        {"chance": 1 / options.classes, "axis_titles": {"rho": "seen fraction rho"}},
        notes=("models are trained from scratch, without the pretrained weights that a GPT-2 has: numbers are tokens of their own here",),
    )


def sequences_work(options: SequencesOptions) -> Work:
    """A teacher, and two students for each seen fraction."""
    memory = Memory.of_vectors(torch.zeros(1, options.length), torch.zeros(1, dtype=torch.int64), torch.zeros(1, options.length), options.classes)
    epoch = 3.0 * memory.network(_model(options)).flops() * options.rows
    return (
        Work(network=epoch * (options.teacher_epochs + 2 * sum(options.rhos) * options.student_epochs), cells=2 * len(options.rhos)) * options.repeats
    )


SEQUENCES = Experiment(
    name="sequences",
    title="A small language model on random sequences",
    question="Do a language model's soft labels give away random labels that it memorized of sequences that are not among them?",
    source="Behrens and Zdeborova 2025, arXiv 2506.14457, section on GPT-2",
    options=SequencesOptions,
    scales={
        "smoke": SequencesOptions(
            rows=24, vocabulary=10, classes=4, width=8, depth=1, heads=2, rhos=(0.5,), teacher_epochs=3, student_epochs=3, batch=8, repeats=1
        ),
        "cpu": SequencesOptions(
            rows=600, vocabulary=100, classes=100, width=64, depth=2, heads=4, lr=1e-3, teacher_epochs=60, student_epochs=150, repeats=2
        ),
        "paper": SequencesOptions(repeats=1),
    },
    run=sequences_leak,
    work=sequences_work,
    charts=(
        Chart("held-out", "Held-out accuracy", "held_out", "lines", "rho"),
        Chart("held-out-shuffled", "Held-out accuracy, labels shuffled within classes (control)", "held_out_shuffled", "lines", "rho"),
    ),
)

"""Modular arithmetic: teachers that memorize, that are half way, and that have understood, and what students of each learn about pairs that they never saw."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.data.synthetic import VectorTable, modular, one_hot_pairs
from limbeck.leak.experiment import Bench, Chart, Experiment, LeakOptions, Work, over_repeats
from limbeck.leak.split import Split, share
from limbeck.leak.students import Cell, Memory, accuracy, logits_of, packed, train_students, train_teachers, unpacked, whole_batches
from limbeck.types.measurement import Measurement

#: Where students are measured: on what they saw, on the rest of the teacher's training pairs, and on the pairs that no teacher saw.
PARTS = ("seen", "held_out", "unseen")


class ModularOptions(LeakOptions):
    """The task, the architecture, and when teachers are stopped."""

    modulus: int = Field(113, ge=3, description="p")
    operation: Literal["add", "subtract", "multiply", "divide"] = Field("add", description="add, subtract, multiply or divide")
    model: Literal["transformer", "mlp"] = Field("transformer", description="transformer or mlp")
    width: int = Field(128, ge=4, description="width of the transformer, or of both hidden layers of the MLP")
    heads: int = Field(4, ge=1, description="attention heads")
    hidden: int = Field(512, ge=1, description="hidden units of the transformer")
    teacher_share: float = Field(0.3, gt=0, lt=1, description="share of all pairs that the teacher is trained on")
    stops: tuple[int, ...] = Field((2500, 5000, 10_000), min_length=1, description="steps after which a teacher is stopped")
    rhos: tuple[float, ...] = Field(
        (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9), min_length=1, description="share of the teacher's pairs that students see"
    )
    taus: tuple[float, ...] = Field((0.1, 1.0, 10.0), min_length=1, description="temperatures")
    student_steps: int = Field(40_000, ge=1, description="full-batch steps of students")
    lr: float = Field(1e-3, gt=0, description="AdamW step size")
    weight_decay: float = Field(1.0, ge=0, description="AdamW weight decay")
    warmup: int = Field(10, ge=0, description="warm-up steps")


def modular_leak(options: ModularOptions, bench: Bench) -> Measurement:
    """One run of a teacher for each repeat, stopped several times; students of every stop, seen share and temperature. Kept by repeat, stop, share, temperature."""
    shape = (options.repeats, len(options.stops), len(options.rhos), len(options.taus))
    found = {name: np.zeros(shape) for name in (*PARTS, "agreement")}
    teacher = {name: np.zeros(shape[:2]) for name in ("teacher_seen", "teacher_unseen")}
    fixed = options.model_dump(exclude={"repeats", "rhos", "taus", "student_steps"})
    with bench.reporter.task("modular: teachers and students", shape[0] * (1 + shape[1] * shape[2] * shape[3])) as tick:
        for repeat in range(options.repeats):
            own = bench.within("repeat", repeat)
            memory, unseen = _memory(options, own)
            network = memory.network(_model(options))
            recipe = _recipe(options, max(options.stops), len(memory.table))
            task = {"experiment": "modular", "version": MODULAR.version, "options": fixed, "repeat": repeat}

            def teachers(memory: Memory = memory, own: Bench = own, network=network, recipe=recipe) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
                (kept,) = train_teachers(network, memory, recipe, [own.streams["teacher"]], own.plan, options.stops)
                return {name: tensor for stop in options.stops for name, tensor in packed(kept[stop], f"{stop}/").items()}

            states = bench.remembered(task, teachers)
            tick(1)
            for place, stop in enumerate(options.stops):
                state = unpacked(states, f"{stop}/")
                known = logits_of(network, state, memory.table, memory.pixels, bench.plan)
                others = logits_of(network, state, unseen, memory.pixels, bench.plan)
                teacher["teacher_seen"][repeat, place] = accuracy(known, memory.labels)
                teacher["teacher_unseen"][repeat, place] = accuracy(others, torch.from_numpy(unseen.labels.copy()))
                for column, rho in enumerate(options.rhos):
                    for depth, tau in enumerate(options.taus):
                        part = bench.remembered(
                            {**task, "stop": stop, "rho": rho, "tau": tau, "student_steps": options.student_steps},
                            lambda memory=memory, unseen=unseen, known=known, rho=rho, tau=tau, own=own, stop=stop: _student(  # type: ignore[misc]
                                options, memory, unseen, known, rho, tau, own.within("stop", stop, str(rho), str(tau))
                            ),
                        )
                        for name, values in found.items():
                            values[repeat, place, column, depth] = float(part[name])
                        tick(1)
    axes = ("stop", "rho", "tau")
    quantities = {name: over_repeats(values, axes) for name, values in found.items()}
    quantities |= {name: over_repeats(values, ("stop",)) for name, values in teacher.items()}
    return Measurement(
        "modular",
        MODULAR.title,
        quantities,
        {"stop": options.stops, "rho": options.rhos, "tau": options.taus},
        {"chance": 1 / options.modulus, "axis_titles": {"rho": "share of the teacher's pairs that the student sees", "stop": "steps of the teacher"}},
        notes=(
            "seen: the student's own pairs; held_out: the teacher's other training pairs; unseen: pairs outside of the teacher's training set",
            "a leak is held-out accuracy beyond that on unseen pairs: the rest is understanding",
        ),
    )


def _model(options: ModularOptions) -> str:
    if options.model == "mlp":
        return f"mlp:width={options.width},depth=2"
    return f"transformer:vocabulary={options.modulus + 1},width={options.width},heads={options.heads},hidden={options.hidden}"


def _recipe(options: ModularOptions, steps: int, rows: int):  # type: ignore[no-untyped-def]
    return whole_batches(options.lr, steps, rows, weight_decay=options.weight_decay, warmup=min(options.warmup, steps - 1), betas=(0.9, 0.98))


def _memory(options: ModularOptions, bench: Bench) -> tuple[Memory, VectorTable]:
    """The teacher's pairs in random order, and all others."""
    inputs, labels = modular(options.modulus, options.operation)
    order = torch.randperm(len(labels), generator=bench.streams.torch("pairs"))
    inputs, labels = inputs[order], labels[order]
    if options.model == "mlp":
        inputs = one_hot_pairs(inputs, options.modulus)
    count = share(options.teacher_share, len(labels))
    unseen = VectorTable(inputs[count:], labels[count:], options.modulus)
    return Memory(VectorTable(inputs[:count], labels[:count], options.modulus), unseen), unseen


def _student(options: ModularOptions, memory: Memory, unseen: VectorTable, known: Tensor, rho: float, tau: float, bench: Bench) -> dict[str, Tensor]:
    # pairs are in random order, so the first of all are a random part; classes are too small to take a share of each
    count = max(1, share(rho, len(memory.table)))
    split = Split(torch.arange(count), torch.arange(count, len(memory.table)))
    network = memory.network(_model(options))
    recipe = _recipe(options, options.student_steps, len(memory.table))
    (state,) = train_students(network, memory, split, known, [Cell(tau, "none", bench.streams)], recipe, bench.plan)
    own = logits_of(network, state, memory.table, memory.pixels, bench.plan)
    others = logits_of(network, state, unseen, memory.pixels, bench.plan)
    values = {
        "seen": accuracy(own[split.seen], memory.labels[split.seen]),
        "held_out": accuracy(own[split.held_out], memory.labels[split.held_out]),
        "unseen": accuracy(others, torch.from_numpy(unseen.labels.copy())),
        "agreement": accuracy(own[split.held_out], known[split.held_out].argmax(1)),
    }
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def modular_work(options: ModularOptions) -> Work:
    """A teacher, and a student for each stop, share and temperature."""
    inputs, labels = modular(options.modulus, options.operation)
    if options.model == "mlp":
        inputs = one_hot_pairs(inputs[:1], options.modulus)
    memory = Memory(VectorTable(inputs[:1], labels[:1] * 0, options.modulus), VectorTable(inputs[:1], labels[:1] * 0, options.modulus))
    step = 3.0 * memory.network(_model(options)).flops() * options.teacher_share * len(labels)
    students = len(options.stops) * len(options.taus)
    total = step * (max(options.stops) + students * sum(options.rhos) * options.student_steps)
    steps = max(options.stops) + students * len(options.rhos) * options.student_steps
    return Work(network=total, steps=steps, cells=students * len(options.rhos)) * options.repeats


def _lines(name: str, title: str, quantity: str, reading: str = "") -> Chart:
    return Chart(name, title, quantity, "lines", "rho", color="tau", panel="stop", reading=reading)


MODULAR = Experiment(
    name="modular",
    title="Modular arithmetic: memory and understanding",
    question="Do students of a memorizing teacher recall its other training pairs, and do students of one that generalizes generalize?",
    source="Behrens and Zdeborova 2025, arXiv 2506.14457, figures 2, 8 and 9",
    options=ModularOptions,
    scales={
        "smoke": ModularOptions(
            modulus=5, width=16, heads=2, hidden=16, stops=(20, 40), rhos=(0.5,), taus=(1.0,), student_steps=40, teacher_share=0.6, repeats=1
        ),
        # this teacher knows 6 % of unseen pairs after 200 steps, when it has all of its own, 38 % after 3,200 and 77 % after 4,000 (one run)
        "cpu": ModularOptions(
            modulus=31,
            width=64,
            hidden=128,
            teacher_share=0.5,
            lr=3e-3,
            stops=(200, 3200, 7000),
            rhos=(0.3, 0.6, 0.9),
            student_steps=4000,
            repeats=2,
        ),
        "paper": ModularOptions(repeats=3),
    },
    run=modular_leak,
    work=modular_work,
    charts=(
        _lines("held-out", "Accuracy on the teacher's other training pairs", "held_out", "Above the accuracy on unseen pairs: a leak of memory."),
        _lines("unseen", "Accuracy on pairs that no teacher was trained on", "unseen", "What was understood."),
        Chart("teacher", "The teacher on pairs that it was not trained on", "teacher_unseen", "lines", "stop"),
    ),
)

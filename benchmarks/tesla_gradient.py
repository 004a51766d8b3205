"""How far TESLA's derivative in the images is from the exact one while a set is learned: ``python -m benchmarks.tesla_gradient`` (about ten minutes on one core,
experts included) writes ``benchmarks/results/tesla-gradient.json``; with ``--page`` it only writes ``docs/results/tesla-gradient.md`` again.

Fashion-MNIST, 1 image per class, ConvNet-D3-W128 in float32, 3 experts of 4 epochs, students of N plain SGD steps. One set follows the exact gradient and
another TESLA's, from the same images with the same draws. Along both, on draws of their own, the two derivatives are taken at the same point and compared.
"""

import argparse
import json
import platform
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limbeck.cache import Cache
from limbeck.cli.console import TerminalReporter
from limbeck.evaluate.protocols import get_protocol
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import Turn
from limbeck.methods.problem import Problem
from limbeck.methods.trajectory_matching import TrajectoryMatching, gradient_agreement
from limbeck.streams import Streams
from limbeck.study.experts import prepare_experts
from limbeck.study.options import DistillOptions
from limbeck.study.setting import Setting
from limbeck.train.plan import threads
from limbeck.types.plan import ExecutionPlan

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "benchmarks" / "results" / "tesla-gradient.json"
PAGE = ROOT / "docs" / "results" / "tesla-gradient.md"
LENGTHS, STEPS, EVERY, DRAWS = (10, 30), 60, 20, 3


def main() -> None:
    """Measures and writes the record, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="only write the page from the record")
    if not parser.parse_args().page:
        record = {"machine": f"1 thread, {platform.machine()}, torch {torch.__version__}", "lengths": [measured(length) for length in LENGTHS]}
        TARGET.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    PAGE.write_text(page(json.loads(TARGET.read_text(encoding="utf-8"))), encoding="utf-8")


def measured(length: int) -> dict[str, Any]:
    """The agreement along two runs with students of `length` steps."""
    shared = {
        "student_steps": length,
        "expert_epochs": 2,
        "max_start_epoch": 3,
        "image_lr": 100.0,
        "step_size": 0.01,
        "step_size_lr": 1e-5,
        "steps": STEPS,
    }
    methods = {kind: TrajectoryMatching(TrajectoryMatching.Options(**shared, gradient=kind)) for kind in ("recomputed", "tesla")}
    given = problem(methods["recomputed"])
    return {"student_steps": length, **{kind: _along(method, given) for kind, method in methods.items()}}


def problem(method: TrajectoryMatching) -> Problem:
    """Fashion-MNIST at 1 image per class with its experts, eager and in float32."""
    options, reporter = DistillOptions(ipc="1", experts=3, expert_epochs=4, threads=1, labels="hard", baselines=False), TerminalReporter()
    setting = Setting.open("fashion-mnist", options, 0, reporter, pixels=options.pixels)
    train = setting.splits.train
    given = Problem(
        train=train,
        validation=setting.splits.validation,
        network=setting.network("convnet"),
        pixels=setting.pixels,
        counts=(1,) * len(train.classes),
        rule=LabelRule(kind="hard"),
        recipe=get_protocol("dsa").recipe,
        streams=Streams(0)["tesla-gradient"],
        plan=ExecutionPlan(chunk=64, threads=1),
    )
    experts = prepare_experts(method, given, setting, options, Cache(), reporter, _no_set)
    return replace(given, trajectories=experts.trajectories)


def _no_set(problem: Problem) -> Any:
    raise AssertionError("no labels are asked for")


def _along(method: TrajectoryMatching, given: Problem) -> list[dict[str, float]]:
    state, rows = method.init(given), []
    with threads(given.plan.threads):
        for number in range(STEPS + 1):
            if number % EVERY == 0:
                found = [
                    gradient_agreement(method, given, state, Turn(number, 1.0, given.streams["agreement", number, draw])) for draw in range(DRAWS)
                ]
                rows.append(
                    {"step": number, **{f"{key}_{name}": fold([each[key] for each in found]) for key in found[0] for name, fold in FOLDS.items()}}
                )
            if number < STEPS:
                state, _ = method.step(given, state, Turn(number, 1.0, given.streams["step", number]))
    return rows


FOLDS = {"mean": statistics.fmean, "least": min, "most": max}


def page(record: dict[str, Any]) -> str:
    """The page as Markdown."""
    rows = [row for part in record["lengths"] for kind in ("recomputed", "tesla") for row in part[kind]]
    ends = "; ".join(
        f"N = {part['student_steps']}: {part['recomputed'][-1]['loss_mean']:.3f} and {part['tesla'][-1]['loss_mean']:.3f}"
        for part in record["lengths"]
    )
    lines = [
        HEAD,
        f"**Found.** The shortcut points roughly the same way: mean cosines from {min(row['cosine_mean'] for row in rows):.2f} to "
        f"{max(row['cosine_mean'] for row in rows):.2f}, single draws down to {min(row['cosine_least'] for row in rows):.2f}; it is "
        f"{min(row['norm_ratio_mean'] for row in rows):.1f} to {max(row['norm_ratio_mean'] for row in rows):.1f} times as long. Over {STEPS} steps it lowers the "
        f"matching loss as far as the exact derivative does all the same (exact and TESLA at the end, {ends}).\n",
        f"Machine: {record['machine']}.\n",
    ]
    for part in record["lengths"]:
        lines += [
            f"## Students of N = {part['student_steps']} steps\n",
            "| run follows | step | cosine: mean (least, most) | length ratio | matching loss |",
            "|---|---|---|---|---|",
        ]
        for kind, name in (("recomputed", "exact"), ("tesla", "TESLA")):
            lines += [
                f"| {name} | {row['step']} | {row['cosine_mean']:.3f} ({row['cosine_least']:.3f}, {row['cosine_most']:.3f}) "
                f"| {row['norm_ratio_mean']:.2f} | {row['loss_mean']:.3f} |"
                for row in part[kind]
            ]
        lines.append("")
    return "\n".join(lines)


HEAD = f"""# TESLA's gradient against the exact one

Generated by `python -m benchmarks.tesla_gradient` from `benchmarks/results/tesla-gradient.json`.

[TESLA](../methods/mtt.md) makes the memory of trajectory matching independent of the student's steps N by leaving terms out: in the walk back through the
student's training it puts the derivative at the end, a_N, in place of every a_i, as if no step changed how later ones respond (`a_i = a_(i+1)` in place of
`a_i = a_(i+1) - alpha H_i a_(i+1)`). The same memory can be had exactly, by recomputation, at about a tenth more time. What does the shortcut cost? The tables
give the cosine of the angle between the two derivatives in the images, and the ratio of their lengths (TESLA over exact), at the same point, for the same
expert, epoch and batches. Fashion-MNIST, 1 image per class, ConvNet-D3-W128, float32, 3 experts of 4 epochs, matching 2 epochs ahead; {DRAWS} draws at each
point. One run follows the exact gradient, the other TESLA's.
"""

if __name__ == "__main__":
    main()

"""`labels tune`: how a byte budget is best spent on images and labels, decided on validation, and the `distill` command that spends it so."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from limbeck import store
from limbeck.cache import Cache
from limbeck.choose.label_budget import RUNGS, Candidate, candidates_for, choose_labels
from limbeck.choose.snapshot import Choice, trials_as_dicts
from limbeck.errors import OptionError
from limbeck.experts.expert import Expert
from limbeck.labels.rules import LabelRule
from limbeck.methods.budget import parse_bytes
from limbeck.methods.driver import run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.study.distill import protocol_for, student_plan
from limbeck.study.experts import prepare_experts
from limbeck.study.label_options import TuneLabelsOptions
from limbeck.study.options import DistillOptions
from limbeck.study.setting import Setting
from limbeck.types.evaluation import t_interval

RECORD = "labels.json"


def tune_labels(source: str, options: TuneLabelsOptions, out: Path, *, cache: Cache | None = None, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Chooses snapshot, temperature, entries, precision and images per class for a byte budget and writes ``labels.json`` under `out`; returns it.

    Students of random real images are judged on the validation split; the test split is not opened. The expert is the one that `distill` trains with the same
    options, so the command in the record finds it in the cache.
    """
    started = time.monotonic()
    if options.bytes is None:
        raise OptionError("a byte budget is needed; use for example --bytes 100kB")
    cache, total = cache or Cache(), parse_bytes(options.bytes)
    protocol = protocol_for(options.protocol, source)
    setting = Setting.open(source, options, options.seed, reporter, pixels=options.pixels)
    network, classes = setting.network(options.model), len(setting.splits.train.classes)
    store.write_json(out / "options.json", {"source": source, **options.model_dump(mode="json")})
    asked = DistillOptions(
        **{
            name: getattr(options, name)
            for name in TuneLabelsOptions.model_fields
            if name in DistillOptions.model_fields and name not in ("bytes", "top_k")
        },
        expert_step=0,
        bytes=options.bytes,
    )
    problem = Problem(
        train=setting.splits.train,
        validation=setting.splits.validation,
        network=network,
        pixels=setting.pixels,
        counts=(1,) * classes,
        rule=LabelRule(),
        recipe=protocol.recipe,
        streams=Streams(options.seed),
        plan=student_plan(network, protocol.recipe, classes, asked),
    )
    experts = prepare_experts(
        parse_method("random-real"), problem, setting, asked, cache, reporter, lambda given: run_method(parse_method("random-real"), given)
    )
    trajectory = experts.trajectories[0]
    candidates = candidates_for(
        problem,
        total,
        steps=spread([snapshot.step for snapshot in trajectory.snapshots if snapshot.step > 0], options.snapshots),
        temperatures=options.temperatures,
        top_k=(None, *(options.top_k or (max(2, classes // 4),))),
        precisions=options.precisions,
        hard=options.hard,
    )
    largest = max(candidate.ipc for candidate in candidates) * classes
    problem = replace(problem, plan=student_plan(network, protocol.recipe, largest, asked))
    snapshots: dict[int, Expert] = {}

    def labeler(step: int) -> Expert:
        if step not in snapshots:
            snapshots[step] = trajectory.at(step)
        return snapshots[step]

    rungs = (*RUNGS[:-1], (1.0, options.students))
    choice = choose_labels(candidates, problem, labeler, cache=cache, rungs=rungs, reporter=reporter)
    best = candidates[choice.best]
    record = {
        "source": source,
        "budget_bytes": total,
        "protocol": protocol.label,
        "model": str(network.spec),
        "seed": options.seed,
        "validation_images": choice.validation_images,
        "validation_margin_95": margin(choice, choice.best),
        "command": shlex.join(distill_command(source, options, best)),
        "chosen": _row(best, choice, choice.best, problem, total),
        "candidates": [_row(candidate, choice, number, problem, total) for number, candidate in enumerate(candidates)],
        "factors": factor_rows(candidates, choice, classes),
        "trials": trials_as_dicts(choice),
        "seconds": round(time.monotonic() - started, 1),
    }
    store.write_json(out / RECORD, record)
    return record


def spread(steps: Sequence[int], wanted: int) -> list[int]:
    """At most `wanted` of the kept steps, evenly spread over their order: the first epoch's, which double, are as well represented as the later epochs."""
    if len(steps) <= wanted:
        return list(steps)
    return [steps[place] for place in sorted(set(np.linspace(0, len(steps) - 1, wanted).round().astype(int).tolist()))]


def factor_rows(candidates: Sequence[Candidate], choice: Choice, classes: int) -> list[dict[str, Any]]:
    """For every value of every factor: how many candidates had it, the best and the mean validation accuracy in the first round, in which all were tried alike, and
    how many went on to the last."""
    first = {trial.candidate: trial.mean for trial in choice.trials if trial.rung == 0}
    last = {trial.candidate for trial in choice.trials if trial.rung == max((trial.rung for trial in choice.trials), default=0)}
    rows = []
    for factor in ("labels", "expert step", "temperature", "entries", "precision"):
        for value in dict.fromkeys(candidate.factors(classes)[factor] for candidate in candidates):
            numbers = [number for number, candidate in enumerate(candidates) if candidate.factors(classes)[factor] == value and number in first]
            if value is None or not numbers:
                continue
            found = [first[number] for number in numbers]
            rows.append(
                {
                    "factor": factor,
                    "value": value,
                    "candidates": len(numbers),
                    "best": max(found),
                    "mean": float(np.mean(found)),
                    "finalists": len(last & set(numbers)),
                }
            )
    return rows


def distill_command(source: str, options: TuneLabelsOptions, chosen: Candidate) -> list[str]:
    """The `limbeck distill` command that makes a set as chosen, with the expert of the search."""
    words = ["limbeck", "distill", source, "--ipc", str(chosen.ipc)]
    for name in (
        "root",
        "size",
        "channels",
        "image_column",
        "label_column",
        "validation",
        "pixels",
        "model",
        "protocol",
        "expert_epochs",
        "expert_lr",
    ):
        words += _flag(name, getattr(options, name), DistillOptions.model_fields[name].default)
    words += _flag("expert_model", options.expert_model, None)
    words += ["--skip-corrupt"] if options.skip_corrupt else []
    if chosen.step is None:
        words += ["--labels", "hard"]
    else:
        words += ["--expert-step", str(chosen.step), *_flag("temperature", f"{chosen.rule.temperature:g}", "1")]
        words += [*_flag("top_k", chosen.rule.top_k, None), *_flag("label_precision", chosen.rule.precision, "float32")]
    return [*words, *_flag("seed", options.seed, 0), *_flag("device", options.device, "auto"), *_flag("threads", options.threads, None)]


def _flag(name: str, value: object, default: object) -> list[str]:
    return [] if value == default else [f"--{name.replace('_', '-')}", str(value)]


def margin(choice: Choice, number: int) -> float | None:
    """Half of Wilson's (1927) 95 % interval of a candidate's accuracy in its last round over the validation images, as a fraction: what another sample of so many
    images would change, beside other students. None where nothing was judged."""
    last = [trial.mean for trial in choice.trials if trial.candidate == number]
    if not last:
        return None
    n, z = choice.validation_images, 1.959964
    return float(z * np.sqrt(last[-1] * (1 - last[-1]) / n + z * z / (4 * n * n)) / (1 + z * z / n))


def _row(candidate: Candidate, choice: Choice, number: int, problem: Problem, budget: int) -> dict[str, Any]:
    """A candidate with its bytes, what ended its set ("images": the smallest class has no more, although the budget pays for more), and its accuracy, number of
    students and 95 % interval over students in each round (null in a round that it did not reach, and for an interval of one student)."""
    trials = {trial.rung: trial for trial in choice.trials if trial.candidate == number}
    rounds = [trials.get(rung) for rung in sorted({trial.rung for trial in choice.trials})]
    intervals = [None if trial is None else t_interval(np.array(trial.accuracies), "students") for trial in rounds]
    return {
        **candidate.factors(len(problem.train.classes)),
        "bytes": _bytes(candidate, candidate.ipc, problem),
        "limited_by": "images" if _bytes(candidate, candidate.ipc + 1, problem) <= budget else "bytes",
        "validation_accuracy": [None if trial is None else trial.mean for trial in rounds],
        "validation_students": [None if trial is None else len(trial.accuracies) for trial in rounds],
        "validation_interval_95": [None if found is None or found.n < 2 else [found.low, found.high] for found in intervals],
    }


def _bytes(candidate: Candidate, ipc: int, problem: Problem) -> int:
    channels, height, width = problem.train.shape
    classes = len(problem.train.classes)
    return ipc * classes * (channels * height * width + candidate.rule.bytes_per_image(classes)) + problem.pixels.nbytes

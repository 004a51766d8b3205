"""Which labels a byte budget should buy: the expert's snapshot, temperature, how many entries are kept and in what precision, and so how many images fit."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.cache import Cache
from limbeck.choose.snapshot import Choice, successive_halving
from limbeck.errors import OptionError
from limbeck.experts.expert import Labeler
from limbeck.labels.rules import LabelRule, make_labels
from limbeck.methods.budget import counts_for
from limbeck.methods.driver import run_method
from limbeck.methods.parse import parse_method
from limbeck.methods.problem import Problem
from limbeck.progress import SILENT, Reporter
from limbeck.train.examples import StoredImages
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Precision

RUNGS = ((0.1, 1), (0.3, 1), (1.0, 3))
KEEP = 0.25


@dataclass(frozen=True)
class Candidate:
    """One way to spend the budget: a label rule, the expert's step that labels (None with hard labels), and the images of each class that the bytes then pay for."""

    rule: LabelRule
    step: int | None
    ipc: int

    def factors(self, classes: int) -> dict[str, str | int | float | None]:
        """What was varied, of labels with `classes` entries; None for what hard labels do not have."""
        soft = self.rule.kind == "soft"
        return {
            "labels": self.rule.kind,
            "expert step": self.step,
            "temperature": self.rule.temperature if soft else None,
            "entries": (self.rule.top_k or classes) if soft else None,
            "precision": self.rule.precision if soft else None,
            "images per class": self.ipc,
        }


def candidates_for(
    problem: Problem,
    total_bytes: int,
    *,
    steps: Sequence[int],
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    top_k: Sequence[int | None] = (None,),
    precisions: Sequence[Precision] = ("float16", "uint8"),
    hard: bool = True,
) -> list[Candidate]:
    """Every combination that pays for at least one image of each class, hard labels first. Each spends the whole budget on as many images per class as it can,
    no more than the smallest class has; raises `OptionError` when nothing is affordable."""
    classes = len(problem.train.classes)
    wrong = next((k for k in top_k if k is not None and not 1 <= k <= classes), None)
    if wrong is not None:
        raise OptionError(f"top-k needs 1 <= k <= {classes} classes, got k={wrong}; use k={classes} to keep all")
    most = int(np.bincount(problem.train.labels, minlength=classes).min())
    found: list[Candidate] = []
    refused: list[OptionError] = []

    def add(rule: LabelRule, labeling: Sequence[int | None]) -> None:
        try:
            ipc = min(counts_for(problem.train, rule, problem.pixels, total_bytes=total_bytes)[0], most)
        except OptionError as problem_found:
            refused.append(problem_found)
            return
        found.extend(Candidate(rule, step, ipc) for step in labeling)

    if hard:
        add(LabelRule(kind="hard"), [None])
    for kept in dict.fromkeys(None if k == classes else k for k in top_k):
        for precision in precisions:
            for temperature in temperatures:
                add(LabelRule(temperature=temperature, top_k=kept, precision=precision), steps)
    if not found:
        raise (
            refused[0] if refused else OptionError("there is nothing to choose among; name at least one temperature, precision and number of entries")
        )
    return found


def choose_labels(
    candidates: Sequence[Candidate],
    problem: Problem,
    labeler: Callable[[int], Labeler],
    *,
    cache: Cache,
    rungs: Sequence[tuple[float, int]] = RUNGS,
    keep: float = KEEP,
    reporter: Reporter = SILENT,
) -> Choice:
    """Successive halving over the candidates, on the validation accuracy of students of random real images; `Choice.best` is an index of `candidates`.

    Images nest: those of a smaller number per class are among those of a larger one, and all candidates of a rung share student seeds and validation images. The
    price is about ``0.1 n + 0.3 n / 4 + 3 n / 16`` students for n candidates, beside one pass of each snapshot over the largest set.
    """
    most = max(candidate.ipc for candidate in candidates)
    drawn = replace(problem, streams=problem.streams["choose"], rule=LabelRule(kind="hard"), expert=None)
    images: dict[int, DistilledDataset] = {}
    logits: dict[tuple[int, int], Float[Tensor, "N K"]] = {}

    def chosen(ipc: int) -> DistilledDataset:
        if ipc not in images:
            images[ipc] = run_method(parse_method("random-real"), replace(drawn, counts=(ipc,) * len(problem.train.classes)))
        return images[ipc]

    def spoken(step: int, ipc: int) -> Float[Tensor, "N K"]:
        """The expert's logits for the images of a budget, out of one pass over the largest."""
        if (step, most) not in logits:
            largest = chosen(most)
            logits[step, most] = labeler(step).logits_of(StoredImages(largest), largest.pixels, problem.plan)
        if (step, ipc) not in logits:
            place = {index: row for row, index in enumerate(chosen(most).provenance["indices"])}
            rows = torch.tensor([place[index] for index in chosen(ipc).provenance["indices"]])
            logits[step, ipc] = logits[step, most][rows]
        return logits[step, ipc]

    def make(number: int) -> DistilledDataset:
        candidate = candidates[number]
        dataset = chosen(candidate.ipc)
        if candidate.step is None:
            return dataset
        labels = make_labels(candidate.rule, dataset.owners.long(), spoken(candidate.step, candidate.ipc), len(dataset.classes))
        return replace(dataset, labels=labels)

    return successive_halving(
        range(len(candidates)),
        make,
        problem.network,
        problem.recipe,
        problem.validation,
        streams=problem.streams["choose"],
        plan=problem.plan,
        cache=cache,
        rungs=rungs,
        keep=keep,
        what="the labels",
        reporter=reporter,
    )

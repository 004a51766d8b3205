"""Does what an image of the set influences have something in common beyond its class?"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from limbeck.analyze.attributes import attribute, file_of, usual
from limbeck.analyze.leave_one_out import LeaveOneOutOptions, leave_one_out
from limbeck.analyze.statistics import over_repeats
from limbeck.analyze.subject import Analysis, NotApplicable, Plot, Size, Subject, Work
from limbeck.progress import Reporter
from limbeck.types.measurement import Measurement, Quantity

_RECALLS = tuple(float(value) for value in np.round(np.linspace(0.05, 1, 20), 2))


class SemanticsOptions(LeaveOneOutOptions):
    """Leaving out, and the attributes that are looked for."""

    attributes: tuple[str, ...] = Field(
        (),
        description="of test images: brightness, ink, aspect, symmetry, red, green, blue, planted, csv:PATH:COLUMN; none: all built-in ones that apply",
    )
    least: int = Field(5, ge=1, description="images with and without the attribute that a class must have among the test images")
    shuffles: int = Field(1000, ge=20, description="shuffled attributes behind every null distribution")


@dataclass(frozen=True)
class _Ranked:
    """One attribute in one class: its prevalence, the expected average precision of a random order, the average precision of each own image and of every image
    of other classes, and the same of the best own image under shuffled attributes; precision at `_RECALLS` of the best own image, and its mean under shuffling.
    """

    prevalence: float
    chance: float
    own: dict[int, float]
    others: list[float]
    best: float
    shuffled: np.ndarray
    curve: np.ndarray
    shuffled_curve: np.ndarray

    @property
    def p_values(self) -> np.ndarray:
        """Of the attribute as it is and of every shuffled one [1 + shuffles]: how often the best own image ranks one of all these at least as well (Phipson and
        Smyth 2010: never zero)."""
        best = np.concatenate([[self.best], self.shuffled])
        return (len(best) - np.searchsorted(np.sort(best), best, side="left")) / len(best)


class Semantics(Analysis):
    """Average precision of ranking a class's test images by the influence of an image of the set, for a yes-or-no attribute, against a random order.

    Claim to test: single distilled images hold meaning beyond their class: ranking car images by the influence of some distilled cars finds the yellow ones
    (Yang, Zhu, Deng and Russakovsky 2024, "What is Dataset Distillation Learning?", arXiv 2406.04284, section 5). Test images of one class are ranked by
    ``loss without image j - loss with all`` (see `limbeck.analyze.leave_one_out`), largest first, and ``AP = 1/P sum_r precision at the r-th positive``,
    whose expectation for a random order is above the prevalence (`chance_precision`); `lift` is taken from there, with an interval over classes.

    Two controls: images of OTHER classes rank the same test images; and the attribute is shuffled within the class, for which the best of as many own
    images is taken again, so that the p-value allows for having looked at all of them. `smallest_p_value` and `any_p_value` allow for having looked at all
    classes, and at all attributes, too (`corrected`).

    Departures from the paper, whose code for this is not published: built-in attributes (above the class's median) besides annotated ones, all images of
    the set, both controls. ``planted:invert:SOURCE`` plants an attribute, so that what the analysis finds can be checked.

    Cost: that of exact influence, shared with the analysis `influence` where both train alike.
    """

    name = "semantics"
    title = "Semantics"
    summary = "Do the test images that an image of the set influences most have something in common beyond their class?"
    version = 3
    Options = SemanticsOptions
    smoke: ClassVar[dict[str, Any]] = {
        "model": "mlp:width=4,depth=1", "steps": 8, "lr": 0.1, "noise_points": 1, "test_images": 50, "shuffles": 20, "least": 3,
    }  # fmt: skip
    headline = ("lift", "smallest_p_value", "any_p_value")
    plots = (
        Plot(
            "lift",
            "Average precision above that of a random order",
            x="attribute",
            kind="dots",
            color="ranked by",
            reading="0: the order by influence says nothing about the attribute. Own images above those of other classes: meaning beyond the class.",
        ),
        Plot(
            "precision_recall",
            "Precision and recall of the best own image of a class",
            x="recall",
            color="order",
            panel="attribute",
            reading="The best of several is chosen, so compare with the best of as many under shuffled attributes, not with the prevalence.",
        ),
        Plot("p_value", "p-value of the best image of each class", x="class", kind="heat", color="attribute"),
    )

    def __init__(self, options: SemanticsOptions) -> None:
        self.options = options

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that the measurement depends on beside the subject."""
        return tuple(path for name in self.options.attributes or () if (path := file_of(name)) is not None)

    def work(self, size: Size) -> Work:
        """Training anew without each image."""
        return {self.options.model: self.options.trained(size.images)}

    def measure(self, subject: Subject, reporter: Reporter) -> Measurement:
        options, started = self.options, time.monotonic()
        subject.need_classes("semantics")
        test = subject.test_table(options.test_images)
        names = options.attributes or usual(test)
        unknown = np.zeros(len(test), dtype=int)
        for name in names:  # what cannot be read is refused before anything is trained
            attribute(name, test, unknown, subject.test.size)
        exact = leave_one_out(subject, options, reporter)
        values = {name: attribute(name, exact.test, exact.rows.numpy(), subject.test.size) for name in names}
        generator = subject.streams[self.name].numpy("shuffles")
        owners = subject.dataset.owners.long()[exact.points].numpy()
        classes = subject.dataset.classes
        scores, labels, points = exact.mean.nan_to_num(nan=-torch.inf).numpy(), np.array(exact.test.labels), exact.points.tolist()
        ranked: dict[tuple[str, int], _Ranked] = {}
        notes = [] if exact.finite else ["a network diverged, and its influences are not numbers; use a smaller lr"]
        for name in names:
            for number in range(len(classes)):
                members = (labels == number) & np.isfinite(values[name])
                has = values[name][members] > 0
                if min(has.sum(), (~has).sum()) >= options.least and (owners == number).any():
                    ranked[name, number] = _rank(scores[:, members], has, owners == number, points, options.shuffles, generator)
            if not any(known == name for known, _ in ranked):
                count = int(np.nansum(values[name]))
                notes.append(
                    f"the attribute {name!r} has {count or 'no'} positives among {int(np.isfinite(values[name]).sum())} test images that it is known of, "
                    f"and no class has {options.least} with and {options.least} without it; use more test_images or another attribute"
                )
        if not ranked:
            raise NotApplicable(notes[-1])
        return Measurement(
            analysis=self.name,
            title=self.title,
            quantities=_quantities(ranked, names, len(classes), points),
            axes={
                "attribute": tuple(names),
                "class": classes,
                "image": tuple(points),
                "ranked by": ("images of the class", "images of other classes", "difference"),
                "recall": _RECALLS,
                "order": ("best image", "best image, shuffled attribute"),
            },
            settings={**options.model_dump(mode="json"), "model": str(subject.network_of(options.model).spec), "test_images_used": len(labels)},
            residuals={"noise": exact.noise},
            converged=exact.finite,
            notes=tuple(notes),
            seconds=time.monotonic() - started,
        )


def average_precisions(has: np.ndarray) -> np.ndarray:
    """``AP = 1/P sum_r precision at the r-th positive`` of rows of yes and no in ranked order [..., m]; NaN without a positive."""
    hits = np.cumsum(has, axis=-1)
    precision = hits / np.arange(1, has.shape[-1] + 1)
    positives = hits[..., -1].astype(float)
    return np.divide((precision * has).sum(-1), positives, out=np.full_like(positives, np.nan), where=positives > 0)


def precision_at(has: np.ndarray, recalls: tuple[float, ...]) -> np.ndarray:
    """The best precision at or beyond each recall, of one ranked row [m] (interpolated precision)."""
    hits = np.cumsum(has)
    precision, recall = hits / np.arange(1, len(has) + 1), hits / hits[-1]
    return np.array([precision[recall >= least - 1e-12].max() for least in recalls])


def _rank(scores: np.ndarray, has: np.ndarray, own: np.ndarray, points: list[int], shuffles: int, generator: np.random.Generator) -> _Ranked:
    order = np.argsort(-scores, axis=1, kind="stable")
    found = average_precisions(has[order])
    mine = order[own]
    best = int(np.argmax(found[own]))
    shuffled, curves = [], []
    for _ in range(shuffles):
        mixed = generator.permutation(has)[mine]
        again = average_precisions(mixed)
        shuffled.append(again.max())
        curves.append(precision_at(mixed[int(np.argmax(again))], _RECALLS))
    return _Ranked(
        prevalence=float(has.mean()),
        chance=chance_precision(int(has.sum()), len(has)),
        own={point: float(value) for point, value, is_own in zip(points, found, own, strict=True) if is_own},
        others=found[~own].tolist(),
        best=float(found[own].max()),
        shuffled=np.array(shuffled),
        curve=precision_at(has[mine[best]], _RECALLS),
        shuffled_curve=np.mean(curves, axis=0),
    )


def _quantities(ranked: dict[tuple[str, int], _Ranked], names: tuple[str, ...], classes: int, points: list[int]) -> dict[str, Quantity]:
    shape = (len(names), classes)
    grid = {key: np.full(shape, np.nan) for key in ("prevalence", "best", "shuffled_best", "p_value")}
    each = np.full((len(names), len(points)), np.nan)
    lift, low, high = (np.full((len(names), 3), np.nan) for _ in range(3))
    curves = np.full((len(names), 2, len(_RECALLS)), np.nan)
    for row, name in enumerate(names):
        parts = {number: part for (known, number), part in ranked.items() if known == name}
        for number, part in parts.items():
            facts = part.prevalence, part.best, float(np.quantile(part.shuffled, 0.95)), float(part.p_values[0])
            for key, value in zip(grid, facts, strict=True):
                grid[key][row, number] = value
            for point, value in part.own.items():
                each[row, points.index(point)] = value
        # a class is one observation: its images rank the same test images
        own = np.array([np.mean(list(part.own.values())) - part.chance for part in parts.values()])
        others = np.array([np.mean(part.others) - part.chance if part.others else np.nan for part in parts.values()])
        for column, values in enumerate((own, others, own - others)):
            values = values[np.isfinite(values)]
            if len(values):
                mean = over_repeats(values, (), "classes", "average precision")
                lift[row, column] = mean.values
                if mean.low is not None and mean.high is not None:
                    low[row, column], high[row, column] = mean.low, mean.high
        if parts:
            curves[row] = np.mean([(part.curve, part.shuffled_curve) for part in parts.values()], axis=0)
    return {
        "average_precision": Quantity(each, ("attribute", "image"), "average precision"),
        "lift": Quantity(lift, ("attribute", "ranked by"), "average precision above that of a random order", low, high, "classes"),
        "prevalence": Quantity(grid["prevalence"], ("attribute", "class"), "fraction of the class's test images"),
        "best_average_precision": Quantity(grid["best"], ("attribute", "class"), "average precision"),
        "shuffled_best_average_precision": Quantity(grid["shuffled_best"], ("attribute", "class"), "average precision, 95 % quantile"),
        "p_value": Quantity(grid["p_value"], ("attribute", "class"), "p-value"),
        "smallest_p_value": Quantity(
            np.array([corrected([part.p_values for (known, _), part in ranked.items() if known == name]) for name in names]),
            ("attribute",),
            "smallest p-value, corrected for all classes looked at",
        ),
        "any_p_value": Quantity(
            np.array(corrected([part.p_values for part in ranked.values()])),
            (),
            "smallest p-value, corrected for all classes and attributes looked at",
        ),
        "precision_recall": Quantity(curves, ("attribute", "order", "recall"), "precision, mean over classes"),
    }


def corrected(p_values: Sequence[np.ndarray]) -> float:
    """The p-value of the smallest of several (Westfall and Young 1993, the single-step minimum): how often the smallest among as many shuffled attributes is as
    small. Rows [1 + shuffles] hold the p-value of the attribute as it is, then those of its shuffles; NaN without rows."""
    if not p_values:
        return float("nan")
    smallest = np.min(p_values, axis=0)
    return float((smallest <= smallest[0]).mean())


def chance_precision(positives: int, size: int) -> float:
    """The expected average precision of a random order: ``((P - 1) / (m - 1) (m - H_m) + H_m) / m`` with the harmonic number H_m, above the prevalence P / m."""
    harmonic = float((1 / np.arange(1, size + 1)).sum())
    return ((positives - 1) / max(size - 1, 1) * (size - harmonic) + harmonic) / size

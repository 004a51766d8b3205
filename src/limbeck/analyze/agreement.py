"""Whose mistakes do students of the set make: those of networks stopped early on all real data, or of networks trained on a part of it?"""

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field

from limbeck.analyze.statistics import agreement, bootstrap_images, error_consistency, half_width, percentiles
from limbeck.analyze.students import Trainee, classes_along, draw_balanced, in_steps, predicted_classes, real_examples
from limbeck.analyze.subject import REAL_RECIPE, Analysis, AnalysisOptions, NotApplicable, Plot, Size, Subject, Work, early_steps, sample
from limbeck.data.tables import ImageTable
from limbeck.progress import Reporter
from limbeck.train.examples import Examples
from limbeck.types.measurement import Measurement, Quantity
from limbeck.types.recipe import Recipe


class AgreementOptions(AnalysisOptions):
    """How many networks of each kind, and how long they train."""

    seeds: int = Field(3, ge=1, description="students of the set")
    runs: int = Field(2, ge=1, description="networks trained on all real images and watched along the way")
    epochs: int = Field(1, ge=1, description="epochs of that training")
    snapshots: int = Field(
        24, ge=2, description="moments at which they are watched, evenly on a logarithmic scale, most of them within the first epoch"
    )
    lr: float = Field(REAL_RECIPE.lr, gt=0, description="learning rate of that training")
    batch_size: int = Field(REAL_RECIPE.batch_size, ge=1, description="batch size of that training")
    subset_sizes: int = Field(5, ge=1, description="sizes of the real subsets, from the set's own size up, evenly on a logarithmic scale")
    subset_largest: float = Field(30, ge=1, description="largest subset, in sizes of the set (half of the training images at most)")
    subset_seeds: int = Field(2, ge=1, description="subset-trained networks of each size, each with a draw of its own")
    nearest: int = Field(3, ge=1, description="subset-trained networks, nearest in validation accuracy, that a student is compared with")
    test_images: int | None = Field(2000, ge=1, description="test images; none: all")
    resamples: int = Field(200, ge=20, description="bootstrap resamples behind every interval")
    tolerance: float = Field(0.03, gt=0, description="largest difference in test accuracy at which networks count as matched")


@dataclass(frozen=True)
class _Seen:
    """Predictions of students [S, M], of real runs at each step [R, T, M] and of subset-trained networks [Q, M], and the truth [M]."""

    students: np.ndarray
    runs: np.ndarray
    subsets: np.ndarray
    truth: np.ndarray


class Agreement(Analysis):
    """Agreement ``1/M sum_i [a(x_i) = b(x_i)]`` of the classes that two networks name, and error consistency ``kappa = (c_obs - c_exp) / (1 - c_exp)``.

    Claim to test: a distilled set teaches what networks learn from all real data early in training, so that its students agree more with an early-stopped
    network than with one of the same accuracy that was trained on fewer real images (Yang, Zhu, Deng and Russakovsky 2024, "What is Dataset Distillation
    Learning?", arXiv 2406.04284, section 4). Agreement alone grows with accuracy, so the kappa of being right (Geirhos, Meding and Wichmann 2020,
    arXiv 2006.16736) stands beside it: what two networks' accuracies explain is taken off.

    Students are trained as the set's protocol says, subset-trained networks on real images in the same number of the same steps, early-stopped ones on all
    real images. The early-stop point is found by data: it is the snapshot at which agreement on VALIDATION images is largest, with the bootstrap interval of
    that step; agreement at it is then measured on TEST images. `subset_match` holds, for each student, its `nearest` subset-trained networks in validation
    accuracy. `early_match` are the early-stopped ones at the snapshot of the nearest validation accuracy, so that both have the accuracy of the student.
    Where no network within `tolerance` of the students' accuracy was found, their difference is not given.
    Intervals are Student's, of a variance with one part for the test images (200 bootstrap resamples by default) and one for each kind of network that there
    are several of (jackknife), with Satterthwaite's degrees of freedom; that of the early-stop step, which is a choice among snapshots, holds the percentiles
    of a bootstrap over images and networks, which is too narrow with few networks.

    Departures from the paper: the point is not set by hand, there are several students, accuracies are matched on validation, and chance is taken off.

    Cost: `seeds` students, `runs` trainings of `epochs` epochs on all real images with a pass over validation and test images at each snapshot, and
    `subset_sizes` x `subset_seeds` networks of a student's number of steps.
    """

    name = "agreement"
    title = "Agreement"
    summary = "Whose mistakes do its students make: those of early-stopped networks, or of networks trained on fewer real images?"
    version = 2
    Options = AgreementOptions
    smoke: ClassVar[dict[str, Any]] = {
        "seeds": 2, "runs": 2, "epochs": 3, "snapshots": 5, "lr": 0.1, "batch_size": 16, "subset_sizes": 2, "subset_largest": 4, "resamples": 20, "nearest": 2,
    }  # fmt: skip
    headline = ("early_stop_step", "early_stop_epoch", "matched_agreement", "matched_kappa", "early_minus_subset", "accuracy")
    plots = (
        Plot(
            "agreement_at",
            "Agreement with networks trained on all real images, along their training",
            x="step",
            log=True,
            color="with",
            reading="The peak is where the students of this set are most alike to a network that learns from everything. Two runs of real training at the same "
            "step agree with each other as the second line says.",
        ),
        Plot(
            "kappa_at",
            "Error consistency beyond chance, along their training",
            x="step",
            log=True,
            color="with",
            reading="0: the same errors only as often as two networks of these accuracies would share by chance; 1: the same errors.",
        ),
        Plot("accuracy_at", "Test accuracy along real training", x="step", log=True),
        Plot(
            "matched_agreement",
            "Agreement with networks of the same accuracy",
            x="match",
            kind="dots",
            reading="Early-stopped above subset-trained: the set teaches what is learned first from everything, not what a few images teach.",
        ),
        Plot("matched_kappa", "Error consistency with networks of the same accuracy", x="match", kind="dots"),
    )

    def __init__(self, options: AgreementOptions) -> None:
        self.options = options

    def work(self, size: Size) -> Work:
        """Students, networks on subsets, and runs on all real images with a look at validation and test images at every snapshot."""
        options = self.options
        looks = 2 * options.snapshots * min(options.test_images or size.test, size.test) / 3
        networks = options.seeds + options.subset_sizes * options.subset_seeds
        return {None: networks * size.student + options.runs * (options.epochs * size.train + looks)}

    def measure(self, subject: Subject, reporter: Reporter) -> Measurement:
        options, started = self.options, time.monotonic()
        subject.need_classes("agreement")
        test = subject.test_table(options.test_images)
        if len(subject.validation) == 0:
            raise NotApplicable("agreement finds the early-stop point on validation images, and there are none; use --validation 0.1")
        validation = sample(subject.validation, options.test_images, subject.streams.seed("validation"))
        tables = {"test": test, "validation": validation}
        recipe = REAL_RECIPE.with_(epochs=options.epochs, lr=options.lr, batch_size=options.batch_size)
        steps = early_steps(recipe.total_steps(len(subject.train)), options.snapshots)
        students = predicted_classes(subject, self._students(subject), tables, reporter, "agreement: students of the set")
        subsets, sizes = self._subsets(subject)
        fewer = predicted_classes(subject, subsets, tables, reporter, "agreement: networks on fewer real images")
        runs, digests = self._runs(subject, tables, recipe, steps, reporter)
        seen = {
            name: _Seen(students[name].numpy(), runs[name].numpy(), fewer[name].numpy(), np.asarray(table.labels)) for name, table in tables.items()
        }
        quantities, notes = self._quantities(seen, np.array(steps), sizes, subject.streams[self.name].numpy("bootstrap"))
        per_epoch = recipe.steps_per_epoch(len(subject.train))
        quantities["early_stop_epoch"] = _divided(quantities["early_stop_step"], per_epoch, "epochs of real training")
        return Measurement(
            analysis=self.name,
            title=self.title,
            quantities=quantities,
            axes={
                "step": steps,
                "with": ("students of the set", "other real runs"),
                "match": ("early-stopped", "subset-trained"),
                "network": ("students of the set", "early-stopped, matched", "subset-trained, matched"),
                "subset": tuple(range(len(sizes))),
            },
            settings={
                **options.model_dump(mode="json"),
                "test_images_used": len(test),
                "validation_images_used": len(validation),
                "real_recipe": recipe.model_dump(mode="json"),
                "networks": digests,
                "steps_per_epoch": per_epoch,
            },
            notes=tuple(notes),
            seconds=time.monotonic() - started,
        )

    def _students(self, subject: Subject) -> list[Trainee]:
        streams = subject.streams[self.name]
        examples = Examples.of_distilled(subject.dataset)
        size = len(subject.dataset)
        return [
            Trainee(lambda: examples, size, streams["student", number], subject.recipe, {"on": "the set"}) for number in range(self.options.seeds)
        ]

    def _subsets(self, subject: Subject) -> tuple[list[Trainee], list[int]]:
        """Real subsets of growing size, with every class in proportion to the set's own counts."""
        options, streams = self.options, subject.streams[self.name]
        counts = np.bincount(subject.dataset.owners.numpy(), minlength=len(subject.dataset.classes))
        available = np.bincount(subject.train.labels, minlength=len(counts))
        recipe = in_steps(subject.recipe, len(subject.dataset)).with_(loss="cross-entropy")
        largest = max(1.0, min(options.subset_largest, len(subject.train) / 2 / len(subject.dataset)))
        made, sizes = [], []
        for place, factor in enumerate(np.geomspace(1, largest, options.subset_sizes)):
            wanted = np.minimum(np.round(counts * factor).astype(int), available)
            for number in range(options.subset_seeds):
                drawn = draw_balanced(subject.train, wanted.tolist(), streams.torch("subset", place, number))
                task = {"on": "real images", "size": int(wanted.sum()), "place": place, "number": number}
                examples = partial(real_examples, subject, drawn)
                made.append(Trainee(examples, len(drawn), streams["subset-trained", place, number], recipe, task))
                sizes.append(len(drawn))
        return made, sizes

    def _runs(
        self, subject: Subject, tables: dict[str, ImageTable], recipe: Recipe, steps: tuple[int, ...], reporter: Reporter
    ) -> tuple[dict[str, torch.Tensor], list[str]]:
        seen: dict[str, list[torch.Tensor]] = {name: [] for name in tables}
        digests = []
        for number in range(self.options.runs):
            trajectory = subject.real_trajectory(reporter, number=number, recipe=recipe, steps=steps)
            made = classes_along(subject, trajectory, tables, reporter, f"agreement: run {number + 1} looks at {len(steps)} steps")
            for name in tables:
                seen[name].append(made[name])
            digests.append(trajectory.last.digest)
        return {name: torch.stack(rows) for name, rows in seen.items()}, digests

    def _quantities(
        self, seen: dict[str, _Seen], steps: np.ndarray, sizes: list[int], generator: np.random.Generator
    ) -> tuple[dict[str, Quantity], list[str]]:
        options = self.options
        test, held = seen["test"], seen["validation"]
        count = {"students": len(test.students), "runs": len(test.runs), "subsets": len(test.subsets)}
        drawn = {
            name: np.vstack([np.ones((1, len(part.truth))), bootstrap_images(len(part.truth), options.resamples, generator)])
            for name, part in seen.items()
        }
        shares = _Shares.of(test, drawn["test"]), _Shares.of(held, drawn["validation"])
        every = _results(*shares, 0, {name: np.arange(number) for name, number in count.items()}, options.nearest)
        all_of = {name: np.arange(number) for name, number in count.items()}
        replicates: dict[str, list[np.ndarray]] = {name: [] for name in every}
        chosen_anew: dict[str, list[np.ndarray]] = {name: [] for name in _CHOICES}
        for number in range(1, options.resamples + 1):
            for name, value in _results(*shares, number, all_of, options.nearest).items():
                replicates[name].append(value)
            chosen = {name: generator.integers(0, size, size) for name, size in count.items()}
            again = _results(*shares, number, chosen, options.nearest)
            for name in _CHOICES:
                chosen_anew[name].append(again[name])
        left_out = {
            kind: [_results(*shares, 0, all_of | {kind: np.delete(all_of[kind], place)}, options.nearest) for place in range(size)]
            for kind, size in count.items()
            if size > 1
        }
        kinds = {"students": "students", "runs": "real runs", "subsets": "subset-trained networks"}
        covers = ", ".join(["test images", *(words for name, words in kinds.items() if count[name] > 1)])

        def quantity(name: str, axes: tuple[str, ...], unit: str) -> Quantity:
            half = half_width(np.stack(replicates[name]), [np.stack([part[name] for part in parts]) for parts in left_out.values()])
            low, high = every[name] - half, every[name] + half
            if unit.startswith("fraction"):
                low, high = low.clip(0, 1), high.clip(0, 1)
            return Quantity(every[name], axes, unit, np.asarray(low), np.asarray(high), covers)

        at_step = covers.replace("test", "validation")
        quantities = {
            "agreement_at": quantity("agreement_at", ("with", "step"), "fraction of test images"),
            "kappa_at": quantity("kappa_at", ("with", "step"), "Cohen's kappa of being right"),
            "accuracy_at": quantity("accuracy_at", ("step",), "fraction of test images"),
            "agreement_at_early_stop": quantity("agreement_at_early_stop", (), "fraction of test images"),
            "kappa_at_early_stop": quantity("kappa_at_early_stop", (), "Cohen's kappa of being right"),
            "accuracy": quantity("accuracy", ("network",), "fraction of test images"),
            "matched_agreement": quantity("matched_agreement", ("match",), "fraction of test images"),
            "matched_kappa": quantity("matched_kappa", ("match",), "Cohen's kappa of being right"),
            "early_minus_subset": quantity("early_minus_subset", (), "difference of fractions of test images"),
            "early_minus_subset_kappa": quantity("early_minus_subset_kappa", (), "difference of kappa"),
            "students_agree": quantity("students_agree", (), "fraction of test images, between students of the set"),
        }
        for name, source in (("early_stop_step", "early_stop"), ("accuracy_match_step", "accuracy_match")):
            low, high = percentiles(steps[np.stack(chosen_anew[source])].astype(float))
            quantities[name] = Quantity(np.array(float(steps[every[source]])), (), "steps of real training", low, high, at_step)
        notes = _unmatched(quantities, options.tolerance)
        quantities["subset_accuracy"] = Quantity((test.subsets == test.truth).mean(1), ("subset",), "fraction")
        quantities["subset_size"] = Quantity(np.array(sizes, dtype=float), ("subset",), "images")
        agree = agreement(test.students[:, None], test.subsets[None]).mean(0)
        quantities["subset_agreement"] = Quantity(agree, ("subset",), "fraction of test images")
        point = quantities["early_stop_step"]
        if point.high is not None and point.high == steps[-1]:
            notes.append("the interval of the early-stop point reaches the last snapshot, so the point may lie later; use more epochs")
        return quantities, notes


@dataclass(frozen=True)
class _Shares:
    """For every resample b (0: the images as they are), the fraction of images on which pairs of networks name the same class (`same`), on which both are
    right or both wrong (`alike`), and on which one is right; the resample is the last axis."""

    same_run: np.ndarray
    alike_run: np.ndarray
    same_subset: np.ndarray
    alike_subset: np.ndarray
    same_real: np.ndarray
    alike_real: np.ndarray
    same_student: np.ndarray
    student: np.ndarray
    run: np.ndarray
    subset: np.ndarray

    @staticmethod
    def of(seen: _Seen, counts: np.ndarray) -> "_Shares":
        """`counts` [B, M] says how often each image is in each resample."""
        weights = counts.T.astype(np.float32)  # whole numbers: their sums are exact

        def share(equal: np.ndarray) -> np.ndarray:
            return (equal.astype(np.float32) @ weights).astype(np.float64) / len(seen.truth)

        def pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            # one network at a time: all pairs of all steps at once would not fit in memory
            return np.stack([np.stack([share(one == other) for other in second]) for one in first])

        students, runs, subsets = seen.students, seen.runs, seen.subsets
        right = [part == seen.truth for part in (students, runs, subsets)]
        return _Shares(
            pairs(students, runs),
            pairs(right[0], right[1]),
            pairs(students, subsets),
            pairs(right[0], right[2]),
            pairs(runs, runs),
            pairs(right[1], right[1]),
            pairs(students, students),
            *(share(part) for part in right),
        )


def _results(test: _Shares, held: _Shares, resample: int, chosen: dict[str, np.ndarray], nearest: int) -> dict[str, np.ndarray]:
    """Every number of the analysis, on one resample of the images and the chosen networks (with repeats when those are resampled)."""
    s, r, q = chosen["students"], chosen["runs"], chosen["subsets"]
    student, run, subset = test.student[s, resample], test.run[r, :, resample], test.subset[q, resample]
    held_student, held_run, held_subset = held.student[s, resample], held.run[r, :, resample], held.subset[q, resample]
    agree = test.same_run[np.ix_(s, r)][..., resample]
    kappa = error_consistency(test.alike_run[np.ix_(s, r)][..., resample], student[:, None, None], run[None])
    other_agree, other_kappa = _between(test.same_real[np.ix_(r, r)][..., resample], test.alike_real[np.ix_(r, r)][..., resample], run, r)
    # the point is found on validation and measured on test
    point = int(held.same_run[np.ix_(s, r)][..., resample].mean((0, 1)).argmax())
    close = np.abs(held_run[None] - held_student[:, None, None]).argmin(-1)  # [S, R]: the snapshot of each run nearest in accuracy to each student
    rows, columns = np.indices(close.shape)
    order = np.abs(held_subset[None] - held_student[:, None]).argsort(1, kind="stable")[:, :nearest]
    same_subset = np.take_along_axis(test.same_subset[np.ix_(s, q)][..., resample], order, 1)
    kappa_subset = error_consistency(test.alike_subset[np.ix_(s, q)][..., resample], student[:, None], subset[None])
    early, early_kappa = agree[rows, columns, close].mean(), _mean(kappa[rows, columns, close])
    fewer, fewer_kappa = same_subset.mean(), _mean(np.take_along_axis(kappa_subset, order, 1))
    between = test.same_student[np.ix_(s, s)][..., resample][s[:, None] != s[None]]
    return {
        "agreement_at": np.stack([agree.mean((0, 1)), other_agree]),
        "kappa_at": np.stack([_mean(kappa, (0, 1)), other_kappa]),
        "accuracy_at": run.mean(0),
        "early_stop": np.array(point),
        "accuracy_match": np.array(np.abs(held_run.mean(0) - held_student.mean()).argmin()),
        "agreement_at_early_stop": np.array(agree[:, :, point].mean()),
        "kappa_at_early_stop": np.array(_mean(kappa[:, :, point])),
        "accuracy": np.array([student.mean(), run[columns, close].mean(), subset[order].mean()]),
        "matched_agreement": np.array([early, fewer]),
        "matched_kappa": np.array([early_kappa, fewer_kappa]),
        "early_minus_subset": np.array(early - fewer),
        "early_minus_subset_kappa": np.array(early_kappa - fewer_kappa),
        "students_agree": np.array(between.mean() if between.size else np.nan),
    }


def _between(same: np.ndarray, alike: np.ndarray, accuracy: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Agreement and kappa [T] of different runs at the same step; NaN with one run."""
    apart = chosen[:, None] != chosen[None]
    if not apart.any():
        nothing = np.full(same.shape[-1], np.nan)
        return nothing, nothing
    kappa = error_consistency(alike, accuracy[:, None], accuracy[None])
    return same[apart].mean(0), _mean(kappa[apart], 0)


def _mean(values: np.ndarray, axis: Any = None) -> np.ndarray:
    """The mean of what is known; NaN where nothing is."""
    known = ~np.isnan(values)
    count = known.sum(axis)
    total = np.where(known, values, 0).sum(axis)
    return np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)


def _divided(quantity: Quantity, by: int, unit: str) -> Quantity:
    values, low, high = (None if part is None else np.asarray(part / by) for part in (quantity.values, quantity.low, quantity.high))
    assert values is not None
    return Quantity(values, quantity.axes, unit, low, high, quantity.covers)


def _unmatched(quantities: dict[str, Quantity], tolerance: float) -> list[str]:
    """Takes back the comparison of early-stopped with subset-trained networks where either are not as accurate as the students; returns why, in sentences."""
    own, early, fewer = (float(value) for value in quantities["accuracy"].values)
    notes = []
    for value, words, cure in ((early, "early-stopped", "epochs"), (fewer, "subset-trained", "subset_largest")):
        if abs(value - own) > tolerance:
            notes.append(
                f"the {words} networks nearest in accuracy reach {100 * value:.1f} % and the students {100 * own:.1f} %, so they are not matched, and "
                f"early-stopped and subset-trained networks are not compared; use more {cure}"
            )
    if notes:
        for name in ("early_minus_subset", "early_minus_subset_kappa"):
            nothing = np.array(np.nan)
            quantities[name] = replace(quantities[name], values=nothing, low=nothing, high=nothing)
    return notes


#: Results that are a choice among snapshots.
_CHOICES = ("early_stop", "accuracy_match")

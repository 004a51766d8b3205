"""Can the distilled images take the place of real ones: what happens when real images are added, and when training changes?"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from limbeck.analyze.statistics import over_repeats
from limbeck.analyze.students import Trainee, accuracy_of, as_set, draw_balanced, images_of_set_in, in_steps, predicted_classes
from limbeck.analyze.subject import REAL_RECIPE, Analysis, AnalysisOptions, NotApplicable, Plot, Size, Subject, Work
from limbeck.data.tables import Subset
from limbeck.experts.expert import Labeler
from limbeck.labels.rules import soften
from limbeck.progress import Reporter
from limbeck.train.examples import Examples
from limbeck.types.measurement import Measurement, Quantity
from limbeck.types.recipe import Recipe

CURES = ("none", "soft labels on the added", "equal weight", "matched statistics", "regularized", "augmented")
BASES = ("distilled", "real")


class MixingOptions(AnalysisOptions):
    """How many real images are added, the cures, and the settings that are varied."""

    added: tuple[Annotated[int, Field(ge=0)], ...] = Field((0, 2, 10, 50, 250), min_length=1, description="real images of each class that are added")
    seeds: int = Field(3, ge=1, description="students of every kind, each with a draw of its own of the real images")
    cures_at: int = Field(10, ge=0, description="real images of each class that are added where the cures are tried; 0: no cures")
    weight_decay: float = Field(5e-3, ge=0, description="weight decay of the regularized cure")
    augment: str = Field("dsa:color_crop_cutout_scale_rotate", description="augmentation of the augmented cure and setting")
    sensitivity: bool = Field(True, description="also vary optimizer, learning rate, batch, steps and augmentation, without added images")
    teacher_epochs: int = Field(
        2, ge=1, description="epochs of the expert that labels real images, where the one that labeled the set is not at hand"
    )
    steps: int | None = Field(None, ge=1, description="steps of every student; default: as the set's protocol takes over the set alone")
    test_images: int | None = Field(2000, ge=1, description="test images; none: all")


@dataclass(frozen=True)
class _Arm:
    """A kind of student: on which base, under which labels, with how many added images, how cured, in which setting."""

    base: str
    labels: str
    added: int = 0
    cure: str = "none"
    setting: str = "standard"


class Mixing(Analysis):
    """Test accuracy of students of ``distilled + n real images per class``, beside a control of ``as many real + the same n real images per class``.

    Claim to test: distilled images do not stand for real ones outside the training that they were made for: added real images may lower the accuracy, and
    other optimizers, rates, batches, lengths and augmentations may too (Yang, Zhu, Deng and Russakovsky 2024, "What is Dataset Distillation Learning?",
    arXiv 2406.04284, section 3). Every student takes the same number of steps by the same recipe (the set's protocol), so that only the data differ. The
    control and the added images are disjoint draws, new for every seed and nested over n; both bases get the same added images and the same seeds, so
    differences are paired. Real images that are themselves in the set are never drawn.

    `labels`: ``hard``, where all images have their class alone; ``own``, where the distilled images keep their stored labels, the control's base has the soft
    labels of the expert that labeled the set (or, where that is not at hand, of a network trained for this on all real images), and added images are hard.
    Cures, each tried on both bases under the last of these kinds of labels: the added images under the expert's soft labels; `equal weight`, base and added
    images each half of the loss (label rows scaled, for cross-entropy); `matched statistics`, the base's network inputs shifted and scaled channel by channel
    to the mean and deviation of the added ones, which takes the place of separate normalization layers, since networks here normalize each image by itself;
    stronger weight decay; augmentation.

    Departures from the paper: several seeds, paired and with intervals; disjoint draws for the control; soft labels; cures.

    Cost: with the default options (2 label kinds x 5 counts + 5 cures + 9 settings) x 2 bases x 3 seeds = 144 students of the protocol's length; a set with
    hard labels has one kind of labels. `seeds`, `added`, `cures_at` and `sensitivity` divide that.
    """

    name = "mixing"
    title = "Mixing"
    summary = "Can its images take the place of real ones: when real images are added, and when training changes?"
    version = 1
    Options = MixingOptions
    smoke: ClassVar[dict[str, Any]] = {"added": (2,), "seeds": 2, "cures_at": 2, "steps": 5, "sensitivity": False, "teacher_epochs": 1}
    headline = ("accuracy", "advantage", "cure_gain", "setting_gain")
    plots = (
        Plot(
            "accuracy",
            "Test accuracy when real images are added",
            x="added",
            color="base",
            panel="labels",
            log=True,
            reading="The control shows what the same added images do for as many real ones. A line that dips, or a control that overtakes, says that these "
            "images do not stand for real ones.",
        ),
        Plot("gain", "What the added images gain over none, paired", x="added", color="base", panel="labels", log=True),
        Plot("cured", "Test accuracy of each cure", x="cure", color="base", kind="dots"),
        Plot("sensitivity", "Test accuracy in other training settings, nothing added", x="setting", color="base", kind="dots"),
    )

    def __init__(self, options: MixingOptions) -> None:
        self.options = options

    def work(self, size: Size) -> Work:
        """All students; those with added images take as many steps, whose batches grow with the set until they are full."""
        options = self.options
        kinds = 2 * len({0, *options.added}) + (len(CURES) if options.cures_at else 0) + (11 if options.sensitivity else 0)
        return {None: 2.0 * options.seeds * kinds * (options.steps or size.steps) * size.batch}

    def measure(self, subject: Subject, reporter: Reporter) -> Measurement:
        options, started = self.options, time.monotonic()
        subject.need_classes("mixing")
        test = subject.test_table(options.test_images)
        labels, notes = self._label_kinds(subject)
        teacher = self._teacher(subject, labels, notes, reporter)
        added = tuple(sorted({0, *options.added}))
        recipe = in_steps(subject.recipe, len(subject.dataset), options.steps)
        draws = [_Draw(subject, teacher, seed, max([*added, options.cures_at])) for seed in range(options.seeds)]
        notes += draws[0].notes
        cures = self._cures(recipe, labels, notes) if options.cures_at else ()
        settings = _settings(recipe, len(subject.dataset), options.augment) if options.sensitivity else {}
        arms = [_Arm(base, kind, count) for base in BASES for kind in labels for count in added]
        arms += [_Arm(base, labels[-1], options.cures_at, cure) for base in BASES for cure in cures]
        arms += [_Arm(base, labels[-1], setting=setting) for base in BASES for setting in settings]
        arms = list(dict.fromkeys(arms))
        trainees = [self._trainee(arm, draw, recipe, settings) for arm in arms for draw in draws]
        seen = predicted_classes(subject, trainees, {"test": test}, reporter, f"mixing: {len(arms)} kinds of student")["test"]
        accuracy = dict(zip(arms, accuracy_of(seen, test).reshape(len(arms), options.seeds), strict=True))
        settled = {"test_images_used": len(test), "recipe": recipe.model_dump(mode="json"), "expert": None if teacher is None else teacher.digest}
        return self._measurement(subject, accuracy, labels, added, cures, tuple(settings), notes, settled, started)

    def _measurement(
        self,
        subject: Subject,
        accuracy: dict[_Arm, np.ndarray],
        labels: tuple[str, ...],
        added: tuple[int, ...],
        cures: tuple[str, ...],
        settings: tuple[str, ...],
        notes: list[str],
        settled: dict[str, Any],
        started: float,
    ) -> Measurement:
        options = self.options
        covers = "students and draws of the real images"
        mixed = np.array([[[accuracy[_Arm(base, kind, count)] for count in added] for kind in labels] for base in BASES])
        axes = ("base", "labels", "added")
        quantities: dict[str, Quantity] = {
            "accuracy": over_repeats(mixed, axes, covers, "fraction of test images"),
            "gain": over_repeats(mixed - mixed[:, :, :1], axes, covers, "difference of fractions, from nothing added, paired"),
            "advantage": over_repeats(mixed[0] - mixed[1], axes[1:], covers, "difference of fractions, distilled minus control, paired"),
        }
        if cures:
            cured = np.array([[accuracy[_Arm(base, labels[-1], options.cures_at, cure)] for cure in cures] for base in BASES])
            quantities["cured"] = over_repeats(cured, ("base", "cure"), covers, "fraction of test images")
            quantities["cure_gain"] = over_repeats(cured - cured[:, :1], ("base", "cure"), covers, "difference of fractions, from no cure, paired")
        if settings:
            varied = np.array([[accuracy[_Arm(base, labels[-1], setting=setting)] for setting in settings] for base in BASES])
            quantities["sensitivity"] = over_repeats(varied, ("base", "setting"), covers, "fraction of test images")
            quantities["setting_gain"] = over_repeats(
                varied - varied[:, :1], ("base", "setting"), covers, "difference of fractions, from standard, paired"
            )
        if options.seeds == 1:
            notes.append("one seed, so there are no intervals; use --seeds 3")
        return Measurement(
            analysis=self.name,
            title=self.title,
            quantities=quantities,
            axes={"base": BASES, "labels": labels, "added": added, "cure": cures, "setting": settings},
            settings={
                **options.model_dump(mode="json"),
                "distilled_images": len(subject.dataset),
                "labels_of_cures_and_settings": labels[-1],
                **settled,
            },
            notes=tuple(notes),
            seconds=time.monotonic() - started,
        )

    def _label_kinds(self, subject: Subject) -> tuple[tuple[str, ...], list[str]]:
        if subject.dataset.views is not None:
            return ("hard",), [
                "the labels of this set are of augmented views, which added images do not have, so its images are mixed under hard labels alone"
            ]
        if subject.dataset.labels.kind == "hard":
            return ("hard",), []
        return ("hard", "own"), []

    def _teacher(self, subject: Subject, labels: tuple[str, ...], notes: list[str], reporter: Reporter) -> Labeler | None:
        """Who labels real images: the expert that labeled the set, or else a network trained for it; nobody where no image is to have soft labels."""
        if subject.labeler is not None or (labels == ("hard",) and not self.options.cures_at):
            return subject.labeler
        recipe = REAL_RECIPE.with_(epochs=self.options.teacher_epochs)
        steps = (0, recipe.total_steps(len(subject.train)))
        trajectory = subject.real_trajectory(reporter, recipe=recipe, steps=steps)
        notes.append(f"soft labels of real images are those of a network trained for this, {self.options.teacher_epochs} epochs on all real images")
        return trajectory.at(steps[-1])

    def _cures(self, recipe: Recipe, labels: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
        if recipe.loss == "cross-entropy" or labels[-1] == "hard":
            return CURES
        notes.append(f"weights are scaled label rows, which mean nothing to the loss {recipe.loss!r} of this protocol, so that cure is left out")
        return tuple(cure for cure in CURES if cure != "equal weight")

    def _trainee(self, arm: _Arm, draw: "_Draw", recipe: Recipe, settings: dict[str, dict[str, Any]]) -> Trainee:
        options = self.options
        changes = dict(settings.get(arm.setting, {}))
        if arm.cure == "regularized":
            changes["weight_decay"] = options.weight_decay
        if arm.cure == "augmented":
            changes["augment"] = options.augment
        if arm.labels == "hard":
            changes["loss"] = "cross-entropy"
        task = {**vars(arm), "seed": draw.seed, "teacher": None if draw.teacher is None else draw.teacher.digest}
        # the same student for every arm of a seed: equal initialization, paired differences
        return Trainee(
            partial(draw.examples, arm), draw.size(arm), draw.subject.streams[self.name]["student", draw.seed], recipe.with_(**changes), task
        )


class _Draw:
    """The real images of one seed: the control's base, and the images to add, nested over their number; class by class, no record twice, none of the set's."""

    def __init__(self, subject: Subject, teacher: Labeler | None, seed: int, most: int) -> None:
        self.subject, self.teacher, self.seed = subject, teacher, seed
        counts = np.bincount(subject.dataset.owners.numpy(), minlength=len(subject.dataset.classes))
        generator = subject.streams[Mixing.name].torch("draw", seed)
        used = images_of_set_in(subject.dataset, subject.train)
        self.base = draw_balanced(subject.train, counts.tolist(), generator, used)
        used[self.base] = True
        order = draw_balanced(subject.train, [most] * len(counts), generator, used)
        self.order, self.place = order, _places(subject.train.labels[order])
        fewest = int(np.bincount(subject.train.labels[order], minlength=len(counts)).min())
        self.notes = [f"a class has {fewest} images to add, fewer than {most}, and gives all of them"] if fewest < most else []
        if len(self.base) == 0:
            raise NotApplicable("mixing needs real training images beside those of the set, and there are none left; use a larger source")

    def size(self, arm: _Arm) -> int:
        """How many images the arm has."""
        base = len(self.subject.dataset) if arm.base == "distilled" else len(self.base)
        return base + int((self.place < arm.added).sum())

    def examples(self, arm: _Arm) -> Examples:
        """What the arm's students are trained on, in network space with dense label rows."""
        subject = self.subject
        added = self.order[self.place < arm.added]
        inputs, owners = self._real(added)
        if arm.base == "distilled":
            base, base_owners = subject.dataset.inputs(), subject.dataset.owners.long()
            rows = subject.dataset.targets() if arm.labels == "own" else self._hard(base_owners)
        else:
            base, base_owners = self._real(self.base)
            rows = self._soft(self.base) if arm.labels == "own" else self._hard(base_owners)
        more = self._soft(added) if arm.cure == CURES[1] and len(added) else self._hard(owners)
        if arm.cure == "equal weight" and len(added):
            total = len(base) + len(added)
            rows, more = rows * total / (2 * len(base)), more * total / (2 * len(added))
        if arm.cure == "matched statistics" and len(added) > 1:
            base = matched(base, inputs)
        return Examples.of_distilled(as_set(subject, torch.cat([base, inputs]), torch.cat([base_owners, owners]), torch.cat([rows, more])))

    def _real(self, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        table = self.subject.train
        return self.subject.pixels(table.read(indices)), torch.from_numpy(table.labels[indices].copy())

    def _hard(self, owners: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(owners, len(self.subject.dataset.classes)).float()

    def _soft(self, indices: np.ndarray) -> Tensor:
        assert self.teacher is not None
        return soften(self.teacher.logits(Subset(self.subject.train, indices), self.subject.plan), self.subject.dataset.labels.temperature)


def matched(images: Tensor, like: Tensor) -> Tensor:
    """Images [N, C, H, W] shifted and scaled to the mean and standard deviation, over images and pixels, of each channel of `like`."""
    dims = (0, 2, 3)
    mean, std = images.mean(dims, keepdim=True), images.std(dims, keepdim=True).clamp_min(1e-6)
    return (images - mean) / std * like.std(dims, keepdim=True) + like.mean(dims, keepdim=True)


def _places(labels: np.ndarray) -> np.ndarray:
    """The number of each record within its class, in order."""
    place = np.zeros(len(labels), dtype=np.int64)
    for number in np.unique(labels):
        members = np.flatnonzero(labels == number)
        place[members] = np.arange(len(members))
    return place


def _settings(recipe: Recipe, images: int, augment: str) -> dict[str, dict[str, Any]]:
    """Changes of the recipe around the standard setting, by name."""
    steps = recipe.steps or 1
    other: dict[str, Any] = {"optimizer": "adam", "lr": 1e-3, "weight_decay": 0.0} if recipe.optimizer == "sgd" else {"optimizer": "sgd", "lr": 0.01}
    return {
        "standard": {},
        other["optimizer"]: other,
        "rate x 0.1": {"lr": recipe.lr * 0.1},
        "rate x 10": {"lr": recipe.lr * 10},
        "constant rate": {"schedule": "constant"},
        "small batches": {"batch_size": max(2, min(recipe.batch_size, images) // 8)},
        "steps x 0.3": {"steps": max(1, round(steps * 0.3))},
        "steps x 3": {"steps": steps * 3},
        "augmented": {"augment": augment} if recipe.augment == "none" else {"augment": "none"},
    }

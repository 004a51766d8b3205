"""The interface of all analyses: what they are given (`Subject`), what they are (`Analysis`), and how their quantities are drawn (`Plot`)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from limbeck import store
from limbeck.cache import Cache
from limbeck.data.splits import TestHandle, scores
from limbeck.data.tables import ImageTable, Subset
from limbeck.errors import FileFormatError, LimbeckError
from limbeck.evaluate.evaluate import check_fit
from limbeck.experts.expert import Labeler
from limbeck.experts.trajectory import Trajectory
from limbeck.models import parse_model
from limbeck.progress import Reporter
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.train.plan import plan_for
from limbeck.types.distilled import DistilledDataset
from limbeck.types.measurement import Measurement
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

#: How networks are trained on real data to compare with: the setting of Yang et al. 2024 (arXiv 2406.04284), whose length each analysis sets.
REAL_RECIPE = Recipe(optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=0, batch_size=256, epochs=1)
_KIND = "part of an analysis"

#: ``(network, recipe, number, steps, reporter) -> trajectory``: trains network `number` on all real data, or finds it, with snapshots at `steps`.
Trajectories = Callable[[Network, Recipe, int, tuple[int, ...], Reporter], Trajectory]


class NotApplicable(LimbeckError):
    """An analysis that cannot work on this set or here (one class, no test images, a missing extra): one sentence. With ``--all`` it is skipped, not an error."""


class AnalysisOptions(BaseModel):
    """Options of an analysis: plain values with defaults that suit two CPU cores. A field `seeds` counts repeats; the command line's ``--seeds`` sets it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Plot:
    """How to draw one quantity of a measurement, as data; `limbeck.report` draws it.

    - ``line``: axis `x` (numbers) across, the quantity up, one line for each coordinate of axis `color`, bands where there are intervals;
    - ``dots``: axis `x` (words or numbers) down, the quantity across, intervals as rules, colors by axis `color`;
    - ``heat``: axis `x` across, axis `color` down, the quantity as shade;
    - ``scatter``: the quantity has axes (`x`, an axis of two coordinates); `color` and `shape` then name QUANTITIES over axis `x` (numbers; `words` names them);
    - ``gallery``: the quantity [distilled image, rank] holds rows of the test table, shown as pictures beside the distilled image. Axis `x` is the
      distilled image's number.

    `panel` names an axis whose coordinates get a drawing each; further axes of the quantity are averaged. `log` spaces `x` logarithmically (0 is kept).
    `reading` says in a sentence or two how to read it.
    """

    quantity: str
    title: str
    x: str
    kind: Literal["line", "dots", "heat", "scatter", "gallery"] = "line"
    color: str | None = None
    shape: str | None = None
    panel: str | None = None
    log: bool = False
    words: Mapping[str, tuple[str, ...]] | None = None
    reading: str = ""


@dataclass(frozen=True)
class Size:
    """What decides the cost of an analysis: images of the set, of train and of test, steps of a student's training on the set and images of each."""

    images: int
    train: int
    test: int
    steps: int
    batch: int

    @property
    def student(self) -> int:
        """Images that a student's training goes through."""
        return self.steps * self.batch


#: Images that an analysis takes forward and backward, by the network that takes them; None is the students' own.
Work = Mapping[str | None, float | int]


@runtime_checkable
class Analysis(Protocol):
    """One analysis: options, a sentence, and a measurement.

    `version` is raised whenever a number could change: finished measurements are kept under it. `smoke` holds options with which it runs in seconds on 8x8
    images. `headline` names the quantities (scalars, or of one short axis) that the terminal shows.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    version: ClassVar[int]
    Options: ClassVar[type[AnalysisOptions]]
    smoke: ClassVar[dict[str, Any]]
    headline: ClassVar[tuple[str, ...]]
    plots: ClassVar[tuple[Plot, ...]]

    def __init__(self, options: Any) -> None: ...

    def work(self, size: Size) -> Work:
        """About what measuring takes, when nothing is cached: its price before it is run."""
        ...

    def measure(self, subject: "Subject", reporter: Reporter) -> Measurement:
        """Measures; draws from ``subject.streams[name]`` alone. Raises `NotApplicable` where it cannot, before anything expensive."""
        ...


@dataclass(frozen=True)
class Subject:
    """A distilled set with everything that an analysis may use.

    `pixels` is the pixel space of real images (the set has its own, ``dataset.pixels``). `network`, `recipe` and `plan` are those of the set's students, by the
    protocol that `protocol` names. `labeler` is the expert that labeled the set, where it is at hand. `threads` is what the user asked for, for plans of
    other networks (`plan_for`).
    """

    dataset: DistilledDataset
    train: ImageTable
    validation: ImageTable
    test: TestHandle
    pixels: PixelSpace
    network: Network
    recipe: Recipe
    protocol: str
    streams: Streams
    plan: ExecutionPlan
    cache: Cache
    trajectories: Trajectories
    labeler: Labeler | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        check_fit(self.dataset, self.train)

    def test_table(self, most: int | None = None) -> ImageTable:
        """The test images, to measure on; with `most`, a sample of them that depends on their content and the seed alone. Raises `NotApplicable` if none."""
        if self.test.size == 0:
            raise NotApplicable("there are no test images, so nothing can be measured; use a source with more images")
        return sample(self.test.open_for_measurement(), most, self.streams.seed("test"))

    def network_of(self, model: str | None) -> Network:
        """A named architecture for these images and classes; None is the students' own."""
        return self.network if model is None else Network(parse_model(model), self.network.shape, self.network.classes)

    def plan_for(self, network: Network, images: int, batch: int) -> ExecutionPlan:
        """The plan of another job, on the same device: see `limbeck.train.plan.plan_for`."""
        return plan_for(network, images, batch=batch, device=self.plan.device, threads=self.threads)

    def real_trajectory(
        self, reporter: Reporter, *, model: str | None = None, number: int = 0, recipe: Recipe = REAL_RECIPE, steps: tuple[int, ...]
    ) -> Trajectory:
        """Network `number` of this architecture trained on all real training images, with snapshots at `steps` (see `early_steps`); cached, and resumed.

        ``.at(step)`` is the network at a step (its ``state``), ``.snapshots`` what is known of each. Its initialization and data order are independent of
        the experts that labeled the set.
        """
        return self.trajectories(self.network_of(model), recipe, number, steps, reporter)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What any result on this subject hangs on, as plain JSON: digests of the set and of every table, the network, recipe, streams and plan."""
        return {
            "set": self.dataset.digest,
            "train": self.train.digest,
            "validation": self.validation.digest,
            "test": self.test.digest,
            "pixels": store.content_digest(self.pixels.header(), self.pixels.tensors()),
            "model": self.network.identity,
            "recipe": self.recipe.model_dump(mode="json"),
            "labeler": None if self.labeler is None else self.labeler.digest,
            "streams": [self.streams.root, *self.streams.path],
            "plan": self.plan.model_dump(exclude={"reason"}),
        }

    def remembered(self, task: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that `make` returns, kept under `identity` and `task` (plain JSON that says all that decides them), so that a killed run goes on."""
        path = self.cache.path("analyses", self.cache.key("analyses", {"subject": self.identity, "task": dict(task)}), ".safetensors")
        try:
            return store.load(path, _KIND)[1]
        except FileFormatError:
            made = make()
            store.save(path, {"kind": _KIND, "task": dict(task)}, made)
            return made

    def need_classes(self, what: str) -> None:
        """Raises `NotApplicable` when the set's images are all of one class."""
        owners = self.dataset.owners.unique().tolist()
        if len(owners) < 2:
            raise NotApplicable(f"{what} needs images of at least two classes, and all of this set's are of {self.dataset.classes[owners[0]]!r}")


def sample(table: ImageTable, most: int | None, seed: int) -> ImageTable:
    """At most `most` records of a table, in its order: those that come first in the pseudorandom order of their content, whatever their labels."""
    if most is None or len(table) <= most:
        return table
    return Subset(table, np.sort(np.argsort(scores(table.record_digests(), seed), kind="stable")[:most]))


def early_steps(total: int, count: int) -> tuple[int, ...]:
    """0, `total`, and steps between so that about `count` are evenly spaced on a logarithmic scale: dense where networks change fastest."""
    return tuple(sorted({0, *np.geomspace(1, max(total, 1), max(count, 2)).round().astype(int).tolist()} & set(range(total + 1)) | {total}))

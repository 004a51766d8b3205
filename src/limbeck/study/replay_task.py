"""The tasks of class-incremental learning by replay: a memory of every group of classes, and students that learn the groups one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck import store
from limbeck.data.tables import ImageTable, Subset
from limbeck.errors import OptionError
from limbeck.evaluate.evaluate import student_streams
from limbeck.experts.expert import Labeler, labeler_of
from limbeck.experts.trajectory import train_expert
from limbeck.labels.rules import LabelRule
from limbeck.methods.driver import Method, Size
from limbeck.progress import Tick
from limbeck.streams import Streams
from limbeck.study.artefacts import SCORES
from limbeck.study.experts import label_default, uses_labeler
from limbeck.study.graph import Builder, Task, Unit
from limbeck.study.spec import Cell, DataFacts, Making, moment
from limbeck.study.tasks import (
    Outcome,
    Price,
    Workplace,
    digest_of_predictions,
    flops_of,
    made_set,
    method_of,
    method_settings,
    problem_of,
    rule_of,
    score_measures,
    set_price,
)
from limbeck.train.examples import Examples, StoredImages
from limbeck.train.fit import Job, fit_many, predict
from limbeck.train.network import Network, State
from limbeck.train.students import Score, score_logits
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import index_dtype
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


class MemoryTask:
    """Makes what is kept of one group of classes, from that group's training images alone: by any method, under classes or under the labels of an expert that was
    trained on that group and knows no other class."""

    version: ClassVar[int] = 1

    @staticmethod
    def add(builder: Builder, cell: Cell, classes: Sequence[int]) -> str:
        """Adds the memory of a group for the arm of a cell."""
        making = cell.making
        method = builder.method(making.method)
        _check_method(making, method)
        rule = _within(rule_of(method, making.labels.model_dump()), len(classes), builder.scale.data.classes)
        settings = {**method_settings(builder, making, method, rule, int(making.ipc) * len(classes)), "classes": sorted(classes)}
        if uses_labeler(method, rule):
            settings["expert"] = _expert_settings(builder, making, len(classes))
        return builder.add("memory", settings, {}, f"{cell.words}, classes {', '.join(map(str, sorted(classes)))}")

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """The memory as the file of a distilled set."""
        return [MemoryTask._make(task, work) for task in unit]

    @staticmethod
    def _make(task: Task, work: Workplace) -> Outcome:
        settings, splits = task.settings, work.setting.splits
        train, validation = (of_classes(table, settings["classes"]) for table in (splits.train, splits.validation))
        labeler = _expert_of_group(settings, train, validation, work) if "expert" in settings else None
        problem = problem_of(
            settings,
            work,
            train=train,
            validation=validation,
            counts=tuple(settings["ipc"] if number in settings["classes"] else 0 for number in range(len(train.classes))),
            labeler=labeler,
            provenance={"classes_of_group": settings["classes"], "labeler": labeler.digest if labeler else None},
        )
        return made_set(task, work, method_of(settings), problem)

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """What the method takes on the images of its group, and the training of the group's experts."""
        settings = task.settings
        classes, images = len(settings["classes"]), _share(facts.train, len(settings["classes"]), facts)
        made = set_price(task, facts, Size(settings["ipc"] * classes, classes, images))
        steps, work = made.steps, made.operations
        if "expert" in settings:
            expert = settings["expert"]
            recipe = Recipe(**expert["recipe"])
            trained = len(expert["indices"]) * recipe.total_steps(images)
            steps += trained
            work += 3 * flops_of(expert["model"], facts) * trained * min(recipe.batch_size, images)
        return Price(steps, work)


class ReplayTask:
    """Students that learn all classes in groups: each group's training images beside the memory of earlier groups, then a measurement on every class seen so far.

    The classes are cut into groups of equal size (the first ones larger by one where that is impossible), in an order drawn from the seed and the draw. One network
    goes on through the groups; with each, the recipe (its steps, schedule and optimizer) begins anew. Images of earlier classes are repeated until every class
    seen is shown equally often: whatever is kept, no class weighs more than another. With ``alone`` a new network learns from the memory of all groups instead.

    Logits of classes that were not seen yet are left out of every measurement.
    """

    version: ClassVar[int] = 1

    @staticmethod
    def of_cell(builder: Builder, cell: Cell) -> str:
        """The students of a cell, and the memories that they need."""
        making, scale = cell.making, builder.scale
        protocol, recipe = builder.protocol(cell)
        _check_cell(making, scale.data, recipe)
        assert making.replay is not None
        groups, alone = groups_of(scale.seed, making.draw, scale.data.classes, making.replay.groups), making.replay.alone
        kept = [] if making.ipc in (0, "all") else groups if alone else groups[:-1]
        memory = [MemoryTask.add(builder, cell, classes) for classes in kept]
        network = builder.network(making.model)
        settings = {
            "groups": groups,
            "everything": making.ipc == "all",
            "alone": alone,
            "protocol": protocol.label,
            "recipe": recipe.model_dump(mode="json"),
            "model": str(network.spec),
            "identity": network.identity,
            "students": making.students or scale.students,
            "seed": scale.seed,
            "draw": making.draw,
            "expert": making.experts[0] if memory and "expert" in builder.task(memory[0]).settings else 0,
            "plan": builder.student_plan(network, recipe, scale.data.train).model_dump(exclude={"reason"}),
        }
        return builder.add("replay", settings, {"memory": memory}, cell.words)

    @staticmethod
    def run(unit: Unit, work: Workplace) -> list[Outcome]:
        """Accuracy on all classes, its mean over the groups, and forgetting, of every student."""
        return [ReplayTask._learn(task, work) for task in unit]

    @staticmethod
    def _learn(task: Task, work: Workplace) -> Outcome:
        settings = task.settings
        memories = [work.artefacts.dataset(work.row(key)) for key in task.inputs["memory"]]
        streams = [student_streams(settings["seed"], settings["draw"], settings["expert"], student) for student in range(settings["students"])]
        course = Course(
            train=work.setting.splits.train,
            groups=settings["groups"],
            pixels=work.setting.pixels,
            memories=memories,
            everything=settings["everything"],
            alone=settings["alone"],
        )
        recipe = Recipe(**settings["recipe"])
        steps = len(streams) * len(course.groups) * recipe.total_steps(len(course.train))
        test = work.setting.splits.test.open_for_measurement()
        with work.reporter.task(f"{len(streams)} students of {len(course.groups)} groups", steps) as tick:
            learned = learn(course, work.network(settings["model"]), recipe, streams, test, ExecutionPlan(**settings["plan"]), tick)
        path = work.artefacts.file(task.key, ".safetensors")
        tensors = {
            "predictions": torch.stack([score.predictions for score in learned.last]).to(torch.int32),
            "class_accuracy": torch.stack([score.class_accuracy for score in learned.last]).float(),
            "group_accuracy": torch.from_numpy(learned.on_group).float(),
        }
        store.save(path, {"kind": SCORES, "task": task.key}, tensors)
        return Outcome(
            {**learned.measures(), **course.size()},
            {
                "memory": [made.digest for made in memories],
                "test": work.setting.splits.test.digest,
                "predictions": [digest_of_predictions(score) for score in learned.last],
            },
            [work.artefacts.relative(path)],
            {"diverged": sum(not score.finite for score in learned.last)},
        )

    @staticmethod
    def price(task: Task, facts: DataFacts) -> Price:
        """Training with every group, and after it a pass over the test images of the classes seen, for every student."""
        settings = task.settings
        recipe, groups = Recipe(**settings["recipe"]), len(settings["groups"])
        steps = settings["students"] * groups * recipe.total_steps(facts.train)
        tested = settings["students"] * facts.test * (groups + 1) / 2
        return Price(steps, flops_of(settings["model"], facts) * (3 * steps * recipe.batch_size + tested))


def groups_of(seed: int, draw: int, classes: int, groups: int) -> list[list[int]]:
    """The classes of every group, in the order in which they arrive."""
    if groups > classes:
        raise OptionError(f"{groups} groups need at least as many classes, got {classes}; use at most {classes} groups")
    order = torch.randperm(classes, generator=Streams(seed)["replay"].torch("order", draw))
    return [part.tolist() for part in order.tensor_split(groups)]


def of_classes(table: ImageTable, classes: Sequence[int]) -> Subset:
    """The records of some classes, in the table's order."""
    return Subset(table, np.flatnonzero(np.isin(table.labels, classes)))


def repeated(owners: Int[np.ndarray, " M"], least: int) -> Int[np.ndarray, " R"]:
    """Rows of images that belong to classes, so often that each class has `least` rows: its images in turn, none of them left out."""
    rows = [np.flatnonzero(owners == number) for number in np.unique(owners)]
    return np.concatenate([np.resize(members, max(least, len(members))) for members in rows] or [np.zeros(0, dtype=np.int64)])


@dataclass(frozen=True)
class Course:
    """What arrives: training images of the `groups` of classes, in `pixels`, and what is kept of each group that is over: its memory, `everything`, or nothing."""

    train: ImageTable
    groups: Sequence[Sequence[int]]
    pixels: PixelSpace
    memories: Sequence[DistilledDataset] = ()
    everything: bool = False
    alone: bool = False

    def examples(self, number: int) -> Examples:
        """What is learned when group `number` arrives."""
        if self.alone:
            return self._alone(number)
        new = np.flatnonzero(np.isin(self.train.labels, self.groups[number]))
        least = round(len(new) / len(self.groups[number]))
        if self.everything:
            before = np.flatnonzero(np.isin(self.train.labels, [label for group in self.groups[:number] for label in group]))
            new = np.concatenate([new, before[repeated(self.train.labels[before], least)]])
        real = Examples.of_table(Subset(self.train, new), self.pixels)
        return beside(real, self.memories[:number], least)

    def _alone(self, number: int) -> Examples:
        if self.everything:
            seen = [label for group in self.groups[: number + 1] for label in group]
            return Examples.of_table(of_classes(self.train, seen), self.pixels)
        return beside(Examples.of_table(Subset(self.train, []), self.pixels), self.memories[: number + 1], 0)

    def size(self) -> dict[str, int]:
        """Images and bytes of what is kept when the last group is learned; the pixel space is the same in every memory and counted once."""
        if not self.everything:
            parts = sum(made.bytes["images"] + made.bytes["labels"] for made in self.memories)
            return {"images": sum(map(len, self.memories)), "bytes": parts + (self.memories[0].bytes["decoder"] if self.memories else 0)}
        kept = self.groups if self.alone else self.groups[:-1]
        images = int(np.isin(self.train.labels, [label for group in kept for label in group]).sum())
        each = int(np.prod(self.train.shape)) + index_dtype(len(self.train.classes)).itemsize
        return {"images": images, "bytes": images * each + self.pixels.nbytes * bool(images)}


@dataclass(frozen=True)
class Learned:
    """What students [S] reached: accuracy on all classes seen after group t [S, T], accuracy after group t on the images of group g [S, T, T] (NaN for groups to
    come), and the scores after the last group."""

    seen: Float[np.ndarray, "S T"]
    on_group: Float[np.ndarray, "S T T"]
    last: Sequence[Score]

    @property
    def forgetting(self) -> Float[np.ndarray, " S"]:
        """By how much accuracy on a group fell in the end from the best that it had been, averaged over all groups but the last (Chaudhry et al. 2018)."""
        before, after = self.on_group[:, :-1, :-1], self.on_group[:, -1, :-1]
        return (np.fmax.reduce(before, axis=1) - after).mean(1) if before.size else np.full(len(self.seen), np.nan)

    def measures(self) -> dict[str, Any]:
        """A list with one number for each student, by name."""
        groups = range(self.seen.shape[1])
        found = {
            "average": self.seen.mean(1),
            "forgetting": self.forgetting,
            **{f"accuracy after {number + 1}": self.seen[:, number] for number in groups},
            **{f"accuracy on group {number + 1}": self.on_group[:, -1, number] for number in groups},
        }
        plain = {name: [float(value) if np.isfinite(value) else None for value in values] for name, values in found.items()}
        return {**score_measures(self.last), **plain}


def learn(
    course: Course,
    network: Network,
    recipe: Recipe,
    streams: Sequence[Streams],
    test: ImageTable,
    plan: ExecutionPlan,
    tick: Tick = lambda units: None,
) -> Learned:
    """Trains one student for each of `streams` through a course and measures it on the test table after every group. With the first group, students train as those
    that are evaluated on a set do."""
    count = len(course.groups)
    states: list[State] = [network.init(own) for own in streams]
    seen, on_group = np.zeros((len(streams), count)), np.full((len(streams), count, count), np.nan)
    last: list[Score] = []
    for number in range(count):
        own = [stream["group", number] if number else stream for stream in streams]
        if course.alone and number:
            states = [network.init(stream) for stream in own]
        examples = course.examples(number)
        trained = fit_many(network, [Job(*given) for given in zip(states, [examples] * len(own), own, strict=True)], recipe, plan, tick=tick)
        states = [{name: tensor.cpu() for name, tensor in state.network.items()} for state in trained]
        classes = torch.tensor([label for group in course.groups[: number + 1] for label in group]).sort().values
        table = of_classes(test, classes.tolist())
        labels = torch.from_numpy(table.labels.copy())
        last = [
            score_logits(predict(network, state, table, course.pixels, plan)[:, classes], torch.searchsorted(classes, labels)) for state in states
        ]
        for student, score in enumerate(last):
            seen[student, number] = score.accuracy
            right = classes[score.predictions] == labels
            for group in range(number + 1):
                members = torch.isin(labels, torch.tensor(course.groups[group]))
                on_group[student, number, group] = float(right[members].double().mean())
    return Learned(seen, on_group, last)


def beside(real: Examples, memories: Sequence[DistilledDataset], least: int) -> Examples:
    """Real images with memories of other classes, whose images are repeated (`repeated`)."""
    if not memories:
        return real
    owners = np.concatenate([made.owners.long().numpy() for made in memories])
    rows = torch.from_numpy(repeated(owners, least))
    first = torch.nn.functional.one_hot(real.targets, real.classes).float()
    targets = torch.cat([first, torch.cat([made.targets() for made in memories])[rows]])
    remembered = torch.cat([made.inputs() for made in memories])
    return Examples(_Mixture(real, owners[rows], remembered, rows), targets, PixelSpace(real.pixels.steps, "network"))


class _Mixture(StoredImages):
    """The real images, then `rows` of the remembered ones, all as a network sees them."""

    def __init__(self, real: Examples, owners: Int[np.ndarray, " R"], remembered: Float[Tensor, "M C H W"], rows: Int[Tensor, " R"]) -> None:
        self.classes, self.shape, self.resident = real.table.classes, real.table.shape, real.table.resident
        self.labels = np.concatenate([real.table.labels, owners])
        self._real, self._remembered, self._rows = real, remembered, rows

    def __len__(self) -> int:
        return len(self._real) + len(self._rows)

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        wanted = torch.as_tensor(indices)
        new = wanted < len(self._real)
        images = torch.empty(len(wanted), *self.shape)
        images[new] = self._real.pixels(self._real.table.read(wanted[new]))
        images[~new] = self._remembered[self._rows[wanted[~new] - len(self._real)]]
        return images


@dataclass(frozen=True)
class _OfGroup:
    """A labeler that knows the classes of one group alone: its other logits are minus infinity, so that labels there are zero."""

    labeler: Labeler
    classes: tuple[int, ...]

    @property
    def digest(self) -> str:
        return store.digest_of([self.labeler.digest, list(self.classes)])

    def logits(self, table: ImageTable, plan: ExecutionPlan, *, tick: Tick = lambda units: None) -> Float[Tensor, "N K"]:
        return self._only(self.labeler.logits(table, plan, tick=tick))

    def logits_of(self, images: ImageTable | StoredImages, pixels: PixelSpace, plan: ExecutionPlan) -> Float[Tensor, "N K"]:
        return self._only(self.labeler.logits_of(images, pixels, plan))

    def _only(self, logits: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        known = torch.zeros(logits.shape[1], dtype=torch.bool)
        known[list(self.classes)] = True
        return logits.masked_fill(~known, -torch.inf)


def _check_cell(making: Making, facts: DataFacts, recipe: Recipe) -> None:
    if making.replay is None:
        raise OptionError('an arm with task = "replay" needs to say how the classes arrive, for example replay = { groups = 5 }')
    if recipe.steps is None:
        raise OptionError(
            "replay needs a recipe that counts steps, so that every kind of memory is trained on for equally long, got "
            f"epochs = {recipe.epochs}; use recipe = {{ steps = 500 }}"
        )
    if making.ipc != "all" and making.ipc < 0:
        raise OptionError(f"a memory holds 0, 1, 2, ... images of a class, or 'all', got {making.ipc}; use ipc = 0 for no memory")
    if making.replay.alone and making.ipc == 0:
        raise OptionError("nothing can be learned from a memory of 0 images alone; use ipc = 1 or more, or alone = false")
    if making.ipc in (0, "all") and making.labels.kind != "hard":
        raise OptionError(f'with ipc = {making.ipc!r} no image is labeled by an expert; add labels = {{ kind = "hard" }}')


def _check_method(making: Making, method: Method) -> None:
    whole = getattr(method, "expert_recipe", None) is not None and label_default(method) != "soft"
    if whole or making.trajectories or making.transforms or getattr(method.options, "views", 0):
        raise OptionError(
            f"a memory holds images with one label each, made from one group's images and nothing else, but {making.method!r} was asked for "
            "trajectories, views or transforms; leave those out, and use random-real, dm or dc"
        )


def _within(rule: LabelRule, known: int, classes: int) -> LabelRule:
    """Soft labels keep the entries of the group alone: all others are zero."""
    return rule if rule.kind == "hard" or known == classes else rule.model_copy(update={"top_k": min(rule.top_k or known, known)})


def _expert_settings(builder: Builder, making: Making, classes: int) -> dict[str, Any]:
    described = builder.scale.experts[making.expert]
    if moment(making.at, described.epochs)[0] == "best":
        raise OptionError('the experts of groups are stopped at a stated moment, not at the best one; add for example at = 2, or at = "last"')
    if described.workers > 1:
        raise OptionError(f"the experts of groups are trained by one process each, got workers = {described.workers}; leave workers out")
    recipe, network = builder.expert_recipe(making.expert), builder.network(described.model)
    # a group's size is known when the data are opened; before that, it is its share
    _step_of_group(making.at, described.epochs, recipe, _share(builder.scale.data.train, classes, builder.scale.data))
    return {
        "model": str(network.spec),
        "identity": network.identity,
        "recipe": recipe.model_dump(mode="json"),
        "epochs": described.epochs,
        "indices": list(making.experts),
        "at": making.at,
        "plan": builder.expert_plan(network, recipe).model_dump(exclude={"reason"}),
    }


def _expert_of_group(settings: Mapping[str, Any], train: Subset, validation: Subset, work: Workplace) -> Labeler:
    given = settings["expert"]
    recipe = Recipe(**given["recipe"])
    step = _step_of_group(given["at"], given["epochs"], recipe, len(train))
    trajectories = [
        train_expert(
            work.network(given["model"]),
            recipe,
            train,
            validation,
            work.setting.pixels,
            seed=settings["seed"],
            index=index,
            plan=ExecutionPlan(**given["plan"]),
            cache=work.artefacts.cache,
            steps=(step,),
            reporter=work.reporter,
        )
        for index in given["indices"]
    ]
    return _OfGroup(labeler_of([trajectory.at(step) for trajectory in trajectories]), tuple(settings["classes"]))


def _step_of_group(at: int | float | str, epochs: int, recipe: Recipe, images: int) -> int:
    """The optimizer step at which the experts of a group of that many images are stopped."""
    per_epoch, total = recipe.steps_per_epoch(images), recipe.total_steps(images)
    what, value = moment(at, epochs)
    step = total if what == "last" else int(value) if what == "step" else int(value * per_epoch)
    if step > total:
        raise OptionError(f"the experts of a group of {images} images are trained for {total} steps, so they have no step {step}; use an earlier one")
    return step


def _share(images: int, classes: int, facts: DataFacts) -> int:
    return max(1, round(images * classes / facts.classes))

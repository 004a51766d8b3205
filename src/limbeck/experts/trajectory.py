"""Trains experts and keeps their trajectory: snapshots at the start, at log-spaced steps of the first epoch, and after every epoch."""

import json
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from limbeck import store
from limbeck.cache import Cache
from limbeck.data.tables import ImageTable
from limbeck.errors import FileFormatError, LimbeckError, OptionError
from limbeck.experts.expert import Expert
from limbeck.progress import SILENT, Reporter
from limbeck.streams import Streams
from limbeck.train.examples import Examples
from limbeck.train.fit import TrainingState, fit
from limbeck.train.network import Network
from limbeck.train.share import Share
from limbeck.train.students import score_logits
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe

#: How experts are trained unless told otherwise; the epochs are set by the caller.
EXPERT_RECIPE = Recipe(optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, batch_size=256, epochs=5, schedule="constant")
_RESUME = "resume.safetensors"
_RESUME_KIND = "interrupted expert"
_DONE = "trajectory.json"


@dataclass(frozen=True)
class Snapshot:
    """One kept moment: step, epoch (fractional), validation accuracy, cross-entropy (nats) and mean label entropy (nats), file name and digest.

    A measure is None when there is no validation image or the logits overflow: JSON has no NaN.
    """

    step: int
    epoch: float
    accuracy: float | None
    loss: float | None
    entropy: float | None
    file: str
    digest: str


@dataclass(frozen=True)
class Trajectory:
    """Snapshots of one expert, read from disk one at a time. `earlier_seconds` is how long earlier runs trained it, 0 for one trained in this run alone; None
    where that was not kept."""

    folder: Path
    key: str
    snapshots: tuple[Snapshot, ...]
    about: dict[str, Any] = field(default_factory=dict)
    earlier_seconds: float | None = field(default=None, compare=False)

    @property
    def last(self) -> Snapshot:
        """The fully trained expert."""
        return self.snapshots[-1]

    def at(self, step: int) -> Expert:
        """The expert as it was after `step` steps; the step must be one that was kept."""
        for snapshot in self.snapshots:
            if snapshot.step == step:
                expert = Expert.load(self.folder / snapshot.file)
                if expert.digest != snapshot.digest:
                    raise FileFormatError(
                        f"{str(self.folder / snapshot.file)!r} is not the snapshot that was written; delete its folder and train again"
                    )
                return expert
        raise OptionError(f"no snapshot at step {step}; kept steps: {', '.join(str(snapshot.step) for snapshot in self.snapshots)}")


def snapshot_steps(steps_per_epoch: int, total: int, halvings: int = 5) -> list[int]:
    """Step 0, the fractions 1/32 ... 1/2 of the first epoch, the end of every epoch, and the last step."""
    early = {steps_per_epoch >> halving for halving in range(1, halvings + 1)}
    epochs = set(range(0, total + 1, steps_per_epoch))
    return sorted(step for step in {0, total} | early | epochs if step <= total)


def train_expert(
    network: Network,
    recipe: Recipe,
    train: ImageTable,
    validation: ImageTable,
    pixels: PixelSpace,
    *,
    seed: int,
    index: int = 0,
    plan: ExecutionPlan,
    cache: Cache,
    steps: Collection[int] | None = None,
    share: Share | None = None,
    reporter: Reporter = SILENT,
) -> Trajectory:
    """Trains expert number `index` of `seed` from scratch, or takes it from the cache, or continues it where it was interrupted.

    Snapshots hold parameters and buffers, and are kept at `steps` (`snapshot_steps` by default). Validation measures them; the test split is not seen. The
    result does not depend on interruptions. With a `share`, several processes train the same expert together, each on its part of every batch; all call this
    with the same cache folder, and the first of them measures and writes.
    """
    task = {
        "model": network.identity,
        "shape": list(network.shape),
        "classes": network.classes,
        "recipe": recipe.model_dump(mode="json"),
        "train": train.digest,
        "validation": validation.digest,
        "pixels": store.content_digest(pixels.header(), pixels.tensors()),
        "seed": seed,
        "index": index,
        "plan": plan.model_dump(exclude={"reason"}),
        **({} if steps is None else {"steps": sorted(steps)}),
        **({} if share is None else {"workers": share.size}),
    }
    key = cache.key("experts", task)
    folder = cache.path("experts", key)
    found = _finished(folder, key)
    if found is not None:
        return found
    streams = Streams(seed)["expert", index]
    examples = Examples.of_table(train, pixels)
    total, per_epoch = recipe.total_steps(len(train)), recipe.steps_per_epoch(len(train))
    kept = snapshot_steps(per_epoch, total) if steps is None else steps
    state, records, earlier = _interrupted(folder) or (TrainingState(0, network.init(streams), {}), [], 0.0)
    started = time.monotonic()
    first = share is None or share.rank == 0

    def spent() -> float | None:
        return None if earlier is None else earlier + time.monotonic() - started

    def keep(live: TrainingState) -> None:
        if records and records[-1].step >= live.step:
            return
        if not live.finite:
            raise LimbeckError(
                f"expert {index} diverged before step {live.step} (learning rate {recipe.lr:g}): its numbers are no longer finite; use a smaller --expert-lr"
            )
        if not first:
            return
        expert = Expert(network, {name: tensor.cpu().clone() for name, tensor in live.network.items()}, pixels, live.step, "")
        name = f"step-{live.step:07d}.safetensors"
        digest = expert.save(folder / name, {"key": key, "index": index, "seed": seed})
        records.append(Snapshot(live.step, live.step / per_epoch, *_measured(expert, validation, plan), name, digest))
        header = {"kind": _RESUME_KIND, "key": key, "step": live.step, "seconds": spent(), "snapshots": [vars(record) for record in records]}
        tensors = {**{f"network.{n}": t for n, t in live.network.items()}, **{f"optimizer.{n}": t for n, t in live.optimizer.items()}}
        store.save(folder / _RESUME, header, tensors)

    with reporter.task(f"expert {index + 1}: {recipe.epochs or 0:g} epochs" if recipe.epochs else f"expert {index + 1}", total) as tick:
        tick(state.step)
        fit(network, state, examples, recipe, streams, plan, observe_at=frozenset(kept), observe=keep, share=share, tick=tick)
    if not first:
        return Trajectory(folder, key, tuple(records), task, earlier)
    store.write_json(folder / _DONE, {"key": key, "task": task, "seconds": spent(), "snapshots": [vars(record) for record in records]})
    (folder / _RESUME).unlink(missing_ok=True)
    return Trajectory(folder, key, tuple(records), task, earlier)


def _measured(expert: Expert, validation: ImageTable, plan: ExecutionPlan) -> tuple[float | None, float | None, float | None]:
    """Accuracy, cross-entropy and mean label entropy on validation, None where they cannot be measured (see `Snapshot`)."""
    if not len(validation):
        return None, None, None
    logits = expert.logits(validation, plan)
    result = score_logits(logits, torch.from_numpy(validation.labels.copy()))
    if not result.finite:
        return result.accuracy, None, None
    return result.accuracy, result.loss, float(torch.special.entr(logits.double().softmax(1)).sum(1).mean())


def find_trajectory(cache: Cache, key: str) -> Trajectory | None:
    """A finished trajectory by its key, if the cache still has it."""
    return _finished(cache.path("experts", key), key)


def _finished(folder: Path, key: str) -> Trajectory | None:
    try:
        record = json.loads((folder / _DONE).read_text(encoding="utf-8"))
        snapshots = tuple(Snapshot(**entry) for entry in record["snapshots"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all((folder / snapshot.file).exists() for snapshot in snapshots):
        return None
    return Trajectory(folder, key, snapshots, record["task"], record.get("seconds"))


def _interrupted(folder: Path) -> tuple[TrainingState, list[Snapshot], float | None] | None:
    try:
        header, tensors = store.load(folder / _RESUME, _RESUME_KIND)
    except FileFormatError:
        return None
    parts: dict[str, dict[str, torch.Tensor]] = {"network": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, key = name.partition(".")
        parts[part][key] = tensor
    snapshots = [Snapshot(**entry) for entry in header["snapshots"]]
    return TrainingState(header["step"], parts["network"], parts["optimizer"]), snapshots, header.get("seconds")

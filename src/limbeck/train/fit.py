"""The one training loop. Experts, students, interim checks and a user's own model all go through `fit`, one model or many at once."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.augment import Augment, Params, parse_augment
from limbeck.data.tables import ImageTable
from limbeck.errors import OptionError
from limbeck.progress import Tick
from limbeck.streams import Streams
from limbeck.train.examples import Examples, StoredImages
from limbeck.train.feed import Feed, sent
from limbeck.train.network import Network, State
from limbeck.train.plan import lanes, on_device, prediction_size, threads
from limbeck.train.share import Share
from limbeck.train.stepper import Stepper
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan
from limbeck.types.recipe import Recipe


@dataclass
class TrainingState:
    """Everything that decides how training goes on: step, parameters and buffers, and the optimizer's tensors ``{parameter}.{slot}``."""

    step: int
    network: State
    optimizer: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether every number in the network is finite: divergence is returned, not raised."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.network.values() if tensor.is_floating_point())


@dataclass(frozen=True)
class Job:
    """One model to train: where it starts, on what, its own random streams, and its own learning rate where that is not the recipe's."""

    state: TrainingState | State
    examples: Examples
    streams: Streams
    lr: float | None = None

    @property
    def start(self) -> TrainingState:
        """The state to go on from; plain tensors start at step 0."""
        return self.state if isinstance(self.state, TrainingState) else TrainingState(0, self.state, {})


def fit(
    network: Network,
    state: TrainingState | State,
    examples: Examples,
    recipe: Recipe,
    streams: Streams,
    plan: ExecutionPlan,
    *,
    observe_at: Collection[int] = (),
    observe: Callable[[TrainingState], None] | None = None,
    share: Share | None = None,
    tick: Tick = lambda units: None,
) -> TrainingState:
    """Trains `network` on `examples` by `recipe` and returns the last state; `state` itself is not changed.

    Batches are passes over a fresh permutation of the examples, the last batch of a pass possibly smaller; the loss of a batch is its mean. Data order comes
    from the stream ``order/epoch`` and augmentation from ``augment/step``, so training that is resumed from any `TrainingState` continues exactly as if
    it had never stopped. Examples with weights count by them.
    Examples with labels for each view show view e in epoch e, and `recipe.augment` is not used. `observe` is called with the live
    state before training (when 0 is in `observe_at`) and after the steps in `observe_at`; it must copy what it keeps. With a `share`, this process is one
    of several that train the same network together; all of them must call this, and all end in the same state.
    """

    def watch(index: int, live: TrainingState) -> None:
        if observe is not None:
            observe(live)

    return fit_many(network, [Job(state, examples, streams)], recipe, plan, observe_at=observe_at, observe=watch, share=share, tick=tick)[0]


def fit_many(
    network: Network,
    jobs: Sequence[Job],
    recipe: Recipe,
    plan: ExecutionPlan,
    *,
    observe_at: Collection[int] = (),
    observe: Callable[[int, TrainingState], None] = lambda index, live: None,
    share: Share | None = None,
    tick: Tick = lambda units: None,
) -> list[TrainingState]:
    """Trains every job as `fit` would train it alone, and returns the last states in order; ticks once for each job and step.

    Where ``plan.models`` is above 1, up to that many jobs at the same step with equally many examples run as one vectorized program (`torch.func.vmap`),
    each with its own images, labels, order, augmentation and rate. What a job becomes does not depend on what trains beside it, up to the order in which
    floating-point sums are taken: see ``docs/numerics.md``. `observe` is told the job's index.
    """
    done: dict[int, TrainingState] = {}
    with threads(plan.threads), on_device(plan.device):
        for group in _groups(jobs, plan):
            members = [jobs[index] for index in group]
            states = _train(members, network, recipe, plan, observe_at, lambda i, live, g=group: observe(g[i], live), tick, share)  # type: ignore[misc]
            done.update(zip(group, states, strict=True))
    return [done[index] for index in range(len(jobs))]


def predict(
    network: Network,
    state: State,
    table: ImageTable | StoredImages,
    pixels: PixelSpace,
    plan: ExecutionPlan,
    *,
    tick: Tick = lambda units: None,
    batch: int | None = None,
) -> Float[Tensor, "M K"]:
    """Logits of every image of a table, on the CPU, float32, in evaluation mode. Always computed in float32: labels and scores are never rounded by a plan."""
    device = torch.device(plan.device)
    examples = Examples(table, torch.zeros(len(table), dtype=torch.int64), pixels.to(device))
    size = batch or prediction_size(network, plan.device)
    # a module of its own for each lane: the shared template must not be filled by two at a time
    modules = [network.loaded(state).to(device) for _ in range(plan.lanes)]

    def forward(module: torch.nn.Module, images: Tensor) -> Tensor:
        # a GPU would otherwise round the inputs of convolutions to 10 bits
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            logits: Tensor = module(images)
            return logits.float().cpu()

    logits, waiting = [], []
    with threads(plan.threads), on_device(plan.device):
        for images, _ in examples.batches(torch.arange(len(table)).split(size), device):
            waiting.append(images)
            tick(len(images))
            if len(waiting) == plan.lanes:
                logits += list(lanes(plan.lanes).map(forward, modules, waiting)) if plan.lanes > 1 else [forward(modules[0], images)]
                waiting = []
        logits += [forward(modules[0], images) for images in waiting]
    return torch.cat(logits).clone() if logits else torch.zeros(0, network.classes)


def _groups(jobs: Sequence[Job], plan: ExecutionPlan) -> list[list[int]]:
    """Indices of the jobs that train together: alone, or in stacks of those that can share every batch shape."""
    if plan.models == 1:
        return [[index] for index in range(len(jobs))]
    alike: dict[tuple[int, int, bool, bool, bool], list[int]] = {}
    for index, job in enumerate(jobs):
        start = job.start
        examples = job.examples
        kind = (start.step, len(examples), examples.views is not None, examples.weights is not None, bool(start.optimizer))
        alike.setdefault(kind, []).append(index)
    return [group[start : start + plan.models] for group in alike.values() for start in range(0, len(group), plan.models)]


def _train(
    jobs: Sequence[Job],
    network: Network,
    recipe: Recipe,
    plan: ExecutionPlan,
    observe_at: Collection[int],
    observe: Callable[[int, TrainingState], None],
    tick: Tick,
    share: Share | None,
) -> list[TrainingState]:
    device, count, start = torch.device(plan.device), len(jobs[0].examples), jobs[0].start.step
    total, decays = recipe.total_steps(count), recipe.decay_steps(count)
    feed = Feed([job.examples for job in jobs], device)
    augment = None if feed.replays else parse_augment(recipe.augment)
    apply = _augmenter(augment, plan) if augment is not None else None
    _check_weights(network, jobs, augment)
    if share is not None:
        share.check(network, augment, weighted=any(job.examples.weights is not None for job in jobs))
    stepper = Stepper(network, recipe, plan, [(job.start.network, job.start.optimizer) for job in jobs], share)
    factors = [_rate_factor(recipe, step, total, decays) for step in range(start, total)]
    rates = torch.outer(torch.tensor(factors), torch.tensor([recipe.lr if job.lr is None else job.lr for job in jobs])).to(device)
    restarts = [0, *decays] if recipe.restart_momentum_at_decay and recipe.schedule == "step" else [0]
    # steps since the optimizer was last made, for Adam's bias correction
    numbers = torch.tensor([step + 1 - max(at for at in restarts if at <= step) for step in range(start, total)], dtype=torch.float64).to(device)

    def states(step: int) -> list[TrainingState]:
        return [TrainingState(step, *parts) for parts in stepper.states()]

    def snapshot(step: int) -> None:
        if step in observe_at:
            for index, live in enumerate(states(step)):
                observe(index, live)

    if start == 0:
        snapshot(0)
    for step, (images, labels, weights) in zip(range(start, total), _batches(feed, jobs, recipe, start, total, share), strict=True):
        if augment is not None and apply is not None:
            batch = images.shape[1] if share is None else _batch_size(recipe, step, count)
            drawn = augment.merge([augment.draw(batch, network.shape, job.streams.torch("augment", step)) for job in jobs], batch)
            drawn = {name: sent(tensor, device) for name, tensor in (drawn if share is None else share.drawn(drawn, batch)).items()}
            labels = augment.mix_labels(labels.flatten(0, 1), drawn).view_as(labels)
            images = apply(images.flatten(0, 1), drawn).view_as(images)
        if step in restarts[1:]:
            stepper.forget()
        stepper(images, labels, rates[step - start], numbers[step - start], weights)
        tick(len(jobs))
        snapshot(step + 1)
    stepper.close()
    return states(max(start, total))


def _batch_size(recipe: Recipe, step: int, count: int) -> int:
    """Images of a step's whole batch."""
    return min(recipe.batch_size, count - step % recipe.steps_per_epoch(count) * recipe.batch_size)


def _batches(
    feed: Feed, jobs: Sequence[Job], recipe: Recipe, start: int, total: int, share: Share | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    count, per_epoch = len(jobs[0].examples), recipe.steps_per_epoch(len(jobs[0].examples))
    if not recipe.shuffle and per_epoch == 1 and not feed.replays:  # every batch is all examples in their order
        every = torch.arange(count) if share is None else share.rows(torch.arange(count))
        everything = [(0, [every] * len(jobs))] * min(1, total - start)
        return (batch for batch in feed.batches(everything) for _ in range(start, total))
    epochs = (step // per_epoch for step in range(start, total))
    orders = zip(*(_order(count, recipe, job.streams, start, total, share) for job in jobs), strict=True)
    return feed.batches(zip(epochs, orders, strict=True))


def _check_weights(network: Network, jobs: Sequence[Job], augment: Augment | None) -> None:
    """An image of weight 0 must not be seen through others."""
    if all(job.examples.weights is None for job in jobs):
        return
    if network.has_batch_statistics:
        raise OptionError(f"weights on examples need a network without batch statistics, got {network.spec}; use one with norm=instance")
    if jobs[0].examples.views is not None or (augment is not None and augment.mixes):
        raise OptionError(
            f"weights on examples need images that are shown one at a time, got the augmentation {augment or 'of the views'}; use one that does not mix"
        )


def _augmenter(augment: Augment, plan: ExecutionPlan) -> Callable[[Tensor, Params], Tensor]:
    """Compiled on a GPU, where a stack's augmentation is one program for all models; on a CPU it costs little beside the convolutions."""
    return torch.compile(augment.apply, dynamic=False) if plan.strategy == "compiled" and torch.device(plan.device).type == "cuda" else augment.apply


def _order(count: int, recipe: Recipe, streams: Streams, start: int, total: int, share: Share | None) -> Iterator[Int[Tensor, " B"]]:
    per_epoch = recipe.steps_per_epoch(count)
    permutation = torch.empty(0, dtype=torch.int64)
    for step in range(start, total):
        epoch, position = divmod(step, per_epoch)
        if position == 0 or step == start:
            permutation = torch.randperm(count, generator=streams.torch("order", epoch)) if recipe.shuffle else torch.arange(count)
        batch = permutation[position * recipe.batch_size : (position + 1) * recipe.batch_size]
        yield batch if share is None else share.rows(batch)


def _rate_factor(recipe: Recipe, step: int, total: int, decay_steps: list[int]) -> float:
    """What the learning rate is multiplied by at a step (from 0): ``(step + 1) / warmup_steps`` at first, then the schedule over what remains."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    if recipe.schedule == "step":
        return recipe.decay ** sum(step >= at for at in decay_steps)
    if recipe.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - recipe.warmup_steps) / (total - recipe.warmup_steps)))
    return 1.0

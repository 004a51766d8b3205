"""How long a step of trajectory matching (mtt) takes on this machine's CPU, and how the memory of each gradient grows with the student's steps N, on 28x28
gray images with the ConvNet: ``python -m benchmarks.methods.trajectory`` (under three minutes on two quiet cores) prints a table and writes
``benchmarks/results/methods-trajectory.json``.

The plain step is written in the manner of the published code: one nn.Module whose parameters are views of a flat vector, eager, float32, whole batches, N steps
with ``create_graph=True``, then one backward pass through all of them. Limbeck's is `recomputed`, the exact gradient that keeps one step's graph, under the plan
of a long job. The two alternate in one process at 10 images per class and N = 10, compiling timed apart; the plain step runs with the C library's usual
allocator settings (`ratio`) and once with limbeck's (`ratio_same_allocator`). `agreement` compares the two image gradients: limbeck's second-order pass may be
in bfloat16. Memory is the peak of a fresh process that takes one eager step, at 1 image per class. Images are random; the target is the network after a few steps on
other random images.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peak import peak_megabytes
from benchmarks.speed import usual_allocator
from limbeck.methods.trajectory_matching import Matched, Segment, recomputed, unrolled
from limbeck.models import parse_model
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.train.plan import plan_for, threads
from limbeck.train.second_order import Batch, BatchLoss, network_loss
from limbeck.train.updates import sgd_step
from limbeck.types.plan import ExecutionPlan

CLASSES, STEPS, LENGTHS, TARGET_STEPS = 10, 10, (5, 10, 20), 10
TARGET = Path(__file__).parent.parent / "results" / "methods-trajectory.json"


def segment(network: Network, ipc: int, steps: int) -> tuple[Segment, Tensor, Tensor]:
    """A student's training, random images and their labels."""
    images = torch.randn(2 * CLASSES * ipc, *network.shape, generator=Streams(0).torch("images"))
    labels = F.one_hot(torch.arange(CLASSES).repeat_interleave(ipc)).float()
    start = network.init(Streams(0))
    target, loss = start, BatchLoss.of_network(network, {}, ExecutionPlan(chunk=32), "images")
    for _ in range(TARGET_STEPS):
        target, _ = sgd_step(target, loss.gradient(target, images[len(labels) :], labels)[1], {}, lr=0.02)
    batches = [Batch(torch.arange(len(labels)), None, {})] * steps
    return Segment(start, target, batches, torch.tensor(0.02)), images[: len(labels)], labels


def plain_step(network: Network, given: Segment, images: Tensor, labels: Tensor) -> Matched:
    """Loss and derivatives of one matching step, as published."""
    module = network.loaded(given.start).train()
    sizes = [tensor.numel() for tensor in given.start.values()]
    start, target = (torch.cat([tensor.flatten() for tensor in part.values()]) for part in (given.start, given.target))
    images, step_size = images.clone().requires_grad_(), given.step_size.clone().requires_grad_()
    theta = start.clone().requires_grad_()
    for batch in given.batches:
        parts = [part.view(tensor.shape) for part, tensor in zip(theta.split(sizes), given.start.values(), strict=True)]
        logits = torch.func.functional_call(module, dict(zip(given.start, parts, strict=True)), (images[batch.rows],))
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels[batch.rows]), theta, create_graph=True)
        theta = theta - step_size * gradient
    loss = F.mse_loss(theta, target, reduction="sum") / F.mse_loss(start, target, reduction="sum")
    by_images, by_step_size = torch.autograd.grad(loss, (images, step_size))
    return Matched(loss.detach(), by_step_size, by_images)


def own_step(network: Network, plan: ExecutionPlan, given: Segment, images: Tensor, labels: Tensor, kind: str = "recomputed") -> Matched:
    """The same by limbeck."""
    if kind == "unrolled":
        loss = network_loss(network, "cross-entropy", "float32", "cpu")
        return unrolled(lambda parameters, shown, rows: loss(parameters, shown, rows, {}), given, images, labels)
    wanted = ("parameters", "images") if kind == "recomputed" else ("images",)
    return recomputed(BatchLoss.of_network(network, {}, plan, *wanted, usual=len(images)), given, images, labels)


def timed(work: Callable[[], Matched]) -> tuple[float, Matched]:
    """Seconds, and what came of them."""
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def peak(kind: str, steps: int, width: int, cores: int) -> int:
    """The most memory (MB) that this process has held after one eager step."""
    torch.set_num_threads(cores)
    network = Network(parse_model(f"convnet-w{width}"), (1, 28, 28), CLASSES)
    plan = ExecutionPlan(chunk=32, threads=cores)
    own_step(network, plan, *segment(network, 1, steps), kind)
    return peak_megabytes()


def measure(width: int, ipc: int, rounds: int, cores: int) -> dict[str, Any]:
    """Both sides alternately, after one step of each that is not counted."""
    network = Network(parse_model(f"convnet-w{width}"), (1, 28, 28), CLASSES)
    plan = plan_for(network, 100_000_000, batch=CLASSES * ipc, threads=cores)
    given = segment(network, ipc, STEPS)
    with threads(plan.threads):
        first, found = timed(lambda: own_step(network, plan, *given))
        same, reference = timed(lambda: plain_step(network, *given))
        plain, own = [], []
        for _ in range(rounds):
            with usual_allocator():
                plain.append(timed(lambda: plain_step(network, *given))[0])
            own.append(timed(lambda: own_step(network, plan, *given))[0])
    seconds, ratios = statistics.median(own), [one / other for one, other in zip(plain, own, strict=True)]
    assert found.images is not None
    assert reference.images is not None
    one, other = found.images.double().flatten(), reference.images.double().flatten()
    return {
        "case": f"ConvNet-D3-W{width} on 28x28x1, {ipc} images per class, N={STEPS}",
        "plan": plan.model_dump(),
        "plain_s": round(statistics.median(plain), 2),
        "limbeck_s": round(seconds, 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "ratio_same_allocator": round(same / seconds, 2),
        "compile_s": round(max(0.0, first - seconds), 1),
        "agreement": {
            "cosine": round(float(F.cosine_similarity(one, other, dim=0)), 6),
            "norm_ratio": round(float(one.norm() / other.norm()), 4),
            "loss": [round(float(found.loss), 6), round(float(reference.loss), 6)],
        },
    }


def main() -> None:
    """Times both sides, then measures memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    result = {
        "machine": f"{options.threads} threads, {platform.machine()}, torch {torch.__version__}",
        **measure(options.width, options.ipc, options.rounds, options.threads),
        "peak_mb_by_steps": {},
    }
    for kind in ("unrolled", "recomputed", "tesla"):
        found = {}
        for steps in LENGTHS:
            with get_context("spawn").Pool(1) as pool:
                found[steps] = pool.apply(peak, (kind, steps, options.width, options.threads))
        result["peak_mb_by_steps"][kind] = found
    print(json.dumps(result, indent=2))
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

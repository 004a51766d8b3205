"""What methods that make images share: where the images start, batches of real ones, and the finished set."""

from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from limbeck.labels.rules import make_labels
from limbeck.methods.problem import Problem
from limbeck.methods.selectors import random_order
from limbeck.train.examples import StoredImages
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace
from limbeck.types.recipe import Recipe


class SyntheticOptions(BaseModel):
    """What every method that optimizes images can be asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(1000, ge=1, description="steps of the outer optimization")
    start: Literal["real", "noise"] = Field("real", description="images start as random real ones, or as N(0, 1) noise in network space")
    image_precision: Literal["float32", "float16"] = Field("float32", description="how the finished images are stored")


def start_images(problem: Problem, start: Literal["real", "noise"]) -> Float[Tensor, "N C H W"]:
    """First images, class by class as in `owners_of`, in network space on the plan's device; the stream is ``start`` (noise) or ``select`` (real)."""
    owners = owners_of(problem)
    if start == "noise":
        return torch.randn(len(owners), *problem.network.shape, generator=problem.streams.torch("start")).to(problem.plan.device)
    chosen = torch.cat([random_order(problem, number, count, None) for number, count in enumerate(problem.counts) if count])
    return problem.pixels(problem.train.read(chosen)).to(problem.plan.device)


def owners_of(problem: Problem) -> Int[Tensor, " N"]:
    """The class of every image: `counts[0]` zeros, `counts[1]` ones and so on; on the CPU."""
    return torch.arange(len(problem.counts)).repeat_interleave(torch.tensor(problem.counts))


def one_hot(owners: Int[Tensor, " N"], problem: Problem) -> Float[Tensor, "N K"]:
    """Hard label rows on the plan's device."""
    return torch.nn.functional.one_hot(owners, problem.network.classes).float().to(problem.plan.device)


def real_batch(problem: Problem, members: Int[Tensor, " n"], count: int, generator: torch.Generator) -> Float[Tensor, "B C H W"]:
    """`count` of the training images `members`, drawn without replacement (all of them when there are fewer), in network space on the plan's device."""
    chosen = members[torch.randperm(len(members), generator=generator)[:count]]
    return problem.pixels.to(problem.plan.device)(problem.train.read(chosen).to(problem.plan.device))


def finished(
    problem: Problem,
    images: Float[Tensor, "N C H W"],
    *,
    labels: Labels | None = None,
    precision: Literal["float32", "float16"] = "float32",
    step_size: float | None = None,
    recipe: Recipe | None = None,
    **provenance: Any,
) -> DistilledDataset:
    """The set of images in network space [N, C, H, W], one per entry of `owners_of`. Without `labels` the problem's rule makes them: the class alone, or the
    expert's soft labels of the finished images."""
    owners, pixels = owners_of(problem), PixelSpace(problem.pixels.steps, "network")
    stored = images.detach().to("cpu", torch.float16 if precision == "float16" else torch.float32).contiguous()
    given: dict[str, Any] = {
        "images": stored,
        "owners": owners,
        "pixels": pixels,
        "classes": problem.train.classes,
        "recipe": recipe or problem.recipe,
        "step_size": step_size,
        "architecture": problem.network.spec.to_dict(),
        "provenance": {**problem.provenance, **provenance},
    }
    if labels is None:
        hard = DistilledDataset(**given, labels=Labels.hard(owners, problem.network.classes))
        labels = hard.labels
        if problem.rule.kind == "soft" and problem.expert is not None:
            logits = problem.expert.logits_of(StoredImages(hard), pixels, problem.plan)
            labels = make_labels(problem.rule, owners, logits, problem.network.classes, problem.expert.digest)
    return DistilledDataset(**given, labels=labels)

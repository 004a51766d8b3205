"""`rded`: the parts of real images that an expert recognizes best, several to an image; Sun, Shi, Yu and Lin 2024 (arXiv 2312.03526)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from limbeck.data.tables import ArrayTable
from limbeck.errors import OptionError
from limbeck.labels.rules import make_labels
from limbeck.methods.driver import Metrics, Size, State, Turn
from limbeck.methods.problem import Problem
from limbeck.methods.selectors import random_order
from limbeck.methods.synthetic import owners_of
from limbeck.methods.views import ViewOptions, before_views, check_views, with_views
from limbeck.train.network import Network
from limbeck.types.distilled import DistilledDataset

_AT_ONCE = 256  # patches that are shown to the expert together


class RDEDOptions(ViewOptions):
    """The defaults are the published ones for ImageNet-1K; for images of 32 or 64 pixels a `factor` of 1 is published."""

    factor: int = Field(2, ge=1, description="an image is a grid of factor x factor patches")
    pool: int = Field(300, ge=1, description="real images of each class that patches are taken from, drawn at random")
    crops: int = Field(5, ge=1, description="random parts of each of them that the expert scores; the best one counts")
    scale: float = Field(0.08, gt=0, le=1, description="least share of an image's area that a part has; the most is all of it")


class RDED:
    """Diversity and realism without optimization (Sun, Shi, Yu and Lin 2024, arXiv 2312.03526, section 4): of `pool` random real images of a class, `crops`
    random parts each are resized to patches and scored by the expert's cross-entropy ``-log p(class)`` (realism: the lower, the better); each
    image enters with its best part, and the best ``factor^2 n`` of them fill the grids of the class's n images, image i taking those of ranks i, i + n, i + 2n
    and so on. Images stay in the storage space of the data, 8 bits a value. One step makes the images of one class.

    Cost: ``pool crops`` forward passes of the expert for each class, no gradient; the patches of one chunk of 256 are in memory. Labels per view cost a
    forward pass each, and their bytes.

    Deviations from the published code: a patch is enlarged to the full image for the expert, where that code frames it with the mean color (an expert of small
    images has never seen frames, and a pixel space that mixes pixels cannot be applied to part of an image); parts have the image's own aspect ratio
    (theirs is square, as its images are); a class of too few images gives further parts of each, in turns; students see `view_augment`, without
    the published shuffling of patches. The experts there have batch normalization; here any will do.
    """

    Options = RDEDOptions
    publishes: ClassVar[str] = "parts of training images"
    label_default: ClassVar[str] = "soft"
    wants_expert: ClassVar[bool] = True
    recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet-1k": {"views": 300, "view_augment": "resized_crop:scale=0.5+flip+cutmix"},
        "tiny-imagenet": {"factor": 1, "views": 300, "view_augment": "flip+cutmix"},
        "cifar100": {"factor": 1, "views": 300, "view_augment": "flip+cutmix"},
        "cifar10": {"factor": 1, "views": 300, "view_augment": "flip+cutmix"},
        "fashion-mnist-cpu": {"factor": 1, "pool": 200, "scale": 0.5, "views": 100, "view_augment": "flip+cutmix"},
        "smoke": {"factor": 1, "pool": 8, "crops": 2, "scale": 0.8},
    }

    def __init__(self, options: RDEDOptions) -> None:
        self.options = options

    def total_steps(self, problem: Problem) -> int:
        """One for each class that gets images."""
        return len(_classes(problem))

    def work(self, size: Size) -> float:
        """A pass for every part of the pool of each class, which holds enough for its images."""
        options = self.options
        pool = size.real(options.pool)
        parts = max(options.crops * pool, options.factor**2 * size.images)
        return float(parts + options.views * size.images)

    def unmade(self, problem: Problem, steps: int) -> int:
        """Images of the classes whose turn has not come."""
        return sum(problem.counts[number] for number in _classes(problem)[steps:])

    def check(self, problem: Problem, expert: Network | None, epochs: int | None) -> None:
        """Raises `OptionError` for labels or patches that cannot be made."""
        check_views(problem.rule, expert is not None, self.options)
        _, height, width = problem.network.shape
        if self.options.factor > min(height, width):
            raise OptionError(
                f"rded puts factor x factor patches into an image of {height}x{width} pixels, got factor={self.options.factor}; use factor=1 or 2"
            )

    def init(self, problem: Problem) -> State:
        """``images`` [N, C, H, W], uint8: random real ones, which are replaced class by class."""
        if problem.expert is None:
            raise OptionError("rded scores parts of images with an expert, got none; give the problem an expert")
        self.check(problem, problem.network, None)
        chosen = torch.cat([random_order(problem, number, problem.counts[number], None) for number in _classes(problem)])
        return {"images": problem.train.read(chosen).to(problem.plan.device)}

    def step(self, problem: Problem, state: State, turn: Turn) -> tuple[State, Metrics]:
        """Makes the images of one class."""
        number = _classes(problem)[turn.number]
        wanted = problem.counts[number] * self.options.factor**2
        members = problem.candidates(number)
        generator = turn.streams.torch("parts")
        pool = members[torch.randperm(len(members), generator=generator)[: self.options.pool]]
        crops = max(self.options.crops, -(-wanted // len(pool)))
        boxes = draw_parts(len(pool) * crops, problem.network.shape, self.options.scale, generator)
        sources = pool.repeat_interleave(crops)
        losses = self._score(problem, number, sources, boxes)
        best = rank_parts(losses.view(len(pool), crops))[:wanted]
        images = stitch(problem.train.read(sources[best]), boxes[best], self.options.factor)
        rows = (owners_of(problem) == number).nonzero()[:, 0].to(state["images"].device)
        return {"images": state["images"].index_copy(0, rows, images.to(state["images"].device))}, {"loss": float(losses[best].mean())}

    def finish(self, problem: Problem, state: State) -> DistilledDataset:
        """The images with their labels."""
        images, owners, expert = state["images"].cpu(), owners_of(problem), problem.expert
        assert expert is not None
        rule, classes = before_views(problem, self.options).rule, problem.train.classes
        soft = rule.kind == "soft"
        logits = expert.logits_of(ArrayTable(images, owners.numpy(), classes), problem.pixels, problem.plan) if soft else None
        made = DistilledDataset(
            images=images,
            owners=owners,
            labels=make_labels(rule, owners, logits, len(classes), expert.digest if soft else None),
            pixels=problem.pixels,
            classes=classes,
            recipe=problem.recipe,
            architecture=problem.network.spec.to_dict(),
            provenance=dict(problem.provenance),
        )
        return with_views(made, problem, self.options)

    def _score(self, problem: Problem, number: int, sources: Int[Tensor, " P"], boxes: Int[Tensor, "P 4"]) -> Float[Tensor, " P"]:
        """The expert's cross-entropy of every part, as large as it will be in an image."""
        assert problem.expert is not None
        _, height, width = problem.network.shape
        sides = -(-height // self.options.factor), -(-width // self.options.factor)
        losses = []
        for some, places in zip(sources.split(_AT_ONCE), boxes.split(_AT_ONCE), strict=True):
            patches = cut(problem.train.read(some), places, sides)
            shown = F.interpolate(patches, (height, width), mode="bilinear") if sides != (height, width) else patches
            table = ArrayTable(_as_bytes(shown), [number] * len(some), problem.train.classes)
            losses.append(-problem.expert.logits_of(table, problem.pixels, problem.plan).double().log_softmax(1)[:, number])
        return torch.cat(losses).float()


def draw_parts(count: int, shape: tuple[int, int, int], scale: float, generator: torch.Generator) -> Int[Tensor, "P 4"]:
    """Rows from and to, columns from and to (ends excluded) of parts that have a share U(scale, 1) of the area and the image's aspect ratio."""
    draws = torch.rand(3, count, generator=generator, dtype=torch.float64)
    side = (scale + (1 - scale) * draws[0]).sqrt()
    spans = []
    for full, place in zip(shape[1:], draws[1:], strict=True):
        length = (full * side).round().long().clamp(1, full)
        start = (place * (full - length + 1)).long()
        spans += [start, start + length]
    return torch.stack(spans, dim=1)


def rank_parts(losses: Float[Tensor, "n crops"]) -> Int[Tensor, " P"]:
    """Numbers (row by row) of all parts in order of preference: every image's best one, by loss; then every image's second, and so on."""
    images, crops = losses.shape
    values, order = torch.sort(losses, dim=1, stable=True)
    numbers = order + crops * torch.arange(images)[:, None]
    rounds = torch.sort(values, dim=0, stable=True).indices
    return numbers.gather(0, rounds).T.reshape(-1)


def cut(images: UInt8[Tensor, "P C H W"], boxes: Int[Tensor, "P 4"], sides: tuple[int, int]) -> Float[Tensor, "P C h w"]:
    """Each image's part inside its box, resized bilinearly with antialiasing, in 0..255."""
    patches = []
    for image, (top, bottom, left, right) in zip(images, boxes.tolist(), strict=True):
        part = image[None, :, top:bottom, left:right].float()
        patches.append(part if part.shape[2:] == sides else F.interpolate(part, sides, mode="bilinear", antialias=True))
    return torch.cat(patches)


def stitch(images: UInt8[Tensor, "P C H W"], boxes: Int[Tensor, "P 4"], factor: int) -> UInt8[Tensor, "n C H W"]:
    """Grids of factor x factor parts: the first n = P / factor^2 parts are the upper left patches of the n images, the next n those to their right, and
    so on. Where a side is no multiple of the factor, the first patches are one pixel longer."""
    count, (height, width) = len(images) // factor**2, images.shape[2:]
    rows, columns = (list(map(len, torch.arange(side).tensor_split(factor))) for side in (height, width))
    parts = zip(images.split(count), boxes.split(count), strict=True)
    grid = [torch.cat([cut(*next(parts), (row, column)) for column in columns], dim=3) for row in rows]
    return _as_bytes(torch.cat(grid, dim=2))


def _classes(problem: Problem) -> list[int]:
    return [number for number, count in enumerate(problem.counts) if count]


def _as_bytes(pixels: Float[Tensor, "P C H W"]) -> UInt8[Tensor, "P C H W"]:
    return pixels.round().clamp(0, 255).to(torch.uint8)

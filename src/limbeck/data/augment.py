"""Augmentations of image batches: differentiable, drawn from an explicit generator, replayable.

An augmentation is a frozen value with two verbs. `Augment.draw` takes every random decision on the CPU generator and returns it as named tensors;
`Augment.apply` is a deterministic, differentiable function of images and those parameters, batched, without synchronizing the device. Calling the
augmentation does both. Parameters may be stored and replayed, or drawn for one image and applied to batches of any size (Siamese augmentation).

Images are in the network's space: pixels that come from outside the image are zero there, that is the dataset's mean color, as in the field's code.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import TypeAdapter, ValidationError
from torch import Generator, Tensor
from torch.nn import functional as F

from limbeck.errors import OptionError, nearest

Params = dict[str, Tensor]
"""Drawn parameters by name. A leading dimension is 1 (shared by all images) or B (one for each)."""

Shape = tuple[int, int, int]
"""(C, H, W)."""

DSA_STRATEGY = "color_crop_cutout_flip_scale_rotate"
_ASPECTS, _ATTEMPTS = (3 / 4, 4 / 3), 10  # of resized_crop


class Augment(ABC):
    """A random map of image batches to image batches of the same shape. Every subclass is a frozen dataclass: compare it, store `str` of it."""

    @property
    def mixes(self) -> bool:
        """Whether an output shows more than one input."""
        return False

    @abstractmethod
    def draw(self, batch: int, shape: Shape, generator: Generator) -> Params:
        """Random decisions for `batch` images of `shape` (C, H, W), on the CPU, as tensors that may be saved."""

    @abstractmethod
    def apply(self, images: Float[Tensor, "B C H W"], params: Params) -> Float[Tensor, "B C H W"]:
        """The augmented images; differentiable in `images`. Parameters were drawn for B images or for 1, of the same C, H and W."""

    def mix_labels(self, labels: Float[Tensor, "B K"], params: Params) -> Float[Tensor, "B K"]:
        """Labels mixed as `apply` mixed the images; unchanged where each output shows one input only."""
        return labels

    def merge(self, drawn: Sequence[Params], batch: int) -> Params:
        """Parameters that do to S batches of `batch` images, one behind the other, what each of `drawn` does to its own batch."""
        if len(drawn) == 1:
            return drawn[0]
        return {name: self._merged(name, drawn, batch) for name in drawn[0]}

    def _merged(self, name: str, drawn: Sequence[Params], batch: int) -> Tensor:
        return torch.cat([params[name].expand(batch, *params[name].shape[1:]) for params in drawn])

    def __call__(self, images: Float[Tensor, "B C H W"], generator: Generator) -> Float[Tensor, "B C H W"]:
        """Draws parameters for this batch and applies them."""
        batch, channels, height, width = images.shape
        return self.apply(images, self.draw(batch, (channels, height, width), generator))


@dataclass(frozen=True)
class DSA(Augment):
    """Differentiable Siamese augmentation, Zhao and Bilen (2021), arXiv:2102.08259, with the semantics of its published code.

    `strategy` joins operations by ``_``. In mode ``single``, as in the field, one operation is drawn uniformly per batch and applied to every image
    of the batch with its own parameters; in ``multiple`` all are applied in the strategy's order. With `siamese`, parameters are drawn once and
    shared by all images. u is U(0, 1); H and W are treated separately:

    - ``color``: add u - 0.5; scale the distance to each pixel's mean over channels by U(0, 2); scale the distance to the image's mean by U(0.5, 1.5);
    - ``crop``: shift rows and columns by integers uniform on -r..r, r = round(0.125 side), with zeros coming in;
    - ``cutout``: a square of round(0.5 side), center uniform over the image, clipped at the borders, becomes 0;
    - ``flip``: mirror left to right with probability 1/2;
    - ``scale``: sampling grid stretched by independent U(1/1.2, 1.2) in x and y, bilinear (below 1 zooms in);
    - ``rotate``: sampling grid turned by U(-15, 15) degrees, bilinear.

    `align_corners` says what scale and rotate hold fixed at the border: pixel edges (False, as in DC, DSA and DM, and the default here) or the
    centers of the border pixels (True, as in MTT, TESLA, no-distillation and DD-Ranking). Angles are true angles in pixels; the published code
    agrees for square images and shears others. Scale and rotate differentiate once, the others any number of times: PyTorch's grid sampling has no
    second derivative, and none is needed where the inner gradient is with respect to network parameters.
    """

    strategy: str = DSA_STRATEGY
    siamese: bool = False
    mode: str = "single"
    align_corners: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("single", "multiple"):
            raise OptionError(f"DSA applies a single operation per batch or multiple, got mode={self.mode!r}; use single or multiple")
        for operation in self.operations:
            if operation not in _OPERATIONS:
                raise OptionError(f"unknown operation {operation!r} in DSA strategy {self.strategy!r}; {nearest(operation, _OPERATIONS)}")
        if len(set(self.operations)) < len(self.operations):
            raise OptionError(f"DSA strategy {self.strategy!r} names an operation twice; name each once")

    @property
    def operations(self) -> tuple[str, ...]:
        """The strategy's operations in order."""
        return tuple(self.strategy.split("_"))

    def draw(self, batch: int, shape: Shape, generator: Generator) -> Params:
        """``{operation: parameters}``, only for operations that are to be applied; the shapes are those of the functions of this module."""
        chosen = self.operations
        if self.mode == "single":
            chosen = (chosen[int(torch.randint(len(chosen), (), generator=generator))],)
        count = 1 if self.siamese else batch
        return {operation: _OPERATIONS[operation](count, shape, generator) for operation in chosen}

    def merge(self, drawn: Sequence[Params], batch: int) -> Params:
        """As for every augmentation; batches that drew different operations get the identity for the others', so the program is the same at every step."""
        if len(drawn) == 1:
            return drawn[0]
        neutral = {name: torch.tensor([value]).expand(batch, *torch.tensor(value).shape) for name, value in _NEUTRAL.items()}
        full = [{name: params.get(name, neutral[name]) for name in self.operations} for params in drawn]
        return super().merge(full, batch)

    def apply(self, images: Float[Tensor, "B C H W"], params: Params) -> Float[Tensor, "B C H W"]:
        for operation in self.operations:
            if operation in params:
                drawn = _for_images(params[operation], images, operation)
                match operation:
                    case "color":
                        images = jitter_color(images, drawn)
                    case "crop":
                        images = shift(images, drawn)
                    case "cutout":
                        images = cut_out(images, drawn)
                    case "flip":
                        images = mirror(images, drawn)
                    case "scale":
                        images = stretch(images, drawn, self.align_corners)
                    case "rotate":
                        images = rotate(images, drawn, self.align_corners)
        return images

    def __str__(self) -> str:
        parts = [] if self.strategy == DSA_STRATEGY else [self.strategy]
        parts += ["siamese=true"] * self.siamese + ["mode=multiple"] * (self.mode == "multiple") + ["align_corners=true"] * self.align_corners
        return f"dsa:{','.join(parts)}" if parts else "dsa"


@dataclass(frozen=True)
class StandardAugment(Augment):
    """The usual training augmentation: a random crop of the zero-padded image, then a mirror with probability 1/2, for every image separately.

    `pad` is in pixels on each side; None takes round(0.125 side), which is the usual 4 at 32 pixels.
    """

    crop: bool = True
    flip: bool = True
    pad: int | None = None

    def __post_init__(self) -> None:
        if not (self.crop or self.flip):
            raise OptionError("standard augmentation needs crop, flip or both, got neither; use none for no augmentation")
        if self.pad is not None and (self.pad < 0 or not self.crop):
            raise OptionError(f"pad is the crop's number of pixels >= 0, got pad={self.pad} with crop={self.crop}; leave it out or use a crop")

    def draw(self, batch: int, shape: Shape, generator: Generator) -> Params:
        """``crop``: Int [B, 2], rows and columns; ``flip``: Bool [B]."""
        params: Params = {}
        if self.crop:
            params["crop"] = _draw_crop(batch, shape, generator) if self.pad is None else _draw_shift(batch, (self.pad, self.pad), generator)
        if self.flip:
            params["flip"] = _draw_flip(batch, shape, generator)
        return params

    def apply(self, images: Float[Tensor, "B C H W"], params: Params) -> Float[Tensor, "B C H W"]:
        if self.crop:
            images = shift(images, _for_images(params["crop"], images, "crop"))
        if self.flip:
            images = mirror(images, _for_images(params["flip"], images, "flip"))
        return images

    def __str__(self) -> str:
        name = "_".join(part for part, on in (("crop", self.crop), ("flip", self.flip)) if on)
        return name if self.pad is None else f"{name}:pad={self.pad}"


@dataclass(frozen=True)
class ResizedCrop(Augment):
    """A random part of each image, enlarged to the whole: Szegedy et al. (2015), arXiv:1409.4842, with the rule of torchvision's RandomResizedCrop.

    Its share of the area is U(`scale`, 1), its aspect ratio (width over height) log-uniform on 3/4..4/3, its sides rounded to whole pixels, its place
    uniform; the first of ten such draws that fits is taken, and the largest centered part of an allowed ratio when none does (for a square image, all of it).
    It is enlarged bilinearly, pixels being squares that fill the image (``align_corners=False``), and never sees what lies outside of it.
    Differentiates any number of times.
    """

    scale: float = 0.08

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1:
            raise OptionError(f"resized_crop keeps a share of the area of at least 0 < scale <= 1, got scale={self.scale}; use for example 0.08")

    def draw(self, batch: int, shape: Shape, generator: Generator) -> Params:
        """``part``: Int [B, 4], rows from and to, columns from and to (ends excluded)."""
        _, height, width = shape
        # float64: in float32 the last bit, which processors differ in, would now and then decide between two whole numbers
        shares, ratios = torch.rand(2, _ATTEMPTS, batch, generator=generator, dtype=torch.float64)
        area = height * width * (self.scale + (1 - self.scale) * shares)
        ratio = _ASPECTS[0] * (_ASPECTS[1] / _ASPECTS[0]) ** ratios
        sides = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()]).long()
        most = torch.tensor([height, width])
        fits = ((sides >= 1) & (sides <= most[:, None, None])).all(0)
        first = fits.int().argmax(0)
        places = torch.rand(2, batch, generator=generator, dtype=torch.float64)
        largest = torch.tensor([min(height, round(width / _ASPECTS[0])), min(width, round(height * _ASPECTS[1]))])
        chosen = torch.where(fits.any(0), sides.gather(1, first.expand(2, 1, batch))[:, 0], largest[:, None])
        start = torch.where(fits.any(0), (places * (most[:, None] - chosen + 1)).long(), (most - largest)[:, None] // 2)
        return {"part": torch.stack([start[0], start[0] + chosen[0], start[1], start[1] + chosen[1]], dim=1)}

    def apply(self, images: Float[Tensor, "B C H W"], params: Params) -> Float[Tensor, "B C H W"]:
        return enlarge(images, _for_images(params["part"], images, "resized_crop"))

    def __str__(self) -> str:
        return "resized_crop" if self.scale == type(self).scale else f"resized_crop:scale={self.scale}"


class _Mixing(Augment):
    """What mixes each image with a partner of its own batch."""

    @property
    def mixes(self) -> bool:
        return True

    def _merged(self, name: str, drawn: Sequence[Params], batch: int) -> Tensor:
        if name == "partner":
            return torch.cat([params[name] + index * batch for index, params in enumerate(drawn)])
        return super()._merged(name, drawn, batch)


@dataclass(frozen=True)
class CutMix(_Mixing):
    """Yun et al. (2019), arXiv:1905.04899: one box per batch is filled from a permutation of the batch.

    The share kept is lam ~ Beta(alpha, alpha); the box has sides 2 floor(side sqrt(1 - lam) / 2), a center uniform over the pixels, and is clipped at
    the borders. `mix_labels` weighs labels by area; SRe2L and its successors do not use it but let a teacher label the mixed image.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_alpha(self.alpha, "CutMix")

    def draw(self, batch: int, shape: Shape, generator: Generator) -> Params:
        """``partner``: Int [B]; ``box``: Int [1, 4], rows from and to, columns from and to (ends excluded); ``lam``: Float [1], the area kept."""
        _, height, width = shape
        share = torch.tensor([_draw_beta(self.alpha, generator)], dtype=torch.float64)
        partner = torch.randperm(batch, generator=generator)
        box = draw_boxes(share, shape, generator)
        top, bottom, left, right = box[0].tolist()
        lam = 1 - (bottom - top) * (right - left) / (height * width)
        return {"partner": partner, "box": box, "lam": torch.tensor([lam])}

    def apply(self, images: Float[Tensor, "B C H W"], params: Params) -> Float[Tensor, "B C H W"]:
        return paste(images, images[_partner(params, images)], _for_images(params["box"], images, "box"))

    def mix_labels(self, labels: Float[Tensor, "B K"], params: Params) -> Float[Tensor, "B K"]:
        return _blend(labels, params)

    def __str__(self) -> str:
        return f"cutmix:alpha={self.alpha}"


@dataclass(frozen=True)
class Mixup(_Mixing):
    """Zhang et al. (2018), arXiv:1710.09412: lam x + (1 - lam) x', with one lam ~ Beta(alpha, alpha) per batch and x' a permutation of the batch."""

    alpha: float = 0.8

    def __post_init__(self) -> None:
        _check_alpha(self.alpha, "mixup")

    def draw(self, batch: int, shape: Shape, generator: Generator) -> Params:
        """``partner``: Int [B]; ``lam``: Float [1]."""
        lam = torch.tensor([_draw_beta(self.alpha, generator)])
        return {"partner": torch.randperm(batch, generator=generator), "lam": lam}

    def apply(self, images: Float[Tensor, "B C H W"], params: Params) -> Float[Tensor, "B C H W"]:
        return _blend(images, params)

    def mix_labels(self, labels: Float[Tensor, "B K"], params: Params) -> Float[Tensor, "B K"]:
        return _blend(labels, params)

    def __str__(self) -> str:
        return f"mixup:alpha={self.alpha}"


@dataclass(frozen=True)
class Chain(Augment):
    """Augmentations one after the other; parameter names carry the step's position: ``0.crop``, ``1.lam``."""

    steps: tuple[Augment, ...]

    @property
    def mixes(self) -> bool:
        return any(step.mixes for step in self.steps)

    def draw(self, batch: int, shape: Shape, generator: Generator) -> Params:
        """Each step's parameters, drawn in order."""
        return {f"{index}.{name}": value for index, step in enumerate(self.steps) for name, value in step.draw(batch, shape, generator).items()}

    def merge(self, drawn: Sequence[Params], batch: int) -> Params:
        """Each step's parameters merged."""
        merged = (step.merge([_under(f"{index}.", params) for params in drawn], batch) for index, step in enumerate(self.steps))
        return {f"{index}.{name}": value for index, params in enumerate(merged) for name, value in params.items()}

    def apply(self, images: Float[Tensor, "B C H W"], params: Params) -> Float[Tensor, "B C H W"]:
        for index, step in enumerate(self.steps):
            images = step.apply(images, _under(f"{index}.", params))
        return images

    def mix_labels(self, labels: Float[Tensor, "B K"], params: Params) -> Float[Tensor, "B K"]:
        for index, step in enumerate(self.steps):
            labels = step.mix_labels(labels, _under(f"{index}.", params))
        return labels

    def __str__(self) -> str:
        return "+".join(map(str, self.steps))


def parse_augment(text: str) -> Augment | None:
    """Reads ``none`` (which gives None) or augmentations joined by ``+``, each ``name[:options]`` with options ``key=value`` joined by commas.

    ``dsa``, ``dsa:color_crop_flip``, ``dsa:color_crop,align_corners=true,mode=multiple``, ``crop_flip``, ``crop``, ``flip``, ``crop_flip:pad=4``,
    ``resized_crop:scale=0.08``, ``cutmix:alpha=1``, ``mixup:alpha=0.8``, ``crop_flip+mixup``. ``str(augment)`` reads back to an equal value.
    Raises `OptionError`, one sentence, for an unknown name, option or value.
    """
    if text.strip() == "none":
        return None
    steps = tuple(_parse_one(part.strip()) for part in text.split("+"))
    return steps[0] if len(steps) == 1 else Chain(steps)


_PARSED: dict[str, tuple[Callable[..., Augment], dict[str, type]]] = {
    "dsa": (DSA, {"siamese": bool, "mode": str, "align_corners": bool}),
    "crop_flip": (StandardAugment, {"pad": int}),
    "crop": (partial(StandardAugment, flip=False), {"pad": int}),
    "flip": (partial(StandardAugment, crop=False), {}),
    "resized_crop": (ResizedCrop, {"scale": float}),
    "cutmix": (CutMix, {"alpha": float}),
    "mixup": (Mixup, {"alpha": float}),
}


def _parse_one(text: str) -> Augment:
    name, _, tail = text.partition(":")
    if name not in _PARSED:
        raise OptionError(f"unknown augmentation {name!r}; {nearest(name, [*_PARSED, 'none'])}")
    make, kinds = _PARSED[name]
    options: dict[str, Any] = {}
    for position, part in enumerate(filter(None, tail.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if name == "dsa" and position == 0 and not equals:
            key, value = "strategy", key
        elif key not in kinds:
            raise OptionError(f"augmentation {name} has no option {key!r}; {nearest(key, kinds) if kinds else 'it takes none'}")
        if key in options:
            raise OptionError(f"augmentation {text!r} gives {key} twice; give it once")
        options[key] = _parse_value(name, key, value, kinds.get(key, str))
    return make(**options)


def _parse_value(name: str, key: str, value: str, kind: type) -> Any:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError:
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise OptionError(f"option {key} of augmentation {name} is {wanted}, got {value!r}; write {name}:{key}=VALUE") from None


def dsa_strategy_for(source: str) -> str:
    """The field's DSA strategy for a data source: all six operations, without ``flip`` where mirroring changes the class.

    That is digits (``mnist``, ``svhn``, ``digits``) and every ``composed:`` source, whose class is an ordered pair of images side by side.
    """
    if source in ("mnist", "svhn", "digits") or source.startswith("composed:"):
        return DSA_STRATEGY.replace("_flip", "")
    return DSA_STRATEGY


def suited_to(text: str, source: str) -> str:
    """An augmentation's text without ``flip`` in a DSA strategy where mirroring changes the classes of `source` (as `dsa_strategy_for`)."""
    while source.startswith("planted:"):  # planted:TRANSFORMATION:SOURCE has the classes of its source
        source = source.removeprefix("planted:").partition(":")[2]
    kind = source if source.startswith("composed:") else source.partition(":")[0]
    augment = parse_augment(text)
    if not isinstance(augment, DSA) or "flip" not in augment.operations or "flip" in dsa_strategy_for(kind):
        return text
    return str(replace(augment, strategy="_".join(operation for operation in augment.operations if operation != "flip")))


def jitter_color(images: Float[Tensor, "B C H W"], params: Float[Tensor, "P 3"]) -> Float[Tensor, "B C H W"]:
    """Adds a brightness, then scales saturation, then contrast; columns of `params` are the shift and the two factors."""
    brightness, saturation, contrast = (column[:, None, None, None] for column in params.to(images.dtype).unbind(1))
    images = images + brightness
    gray = images.mean(dim=1, keepdim=True)
    images = gray + saturation * (images - gray)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast * (images - mean)


def shift(images: Float[Tensor, "B C H W"], params: Int[Tensor, "P 2"]) -> Float[Tensor, "B C H W"]:
    """``out[i, j] = images[i + rows, j + columns]``, zero where that lies outside; `params` holds (rows, columns)."""
    for dim, steps in ((2, params[:, 0]), (3, params[:, 1])):
        side = images.shape[dim]
        index = torch.arange(side, device=images.device) + steps[:, None]
        inside = (index >= 0) & (index < side)
        layout = (-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side)
        picked = index.clamp(0, side - 1).view(layout).expand(images.shape)
        images = images.gather(dim, picked) * inside.view(layout)
    return images


def cut_out(images: Float[Tensor, "B C H W"], params: Int[Tensor, "P 4"]) -> Float[Tensor, "B C H W"]:
    """Zero inside the box; `params` holds rows from and to, columns from and to (ends excluded; bounds may lie outside the image)."""
    top, bottom, left, right = params.unbind(1)
    rows, columns = _between(images.shape[2], top, bottom, images), _between(images.shape[3], left, right, images)
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


def enlarge(images: Float[Tensor, "B C H W"], params: Int[Tensor, "P 4"]) -> Float[Tensor, "B C H W"]:
    """The part inside the box, enlarged bilinearly to the whole image; `params` holds rows from and to, columns from and to (ends excluded)."""
    for dim, start, stop in ((2, params[:, 0], params[:, 1]), (3, params[:, 2], params[:, 3])):
        side, length = images.shape[dim], (stop - start)[:, None]
        layout = (-1, 1, side, 1) if dim == 2 else (-1, 1, 1, side)
        at = (torch.arange(side, device=images.device) + 0.5) * (length.to(images.dtype) / side) - 0.5
        at = torch.minimum(at.clamp_min(0), length - 1)
        low = at.long()
        near, far = (
            images.gather(dim, (start[:, None] + step).view(layout).expand(images.shape)) for step in (low, torch.minimum(low + 1, length - 1))
        )
        images = torch.lerp(near, far, (at - low).view(layout))
    return images


def paste(images: Float[Tensor, "B C H W"], others: Float[Tensor, "B C H W"], params: Int[Tensor, "P 4"]) -> Float[Tensor, "B C H W"]:
    """`others` inside the box and `images` outside; `params` holds rows from and to, columns from and to (ends excluded)."""
    top, bottom, left, right = params.unbind(1)
    inside = _between(images.shape[2], top, bottom, images)[:, None, :, None] & _between(images.shape[3], left, right, images)[:, None, None, :]
    return torch.where(inside, others, images)


def draw_shares(alpha: float, count: int, generator: Generator) -> Float[Tensor, " P"]:
    """Shares lam ~ Beta(alpha, alpha), float64; Beta(1, 1) is drawn as the uniform distribution that it is, by PyTorch alone."""
    if alpha == 1:
        return torch.rand(count, generator=generator, dtype=torch.float64)
    # torch's Beta takes no generator, so one integer of the generator seeds a NumPy stream.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha, count))


def draw_boxes(lam: Float[Tensor, " P"], shape: Shape, generator: Generator) -> Int[Tensor, "P 4"]:
    """CutMix's boxes for the shares `lam` that are kept: sides 2 floor(side sqrt(1 - lam) / 2), centers uniform over the pixels, clipped at the borders."""
    cut, spans = (1 - lam.double()).sqrt(), []
    for side in shape[1:]:
        center, half = torch.randint(side, lam.shape, generator=generator), (side * cut).long() // 2
        spans += [(center - half).clamp_min(0), (center + half).clamp_max(side)]
    return torch.stack(spans, dim=1)


def mirror(images: Float[Tensor, "B C H W"], params: Bool[Tensor, " P"]) -> Float[Tensor, "B C H W"]:
    """Mirrored left to right where `params` is true."""
    return torch.where(params[:, None, None, None], images.flip(3), images)


def stretch(images: Float[Tensor, "B C H W"], params: Float[Tensor, "P 2"], align_corners: bool) -> Float[Tensor, "B C H W"]:
    """Samples at (x sx, y sy), coordinates from the image center; `params` holds (sx, sy)."""
    sx, sy = params.to(images.dtype).unbind(1)
    zero = torch.zeros_like(sx)
    return _warp(images, torch.stack([sx, zero, zero, zero, sy, zero], dim=1), align_corners)


def rotate(images: Float[Tensor, "B C H W"], params: Float[Tensor, " P"], align_corners: bool) -> Float[Tensor, "B C H W"]:
    """Samples at (x cos a - y sin a, x sin a + y cos a), pixel coordinates from the image center, a in radians."""
    angle = params.to(images.dtype)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Sampling coordinates span [-1, 1] on both axes; the aspect ratio turns them into pixels, so that a non-square image is not sheared.
    height, width = (max(1, side - 1) if align_corners else side for side in images.shape[2:])
    aspect = height / width
    return _warp(images, torch.stack([cosine, -sine * aspect, zero, sine / aspect, cosine, zero], dim=1), align_corners)


def _warp(images: Float[Tensor, "B C H W"], theta: Float[Tensor, "P 6"], align_corners: bool) -> Float[Tensor, "B C H W"]:
    grid = F.affine_grid(theta.view(-1, 2, 3), [len(theta), *images.shape[1:]], align_corners=align_corners)
    return F.grid_sample(images, grid.expand(len(images), -1, -1, -1), mode="bilinear", padding_mode="zeros", align_corners=align_corners)


def _between(side: int, start: Int[Tensor, " P"], stop: Int[Tensor, " P"], images: Float[Tensor, "B C H W"]) -> Bool[Tensor, "P side"]:
    index = torch.arange(side, device=images.device)
    return (index >= start[:, None]) & (index < stop[:, None])


def _uniform(count: int, low: float, high: float, generator: Generator) -> Float[Tensor, " P"]:
    return low + (high - low) * torch.rand(count, generator=generator)


def _draw_color(count: int, shape: Shape, generator: Generator) -> Float[Tensor, "P 3"]:
    ranges = ((-0.5, 0.5), (0.0, 2.0), (0.5, 1.5))
    return torch.stack([_uniform(count, low, high, generator) for low, high in ranges], dim=1)


def _draw_crop(count: int, shape: Shape, generator: Generator) -> Int[Tensor, "P 2"]:
    return _draw_shift(count, (_part(shape[1], 0.125), _part(shape[2], 0.125)), generator)


def _draw_shift(count: int, reach: tuple[int, int], generator: Generator) -> Int[Tensor, "P 2"]:
    return torch.stack([torch.randint(-most, most + 1, (count,), generator=generator) for most in reach], dim=1)


def _draw_cutout(count: int, shape: Shape, generator: Generator) -> Int[Tensor, "P 4"]:
    bounds = []
    for side in shape[1:]:
        length = _part(side, 0.5)
        # An even box has its center on a pixel corner, of which there is one more than pixels; an odd one on a pixel.
        center = torch.randint(side + 1 - length % 2, (count,), generator=generator)
        bounds += [center - length // 2, center - length // 2 + length]
    return torch.stack(bounds, dim=1)


def _draw_flip(count: int, shape: Shape, generator: Generator) -> Bool[Tensor, " P"]:
    return torch.rand(count, generator=generator) < 0.5


def _draw_scale(count: int, shape: Shape, generator: Generator) -> Float[Tensor, "P 2"]:
    return torch.stack([_uniform(count, 1 / 1.2, 1.2, generator) for _ in range(2)], dim=1)


def _draw_rotate(count: int, shape: Shape, generator: Generator) -> Float[Tensor, " P"]:
    return _uniform(count, -math.radians(15), math.radians(15), generator)


_OPERATIONS: dict[str, Callable[[int, Shape, Generator], Tensor]] = {
    "color": _draw_color,
    "crop": _draw_crop,
    "cutout": _draw_cutout,
    "flip": _draw_flip,
    "scale": _draw_scale,
    "rotate": _draw_rotate,
}


_NEUTRAL: dict[str, Any] = {
    "color": [0.0, 1.0, 1.0],
    "crop": [0, 0],
    "cutout": [0, 0, 0, 0],
    "flip": False,
    "scale": [1.0, 1.0],
    "rotate": 0.0,
}
"""Parameters under which an operation leaves an image as it is."""


def _part(side: int, ratio: float) -> int:
    return int(side * ratio + 0.5)


def _draw_beta(alpha: float, generator: Generator) -> float:
    # torch's Beta takes no generator, so one integer of the generator seeds a NumPy stream.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    return float(np.random.Generator(np.random.PCG64(seed)).beta(alpha, alpha))


def _for_images(params: Tensor, images: Float[Tensor, "B C H W"], operation: str) -> Tensor:
    if len(params) not in (1, len(images)):
        raise OptionError(
            f"parameters of {operation} were drawn for {len(params)} images, got {len(images)} images; draw them for that many or for 1, to be shared"
        )
    return params.to(images.device, non_blocking=True)


def _partner(params: Params, values: Tensor) -> Tensor:
    partner = params["partner"]
    if len(partner) != len(values):
        raise OptionError(f"the batch was mixed by a permutation of {len(partner)}, got {len(values)} rows; draw parameters for that batch size")
    return partner.to(values.device, non_blocking=True)


def _blend(values: Tensor, params: Params) -> Tensor:
    lam = params["lam"].to(values.device, values.dtype, non_blocking=True)
    return torch.lerp(values[_partner(params, values)], values, lam.view(-1, *[1] * (values.ndim - 1)))


def _under(prefix: str, params: Params) -> Params:
    return {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}


def _check_alpha(alpha: float, name: str) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise OptionError(f"{name} draws its share from Beta(alpha, alpha) with alpha > 0, got alpha={alpha}; use for example 1")

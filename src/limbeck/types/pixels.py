"""`PixelSpace`: the exact, ordered map from stored pixels to what a network sees. It travels inside every file, so a file works without its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from limbeck.errors import FileFormatError, OptionError

Images = Float[Tensor, "B C H W"]


@dataclass(frozen=True)
class Scale:
    """Multiplies by `factor`: 255 turns [0, 1] pixels into 0-255 ones."""

    name: ClassVar[str] = "scale"
    factor: Float[Tensor, ""]

    def forward(self, images: Images) -> Images:
        return images * self.factor

    def inverse(self, images: Images) -> Images:
        return images / self.factor

    @property
    def consistent(self) -> bool:
        """Whether the parameters fit each other."""
        return self.factor.ndim == 0


@dataclass(frozen=True)
class Standardize:
    """Per channel ``(x - mean) / std``; `mean` and `std` have shape [C] and the unit of the incoming pixels."""

    name: ClassVar[str] = "standardize"
    mean: Float[Tensor, " C"]
    std: Float[Tensor, " C"]

    def forward(self, images: Images) -> Images:
        return (images - self.mean[:, None, None]) / self.std[:, None, None]

    def inverse(self, images: Images) -> Images:
        return images * self.std[:, None, None] + self.mean[:, None, None]

    @property
    def consistent(self) -> bool:
        """Whether the parameters fit each other."""
        return self.mean.ndim == 1 and self.mean.shape == self.std.shape


@dataclass(frozen=True)
class CenterImage:
    """Subtracts from each image its own mean over channels and pixels. Not invertible: the mean is not kept."""

    name: ClassVar[str] = "center-image"
    inverse = None
    consistent = True

    def forward(self, images: Images) -> Images:
        return images - images.mean(dim=(1, 2, 3), keepdim=True)


@dataclass(frozen=True)
class UnitNormImage:
    """Divides each image by its own L2 norm. Not invertible: the norm is not kept. A constant image stays zero."""

    name: ClassVar[str] = "unit-norm-image"
    inverse = None
    consistent = True

    def forward(self, images: Images) -> Images:
        norm = images.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
        return images / norm.clamp_min(torch.finfo(images.dtype).tiny)


@dataclass(frozen=True)
class Whiten:
    """``(x - mean) @ matrix`` on flattened images: one dense [D, D] matrix (``blocks`` None), or G matrices [G, d, d] over the pixel groups `blocks` [G, d].

    The matrix is symmetric (ZCA), and a ZCA matrix commutes with any permutation of the pixels, so the flattening order (C, H, W here) is immaterial.
    """

    name: ClassVar[str] = "whiten"
    mean: Float[Tensor, " D"]
    matrix: Float[Tensor, "G d d"]
    blocks: Int[Tensor, "G d"] | None = None

    def forward(self, images: Images) -> Images:
        return self._apply(images.flatten(1) - self.mean, self.matrix).reshape(images.shape)

    def inverse(self, images: Images) -> Images:
        inverse = torch.linalg.inv(self.matrix.double()).to(images.dtype)
        return (self._apply(images.flatten(1), inverse) + self.mean).reshape(images.shape)

    @property
    def consistent(self) -> bool:
        """Whether the parameters fit each other: the blocks hold every pixel once, and each has its square matrix."""
        values = len(self.mean)
        if self.blocks is None:
            return self.mean.ndim == 1 and self.matrix.shape == (1, values, values)
        every = torch.arange(values, device=self.blocks.device)
        return (
            self.blocks.ndim == 2
            and self.matrix.shape == (*self.blocks.shape, self.blocks.shape[1])
            and torch.equal(self.blocks.reshape(-1).sort().values.long(), every)
        )

    def _apply(self, flat: Float[Tensor, "B D"], matrix: Float[Tensor, "G d d"]) -> Float[Tensor, "B D"]:
        if self.blocks is None:
            return flat @ matrix[0]
        out = torch.empty_like(flat)
        out[:, self.blocks.reshape(-1)] = torch.einsum("bgd,gde->bge", flat[:, self.blocks], matrix).flatten(1)
        return out


Step = Scale | Standardize | CenterImage | UnitNormImage | Whiten
STEPS: dict[str, type[Step]] = {step.name: step for step in (Scale, Standardize, CenterImage, UnitNormImage, Whiten)}


@dataclass(frozen=True)
class PixelSpace:
    """Ordered steps from raw pixels in [0, 1] (uint8 divided by 255) to network space, and the space in which a set's images are stored.

    Per-channel normalization and the field's three ZCA definitions are sequences of these steps (``limbeck.data.pixels``).
    """

    steps: tuple[Step, ...] = ()
    stored: Literal["raw", "network"] = "raw"

    def __call__(self, images: Shaped[Tensor, "B C H W"]) -> Images:
        """Stored images as the network's input, float32: uint8 images are pixels whatever the set's own are, floating ones lie in the `stored` space."""
        pixels = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)
        if self.stored == "network" and images.dtype != torch.uint8:
            return pixels
        for step in self.steps:
            pixels = step.forward(pixels)
        return pixels

    @property
    def invertible(self) -> bool:
        """Whether every step can be undone, so that network-space images can be shown as pixels."""
        return all(step.inverse is not None for step in self.steps)

    def to_pixels(self, images: Shaped[Tensor, "B C H W"]) -> Images:
        """Stored images as pixels in [0, 1] for people to look at. Steps that cannot be undone are skipped and each image is stretched to [0, 1] instead."""
        pixels = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images.to(torch.float32)
        if self.stored == "raw" or images.dtype == torch.uint8:
            return pixels.clamp(0, 1)
        for step in reversed(self.steps):
            if step.inverse is not None:
                pixels = step.inverse(pixels)
        if self.invertible:
            return pixels.clamp(0, 1)
        low, high = pixels.amin(dim=(1, 2, 3), keepdim=True), pixels.amax(dim=(1, 2, 3), keepdim=True)
        return (pixels - low) / (high - low).clamp_min(1e-12)

    def to(self, device: torch.device | str) -> "PixelSpace":
        """The same map with its parameters on `device`."""
        return PixelSpace(
            tuple(type(step)(**{key: value.to(device) for key, value in _parameters(step).items()}) for step in self.steps), self.stored
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters: part of what a distilled file costs."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def header(self) -> dict[str, Any]:
        """The JSON part: step names in order and the storage space."""
        return {"steps": [step.name for step in self.steps], "stored": self.stored}

    def tensors(self, prefix: str = "pixels") -> dict[str, Tensor]:
        """The tensor part, one entry per parameter: ``{prefix}.{position}.{parameter}``."""
        return {f"{prefix}.{i}.{key}": value for i, step in enumerate(self.steps) for key, value in _parameters(step).items()}

    @staticmethod
    def restore(header: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str = "pixels") -> "PixelSpace":
        """Inverse of `header` and `tensors`; raises `FileFormatError` when they do not describe known steps."""
        try:
            steps = []
            for i, name in enumerate(header["steps"]):
                start = f"{prefix}.{i}."
                steps.append(STEPS[name](**{key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}))
            if header["stored"] not in ("raw", "network"):
                raise KeyError(header["stored"])
        except (KeyError, TypeError) as problem:
            raise FileFormatError(
                f"the file's pixel space is not readable ({problem}); known steps: {', '.join(STEPS)}; use an intact copy"
            ) from None
        return PixelSpace(tuple(steps), header["stored"])

    def check(self, shape: tuple[int, int, int]) -> None:
        """Raises `OptionError` when the steps do not fit images of shape (C, H, W)."""
        channels, pixels = shape[0], shape[0] * shape[1] * shape[2]
        for step in self.steps:
            if not all(bool(torch.isfinite(value).all()) for value in _parameters(step).values()):
                raise OptionError(f"the pixel space holds values that are not finite in its step {step.name!r}; fit it again, or use an intact file")
            if isinstance(step, Standardize) and len(step.mean) not in (1, channels):
                raise OptionError(
                    f"the pixel space normalizes {len(step.mean)} channels, but the images have {channels}; use images of the same kind"
                )
            if isinstance(step, Whiten) and len(step.mean) != pixels:
                raise OptionError(f"the pixel space whitens {len(step.mean)} values, but the images have {pixels}; use images of the same size")
            if not step.consistent:
                raise OptionError(f"the tensors of the pixel space's step {step.name!r} do not fit each other; fit it again, or use an intact file")


def _parameters(step: Step) -> dict[str, Tensor]:
    return {key: value for key, value in vars(step).items() if value is not None}

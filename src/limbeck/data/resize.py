"""Size and channel changes of images in memory. Images decoded from disk go through `limbeck.data.decode` instead."""

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from limbeck.errors import DataError, OptionError

Size = int | tuple[int, int]
"""An int n: the short side becomes n, then the center n x n is kept. A pair: exactly that height and width."""


def check_size(size: Size | None) -> None:
    """Raises `OptionError` unless `size` is None, a positive int, or a pair of them."""
    if size is not None and any(side < 1 for side in (size if isinstance(size, tuple) else (size,))):
        raise OptionError(f"size needs a side of at least 1 pixel, got {size}; give one number or height and width")


def size_text(size: Size | None) -> str:
    """How a size is written in provenance and digests: ``""``, ``"short side 64, center crop"`` or ``"64x48"``."""
    if size is None:
        return ""
    return f"{size[0]}x{size[1]}" if isinstance(size, tuple) else f"short side {size}, center crop"


def scaled_sides(height: int, width: int, size: Size) -> tuple[int, int]:
    """Height and width after scaling and before the center crop; each at least the target's."""
    if isinstance(size, tuple):
        return size
    short = min(height, width)
    return max(size, round(height * size / short)), max(size, round(width * size / short))


def target_sides(size: Size) -> tuple[int, int]:
    """Final height and width."""
    return size if isinstance(size, tuple) else (size, size)


def resize(images: UInt8[Tensor, "B C H W"], size: Size) -> UInt8[Tensor, "B C h w"]:
    """Antialiased bilinear resize (a triangle filter as wide as the reduction), rounded to uint8; see `Size` for the crop."""
    scaled = scaled_sides(images.shape[2], images.shape[3], size)
    if scaled != tuple(images.shape[2:]):
        smooth = interpolate(images.float(), size=scaled, mode="bilinear", antialias=True, align_corners=False)
        images = smooth.round_().clamp_(0, 255).to(torch.uint8)
    height, width = target_sides(size)
    top, left = (scaled[0] - height) // 2, (scaled[1] - width) // 2
    return images[:, :, top : top + height, left : left + width].contiguous()


def with_channels(images: UInt8[Tensor, "B C H W"], channels: int) -> UInt8[Tensor, "B c H W"]:
    """Gray to RGB by repeating, RGB to gray by ITU-R 601 luma in 16-bit fixed point, as Pillow's mode L."""
    have = images.shape[1]
    if have == channels:
        return images
    if have == 1 and channels == 3:
        return images.expand(-1, 3, -1, -1).contiguous()
    if have == 3 and channels == 1:
        weights = torch.tensor([19595, 38470, 7471], dtype=torch.int32, device=images.device)
        return ((images.int() * weights[:, None, None]).sum(1, keepdim=True) + 0x8000 >> 16).to(torch.uint8)
    raise DataError(f"images of {have} channels cannot become {channels}; use 1 or 3 channels")


def conform(images: UInt8[Tensor, "N C H W"], size: Size | None, channels: int | None, chunk: int = 4096) -> UInt8[Tensor, "N c h w"]:
    """`with_channels`, then `resize`, a chunk of images at a time; the same tensor when there is nothing to change."""
    if (channels is None or channels == images.shape[1]) and (size is None or target_sides(size) == tuple(images.shape[2:])):
        return images
    parts = []
    for part in images.split(chunk):
        part = part if channels is None else with_channels(part, channels)
        parts.append(part if size is None else resize(part, size))
    return torch.cat(parts)

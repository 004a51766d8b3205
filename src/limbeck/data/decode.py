"""One encoded image (PNG, JPEG, WebP, TIFF, BMP, GIF) to uint8 [C, H, W], through Pillow.

Conventions: the first frame of a moving image; EXIF rotation applied; transparency composited over white, as a browser shows it; palettes expanded;
CMYK and YCbCr converted to RGB; 16-bit gray divided by 257 and rounded, so that 0..65535 maps onto 0..255.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from io import BufferedIOBase
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from limbeck.data.resize import Size, scaled_sides, target_sides
from limbeck.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".webp", ".tif", ".tiff", ".bmp", ".gif"})
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
ORIENTATION = 0x0112
DECODERS = 4

T = TypeVar("T")
R = TypeVar("R")


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(DECODERS, thread_name_prefix="limbeck-decode")


def in_threads(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """`work` over `items` in a small shared thread pool (Pillow releases the interpreter lock while it decodes); results in order."""
    return _pool().map(work, items) if len(items) > 1 else map(work, items)


class CorruptImage(DataError):
    """One image that cannot be decoded. Its text is the reason alone; who knows the image's name adds it."""


@dataclass(frozen=True)
class Header:
    """What an image's header says, after EXIF rotation: sides in pixels, and whether it has color."""

    height: int
    width: int
    gray: bool


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Malformed EXIF blocks are common, raise many types, and do not make the pixels unreadable.
        return 1


def _is_gray(image: Image.Image) -> bool:
    if image.mode == "P":
        palette = np.array(image.getpalette() or [], dtype=np.uint8).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "F") or image.mode.startswith("I")


def _open(file: BufferedIOBase) -> Image.Image:
    image = Image.open(file, formats=FORMATS)  # type: ignore[arg-type]  # BytesIO and open() share this base, but not IO, when checked.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise CorruptImage(f"its header claims {image.width} x {image.height} pixels, more than the limit of {limit}")
    return image


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"its header claims more than twice the limit of {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not a readable image"
    return str(error).strip().rstrip(".").splitlines()[0] if str(error).strip() else type(error).__name__


def read_header(open_file: Callable[[], BufferedIOBase]) -> Header:
    """Reads the header only. Raises `CorruptImage` with the reason."""
    try:
        with open_file() as file, _open(file) as image:
            height, width = image.height, image.width
            if _orientation(image) >= 5:
                height, width = width, height
            return Header(height, width, _is_gray(image))
    except CorruptImage:
        raise
    except Exception as error:  # Pillow's readers raise a dozen types (OSError, SyntaxError, struct.error, ...) on foreign bytes.
        raise CorruptImage(_reason(error)) from None


def _eight_bit_gray(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise CorruptImage("its integer pixels are outside 0 to 65535; store it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _flat(image: Image.Image, mode: str) -> Image.Image:
    """`image` in mode L or RGB, without transparency."""
    if image.mode == "F":
        raise CorruptImage("its pixels are 32-bit floats without a known range; store it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _eight_bit_gray(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image).convert("RGB")
    elif image.mode == "P" or image.mode == "LAB":
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


def _draft(image: Image.Image, size: Size, turned: bool) -> None:
    """Lets a JPEG decode at 1/2, 1/4 or 1/8 scale, keeping at least twice the wanted sides so that the antialiased resize still has its say."""
    height, width = (image.width, image.height) if turned else (image.height, image.width)
    tall, wide = (2 * side for side in scaled_sides(height, width, size))
    image.draft(None, (tall, wide) if turned else (wide, tall))


def _sized(image: Image.Image, size: Size) -> Image.Image:
    tall, wide = scaled_sides(image.height, image.width, size)
    if (wide, tall) != image.size:
        image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    height, width = target_sides(size)
    left, top = (wide - width) // 2, (tall - height) // 2
    return image.crop((left, top, left + width, top + height))


def decode(open_file: Callable[[], BufferedIOBase], channels: int, size: Size | None) -> np.ndarray:
    """uint8 [C, H, W] of one image, in the module's conventions. Raises `CorruptImage` with the reason."""
    try:
        with open_file() as file, _open(file) as opened:
            image: Image.Image = opened
            orientation = _orientation(image)
            if size is not None:
                _draft(image, size, turned=orientation >= 5)
            image.load()
            if orientation != 1:
                image = ImageOps.exif_transpose(image)
            image = _flat(image, "L" if channels == 1 else "RGB")
            if size is not None:
                image = _sized(image, size)
            pixels = np.asarray(image)
    except CorruptImage:
        raise
    except Exception as error:  # As in read_header.
        raise CorruptImage(_reason(error)) from None
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from limbeck.data.decode import CorruptImage, Header, decode, read_header


def noise(*shape: int, high: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, high, shape).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> Callable[[], io.BytesIO]:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return lambda: io.BytesIO(file.getvalue())


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_rgb_comes_back_exactly(kind: str, options: dict[str, object]) -> None:
    pixels = noise(5, 7, 3)
    file = encoded(Image.fromarray(pixels), kind, **options)
    assert read_header(file) == Header(5, 7, gray=False)
    assert np.array_equal(decode(file, 3, None), pixels.transpose(2, 0, 1))


def test_jpeg_is_close() -> None:
    smooth = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (32, 32, 3))
    found = decode(encoded(Image.fromarray(np.ascontiguousarray(smooth)), "JPEG", quality=95), 3, None)
    assert np.abs(found.astype(int) - smooth.transpose(2, 0, 1)).max() <= 4


def test_sixteen_bit_gray_is_divided_by_257_and_rounded() -> None:
    values = np.array([[0, 128, 129, 257], [254 * 257, 65535, 385, 386]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        file = encoded(Image.fromarray(values), kind)
        assert read_header(file).gray
        assert decode(file, 1, None).tolist() == [[[0, 0, 1, 1], [254, 255, 1, 2]]]


def test_palette_gray_palette_and_bilevel() -> None:
    color = Image.fromarray(noise(4, 4, 3)).quantize(8)
    assert not read_header(encoded(color, "PNG")).gray
    assert np.array_equal(decode(encoded(color, "PNG"), 3, None), np.asarray(color.convert("RGB")).transpose(2, 0, 1))
    gray = Image.fromarray(noise(4, 4)).convert("P")
    gray.putpalette([value for level in range(256) for value in (level, level, level)])
    assert read_header(encoded(gray, "PNG")).gray
    bilevel = Image.fromarray(noise(4, 4, high=2) * 255).convert("1", dither=Image.Dither.NONE)
    assert np.array_equal(decode(encoded(bilevel, "PNG"), 1, None)[0], noise(4, 4, high=2) * 255)


def test_transparency_is_composited_over_white() -> None:
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = (255, 0, 51)
    assert decode(encoded(Image.fromarray(pixels), "PNG"), 3, None)[:, 0].tolist() == [[0, 255, 204]] * 3
    gray = Image.fromarray(np.array([[[0, 0], [10, 255]]], dtype=np.uint8), "LA")
    assert read_header(encoded(gray, "PNG")).gray
    assert decode(encoded(gray, "PNG"), 1, None).tolist() == [[[255, 10]]]


def test_transparent_palette_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image, "PNG", transparency=1), 3, None)[:, 0].tolist() == [[10, 255], [20, 255], [30, 255]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_to_header_and_pixels(orientation: int) -> None:
    upright = noise(2, 3, 3)
    views: dict[int, Callable[[np.ndarray], np.ndarray]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(np.ascontiguousarray(views[orientation](upright))), "PNG", exif=exif)
    assert read_header(file) == Header(2, 3, gray=False)
    assert np.array_equal(decode(file, 3, None), upright.transpose(2, 0, 1))


def test_cmyk_jpeg_becomes_rgb() -> None:
    file = encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=100)
    red, green, blue = decode(file, 3, None).mean(axis=(1, 2))
    assert red > 240
    assert max(green, blue) < 15


def test_first_frame_of_a_moving_image() -> None:
    frames = [Image.new("L", (3, 3), level) for level in (50, 200)]
    for kind in ("GIF", "TIFF", "WEBP"):
        found = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), 1, None)
        assert np.abs(found.astype(int) - 50).max() <= 1


def test_size_crops_the_center_after_rotation() -> None:
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    assert (decode(file, 3, 8) == 255).all()
    assert decode(file, 3, (4, 6)).shape == (3, 4, 6)


@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_jpeg_decoding_is_close_to_decoding_in_full(orientation: int) -> None:
    rows = np.linspace(0, 6, 256)[:, None] + np.linspace(0, 3, 192)
    smooth = Image.fromarray((127 + 120 * np.sin(rows)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    png, jpeg = (decode(encoded(smooth, kind, exif=exif), 1, 24) for kind in ("PNG", "JPEG"))
    assert jpeg.shape == (1, 24, 24)
    assert np.abs(png.astype(int) - jpeg).mean() < 2


def test_truncated_pixels_have_a_good_header_and_raise_when_decoded() -> None:
    file = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG")
    short = file().getvalue()[:-400]
    assert read_header(lambda: io.BytesIO(short)) == Header(64, 64, gray=False)
    with pytest.raises(CorruptImage, match="^image file is truncated"):
        decode(lambda: io.BytesIO(short), 3, None)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image(content: bytes) -> None:
    for work in (read_header, lambda file: decode(file, 3, None)):
        with pytest.raises(CorruptImage, match="^not a readable image$"):
            work(lambda: io.BytesIO(content))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding() -> None:
    def png(width: int, height: int) -> bytes:
        chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 0) + b"IDAT"

    for side, reason in ((10_000, "claims 10000 x 10000 pixels, more than the limit of"), (60_000, "claims more than twice the limit of")):
        with pytest.raises(CorruptImage, match=reason):
            read_header(lambda side=side: io.BytesIO(png(side, side)))  # type: ignore[misc]


def test_float_pixels_have_no_known_range() -> None:
    with pytest.raises(CorruptImage, match="^its pixels are 32-bit floats without a known range; store it with 8 or 16 bits$"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"), 1, None)

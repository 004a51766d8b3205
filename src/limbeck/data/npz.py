"""NumPy archives with images and labels, in the namings of Keras, MedMNIST and plain ``images``/``labels``."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from limbeck.data.labeling import label_array, number_labels
from limbeck.data.opening import SourceOptions
from limbeck.data.resize import conform
from limbeck.data.tables import ArrayTable, Source
from limbeck.errors import DataError

TRAIN = (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"), ("X", "y"), ("x", "y"), ("arr_0", "arr_1"))
TEST = (("x_test", "y_test"), ("test_images", "test_labels"))
VALIDATION = (("x_val", "y_val"), ("val_images", "val_labels"))
CLASS_NAMES = ("classes", "class_names", "label_names")
CHANNELS = (1, 3)


def open_npz(target: str, options: SourceOptions) -> Source:
    """An ``.npz`` file, read into memory; never unpickled.

    Images are [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels (when both readings fit, channels are last); whole numbers 0 to 255, or
    fractions 0 to 1, stored as round(255 v). Labels are [N] or [N, 1], numbers or names; an array ``classes`` names the numbers. Without a test part,
    validation serves as test.
    """
    path = Path(target).expanduser()
    arrays = _load(path)
    keys = {"train": _keys(TRAIN, arrays), "validation": _keys(VALIDATION, arrays), "test": _keys(TEST, arrays)}
    if keys["train"] is None:
        pairs = ", ".join(f"{images} + {labels}" for images, labels in TRAIN)
        raise DataError(f"{str(path)!r} has the arrays {', '.join(arrays) or 'none'}, wanted images and labels under one of these names: {pairs}")
    present = {part: pair for part, pair in keys.items() if pair is not None}
    where = repr(str(path))
    names = next(([str(name) for name in label_array(arrays[key], where)] for key in CLASS_NAMES if key in arrays), None)
    labels = {part: label_array(arrays[pair[1]], f"{pair[1]} in {where}") for part, pair in present.items()}
    classes, numbers = number_labels(labels, names, where)
    tables = {part: ArrayTable(_images(arrays[present[part][0]], present[part][0], where, options), numbers[part], classes) for part in numbers}
    for part, table in tables.items():
        if table.shape != tables["train"].shape:
            wanted = list(tables["train"].shape)
            raise DataError(f"{part} images of {where} are {list(table.shape)}, wanted {wanted} as in train; give one size with --size")
    if "test" not in tables and "validation" in tables:
        return Source(path.stem, tables["train"], tables["validation"])
    return Source(path.stem, tables["train"], tables.get("test"), validation=tables.get("validation"))


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"no file at {str(path)!r}; check the path") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        reason = "it holds pickled objects, which are not loaded" if "allow_pickle" in str(error) else str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{str(path)!r} is no readable .npz file ({reason}); save plain arrays with numpy.savez") from None


def _keys(pairs: tuple[tuple[str, str], ...], arrays: dict[str, np.ndarray]) -> tuple[str, str] | None:
    return next((pair for pair in pairs if pair[0] in arrays and pair[1] in arrays), None)


def _images(array: np.ndarray, key: str, where: str, options: SourceOptions) -> UInt8[Tensor, "N C H W"]:
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and array.shape[3] in CHANNELS:
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or array.shape[1] not in CHANNELS:
        raise DataError(f"{key} of {where} has shape {list(array.shape)}, wanted [N, H, W], [N, H, W, C] or [N, C, H, W] with C = 1 or 3; reshape it")
    if 0 in array.shape:
        raise DataError(f"{key} of {where} has shape {list(array.shape)}, wanted at least one image of at least one pixel; check how it was saved")
    images = torch.from_numpy(np.ascontiguousarray(_bytes(array, key, where)))
    return conform(images, options.size, options.channels)


def _bytes(array: np.ndarray, key: str, where: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    kind, low, high = array.dtype.kind, array.min(), array.max()
    if kind in "iu" and low >= 0 and high <= 255:
        return array.astype(np.uint8)
    if kind == "f" and low >= 0 and high <= 1:  # False for NaN, too.
        return np.rint(array * 255).astype(np.uint8)
    raise DataError(f"{key} of {where} holds {array.dtype} from {low} to {high}, wanted whole numbers 0 to 255 or fractions 0 to 1; rescale it")

"""Class names and numbers from the labels that users store: names, numbers with a list of names, or bare numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from limbeck.errors import DataError

UNLABELED = -1


def label_array(labels: Any, where: str) -> np.ndarray:
    """Labels [N] or [N, 1] as int64 or str [N]; raises `DataError` for fractions, one-hot rows and missing labels."""
    array = np.asarray(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise DataError(f"labels of {where} have shape {list(array.shape)}, wanted [N] or [N, 1]; store one class number or name per image")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "O":
        if not all(isinstance(label, str) for label in array):
            raise DataError(f"labels of {where} mix types or have gaps, wanted a class number or name for every image; fill or remove the gaps")
        array = array.astype(str)
    if array.size == 0 or array.dtype.kind in "biu":
        return array.astype(np.int64)
    if array.dtype.kind == "U":
        return array
    raise DataError(f"labels of {where} are {array.dtype}, wanted whole numbers or names; store one class number or name per image")


def number_labels(parts: Mapping[str, np.ndarray], names: Sequence[str] | None, where: str) -> tuple[list[str], dict[str, np.ndarray]]:
    """Class names and int64 labels [N] of each part.

    With `names`, numbers index them. Without, the classes are the distinct values in train, sorted. A part other than train whose labels are all
    -1 is unlabeled (a benchmark's hidden test part) and is left out of the result.
    """
    labeled = {part: labels for part, labels in parts.items() if part == "train" or _is_labeled(labels)}
    if names is not None and labeled["train"].dtype.kind == "i":
        for part, labels in labeled.items():
            outside = labels[(labels < 0) | (labels >= len(names))]
            if outside.size:
                raise DataError(f"{part} of {where} has label {outside[0]}, wanted 0 to {len(names) - 1} for its {len(names)} class names")
        return list(names), labeled
    values = np.unique(labeled["train"])
    numbered = {part: _positions(values, labels, part, where) for part, labels in labeled.items()}
    return [str(value) for value in values], numbered


def _is_labeled(labels: np.ndarray) -> bool:
    return labels.dtype.kind != "i" or bool((labels != UNLABELED).any())


def _positions(values: np.ndarray, labels: np.ndarray, part: str, where: str) -> np.ndarray:
    known = np.isin(labels, values)
    if not known.all():
        raise DataError(f"{part} of {where} has class {labels[~known][0].item()!r}, which train lacks; add it to train or remove it")
    return np.searchsorted(values, labels).astype(np.int64)

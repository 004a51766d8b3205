"""From what the user can spend (images per class, or bytes) to the number of images of each class."""

import re

import numpy as np

from limbeck.data.tables import ImageTable
from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule
from limbeck.types.pixels import PixelSpace

_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


def parse_bytes(text: str) -> int:
    """``"100000"``, ``"100kB"``, ``"1.5MB"``, ``"2MiB"`` as bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in _UNITS:
        raise OptionError(f"a byte budget looks like 100kB, 1.5MB or 2MiB, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def counts_for(
    table: ImageTable, rule: LabelRule, pixels: PixelSpace, *, ipc: str | int | None = None, total_bytes: int | None = None
) -> tuple[int, ...]:
    """Images for each class.

    `ipc` is a number (the same for every class), or ``"proportional"``: as many images in all as 10 per class would give, or as `total_bytes` pays for,
    shared in proportion to the class sizes by the largest-remainder rule with at least one image for every class that has any. With `total_bytes` and no
    `ipc`, the largest number per class that fits. Bytes count images, labels, owner classes and the pixel space.
    """
    classes = len(table.classes)
    available = np.bincount(table.labels, minlength=classes)
    affordable = None
    if total_bytes is not None:
        channels, height, width = table.shape
        each = channels * height * width + rule.bytes_per_image(classes)
        affordable = (total_bytes - pixels.nbytes) // each
        if affordable < classes:
            need = classes * each + pixels.nbytes
            raise OptionError(
                f"{total_bytes} bytes do not pay for one image of each of the {classes} classes ({need} bytes); use --bytes {need} or more"
            )
    if ipc == "proportional":
        return _proportional(available, affordable if affordable is not None else 10 * classes)
    if ipc is None and affordable is None:
        raise OptionError("a budget is needed; use --ipc N, --ipc proportional or --bytes SIZE")
    if ipc is not None and affordable is not None:
        raise OptionError("--ipc N and --bytes both set the budget; use one of them, or --ipc proportional with --bytes")
    try:
        each_class = int(ipc) if ipc is not None else int(affordable or 0) // classes
    except ValueError:
        raise OptionError(f"--ipc needs a whole number or 'proportional', got {ipc!r}; use for example --ipc 10") from None
    if each_class < 1:
        raise OptionError(f"images per class must be at least 1, got {each_class}; use --ipc 1 or more")
    return (each_class,) * classes


def _proportional(available: np.ndarray, total: int) -> tuple[int, ...]:
    present = available > 0
    total = min(max(total, int(present.sum())), int(available.sum()))
    share = available / available.sum() * total
    counts = np.maximum(np.floor(share).astype(int), present.astype(int))
    # hand out, or take back, one image at a time where the remainder is largest: exact total, no class empty, none above what it has
    while counts.sum() != total:
        step = 1 if counts.sum() < total else -1
        open_classes = np.flatnonzero((counts < available) if step > 0 else (counts > 1))
        counts[open_classes[np.argmax(step * (share - counts)[open_classes])]] += step
    return tuple(counts.tolist())

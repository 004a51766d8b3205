"""Handwritten digits, 1,797 images of 1x8x8 in 10 classes, embedded in scikit-learn (E. Alpaydin and C. Kaynak, 1998, UCI repository)."""

import numpy as np
import torch

from limbeck.data.opening import SourceOptions
from limbeck.data.resize import conform
from limbeck.data.tables import ArrayTable, Source


def open_digits(target: str, options: SourceOptions) -> Source:
    """The embedded digits. Counts of ink 0..16 are stored as round(count * 255 / 16). No official test part."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    images = conform(torch.from_numpy(pixels), options.size, options.channels)
    return Source("digits", ArrayTable(images, data.target, [str(digit) for digit in range(10)]))

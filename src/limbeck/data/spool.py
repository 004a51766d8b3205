"""Decoded pixels on disk, so that a large source is decoded once and not once an epoch, in flat memory."""

import os
import tempfile
from math import prod

import numpy as np

from limbeck.cache import default_root


class PixelSpool:
    """Images uint8 [C, H, W] of one shape by number, in an unnamed temporary file of the cache folder that vanishes with the process.

    A convenience: when the disk is full or not writable it stops taking images, and readers decode as if there were no spool.
    """

    def __init__(self, records: int, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.size = prod(shape)
        self.known = np.zeros(records, dtype=bool)
        self._open = True
        try:
            folder = default_root() / "pixels"
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # It lives as long as the spool.
        except OSError:
            self._open = False

    def get(self, index: int) -> np.ndarray | None:
        """The image, or None if it was not put here."""
        if not self.known[index]:
            return None
        data = os.pread(self._file.fileno(), self.size, index * self.size)
        return np.frombuffer(data, dtype=np.uint8).reshape(self.shape)

    def put(self, index: int, image: np.ndarray) -> None:
        """Keeps the image if there is room. Safe from several threads."""
        if not self._open:
            return
        try:
            written = os.pwrite(self._file.fileno(), np.ascontiguousarray(image).tobytes(), index * self.size)
        except OSError:
            self._open = False
            return
        self.known[index] = written == self.size

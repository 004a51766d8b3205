"""Named random streams from one seed. Nothing in limbeck reads or sets a global random state.

A stream is a path of names and numbers under a root seed, such as ``Streams(0)["student", 3].torch("order", epoch)``. Its seed is a hash of the path,
so streams are independent of the order in which they are asked for, of how many others exist, and of the process that asks.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Streams:
    """A node in the tree of random streams."""

    root: int
    path: tuple[str | int, ...] = ()

    def __getitem__(self, names: str | int | tuple[str | int, ...]) -> "Streams":
        """The node below this one: ``streams["expert", 0]``."""
        return Streams(self.root, self.path + (names if isinstance(names, tuple) else (names,)))

    def seed(self, *names: str | int) -> int:
        """The 63-bit seed of a stream: BLAKE2b of the root seed and the path, each name quoted so that paths cannot run together."""
        text = repr((self.root, *self.path, *names)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def torch(self, *names: str | int) -> torch.Generator:
        """A fresh CPU generator at the start of the named stream. Draws are made on the CPU so that a GPU run sees the same numbers."""
        return torch.Generator().manual_seed(self.seed(*names))

    def numpy(self, *names: str | int) -> np.random.Generator:
        """A fresh NumPy generator (PCG64) at the start of the named stream."""
        return np.random.Generator(np.random.PCG64(self.seed(*names)))

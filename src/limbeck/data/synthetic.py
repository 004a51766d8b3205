"""Made-up data whose labels nothing but memory can explain: Gaussian vectors, points of a square and number sequences with random labels; and modular arithmetic.

Where labels are random, which rows carry a class is immaterial, so classes take turns: row i has class ``i mod K``, and the first ``m K`` rows are balanced for
every m. Loads that share their rows in this way can be compared on the same data.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.tables import ImageTable, as_indices, checked_labels, digest_rows
from limbeck.errors import OptionError
from limbeck.types.pixels import PixelSpace

#: The pixel space of vectors: they are network inputs as they are.
AS_THEY_ARE = PixelSpace((), "network")

Operation = Literal["add", "subtract", "multiply", "divide"]


class VectorTable(ImageTable):
    """Labeled float vectors or number sequences in memory, as network inputs [N, 1, 1, D]; read with the pixel space `AS_THEY_ARE`."""

    resident = True

    def __init__(self, inputs: Float[Tensor, "N D"], labels: Any, classes: int) -> None:
        self.inputs = inputs.float()[:, None, None, :]
        self.classes = tuple(str(number) for number in range(classes))
        self.shape = (1, 1, inputs.shape[1])
        self.labels = checked_labels(labels.numpy() if isinstance(labels, Tensor) else labels, self.classes, len(inputs))

    def read(self, indices: Sequence[Any] | np.ndarray | Tensor) -> Float[Tensor, "B C H W"]:
        return self.inputs[torch.from_numpy(as_indices(indices, len(self)))]

    def part(self, indices: Int[Tensor, " M"]) -> "VectorTable":
        """The table of some rows, in that order."""
        return VectorTable(self.inputs[indices, 0, 0], self.labels[indices.numpy()], len(self.classes))

    @cached_property
    def _digests(self) -> np.ndarray:
        return digest_rows([row.numpy().tobytes() for row in self.inputs.contiguous()])

    def record_digests(self) -> np.ndarray:
        return self._digests


def turns(rows: int, classes: int) -> Int[Tensor, " N"]:
    """Classes in turn: 0, 1, ..., K-1, 0, 1, ...; balanced when K divides the number of rows."""
    return torch.arange(rows) % classes


def gaussian(rows: int, features: int, generator: torch.Generator) -> Float[Tensor, "N D"]:
    """Independent standard Gaussian inputs, float32."""
    return torch.randn(rows, features, generator=generator)


def standardized(inputs: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """Every feature with mean 0 and variance 1 over these rows."""
    deviation, mean = torch.std_mean(inputs, dim=0, correction=0)
    return (inputs - mean) / deviation


def square(rows: int, generator: torch.Generator) -> Float[Tensor, "N 2"]:
    """Points drawn uniformly from [-1, 1]^2."""
    return 2 * torch.rand(rows, 2, generator=generator) - 1


def sequences(rows: int, length: int, vocabulary: int, generator: torch.Generator) -> Float[Tensor, "N L"]:
    """Distinct random sequences of `length` numbers out of 0..vocabulary-1, as floats (exact up to 2^24). Raises `OptionError` when there are not enough."""
    if rows > vocabulary**length:
        raise OptionError(f"{rows} distinct sequences need a vocabulary of more numbers than {vocabulary}; use at most {vocabulary**length} rows")
    found: dict[tuple[int, ...], None] = {}
    while len(found) < rows:
        drawn = torch.randint(vocabulary, (rows, length), generator=generator)
        found.update(dict.fromkeys(map(tuple, drawn.tolist())))
    return torch.tensor(list(found)[:rows], dtype=torch.float32)


def modular(modulus: int, operation: Operation = "add") -> tuple[Float[Tensor, "N 3"], Int[Tensor, " N"]]:
    """Every pair (a, b) with its result modulo p: inputs ``a, b, p`` (p stands for the equals sign, so the vocabulary is p + 1) and labels 0..p-1.

    Division is by the inverse modulo p, leaves out b = 0, and needs p to be prime (`OptionError` otherwise).
    """
    if modulus < 2:
        raise OptionError(f"modular arithmetic needs a modulus of at least 2, got {modulus}; use a prime such as 31")
    first, second = torch.meshgrid(torch.arange(modulus), torch.arange(modulus), indexing="ij")
    a, b = first.reshape(-1), second.reshape(-1)
    if operation == "divide":
        if any(modulus % number == 0 for number in range(2, int(modulus**0.5) + 1)):
            raise OptionError(f"division modulo {modulus} is not defined for every pair; use a prime modulus")
        a, b = a[b > 0], b[b > 0]
        inverse = torch.tensor([0, *(pow(number, -1, modulus) for number in range(1, modulus))])
        result = a * inverse[b] % modulus
    else:
        result = {"add": a + b, "subtract": a - b, "multiply": a * b}[operation] % modulus
    return torch.stack([a, b, torch.full_like(a, modulus)], 1).float(), result


def one_hot_pairs(inputs: Float[Tensor, "N 3"], modulus: int) -> Float[Tensor, "N D"]:
    """The two operands of `modular`'s inputs as one-hot vectors side by side [N, 2 p]: what a multilayer perceptron is shown."""
    return torch.nn.functional.one_hot(inputs[:, :2].long(), modulus).flatten(1).float()

"""`Expert`: one snapshot of a trained network with its own pixel space; `Ensemble`: several, whose logits are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck import store
from limbeck.data.tables import ImageTable
from limbeck.errors import FileFormatError, LimbeckError, OptionError
from limbeck.models import ModelSpec
from limbeck.progress import Tick
from limbeck.train.examples import StoredImages
from limbeck.train.fit import predict
from limbeck.train.network import Network, State
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan

KIND = "expert snapshot"


@runtime_checkable
class Labeler(Protocol):
    """What can give logits for images: an expert or an ensemble of them."""

    @property
    def digest(self) -> str:
        """Content digest of everything that decides the logits."""
        ...

    def logits(self, table: ImageTable, plan: ExecutionPlan, *, tick: Tick = ...) -> Float[Tensor, "N K"]:
        """Logits of every image of a table, float32."""
        ...

    def logits_of(self, images: "ImageTable | StoredImages", pixels: PixelSpace, plan: ExecutionPlan) -> Float[Tensor, "N K"]:
        """Logits of images that have a pixel space of their own, such as those of a distilled set in network space."""
        ...


@dataclass(frozen=True)
class Expert:
    """A network at one step of its training (step -1: a checkpoint that the user brought)."""

    network: Network
    state: State
    pixels: PixelSpace
    step: int
    digest: str

    def logits(self, table: ImageTable, plan: ExecutionPlan, *, tick: Tick = lambda units: None) -> Float[Tensor, "N K"]:
        """Logits of every image of a table, in the expert's own pixel space, float32, images not augmented."""
        return predict(self.network, self.state, table, self.pixels, plan, tick=tick)

    def logits_of(self, images: "ImageTable | StoredImages", pixels: PixelSpace, plan: ExecutionPlan) -> Float[Tensor, "N K"]:
        """Logits of images in the pixel space `pixels`, which must be of the same steps as the expert's own."""
        if pixels.header()["steps"] != self.pixels.header()["steps"]:
            raise OptionError(
                f"the expert sees pixels after {self.pixels.header()['steps']} but the images are after {pixels.header()['steps']}; use the same --pixels for both"
            )
        return predict(self.network, self.state, images, pixels, plan)

    def save(self, path: Path, about: dict[str, Any]) -> str:
        """Writes the snapshot and returns its digest. `about` is plain JSON kept in the header."""
        return store.save(path, *self.parts(self.network, self.state, self.pixels, self.step, about))

    @staticmethod
    def parts(network: Network, state: State, pixels: PixelSpace, step: int, about: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Header and tensors of a snapshot file."""
        header = {
            "kind": KIND,
            "format": 1,
            "model": network.spec.to_dict(),
            "shape": list(network.shape),
            "classes": network.classes,
            "pixels": pixels.header(),
            "step": step,
            "about": about,
        }
        return header, {**{f"network.{name}": tensor for name, tensor in state.items()}, **pixels.tensors()}

    @staticmethod
    def load(path: Path) -> "Expert":
        """Reads a snapshot written by `save`. Raises `FileFormatError` for anything else."""
        header, tensors = store.load(path, KIND)
        try:
            channels, height, width = header["shape"]
            network = Network(ModelSpec.from_dict(header["model"]), (channels, height, width), header["classes"])
            state = {name.removeprefix("network."): tensor for name, tensor in tensors.items() if name.startswith("network.")}
            pixels = PixelSpace.restore(header["pixels"], tensors)
            pixels.check(network.shape)
            return Expert(network, state, pixels, header["step"], store.content_digest(header, tensors))
        except (LimbeckError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as problem:
            raise FileFormatError(
                f"{str(path)!r} is not a usable expert snapshot ({type(problem).__name__}: {problem}); use an intact copy"
            ) from None


@dataclass(frozen=True)
class Ensemble:
    """Several experts as one labeler: the mean of their logits, before any softmax (Qin, Deng and Alvarez-Melis 2024, section 5.1)."""

    members: tuple[Expert, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise OptionError("an ensemble needs at least one expert, got none")

    @property
    def digest(self) -> str:
        return store.digest_of([member.digest for member in self.members])

    def logits(self, table: ImageTable, plan: ExecutionPlan, *, tick: Tick = lambda units: None) -> Float[Tensor, "N K"]:
        return torch.stack([member.logits(table, plan, tick=tick) for member in self.members]).mean(0)

    def logits_of(self, images: "ImageTable | StoredImages", pixels: PixelSpace, plan: ExecutionPlan) -> Float[Tensor, "N K"]:
        return torch.stack([member.logits_of(images, pixels, plan) for member in self.members]).mean(0)


def labeler_of(experts: Sequence[Expert]) -> Labeler:
    """One expert as itself, several as an ensemble."""
    return experts[0] if len(experts) == 1 else Ensemble(tuple(experts))

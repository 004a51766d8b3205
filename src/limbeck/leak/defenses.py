"""Defenses: what can be done to labels or to the expert before publishing, each as data, to be judged by accuracy and by exposure."""

import re
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.data.tables import ImageTable
from limbeck.errors import OptionError, nearest
from limbeck.experts.expert import Labeler
from limbeck.progress import Tick
from limbeck.store import digest_of
from limbeck.streams import Streams
from limbeck.train.examples import StoredImages
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan

KINDS = {
    "temperature": "divides the expert's logits",
    "top-k": "keeps the k largest entries of a label",
    "precision": "stores labels as float32, float16 or uint8",
    "noise": "adds normal noise of this standard deviation to the expert's logits",
    "expert-epochs": "takes the expert after so many epochs",
    "dp": "an expert trained with DP-SGD to this epsilon",
}


@dataclass(frozen=True)
class Defense:
    """One setting of one kind of defense; everything else stays as published."""

    kind: str
    value: str

    @property
    def name(self) -> str:
        """``noise 0.5``."""
        return f"{self.kind} {self.value}"

    @property
    def number(self) -> float:
        """The value of kinds that have a number."""
        return float(self.value)


def parse_defenses(text: str) -> list[Defense]:
    """``temperature=4/20,top-k=1/3,precision=uint8,noise=0.5,expert-epochs=1,dp=2/8`` as settings, each to be tried alone."""
    found = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        kind, equals, values = (piece.strip() for piece in part.partition("="))
        if kind not in KINDS:
            raise OptionError(f"unknown defense {kind!r}; {nearest(kind, KINDS)}")
        if not equals or not values:
            raise OptionError(f"defenses are written kind=value/value, got {part!r}; write for example --defend temperature=1/20,top-k=3")
        found += [_checked(Defense(kind, value.strip())) for value in values.split("/")]
    return found


def _checked(defense: Defense) -> Defense:
    kind, value = defense.kind, defense.value
    if kind == "precision":
        if value not in ("float32", "float16", "uint8"):
            raise OptionError(f"labels are stored as float32, float16 or uint8, got {value!r}; use for example precision=uint8")
        return defense
    whole = kind in ("top-k", "expert-epochs")
    fits = re.fullmatch(r"\d+" if whole else r"\d+(\.\d*)?|\.\d+", value) is not None and float(value) > 0
    if not fits:
        raise OptionError(f"{kind} needs a {'whole number' if whole else 'number'} above 0, got {value!r}; use for example {kind}=1")
    return defense


class NoisyLabeler:
    """A labeler whose logits carry normal noise of standard deviation `sigma`, drawn anew for every image from the stream ``label-noise``.

    The noise is drawn once, before publishing: asking again for the same images gives the same numbers, so it cannot be averaged away.
    """

    def __init__(self, labeler: Labeler, sigma: float, streams: Streams) -> None:
        self._labeler, self._sigma, self._streams = labeler, sigma, streams

    @property
    def digest(self) -> str:
        return digest_of([self._labeler.digest, "noise", self._sigma, self._streams.root, list(self._streams.path)])

    def logits(self, table: ImageTable, plan: ExecutionPlan, *, tick: Tick = lambda units: None) -> Float[Tensor, "N K"]:
        return self._disturbed(self._labeler.logits(table, plan, tick=tick))

    def logits_of(self, images: "ImageTable | StoredImages", pixels: PixelSpace, plan: ExecutionPlan) -> Float[Tensor, "N K"]:
        return self._disturbed(self._labeler.logits_of(images, pixels, plan))

    def _disturbed(self, logits: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        return logits + self._sigma * torch.randn(logits.shape, generator=self._streams.torch("label-noise"))

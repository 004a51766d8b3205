"""`LabelRule`: hard or soft, temperature, top-k, renormalization, storage precision; as data, and applied to logits."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from limbeck.errors import OptionError
from limbeck.types.labels import Labels, Precision, index_dtype


class LabelRule(BaseModel):
    """How labels are made. With `top_k`, the other entries are zero; `renormalize` scales the kept ones to sum to one, and without it rows sum to less than
    one, as in the label paper's scaling law."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["soft", "hard"] = "soft"
    temperature: float = Field(1.0, gt=0, description="divides the expert's logits before the softmax")
    top_k: int | None = Field(None, ge=1)
    renormalize: bool = True
    precision: Precision = "float32"

    def bytes_per_image(self, classes: int) -> int:
        """Stored label bytes of one image, its owner class included."""
        owner = index_dtype(classes).itemsize
        if self.kind == "hard":
            return owner
        kept = min(self.top_k or classes, classes)
        entry = {"float32": 4, "float16": 2, "uint8": 1}[self.precision]
        indices = kept * index_dtype(classes).itemsize if kept < classes else 0
        return owner + kept * entry + indices + (4 if self.precision == "uint8" else 0)


def soften(logits: Float[Tensor, "N K"], temperature: float) -> Float[Tensor, "N K"]:
    """``softmax(logits / temperature)``, computed in float64 and returned as float32."""
    return (logits.double() / temperature).softmax(1).float()


def make_labels(rule: LabelRule, owners: Int[Tensor, " N"], logits: Float[Tensor, "N K"] | None, classes: int, expert: str | None = None) -> Labels:
    """Labels for images of the given classes; soft ones need the expert's logits."""
    if rule.kind == "hard":
        return Labels.hard(owners, classes)
    if logits is None:
        raise OptionError("soft labels need an expert, got none; train one or use --labels hard")
    dense = soften(logits, rule.temperature)
    if rule.top_k is not None and not rule.renormalize and rule.top_k < classes:
        return Labels.encode(dense, top_k=rule.top_k, precision=rule.precision, temperature=rule.temperature, sums_to_one=False, expert=expert)
    return Labels.encode(dense, top_k=rule.top_k, precision=rule.precision, temperature=rule.temperature, expert=expert)


def label_entropy(labels: Float[Tensor, "N K"]) -> float:
    """Mean Shannon entropy of the rows, in nats."""
    return float(torch.special.entr(labels.double()).sum(1).mean())

"""How soft a set's labels are: what an image's label says, what a class's labels say on average, and how much they say (entropy)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.types.distilled import DistilledDataset

#: What the numbers of each kind of label are called where they are shown.
UNITS = {"logit": "logit", "centered": "centered value", "free": "value"}


@dataclass(frozen=True)
class Softness:
    """Labels as distributions: entropy [N] in nats, probability of the own class [N], and the mean label of each owner class [K, K] (NaN without images)."""

    entropy: Float[Tensor, " N"]
    own: Float[Tensor, " N"]
    mean_label: Float[Tensor, "K K"]

    def shared(self, top: int) -> list[tuple[int, int, float]]:
        """The largest off-diagonal entries of `mean_label`: (owner class, other class, mean probability), largest first, ties by class number."""
        other = self.mean_label.clone().nan_to_num(0.0)
        other.fill_diagonal_(0.0)
        values, places = torch.sort(other.flatten(), descending=True, stable=True)
        classes = len(other)
        return [
            (place // classes, place % classes, value) for value, place in zip(values[:top].tolist(), places[:top].tolist(), strict=True) if value > 0
        ]


def shown_labels(dataset: DistilledDataset) -> Float[Tensor, "N K"]:
    """Labels as people read them: probabilities where the kind allows it, the stored values otherwise. Labels per view are averaged over their views."""
    dense = dataset.labels.dense().double()
    if dataset.labels.kind == "log-probability":
        dense = dense.exp()
    return dense.reshape(-1, *dense.shape[-2:]).mean(0).float()


def softness(dataset: DistilledDataset) -> Softness | None:
    """How soft the labels are, or None for labels that are no distributions (hard ones, logits, centered and free ones).

    Rows that sum to less than one (top-k without renormalization) are scaled to one for the entropy only.
    """
    if dataset.labels.kind not in ("probability", "log-probability"):
        return None
    labels, owners = shown_labels(dataset).double(), dataset.owners.long()
    classes = len(dataset.classes)
    sums = torch.zeros(classes, classes, dtype=torch.float64).index_add_(0, owners, labels)
    per_class = torch.bincount(owners, minlength=classes)[:, None]
    mean_label = torch.where(per_class > 0, sums / per_class.clamp_min(1), torch.nan)
    scaled = labels / labels.sum(1, keepdim=True).clamp_min(1e-12)
    own = labels.gather(1, owners[:, None])[:, 0]
    return Softness(torch.special.entr(scaled).sum(1).float(), own.float(), mean_label.float())

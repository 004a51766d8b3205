"""Labels per view: an expert's opinion of every augmented picture that training will see, instead of one label for the plain image."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.data.views import Views
from limbeck.experts.expert import Labeler
from limbeck.labels.rules import LabelRule, make_labels
from limbeck.train.examples import StoredImages
from limbeck.types.distilled import DistilledDataset
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace
from limbeck.types.plan import ExecutionPlan

_AT_ONCE = 4096  # pictures whose logits are held before they are stored


def label_views(
    dataset: DistilledDataset, rule: LabelRule, expert: Labeler, *, views: int, augment: str, seed: int, plan: ExecutionPlan
) -> DistilledDataset:
    """The same images under `views` labels each, one for every augmented view (`limbeck.data.views.Views`), in place of the labels that it has.

    What Yin, Xing and Shen (2023, arXiv:2306.13092) call relabeling, after fast knowledge distillation (Shen and Xing 2022, arXiv:2112.01528). Stored are
    the expert's logits over the rule's temperature, in float32 or float16. Top-k and uint8 labels are stored as probabilities: a logit that is left out
    has no value, and 8 bits would not resolve the others.

    Cost: one forward pass of the expert over `views` pictures of each of N images; ``2 views N K`` stored bytes in float16. The logits of a few thousand
    pictures are held at once.
    """
    drawn = Views(augment, views, seed, len(dataset), dataset.shape)
    network_space = PixelSpace(dataset.pixels.steps, "network")
    together, header, stored = max(1, _AT_ONCE // len(dataset)), dict[str, Any](), dict[str, Tensor]()
    for start in range(0, views, together):
        numbers = range(start, min(start + together, views))
        logits = expert.logits_of(_ViewImages(dataset, drawn, numbers, torch.device(plan.device)), network_space, plan)
        encoded = _encode(rule, logits, expert.digest)
        header = encoded.header()
        for name, part in encoded.tensors().items():
            if start == 0:
                stored[name] = torch.empty(views, len(dataset), part.shape[1], dtype=part.dtype)
            stored[name][start : numbers.stop] = part.unflatten(0, (len(numbers), len(dataset)))
    return replace(dataset, labels=Labels.restore(header, stored), views=drawn.spec)


def _encode(rule: LabelRule, logits: Float[Tensor, "P K"], expert: str) -> Labels:
    classes = logits.shape[1]
    if rule.precision == "uint8" or (rule.top_k is not None and rule.top_k < classes):
        return make_labels(rule, torch.zeros(len(logits), dtype=torch.int64), logits, classes, expert)
    return Labels.encode(logits / rule.temperature, kind="logit", precision=rule.precision, temperature=rule.temperature, expert=expert)


class _ViewImages(StoredImages):
    """Several views of a set one behind the other, made when they are read."""

    def __init__(self, dataset: DistilledDataset, views: Views, numbers: range, device: torch.device) -> None:
        super().__init__(dataset)
        self.labels = dataset.owners.repeat(len(numbers)).long().numpy()
        self._views, self._numbers, self._pixels, self._device = views, numbers, dataset.pixels.to(device), device

    def __len__(self) -> int:
        return len(self._images) * len(self._numbers)

    def read(self, indices: object) -> Tensor:
        places = torch.as_tensor(indices)
        view, image = places // len(self._images), places % len(self._images)
        parts = []
        for number, rows in zip(*_runs(view, image), strict=True):
            parts.append(self._views.images(lambda some: self._pixels(self._images[some].to(self._device)), rows, self._numbers[number]))
        return torch.cat(parts)


def _runs(view: Tensor, image: Tensor) -> tuple[list[int], list[Tensor]]:
    """Neighbors of the same view together."""
    numbers, lengths = torch.unique_consecutive(view, return_counts=True)
    return numbers.tolist(), list(image.split(lengths.tolist()))

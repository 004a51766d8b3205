"""Training on several workers at once: each takes its share of every batch, and gradients are added up before every step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.data.augment import Augment, Params
from limbeck.errors import OptionError
from limbeck.train.network import Network


@dataclass(frozen=True)
class Share:
    """What one of `size` workers does: of every batch the rows `rank`, `rank + size`, ... `add` replaces each tensor by its sum over all workers, in place.

    Every worker draws the same order and the same augmentation, for the whole batch, and takes its rows of them; the sum of the workers' gradients, over the
    batch's size, is then the gradient of one worker on the whole batch, up to the order of additions. So a share changes who computes, not what.
    """

    rank: int
    size: int
    add: Callable[[Sequence[Tensor]], None]

    @staticmethod
    def of_process_group() -> "Share":
        """The share of this process in `torch.distributed`'s group, which must have been started."""
        import torch.distributed as group

        def add(tensors: Sequence[Tensor]) -> None:
            for tensor in tensors:
                group.all_reduce(tensor)

        return Share(group.get_rank(), group.get_world_size(), add)

    def check(self, network: Network, augment: Augment | None, *, weighted: bool = False) -> None:
        """Raises `OptionError` where an image's part in the step depends on the rest of its batch."""
        if network.has_batch_statistics:
            raise OptionError(f"training on several workers needs a network without batch statistics, got {network.spec}; use one with norm=instance")
        if weighted:
            raise OptionError("training on several workers needs examples that count alike, got weights; train on one worker")
        if augment is not None and augment.mixes:
            raise OptionError(
                f"training on several workers needs an augmentation that shows one image at a time, got {augment}; use one that does not mix"
            )

    def rows(self, indices: Tensor) -> Tensor:
        """This worker's part of a batch's indices."""
        return indices[self.rank :: self.size]

    def drawn(self, params: Params, batch: int) -> Params:
        """This worker's part of what was drawn for a batch of `batch` images; what all images share stays."""
        return {name: self.rows(tensor) if tensor.ndim and len(tensor) == batch else tensor for name, tensor in params.items()}

    def mean(self, gradients: Sequence[Tensor], count: int) -> list[Tensor]:
        """The gradients of the whole batch's mean loss from every worker's summed gradients, and the images that each worker had."""
        total = torch.full((), float(count), device=gradients[0].device)
        summed = [gradient.contiguous() for gradient in gradients]
        self.add([*summed, total])
        return [gradient / total for gradient in summed]

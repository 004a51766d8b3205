"""Batches for several models at once: each model's own images, in its own order, with its own labels."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import tee

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.train.examples import Examples
from limbeck.types.pixels import PixelSpace

_RESIDENT_SHARE = 0.25  # of a GPU's free memory: images up to that are kept there for the whole training


class Feed:
    """The batches [S, B, C, H, W] and label rows [S, B, K] of S models on a device.

    On a GPU, tables that lie in memory are copied there once, equal tables once for all models, and a step then takes one index tensor from the host and
    never waits for the device. Elsewhere, and for tables on disk, every model's batch is read by `Examples` (which decodes ahead). Sets with labels for each
    view are replayed instead (`replays`): epoch e shows view e, already augmented, under its own labels.
    """

    def __init__(self, members: Sequence[Examples], device: torch.device) -> None:
        self.members = [replace(member, pixels=member.pixels.to(device)) for member in members]
        self.device = device
        self.replays = members[0].views is not None
        self._placed = _Placed.of(self.members, device) if device.type != "cpu" and not self.replays else None
        weights = [member.weights for member in members if member.weights is not None]
        self._weights = torch.stack(weights).float().to(device) if weights else None

    def batches(
        self, orders: Iterable[tuple[int, Sequence[Int[Tensor, " B"]]]]
    ) -> Iterator[tuple[Float[Tensor, "S B C H W"], Float[Tensor, "S B K"], Float[Tensor, "S B"] | None]]:
        """The batches of `orders` in turn, with the weights of their images where they have any; each entry has the epoch and the indices of every model."""
        if self._placed is not None:
            for _, rows in orders:
                yield *self._placed.batch(torch.stack(list(rows))), self._weights_of(rows)
            return
        if len(self.members) == 1 and not self.replays:
            ahead, shown = tee(rows for _, rows in orders)
            for (images, labels), rows in zip(self.members[0].batches((rows[0] for rows in ahead), self.device), shown, strict=True):
                yield images[None], labels[None], self._weights_of(rows)
            return
        for epoch, rows in orders:
            pairs = zip(self.members, rows, strict=True)
            parts = [
                member.view_batch(indices, epoch, self.device) if self.replays else member.batch(indices, self.device) for member, indices in pairs
            ]
            yield torch.stack([images for images, _ in parts]), torch.stack([labels for _, labels in parts]), self._weights_of(rows)

    def _weights_of(self, rows: Sequence[Int[Tensor, " B"]]) -> Float[Tensor, "S B"] | None:
        return None if self._weights is None else self._weights.gather(1, sent(torch.stack(list(rows)), self.device))


class _Placed:
    """All tables of a feed in one tensor on the device: a batch is one gather, whatever the number of models."""

    def __init__(self, images: Tensor, offsets: Int[Tensor, "S 1"], targets: Tensor, classes: int, pixels: PixelSpace) -> None:
        self.images, self.offsets, self.targets, self.classes, self.pixels = images, offsets, targets, classes, pixels

    @staticmethod
    def of(members: Sequence[Examples], device: torch.device) -> "_Placed | None":
        tables = {id(member.table): member.table for member in members}
        first = members[0]
        alike = all(
            member.table.resident and _same(member.pixels, first.pixels) and member.targets.shape == first.targets.shape for member in members
        )
        if not alike:
            return None
        size = sum(len(table) for table in tables.values()) * first.table.read([0]).nbytes
        if device.type == "cuda" and size > _RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
            return None
        parts = [table.read(range(len(table))) for table in tables.values()]
        if len({(part.dtype, part.shape[1:]) for part in parts}) != 1:
            return None
        starts = dict(zip(tables, torch.tensor([0, *(len(part) for part in parts)]).cumsum(0).tolist(), strict=False))
        offsets = torch.tensor([[starts[id(member.table)]] for member in members])
        targets = torch.stack([member.targets for member in members]).to(device)
        return _Placed(torch.cat(parts).to(device), offsets, targets, first.classes, first.pixels)

    def batch(self, rows: Int[Tensor, "S B"]) -> tuple[Tensor, Tensor]:
        device, models = self.images.device, len(rows)
        at = sent(torch.cat([rows + self.offsets, rows]), device)
        images = self.pixels(self.images[at[:models].reshape(-1)]).unflatten(0, rows.shape)
        own = at[models:]
        if self.targets.ndim == 2:
            return images, torch.nn.functional.one_hot(self.targets.gather(1, own), self.classes).float()
        return images, self.targets.gather(1, own[..., None].expand(*own.shape, self.targets.shape[-1]))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device`, without waiting for it: from page-locked memory, which a GPU reads by itself."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _same(first: PixelSpace, second: PixelSpace) -> bool:
    ours, theirs = first.tensors(), second.tensors()
    return first.header() == second.header() and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

"""What a network is trained on or shown: images in memory or on disk, turned into network inputs batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.tables import ImageTable
from limbeck.data.views import LabeledViews
from limbeck.errors import OptionError
from limbeck.types.distilled import DistilledDataset
from limbeck.types.pixels import PixelSpace


@dataclass(frozen=True)
class Examples:
    """Images of a table with their targets in a pixel space. Targets are class numbers [N], or label rows [N, K].

    With `views`, training sees each image as its views, under their labels (`view_batch`); `targets` are then the mean labels. With `weights`, which are not
    negative, the loss of a batch is the weighted mean: an image of weight 0 is as good as left out, while batches, order and augmentation stay those of all.
    """

    table: "ImageTable | StoredImages"
    targets: Tensor
    pixels: PixelSpace
    views: LabeledViews | None = None
    weights: Float[Tensor, " N"] | None = None

    def __post_init__(self) -> None:
        if self.weights is not None and not (len(self.weights) == len(self.table) and bool((self.weights >= 0).all())):
            raise OptionError(
                f"weights need {len(self.table)} numbers that are not negative, one for each image, got {self.weights.tolist()[:10]}; mend them"
            )

    @staticmethod
    def of_table(table: ImageTable, pixels: PixelSpace) -> "Examples":
        """A table under its own hard labels."""
        return Examples(table, torch.from_numpy(table.labels.copy()), pixels)

    @staticmethod
    def of_distilled(dataset: DistilledDataset) -> "Examples":
        """A distilled set under its labels."""
        return Examples(StoredImages(dataset), dataset.targets(), dataset.pixels, LabeledViews.of(dataset))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.table.classes)

    def batch(self, indices: Int[Tensor, " B"], device: torch.device) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
        """Network inputs and label rows of some examples, on `device`."""
        images = self.pixels(self.table.read(indices).to(device))
        targets = self.targets[indices].to(device)
        if targets.ndim == 1:
            targets = torch.nn.functional.one_hot(targets, self.classes).float()
        return images, targets

    def view_batch(self, indices: Int[Tensor, " B"], epoch: int, device: torch.device) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B K"]]:
        """Network inputs as an epoch's view shows them, already augmented, and their label rows as distributions, on `device`. Indices lie on the CPU."""
        if self.views is None:
            raise OptionError("these examples have one label for each image and no views to replay; use batch")
        images = self.views.images(lambda rows: self.pixels(self.table.read(rows).to(device)), indices, epoch)
        return images, self.views.labels(indices, epoch).to(device)

    def batches(self, order: Iterable[Int[Tensor, "_"]], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of `order` in turn. While one is in use the next is decoded, when the images lie on disk: at most two batches are in memory."""
        if self.table.resident:
            yield from (self.batch(indices, device) for indices in order)
            return
        with ThreadPoolExecutor(max_workers=1) as ahead:
            pending = None
            for indices in order:
                ready, pending = pending, ahead.submit(self.batch, indices, device)
                if ready is not None:
                    yield ready.result()
            if pending is not None:
                yield pending.result()


class StoredImages:
    """The images of a distilled set, read like a table: uint8 or float in the set's storage space."""

    resident = True

    def __init__(self, dataset: DistilledDataset) -> None:
        self.classes, self.shape = dataset.classes, dataset.shape
        self.labels = dataset.owners.long().numpy()
        self._images = dataset.images

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Sequence[int] | Tensor) -> Tensor:
        return self._images[torch.as_tensor(indices)]

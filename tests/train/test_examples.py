import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians

from limbeck.data.pixels import normalize
from limbeck.data.tables import ArrayTable
from limbeck.train.examples import Examples, StoredImages
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace

CPU = torch.device("cpu")


class OnDisk(ArrayTable):
    """A table that says that its images must be decoded, and remembers how often."""

    resident = False

    def __init__(self, table: ArrayTable) -> None:
        super().__init__(table.images, table.labels, table.classes)
        self.reads = 0

    def read(self, indices: object) -> torch.Tensor:
        self.reads += 1
        return super().read(indices)  # type: ignore[arg-type]


def order() -> list[torch.Tensor]:
    return list(torch.randperm(20, generator=torch.Generator().manual_seed(0)).split(6))


def test_hard_targets_become_one_hot_rows_and_images_network_inputs() -> None:
    table = gaussians(10)
    pixels = normalize(table)
    images, targets = Examples.of_table(table, pixels).batch(torch.tensor([3, 3, 0]), CPU)
    assert torch.equal(images, pixels(table.images[[3, 3, 0]]))
    assert targets.argmax(1).tolist() == table.labels[[3, 3, 0]].tolist()
    assert targets.sum(1).tolist() == [1, 1, 1]


def test_a_distilled_set_brings_its_labels_and_its_pixel_space() -> None:
    table = gaussians(4)
    rows = torch.from_numpy(np.random.default_rng(0).dirichlet([1, 1], 8)).float()
    made = distilled(table, Labels.encode(rows, precision="float16"), pixels=normalize(table))
    examples = Examples.of_distilled(made)
    images, targets = examples.batch(torch.tensor([7, 2]), CPU)
    assert torch.equal(images, made.inputs()[[7, 2]])
    assert torch.equal(targets, made.targets()[[7, 2]])
    assert (len(examples), examples.classes) == (8, 2)
    stored = StoredImages(made)
    assert (stored.shape, stored.classes, stored.labels.tolist(), len(stored)) == (made.shape, made.classes, made.owners.tolist(), 8)


def test_images_on_disk_give_the_same_batches_as_images_in_memory() -> None:
    table = gaussians(10)
    disk = OnDisk(table)
    here, there = (list(Examples.of_table(t, PixelSpace()).batches(order(), CPU)) for t in (table, disk))
    assert len(here) == len(there) == disk.reads == 4
    assert all(torch.equal(a, b) for first, second in zip(here, there, strict=True) for a, b in zip(first, second, strict=True))
    assert list(Examples.of_table(disk, PixelSpace()).batches([], CPU)) == []


def test_at_most_one_batch_is_decoded_ahead() -> None:
    disk = OnDisk(gaussians(10))
    for number, _ in enumerate(Examples.of_table(disk, PixelSpace()).batches(order(), CPU), start=1):
        assert disk.reads <= number + 1


def test_a_record_that_cannot_be_decoded_is_raised_where_it_is_asked_for() -> None:
    disk = OnDisk(gaussians(10))
    with pytest.raises(IndexError, match="record indices need"):
        list(Examples.of_table(disk, PixelSpace()).batches([torch.tensor([1]), torch.tensor([99])], CPU))

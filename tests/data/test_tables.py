import numpy as np
import pytest
import torch

from limbeck.data import ArrayTable, Subset, describe
from limbeck.errors import DataError


def table(seed: int = 0, records: int = 6) -> ArrayTable:
    pixels = np.random.default_rng(seed).integers(0, 256, (records, 3, 4, 5), dtype=np.uint8)
    return ArrayTable(torch.from_numpy(pixels), np.arange(records) % 2, ["a", "b"])


def test_read_returns_the_asked_images_in_order_for_every_kind_of_index() -> None:
    whole = table()
    for indices in ([4, 0, 4], np.array([4, 0, 4]), torch.tensor([4, 0, 4])):
        assert torch.equal(whole.read(indices), whole.images[[4, 0, 4]])
    assert whole.read([]).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("indices", [[6], [-1], np.array([True, False]), [0.5]])
def test_read_refuses_what_is_no_index(indices: object) -> None:
    with pytest.raises(IndexError, match="record indices need"):
        table().read(indices)  # type: ignore[arg-type]


def test_labels_are_read_only_and_their_source_array_stays_writable() -> None:
    given = np.array([0, 1])
    labels = ArrayTable(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), given, "ab").labels
    with pytest.raises(ValueError, match="read-only"):
        labels[0] = 1
    given[0] = 1
    assert labels.tolist() == [0, 1]


def test_wrong_labels_are_refused() -> None:
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError) as caught:
        ArrayTable(images, [0, 2], "ab")
    assert str(caught.value) == "labels need 0 <= label < 2 classes, got 2; mend the labels or the class names"
    with pytest.raises(DataError) as caught:
        ArrayTable(images, [0], "ab")
    assert str(caught.value) == "2 images need 2 labels, got labels of shape [1]; give one label per image"


def test_record_digests_are_equal_exactly_for_equal_pixels() -> None:
    images = table().images.clone()
    images[3] = images[1]
    images[4] = images[1]
    images[4, 0, 0, 0] ^= 1
    digests = ArrayTable(images, np.zeros(6), "a").record_digests()
    assert digests.dtype == np.uint64
    assert digests[3] == digests[1]
    assert len(set(digests.tolist())) == 5


def test_digest_is_of_classes_shape_labels_and_pixels() -> None:
    base = table()
    same = ArrayTable(base.images.clone(), base.labels, base.classes)
    changed = base.images.clone()
    changed[0, 0, 0, 0] ^= 1
    others = [
        ArrayTable(changed, base.labels, base.classes),
        ArrayTable(base.images, 1 - base.labels, base.classes),
        ArrayTable(base.images, base.labels, ["a", "c"]),
        ArrayTable(base.images.reshape(6, 3, 5, 4), base.labels, base.classes),
    ]
    assert same.digest == base.digest
    assert len({base.digest, *(other.digest for other in others)}) == 5


def test_subset_is_a_view_with_the_digest_of_its_content() -> None:
    base = table()
    part = Subset(base, [5, 1, 2])
    assert len(part) == 3
    assert part.resident
    assert part.labels.tolist() == [1, 1, 0]
    assert torch.equal(part.read([2, 0]), base.images[[2, 5]])
    assert part.digest == ArrayTable(base.images[[5, 1, 2]], [1, 1, 0], "ab").digest
    assert torch.equal(Subset(part, [1]).read([0]), base.images[[1]])


def test_describe_counts_classes() -> None:
    facts = describe(Subset(table(), [0, 2, 4, 1]))
    assert {name: value for name, value in facts.items() if name != "digest"} == {
        "records": 4,
        "classes": 2,
        "shape": [3, 4, 5],
        "per_class_min": 1,
        "per_class_max": 3,
        "resident": True,
    }

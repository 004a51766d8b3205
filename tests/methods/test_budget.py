import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from limbeck.data.pixels import zca_mtt
from limbeck.data.tables import ArrayTable
from limbeck.errors import OptionError
from limbeck.labels.rules import LabelRule
from limbeck.methods.budget import counts_for, parse_bytes
from limbeck.types.pixels import PixelSpace

HARD = LabelRule(kind="hard")
SIZES = st.lists(st.integers(0, 400), min_size=2, max_size=12).filter(any)


def table(sizes: list[int], side: int = 2) -> ArrayTable:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return ArrayTable(torch.zeros(len(labels), 1, side, side, dtype=torch.uint8), labels, [str(k) for k in range(len(sizes))])


@given(SIZES)
def test_proportional_counts_are_exact_and_fair(sizes: list[int]) -> None:
    counts, available = np.array(counts_for(table(sizes), HARD, PixelSpace(), ipc="proportional")), np.array(sizes)
    present = available > 0
    total = min(10 * len(sizes), sum(sizes))
    assert counts.sum() == total
    assert ((counts >= 1) == present).all()
    assert (counts <= available).all()
    share = available / available.sum() * total
    if (share[present] >= 1).all():  # otherwise the small classes' guaranteed image is taken from the large ones
        assert (np.abs(counts - share) < 1).all()  # the quota rule of the largest-remainder method
    larger = np.argsort(available, kind="stable")
    assert (np.diff(counts[larger]) >= -1).all()


def test_proportional_counts_by_hand() -> None:
    assert counts_for(table([60, 30, 10]), HARD, PixelSpace(), ipc="proportional") == (18, 9, 3)
    assert counts_for(table([995, 3, 2]), HARD, PixelSpace(), ipc="proportional") == (28, 1, 1)
    assert counts_for(table([4, 0, 3]), HARD, PixelSpace(), ipc="proportional") == (4, 0, 3)


@given(st.integers(2, 12), st.integers(1, 50), st.sampled_from(["hard", "soft"]), st.none() | st.integers(1, 12), st.integers(0, 50))
def test_bytes_buy_the_largest_number_that_fits(classes: int, ipc: int, kind: str, top_k: int | None, spare: int) -> None:
    """The inverse of what a set costs: exactly its bytes buy it, and one byte less buys one image per class less."""
    rule = LabelRule(kind=kind, top_k=top_k)  # type: ignore[arg-type]
    images = table([60] * classes, side=4)
    pixels = zca_mtt(table([3, 3], side=4))
    each = 16 + rule.bytes_per_image(classes)
    cost = pixels.nbytes + ipc * classes * each
    assume(spare < classes * each)
    assert counts_for(images, rule, pixels, total_bytes=cost + spare) == (ipc,) * classes
    if ipc > 1:
        assert counts_for(images, rule, pixels, total_bytes=cost - 1) == (ipc - 1,) * classes
    assert sum(counts_for(images, rule, pixels, ipc="proportional", total_bytes=cost + min(spare, each - 1))) == ipc * classes


def test_too_few_bytes_are_answered_with_enough() -> None:
    images = table([9, 9])
    with pytest.raises(OptionError) as caught:
        counts_for(images, HARD, PixelSpace(), total_bytes=9)
    assert str(caught.value) == "9 bytes do not pay for one image of each of the 2 classes (10 bytes); use --bytes 10 or more"
    assert counts_for(images, HARD, PixelSpace(), total_bytes=10) == (1, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "a budget is needed; use --ipc N, --ipc proportional or --bytes SIZE"),
        ({"ipc": 1, "total_bytes": 100}, "--ipc N and --bytes both set the budget; use one of them, or --ipc proportional with --bytes"),
        ({"ipc": "many"}, "--ipc needs a whole number or 'proportional', got 'many'; use for example --ipc 10"),
        ({"ipc": "2.5"}, "--ipc needs a whole number or 'proportional', got '2.5'; use for example --ipc 10"),
        ({"ipc": 0}, "images per class must be at least 1, got 0; use --ipc 1 or more"),
        ({"ipc": "-3"}, "images per class must be at least 1, got -3; use --ipc 1 or more"),
    ],
)
def test_other_budgets_are_answered(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        counts_for(table([9, 9]), HARD, PixelSpace(), **options)  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_a_number_is_the_same_for_every_class() -> None:
    assert counts_for(table([9, 9, 9]), HARD, PixelSpace(), ipc=4) == counts_for(table([9, 9, 9]), HARD, PixelSpace(), ipc="4") == (4, 4, 4)


@pytest.mark.parametrize(
    ("text", "size"),
    [("100000", 100_000), (" 100 kB ", 100_000), ("1.5MB", 1_500_000), ("2MiB", 2 * 1024**2), ("3gib", 3 * 1024**3), ("7b", 7), ("1.9", 1)],
)
def test_byte_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "kB", "1e6", "-5kB", "5 parsecs", "1,000", "1.5.2MB", "inf", "nan"])
def test_other_byte_sizes_are_answered(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_bytes(text)
    assert str(caught.value) == f"a byte budget looks like 100kB, 1.5MB or 2MiB, got {text!r}"

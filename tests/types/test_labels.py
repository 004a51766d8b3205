import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.small import as_shipped

from limbeck.errors import FileFormatError, OptionError
from limbeck.types.labels import Labels, index_dtype


def rows(seed: int, count: int, classes: int, sharpness: float = 2.0) -> torch.Tensor:
    """Probability rows, float32."""
    logits = sharpness * np.random.default_rng(seed).normal(size=(count, classes))
    return torch.from_numpy(logits).softmax(1).float()


SEEDS, COUNTS, CLASSES, SHARPNESS = st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 300), st.floats(0, 20)


@given(SEEDS, COUNTS, CLASSES, SHARPNESS)
def test_float32_keeps_every_entry(seed: int, count: int, classes: int, sharpness: float) -> None:
    dense = rows(seed, count, classes, sharpness)
    assert torch.equal(Labels.encode(dense, sums_to_one=False).dense(), dense)
    assert torch.allclose(Labels.encode(dense).dense(), dense, rtol=1e-6, atol=0)  # its rows are scaled to sum to one


@given(SEEDS, COUNTS, CLASSES, SHARPNESS)
def test_float16_errs_by_half_a_unit_in_the_last_place(seed: int, count: int, classes: int, sharpness: float) -> None:
    dense = rows(seed, count, classes, sharpness)
    error = (Labels.encode(dense, precision="float16", sums_to_one=False).dense() - dense).abs()
    # 11 significant bits; below 2^-14 the spacing stays 2^-24
    assert bool((error <= torch.maximum(dense * 2.0**-11, torch.tensor(2.0**-25))).all())


@given(SEEDS, COUNTS, CLASSES, SHARPNESS)
def test_uint8_errs_by_at_most_the_row_maximum_over_510(seed: int, count: int, classes: int, sharpness: float) -> None:
    dense = rows(seed, count, classes, sharpness)
    stored = Labels.encode(dense, precision="uint8", sums_to_one=False)
    largest = dense.amax(1, keepdim=True)
    assert bool(((stored.dense() - dense).abs() <= largest / 510 * (1 + 1e-5)).all())
    assert torch.allclose(stored.dense().amax(1, keepdim=True), largest, rtol=1e-6)


@given(SEEDS, COUNTS, CLASSES, st.data(), st.sampled_from(["float32", "float16", "uint8"]), st.booleans())
def test_top_k_keeps_the_largest_and_rows_are_distributions_when_they_say_so(
    seed: int, count: int, classes: int, data: st.DataObject, precision: str, sums_to_one: bool
) -> None:
    dense, k = rows(seed, count, classes), data.draw(st.integers(1, classes))
    labels = Labels.encode(dense, top_k=k, precision=precision, sums_to_one=sums_to_one)  # type: ignore[arg-type]
    decoded = labels.dense()
    kept = torch.zeros_like(dense).scatter(1, dense.topk(k).indices, 1).bool()
    assert bool((decoded[~kept] == 0).all())
    if sums_to_one:
        assert torch.allclose(decoded.sum(1), torch.ones(count), rtol=1e-5)
        assert torch.allclose(decoded, dense * kept / (dense * kept).sum(1, keepdim=True), atol=0.004 * k if precision == "uint8" else 1e-3)
    else:
        assert torch.allclose(decoded, dense * kept, atol=1 / 510 + 1e-6 if precision == "uint8" else 1e-3)


@given(COUNTS, CLASSES, st.data(), st.sampled_from(["float32", "float16", "uint8"]))
def test_bytes_are_those_that_are_stored(count: int, classes: int, data: st.DataObject, precision: str) -> None:
    labels = Labels.encode(rows(0, count, classes), top_k=data.draw(st.integers(1, classes)), precision=precision)  # type: ignore[arg-type]
    assert labels.nbytes == sum(len(tensor.contiguous().numpy().tobytes()) for tensor in labels.tensors().values())


@given(SEEDS, COUNTS, st.data(), st.sampled_from(["float32", "float16", "uint8"]))
def test_stored_labels_are_restored(seed: int, count: int, data: st.DataObject, precision: str) -> None:
    labels = Labels.encode(
        rows(seed, count, 12),
        top_k=data.draw(st.integers(1, 12)),
        precision=precision,
        temperature=3.5,
        expert="abc",
        sums_to_one=data.draw(st.booleans()),
    )  # type: ignore[arg-type]
    again = Labels.restore(labels.header(), labels.tensors())
    assert again.header() == labels.header()
    assert torch.equal(again.dense(), labels.dense())
    assert len(again) == count


def test_ties_go_to_the_lower_class() -> None:
    dense = torch.tensor([[0.2, 0.3, 0.3, 0.2], [0.25, 0.25, 0.25, 0.25]])
    assert Labels.encode(dense, top_k=1).indices.tolist() == [[1], [0]]  # type: ignore[union-attr]
    assert Labels.encode(dense, top_k=3).indices.tolist() == [[1, 2, 0], [0, 1, 2]]  # type: ignore[union-attr]


def test_ties_are_broken_alike_in_long_rows() -> None:
    dense = torch.full((3, 1000), 1e-3)
    dense[:, 700] = 2e-3
    assert Labels.encode(dense, top_k=200).indices.tolist() == [[700, *range(199)]] * 3  # type: ignore[union-attr]


def test_all_classes_need_no_indices() -> None:
    assert Labels.encode(rows(0, 2, 5), top_k=5).indices is None


@pytest.mark.parametrize(("classes", "dtype"), [(2, torch.uint8), (256, torch.uint8), (257, torch.int16), (32768, torch.int16), (32769, torch.int32)])
def test_classes_are_numbered_in_the_smallest_type(classes: int, dtype: torch.dtype) -> None:
    assert index_dtype(classes) == dtype
    last = torch.tensor([classes - 1])
    labels = Labels.hard(last, classes)
    assert labels.indices.dtype == dtype  # type: ignore[union-attr]
    assert labels.indices.long().flatten().tolist() == [classes - 1]  # type: ignore[union-attr]


def test_hard_labels_are_one_hot_and_cost_an_index() -> None:
    labels = Labels.hard(torch.tensor([2, 0]), 3)
    assert labels.dense().tolist() == [[0, 0, 1], [1, 0, 0]]
    assert (len(labels), labels.nbytes, labels.kind) == (2, 2, "hard")


def test_select_takes_the_rows_of_every_part() -> None:
    dense, picked = rows(3, 6, 9), torch.tensor([4, 4, 0])
    for labels in (Labels.encode(dense), Labels.encode(dense, top_k=2, precision="uint8"), Labels.hard(torch.arange(6), 9)):
        assert torch.equal(labels.select(picked).dense(), labels.dense()[picked])
        assert labels.select(picked).header() == labels.header()


def test_labels_per_view_carry_a_leading_axis() -> None:
    dense = torch.stack([rows(0, 4, 5), rows(1, 4, 5)])
    labels = Labels(5, "probability", dense.half())
    assert len(labels) == 4
    assert torch.allclose(labels.dense(), dense, atol=1e-3)
    assert labels.select(torch.tensor([3])).dense().shape == (2, 1, 5)


@pytest.mark.parametrize("kind", ["logit", "log-probability", "centered", "free"])
def test_other_kinds_are_never_normalized(kind: str) -> None:
    dense = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Labels.encode(dense, kind=kind).dense(), dense)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [0, 11, -1])
def test_an_impossible_top_k_is_answered(k: int) -> None:
    with pytest.raises(OptionError) as caught:
        Labels.encode(rows(0, 1, 10), top_k=k)
    assert str(caught.value) == f"top-k needs 1 <= k <= 10 classes, got k={k}; use k=10 to keep all"


def test_what_cannot_be_stored_is_answered() -> None:
    with pytest.raises(OptionError, match="^uint8 labels need non-negative entries, got a minimum of -1; use float16 for logit labels$"):
        Labels.encode(torch.tensor([[-1.0, 2.0]]), kind="logit", precision="uint8")
    with as_shipped(), pytest.raises(OptionError, match="^label precision must be one of float32, float16, uint8, got 'int4'$"):
        Labels.encode(rows(0, 1, 2), precision="int4")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="^labels need at least 2 classes, got 1; use data with more classes$"):
        Labels.hard(torch.tensor([0]), 1)


HALF = torch.full((2, 2), 0.5)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"kind": "fuzzy", "values": HALF}, "labels of unknown kind 'fuzzy'; known: hard, probability, "),
        ({"kind": "probability"}, "labels hold neither values nor class indices"),
        ({"kind": "hard", "indices": torch.tensor([[2]])}, r"label indices must lie in 0..1, got 2"),
        ({"kind": "hard", "indices": torch.tensor([[-1]])}, r"label indices must lie in 0..1"),
        ({"kind": "probability", "values": torch.full((2, 3), 0.5)}, r"label values of shape \(2, 3\) do not fit 2 classes"),
        ({"kind": "probability", "values": HALF, "indices": torch.zeros(2, 1, dtype=torch.uint8)}, "label values of shape .* do not fit 2 classes"),
        ({"kind": "probability", "values": HALF * torch.nan}, "label values are not finite"),
        ({"kind": "probability", "values": HALF.to(torch.uint8)}, "uint8 label values need a scale for each row"),
        ({"kind": "probability", "values": HALF, "scale": torch.ones(2, 1)}, "uint8 label values need a scale for each row, and no others have one"),
        (
            {"kind": "probability", "values": (HALF * 4).byte(), "scale": torch.ones(1, 1)},
            r"label scales must be finite and one for each row, got shape \(1, 1\)",
        ),
        ({"kind": "probability", "values": (HALF * 4).byte(), "scale": torch.full((2, 1), torch.inf)}, "label scales must be finite"),
        ({"kind": "probability", "values": torch.tensor([[0.5, 0.5], [0, 0]])}, "a probability label sums to zero or less"),
    ],
)
def test_labels_that_mean_nothing_are_refused(parts: dict[str, object], sentence: str) -> None:
    with as_shipped(), pytest.raises(FileFormatError, match=f"^{sentence}"):
        Labels(2, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("header", [{}, {"classes": 2, "kind": "probability", "color": 1}, {"classes": "2", "kind": "probability"}])
def test_an_unreadable_header_is_one_sentence(header: dict[str, object]) -> None:
    with as_shipped(), pytest.raises(FileFormatError, match=r"^the file's labels are not readable \(.*\); use an intact copy$"):
        Labels.restore(header, {"labels.values": HALF})

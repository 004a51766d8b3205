"""Transforms of label rows: closed forms, invariants under random rows, and every refusal as the user reads it."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.small import distilled, gaussians

from limbeck.errors import OptionError
from limbeck.labels import TRANSFORMS
from limbeck.labels.rules import soften
from limbeck.labels.transforms import parse_transform, transform_set
from limbeck.streams import Streams
from limbeck.types.labels import Labels

EXAMPLES = (
    "swap:rank=2",
    "top-k:k=3",
    "remove-images:classes=1",
    "remove-label:classes=1+2",
    "smoothing",
    "permute-tail",
    "permute-classes",
    "temperature:value=2",
    "quantize:to=float16",
    "noise:rate=0.5",
    "class-mean",
    "harden",
)


def rows_of(images: int = 12, classes: int = 6, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return (scale * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).softmax(1).float()


def owners_of(images: int = 12, classes: int = 6) -> torch.Tensor:
    return torch.arange(images) % classes


def applied(text: str, rows: torch.Tensor, owners: torch.Tensor | None = None, seed: int = 0) -> torch.Tensor:
    made, kept = parse_transform(text).apply(rows, owners_of(*rows.shape) if owners is None else owners, Streams(seed).torch("transform"))
    assert len(made) == len(kept)
    return made


def test_the_table_and_the_examples_agree() -> None:
    assert {text.partition(":")[0] for text in EXAMPLES} == set(TRANSFORMS)


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_transform_leaves_its_input_alone_and_repeats_itself(text: str) -> None:
    rows = rows_of()
    before = rows.clone()
    first, second = applied(text, rows), applied(text, rows)
    assert torch.equal(rows, before)
    assert torch.equal(first, second)
    assert first.dtype == rows.dtype
    assert bool(torch.isfinite(first).all())
    assert bool((first >= 0).all())


@given(rank=st.integers(1, 6), seed=st.integers(0, 1000))
def test_swapping_twice_is_the_identity_and_keeps_sums_and_sorted_entries(rank: int, seed: int) -> None:
    rows = rows_of(seed=seed)
    once = applied(f"swap:rank={rank}", rows)
    assert torch.equal(applied(f"swap:rank={rank}", once), rows)
    assert torch.equal(once.sort(1).values, rows.sort(1).values)


def test_a_swap_exchanges_the_ranked_entry_with_the_smallest() -> None:
    rows = torch.tensor([[0.1, 0.6, 0.05, 0.25]])
    assert torch.equal(applied("swap:rank=1", rows), torch.tensor([[0.1, 0.05, 0.6, 0.25]]))
    assert torch.equal(applied("swap:rank=2", rows), torch.tensor([[0.1, 0.6, 0.25, 0.05]]))
    assert torch.equal(applied("swap:rank=4", rows), rows)


def test_top_k_without_and_with_renormalization() -> None:
    rows = torch.tensor([[0.1, 0.6, 0.05, 0.25], [0.25, 0.25, 0.25, 0.25]])
    assert torch.equal(applied("top-k:k=2", rows), torch.tensor([[0.0, 0.6, 0.0, 0.25], [0.25, 0.25, 0.0, 0.0]]))
    renormalized = applied("top-k:k=2,renormalize=true", rows)
    assert torch.allclose(renormalized, torch.tensor([[0.0, 0.6 / 0.85, 0.0, 0.25 / 0.85], [0.5, 0.5, 0.0, 0.0]]))
    assert torch.equal(applied("top-k:k=4", rows), rows)


def test_removing_images_keeps_the_other_rows_whole() -> None:
    rows, owners = rows_of(), owners_of()
    made, kept = parse_transform("remove-images:classes=2").apply(rows, owners, torch.Generator())
    assert kept.tolist() == [i for i in range(12) if i % 6 != 2]
    assert torch.equal(made, rows[kept])


def test_removing_a_label_zeroes_it_everywhere_but_in_its_own_images() -> None:
    rows, owners = rows_of(), owners_of()
    made = applied("remove-label:classes=2", rows)
    own = owners == 2
    assert torch.equal(made[own], rows[own])
    assert bool((made[~own, 2] == 0).all())
    others = [k for k in range(6) if k != 2]
    assert torch.equal(made[:, others], rows[:, others])
    several = applied("remove-label:classes=2+3", rows)
    assert bool((several[own, 3] == 0).all())
    assert torch.equal(several[own, 2], rows[own, 2])


@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 20))
def test_smoothing_matches_the_entropy_of_every_row(seed: int, scale: float) -> None:
    rows = rows_of(seed=seed, scale=scale)
    made = applied("smoothing", rows)
    wanted, found = (torch.special.entr(part.double()).sum(1) for part in (rows, made))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert torch.allclose(made.sum(1), torch.ones(12), atol=1e-6)
    inside = wanted < 0.999 * torch.log(torch.tensor(6.0))
    assert torch.equal(made.argmax(1)[inside], owners_of()[inside])


def test_smoothing_has_the_closed_form_at_its_ends() -> None:
    hard, uniform = torch.eye(4), torch.full((4, 4), 0.25)
    assert torch.allclose(applied("smoothing", hard), hard, atol=1e-7)
    assert torch.allclose(applied("smoothing", uniform), uniform, atol=1e-6)
    assert torch.equal(applied("smoothing:center=top", hard.flip(0)).argmax(1), torch.tensor([3, 2, 1, 0]))


@given(seed=st.integers(0, 1000), keep=st.integers(0, 5))
def test_shuffling_the_tail_keeps_the_top_and_the_sorted_entries(seed: int, keep: int) -> None:
    rows = rows_of(seed=seed)
    made = applied(f"permute-tail:keep={keep}", rows, seed=seed)
    top = rows.sort(1, descending=True).indices[:, :keep]
    assert torch.equal(made.gather(1, top), rows.gather(1, top))
    assert torch.equal(made.sort(1).values, rows.sort(1).values)


def test_the_tail_is_shuffled_uniformly() -> None:
    rows = torch.tensor([[0.7, 0.2, 0.1, 0.0]]).repeat(6000, 1)
    made = applied("permute-tail", rows, torch.zeros(6000, dtype=torch.int64))
    arrangements, counts = torch.unique(made[:, 1:], dim=0, return_counts=True)
    assert len(arrangements) == 6
    assert float(((counts - 1000) ** 2 / 1000).sum()) < 20.5  # chi-squared with 5 degrees of freedom: 99.9 %


def test_renaming_classes_is_one_cycle_for_all_rows() -> None:
    rows = rows_of(200)
    made = applied("permute-classes", rows, torch.zeros(200, dtype=torch.int64))
    assert torch.equal(made.sort(1).values, rows.sort(1).values)
    tops = rows.argmax(1)
    assert torch.equal(made.argmax(1), tops)
    for top in range(6):
        chosen = rows[tops == top], made[tops == top]
        # entries move to the same place in all rows with this peak, and none but the peak stays
        moved = [[bool(torch.equal(chosen[0][:, a], chosen[1][:, b])) for b in range(6)] for a in range(6)]
        assert [sum(line) for line in moved] == [1] * 6
        assert [a for a in range(6) if moved[a][a]] == [top]
    goes = {top: [next(b for b in range(6) if torch.equal(rows[tops == top][:, a], made[tops == top][:, b])) for a in range(6)] for top in range(6)}
    for a in range(6):  # the same new name under every peak, but where the cycle passes the peak itself
        names = [goes[top][a] for top in range(6) if top != a]
        assert max(names.count(name) for name in names) >= 4


def test_temperature_of_probabilities_is_temperature_of_logits() -> None:
    logits = 3 * torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    assert torch.allclose(applied("temperature:value=2.5", soften(logits, 1.0), torch.zeros(7, dtype=torch.int64)), soften(logits, 2.5), atol=1e-6)
    assert torch.equal(applied("temperature:value=3", torch.eye(4)), torch.eye(4))


def test_quantization_is_what_labels_store() -> None:
    rows = rows_of()
    assert torch.equal(applied("quantize:to=float16", rows), rows.half().float())
    error = (applied("quantize", rows) - rows).abs()
    assert bool((error <= rows.amax(1, keepdim=True) / 510 * 1.001).all())


def test_noise_on_hard_labels_is_symmetric_and_nested() -> None:
    hard = torch.nn.functional.one_hot(torch.zeros(6000, dtype=torch.int64), 4).float()
    owners = torch.zeros(6000, dtype=torch.int64)
    some, more = (applied(f"noise:rate={rate}", hard, owners) for rate in (0.2, 0.6))
    assert torch.equal(applied("noise:rate=0", hard, owners), hard)
    counts = torch.bincount(more.argmax(1), minlength=4)
    assert abs(int(counts[0]) - 2400) < 4 * (6000 * 0.4 * 0.6) ** 0.5
    assert bool(((counts[1:] - 1200).abs() < 4 * (6000 * 0.2 * 0.8) ** 0.5).all())
    hit = some.argmax(1) != 0
    assert torch.equal(some[hit], more[hit])


def test_class_means_and_hard_labels() -> None:
    rows = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]])
    owners = torch.tensor([0, 0, 1])
    assert torch.allclose(applied("class-mean", rows, owners), torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.1, 0.9]]))
    assert torch.allclose(applied("class-mean:center=top", rows, owners), torch.tensor([[0.8, 0.2], [0.25, 0.75], [0.25, 0.75]]))
    assert torch.equal(applied("harden", rows, owners), torch.tensor([[1.0, 0], [1, 0], [0, 1]]))
    assert torch.equal(applied("harden:center=top", rows, owners), torch.tensor([[1.0, 0], [0, 1], [0, 1]]))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("swop:rank=2", "unknown label transform 'swop'; did you mean 'swap'?"),
        ("swap", "option rank of label transform swap: field required, got nothing; see: limbeck explain swap"),
        ("swap:rank", "options of swap are written key=value, got 'rank'; write for example swap:rank=2"),
        ("swap:level=2", "label transform swap has no option 'level'; "),
        ("noise:rate=2", "option rate of label transform noise: input should be less than or equal to 1, got '2'"),
        ("remove-label:classes=a", "option classes of label transform remove-label: input should be a valid integer"),
    ],
)
def test_misspelled_transforms_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=re.escape(sentence)):
        parse_transform(text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("swap:rank=7", "a swap needs a rank of 1 to 6 classes, got 7; use rank=5 for the last but one"),
        ("top-k:k=7", "top-k needs 1 <= k <= 6 classes, got k=7; use k=6 to keep all"),
        ("remove-label:classes=6", "class numbers run from 0 to 5, got 6; name another class"),
        ("remove-images:classes=0+1+2+3+4+5", "removing the images of every class leaves none; name fewer classes"),
        ("permute-tail:keep=6", "shuffling the tail needs keep < 6 classes, got 6; use keep=1"),
    ],
)
def test_transforms_that_do_not_fit_the_labels_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(OptionError, match=re.escape(sentence)):
        applied(text, rows_of())


def test_smoothing_refuses_truncated_rows() -> None:
    with pytest.raises(OptionError, match="smoothing matches the entropy of labels that sum to one, got truncated ones"):
        applied("smoothing", applied("top-k:k=2", rows_of()))


def test_a_set_is_transformed_with_its_images_and_provenance() -> None:
    table = gaussians(3, classes=3)
    dataset = distilled(table, Labels.encode(rows_of(9, 3)), provenance={"indices": list(range(9)), "method": "random-real"})
    made = transform_set(dataset, ["remove-images:classes=1", "top-k:k=1"], Streams(0).torch("transform"))
    kept = [i for i, owner in enumerate(table.labels) if owner != 1]
    assert made.provenance["indices"] == kept
    assert made.provenance["label_transforms"] == ["remove-images:classes=1", "top-k:k=1"]
    assert torch.equal(made.images, dataset.images[kept])
    assert torch.equal(made.owners, dataset.owners[kept])
    assert torch.equal(made.targets(), applied("top-k:k=1", dataset.targets()[kept], made.owners))
    again = transform_set(made, ["quantize"], Streams(0).torch("transform"))
    assert again.provenance["label_transforms"] == ["remove-images:classes=1", "top-k:k=1", "quantize"]


def test_hard_labels_can_be_transformed_and_logits_cannot() -> None:
    table = gaussians(4)
    noisy = transform_set(distilled(table), ["noise:rate=1"], Streams(0).torch("transform"))
    assert torch.equal(noisy.targets().argmax(1), 1 - torch.from_numpy(table.labels.copy()))
    with pytest.raises(OptionError, match="label transforms need labels that are probabilities, got 'logit'"):
        transform_set(distilled(table, Labels.encode(torch.zeros(8, 2), kind="logit")), ["swap:rank=1"], Streams(0).torch("transform"))
    hardened = transform_set(distilled(table, Labels.encode(torch.zeros(8, 2), kind="logit")), ["harden"], Streams(0).torch("transform"))
    assert hardened.labels.kind == "hard"

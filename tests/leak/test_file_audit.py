"""A file against private images: by design, leaking, clean, claiming; and labels in numbers."""

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians, network

from limbeck.data.pixels import fit_pixel_space
from limbeck.data.tables import ArrayTable
from limbeck.leak.file_audit import Copies, copy_findings, draw_controls, find_copies, in_pieces, label_findings, privacy_claim
from limbeck.types.distilled import DistilledDataset
from limbeck.types.finding import Finding
from limbeck.types.labels import Labels
from limbeck.types.pixels import PixelSpace

PRIVATE = gaussians(300, seed=1)
CONTROLS = torch.arange(200)


def rows(table: ArrayTable, start: int, end: int) -> ArrayTable:
    return ArrayTable(table.images[start:end], table.labels[start:end], table.classes)


def checks(dataset: DistilledDataset) -> tuple[Copies, dict[str, Finding]]:
    copies = find_copies(dataset, PRIVATE, CONTROLS, embed=in_pieces(lambda images: images.flatten(1).sqrt()))
    return copies, {finding.check: finding for finding in [*copy_findings(dataset, copies, alpha=0.01), privacy_claim(dataset, copies)]}


def test_images_published_by_design_are_told_from_leaks() -> None:
    dataset = distilled(rows(PRIVATE, 0, 20), provenance={"method": "random-real"})
    copies, found = checks(dataset)
    assert bool(copies.exact.all())
    assert found["published by design"].verdict == "leak"
    assert not found["published by design"].required
    assert "discloses 20 member images by design" in found["published by design"].sentence
    assert found["copies"].verdict == "clean"


@pytest.mark.parametrize("method", ["label-learning", "random-real@cutmix-300"])
def test_every_method_that_publishes_real_images_declares_them(method: str) -> None:
    _, found = checks(distilled(rows(PRIVATE, 0, 20), provenance={"method": method}))
    assert f"discloses 20 member images by design: {method} publishes whole training images" in found["published by design"].sentence
    assert found["copies"].verdict == "clean"


def test_parts_of_images_are_declared_and_whole_ones_are_not() -> None:
    _, found = checks(distilled(rows(PRIVATE, 0, 3), provenance={"method": "rded"}))
    assert found["published by design"].sentence == "Rded publishes parts of training images by design; 3 of its images are whole private ones."
    assert found["copies"].verdict == "leak"
    _, found = checks(distilled(gaussians(5, seed=3), provenance={"method": "rded"}))
    assert found["published by design"].sentence == "Rded publishes parts of training images by design; none of its images is a whole private one."
    assert found["copies"].verdict == "clean"


def test_undeclared_copies_leak() -> None:
    dataset = distilled(rows(PRIVATE, 0, 3), provenance={"method": "dm"})
    _, found = checks(dataset)
    assert found["published by design"].verdict == "clean"
    assert found["copies"].verdict == "leak"
    assert found["copies"].required
    assert found["copies"].evidence["exact"] == 3


def test_near_copies_are_found_among_fresh_images_and_fresh_images_alone_are_clean() -> None:
    fresh = gaussians(20, seed=2)
    noisy = (PRIVATE.images[:6].int() + torch.randint(-6, 7, (6, 1, 8, 8), generator=torch.Generator().manual_seed(0))).clamp(0, 255).to(torch.uint8)
    mixed = ArrayTable(torch.cat([fresh.images, noisy]), np.concatenate([fresh.labels, PRIVATE.labels[:6]]), fresh.classes)
    _, found = checks(distilled(mixed, provenance={"method": "dm"}))
    assert found["copies"].verdict == "leak"
    assert set(range(40, 46)) <= set(found["copies"].evidence["flagged_images"])
    hits = {hit["image"]: hit["private_record"] for hit in found["copies"].evidence["near"]}
    assert [hits[image] for image in range(40, 46)] == list(range(6))
    _, clean = checks(distilled(fresh, provenance={"method": "dm"}))
    assert clean["copies"].verdict == "clean"
    assert len(clean["copies"].evidence["spaces"]) == 2


def test_a_copy_in_network_space_is_still_a_copy() -> None:
    images = PRIVATE.images[:4].float() / 255
    dataset = DistilledDataset(**{**vars(distilled(rows(PRIVATE, 0, 4))), "images": images, "pixels": PixelSpace((), "network")})
    assert bool(find_copies(dataset, PRIVATE, CONTROLS).exact.all())


def noisy(start: int, count: int, levels: int = 3, seed: int = 0) -> torch.Tensor:
    """Private images under noise of at most so many gray levels."""
    noise = torch.randint(-levels, levels + 1, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed))
    return (PRIVATE.images[start : start + count].int() + noise).clamp(0, 255).to(torch.uint8)


def test_private_images_that_are_stored_twice_hide_no_copies() -> None:
    """A control with an exact duplicate has distance 0, and with a hundredth of such controls nothing would lie below the threshold."""
    twice = ArrayTable(torch.cat([PRIVATE.images, PRIVATE.images[:40]]), np.concatenate([PRIVATE.labels, PRIVATE.labels[:40]]), PRIVATE.classes)
    dataset = distilled(ArrayTable(noisy(20, 40), PRIVATE.labels[20:60], PRIVATE.classes), provenance={"method": "dm"})
    copies = find_copies(dataset, twice, draw_controls(twice, 400, torch.Generator().manual_seed(0)))
    assert copies.near[0].threshold > 0
    found = copy_findings(dataset, copies, alpha=0.01)[1]
    assert found.verdict == "leak"
    assert {hit["private_record"] for hit in found.evidence["near"]} <= set(range(20, 60))
    assert "p < 1e-16" in found.sentence


def test_of_duplicates_one_is_drawn_as_a_control() -> None:
    everything = ArrayTable(torch.cat([PRIVATE.images, PRIVATE.images]), np.concatenate([PRIVATE.labels, PRIVATE.labels]), PRIVATE.classes)
    assert sorted(draw_controls(everything, 10_000, torch.Generator()).tolist()) == list(range(600))


def test_private_images_that_hardly_differ_are_not_checked_for_near_copies() -> None:
    frames = (PRIVATE.images[:1].int().repeat(300, 1, 1, 1) + torch.eye(64, dtype=torch.int32).repeat(5, 1)[:300].view(300, 1, 8, 8)).to(torch.uint8)
    frames[64:, 0, 0, 0] = torch.arange(236).to(torch.uint8)
    still = ArrayTable(frames, [0, 1] * 150, PRIVATE.classes)
    dataset = distilled(gaussians(5, seed=2), provenance={"method": "dm"})
    found = copy_findings(dataset, find_copies(dataset, still, torch.arange(300)), alpha=0.01)[1]
    assert found.verdict == "not checked"
    assert "a near copy cannot be told from a real image" in found.sentence


def test_a_single_near_copy_is_never_clean_and_is_named() -> None:
    fresh = gaussians(20, seed=2)
    images = fresh.images.clone()
    images[7:8] = noisy(133, 1)
    _, found = checks(distilled(ArrayTable(images, fresh.labels, fresh.classes), provenance={"method": "dm"}))
    assert found["copies"].verdict == "inconclusive"
    assert "1 of 40 images" in found["copies"].sentence
    assert "image 7 to private record 133" in found["copies"].sentence


def test_clean_says_what_it_excludes() -> None:
    _, found = checks(distilled(gaussians(20, seed=2), provenance={"method": "dm"}))
    flagged = len(found["copies"].evidence["spaces"][0]["flagged"])
    assert "which excludes a single copy under noise of up to about" in found["copies"].sentence
    assert f"which excludes {flagged + 1} or more copies that near" in found["copies"].sentence


def test_a_near_copy_is_paired_with_the_record_that_is_near_in_the_space_where_it_was_found() -> None:
    """In features that ignore brightness, an image is a copy of one record; in pixels another one is nearest."""
    generator = torch.Generator().manual_seed(3)
    patterns = torch.randint(60, 120, (300, 1, 8, 8), generator=generator).to(torch.uint8)
    private = ArrayTable(patterns, [0, 1] * 150, PRIVATE.classes)
    shifted = (patterns[5:6].int() + 60).to(torch.uint8)
    private.images[6] = 149 + torch.randint(0, 9, (1, 8, 8), generator=generator).to(torch.uint8)  # bright and without a pattern
    dataset = distilled(ArrayTable(shifted, [0], PRIVATE.classes), provenance={"method": "dm"})
    relative = in_pieces(lambda images: images - images.mean(dim=(1, 2, 3), keepdim=True))
    copies = find_copies(dataset, private, torch.arange(200, 300), embed=relative)
    assert [found.index.tolist() for found in copies.nearest] == [[6], [5]]
    hit = copy_findings(dataset, copies, alpha=0.01)[1].evidence["near"][0]
    assert (hit["image"], hit["private_record"], hit["space"]) == (0, 5, "features")


def test_copies_are_found_behind_steps_that_cannot_be_undone() -> None:
    """Stretching such images for people to look at is no inverse: of images that do not span all gray levels none would be found."""
    flat = ArrayTable((PRIVATE.images.int() // 3 + 40).to(torch.uint8), PRIVATE.labels, PRIVATE.classes)
    pixels = fit_pixel_space("zca-kip", flat)
    assert not pixels.invertible
    fresh = (gaussians(20, seed=2).images.int() // 3 + 40).to(torch.uint8)
    whole = PixelSpace(pixels.steps)(torch.cat([flat.images[:30], fresh[:10]]))
    for precision in (torch.float32, torch.float16):
        given = {"images": whole.to(precision), "pixels": PixelSpace(pixels.steps, "network"), "provenance": {"method": "dm"}}
        dataset = DistilledDataset(**{**vars(distilled(rows(flat, 0, 40))), **given})
        copies = find_copies(dataset, flat, CONTROLS)
        assert copies.exact.tolist() == [True] * 30 + [False] * 10
        assert copies.nearest[0].index[:30].tolist() == list(range(30))
        assert copies.near[0].space == "network space"
        assert copy_findings(dataset, copies, alpha=0.01)[1].verdict == "leak"


def test_a_class_average_is_no_copy() -> None:
    means = torch.stack([PRIVATE.images[PRIVATE.labels == k].float().mean(0) for k in range(2)]).round().to(torch.uint8)
    table = ArrayTable(means, [0, 1], PRIVATE.classes)
    assert checks(distilled(table, provenance={"method": "dm"}))[1]["copies"].verdict == "clean"


def test_a_claim_of_differential_privacy_is_refused_when_members_ship() -> None:
    claim = {"method": "random-real", "privacy": {"epsilon": 1}}
    _, found = checks(distilled(rows(PRIVATE, 0, 5), provenance=claim))
    assert found["differential-privacy claim"].verdict == "leak"
    assert found["differential-privacy claim"].required
    assert "the claim is refused" in found["differential-privacy claim"].sentence
    _, found = checks(distilled(gaussians(5, seed=3), provenance={**claim, "method": "dm"}))
    assert found["differential-privacy claim"].verdict == "inconclusive"
    _, found = checks(distilled(gaussians(5, seed=3)))
    assert (found["differential-privacy claim"].verdict, found["differential-privacy claim"].required) == ("not checked", False)


def test_too_few_private_images_are_not_checked_rather_than_clean() -> None:
    dataset = distilled(gaussians(5, seed=2))
    copies = find_copies(dataset, rows(PRIVATE, 0, 12), torch.arange(12))
    assert copy_findings(dataset, copies, alpha=0.01)[1].verdict == "not checked"


def test_labels_give_warning_numbers_and_never_a_required_verdict() -> None:
    table = gaussians(5, seed=2)
    soft = distilled(table, Labels.encode(torch.full((10, 2), 0.5), temperature=4.0))
    found = label_findings(soft, network("mlp:width=8,depth=1"))
    assert [(finding.verdict, finding.required) for finding in found] == [("inconclusive", False)] * 2
    assert found[0].evidence["ratio"] == pytest.approx(10 / (8 * 65 + 9))
    assert "fewer than would fix them all" in found[0].sentence
    assert [finding.verdict for finding in label_findings(distilled(table), network())] == ["clean", "clean"]


@pytest.mark.parametrize(
    ("per_class", "side"), [(32, "too few to fix a linear expert completely"), (33, "which is enough to fix a linear expert completely")]
)
def test_for_a_linear_student_images_are_counted_against_pixels_and_bias(per_class: int, side: str) -> None:
    soft = distilled(gaussians(per_class, seed=2), Labels.encode(torch.full((2 * per_class, 2), 0.5)))
    sentence = label_findings(soft, network("softmax"))[0].sentence
    assert f"The file labels {2 * per_class} images, for 65 unknowns of a linear student" in sentence
    assert side in sentence


def test_controls_are_a_random_sample() -> None:
    drawn = draw_controls(PRIVATE, 50, torch.Generator().manual_seed(0))
    assert len(set(drawn.tolist())) == 50
    assert len(draw_controls(PRIVATE, 10_000, torch.Generator())) == 600

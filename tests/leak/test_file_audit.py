"""A file against private images: by design, leaking, clean, claiming; and labels in numbers."""

import numpy as np
import pytest
import torch
from tests.small import distilled, gaussians

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
    assert found["copies"].evidence["private_records"][-6:] == list(range(6))
    _, clean = checks(distilled(fresh, provenance={"method": "dm"}))
    assert clean["copies"].verdict == "clean"
    assert len(clean["copies"].evidence["spaces"]) == 2


def test_a_copy_in_network_space_is_still_a_copy() -> None:
    images = PRIVATE.images[:4].float() / 255
    dataset = DistilledDataset(**{**vars(distilled(rows(PRIVATE, 0, 4))), "images": images, "pixels": PixelSpace((), "network")})
    assert bool(find_copies(dataset, PRIVATE, CONTROLS).exact.all())


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
    found = label_findings(soft, 130)
    assert [(finding.verdict, finding.required) for finding in found] == [("inconclusive", False)] * 2
    assert found[0].evidence["ratio"] == pytest.approx(10 / 130)
    assert "fewer than would fix them all" in found[0].sentence
    assert [finding.verdict for finding in label_findings(distilled(table), 130)] == ["clean", "clean"]


def test_controls_are_a_random_sample() -> None:
    drawn = draw_controls(PRIVATE, 50, torch.Generator().manual_seed(0))
    assert len(set(drawn.tolist())) == 50
    assert len(draw_controls(PRIVATE, 10_000, torch.Generator())) == 600

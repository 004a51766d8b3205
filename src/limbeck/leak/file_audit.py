"""Checks of a finished file against private data: what can be said without training anything again."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.data.tables import ImageTable
from limbeck.leak.duplicates import NearCopies, Nearest, near_copies, nearest
from limbeck.leak.precision import identification_ratio, label_precision
from limbeck.types.distilled import DistilledDataset
from limbeck.types.finding import Finding

#: What methods publish of their training images by design.
BY_DESIGN = {"random-real": "whole training images", "rded": "parts of training images"}
_SAME = 0.5 / 255  # root mean square distance in pixel values 0 to 1: half a gray level is rounding
_LEAST_CONTROLS = 20
_SHOWN = 20

Embed = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B D"]]
"""Turns pixels in [0, 1] into the features of a second space."""


@dataclass(frozen=True)
class Copies:
    """Which published images [N] are private ones: `exact` [N], the nearest private record in pixels, and the calibrated comparison in every space."""

    exact: Tensor
    pixels: Nearest
    near: tuple[NearCopies, ...]
    rows: Int[Tensor, " n"]
    """Numbers in the file of the images that `near` is about: those that are no exact copies."""


def find_copies(
    dataset: DistilledDataset, private: ImageTable, controls: Int[Tensor, " H"], *, embed: Embed | None = None, rate: float = 0.01, chunk: int = 2048
) -> Copies:
    """Compares every image of a set with every private one, in pixel values and, with `embed`, in its features. `controls` are indices of private records that
    stand for held-out ones: each is compared with all the others."""
    published = dataset.pixels.to_pixels(dataset.images)
    spaces: list[tuple[str, Embed]] = [("pixels", lambda images: images.flatten(1))]
    if embed is not None:
        spaces.append(("features", embed))
    near, first, rows = [], None, torch.arange(len(dataset))
    for name, features in spaces:
        parts = [features(private.read(range(i, min(i + chunk, len(private)))).float() / 255) for i in range(0, len(private), chunk)]
        members = torch.cat(parts)
        mine = nearest(features(published), members)
        if first is None:
            first = mine
            rows = torch.nonzero(mine.distance >= _SAME)[:, 0]
        if len(rows) and len(controls) >= _LEAST_CONTROLS:
            clean = nearest(members[controls], members, own=controls)
            near.append(near_copies(mine.relative[rows].numpy(), clean.relative.numpy(), space=name, rate=rate))
    assert first is not None
    return Copies(first.distance < _SAME, first, tuple(near), rows)


def copy_findings(dataset: DistilledDataset, copies: Copies, *, alpha: float) -> list[Finding]:
    """What is published by design, apart from what leaks beside it."""
    method = str(dataset.provenance.get("method", "unknown"))
    declared = BY_DESIGN.get(method)
    exact = int(copies.exact.sum())
    evidence = {
        "images": len(dataset),
        "exact": exact,
        "method": method,
        "private_records": sorted({int(index) for index in copies.pixels.index[copies.exact]})[:_SHOWN],
    }
    if declared == BY_DESIGN["random-real"] and exact:
        design = Finding(
            "published by design",
            "leak",
            f"The file discloses {exact} member images by design: {method} publishes {declared}. Who owns them must agree to that; no other check covers it.",
            evidence,
            required=False,
        )
        undeclared = 0
    elif declared:
        words = f"{method} publishes {declared} by design" + (
            f"; {exact} of them are whole private images." if exact else "; none is a whole private image."
        )
        design, undeclared = Finding("published by design", "leak", words[0].upper() + words[1:], evidence, required=False), exact
    else:
        design, undeclared = (
            Finding("published by design", "clean", f"{method} declares no real image as part of the file.", evidence, required=False),
            exact,
        )
    return [design, _others(copies, undeclared, alpha)]


def _others(copies: Copies, exact: int, alpha: float) -> Finding:
    numbers = {"exact": exact, "compared": len(copies.rows), "spaces": [part.to_dict() for part in copies.near]}
    if exact:
        words = f"{exact} images of the file are private images to the gray level, and nothing declares them."
        return Finding("copies", "leak", words, numbers, threshold=_SAME, false_positive_rate=0.0)
    if not len(copies.rows):
        return Finding("copies", "clean", "Beyond the images published by design the file holds none.", numbers)
    if not copies.near:
        return Finding("copies", "not checked", "There are too few private images to calibrate what a near copy is.", numbers)
    level = alpha / len(copies.near)
    worst = min(copies.near, key=lambda part: part.p_value)
    flagged = sorted({int(copies.rows[i]) for part in copies.near for i in part.flagged})
    numbers |= {"flagged_images": flagged[:_SHOWN], "private_records": [int(copies.pixels.index[i]) for i in flagged[:_SHOWN]]}
    expected = worst.rate * worst.published
    found = (
        f"{len(worst.flagged)} of {worst.published} images lie nearer to one private image than {1 - worst.rate:.1%} of real images lie to another "
        f"(in {worst.space}); chance would give {expected:.1f} (p = {worst.p_value:.2g})."
    )
    verdict = "leak" if worst.p_value <= level else "clean"
    return Finding("copies", verdict, found, numbers, threshold=worst.threshold, false_positive_rate=level)  # type: ignore[arg-type]


def privacy_claim(dataset: DistilledDataset, copies: Copies) -> Finding:
    """A claim of differential privacy (``provenance["privacy"]``) is refused when member images ship: no mechanism publishes a record and keeps it."""
    claim = dataset.provenance.get("privacy")
    if not claim:
        return Finding(
            "differential-privacy claim", "not checked", "The file claims no differential privacy, so there is nothing to check.", required=False
        )
    exact = int(copies.exact.sum())
    if exact:
        words = f"The file claims differential privacy ({claim}) and ships {exact} private images: the claim is refused."
        return Finding("differential-privacy claim", "leak", words, {"claim": claim, "exact": exact})
    words = f"The file claims differential privacy ({claim}). No private image ships, but a file alone cannot prove the claim."
    return Finding("differential-privacy claim", "inconclusive", words, {"claim": claim, "exact": 0})


def label_findings(dataset: DistilledDataset, parameters: int) -> list[Finding]:
    """Warning numbers, no verdicts: the identification ratio, and what the stored entries can tell apart."""
    if dataset.labels.kind == "hard":
        words = "The labels are classes alone, so they tell nothing of an expert."
        return [
            Finding("identification ratio", "clean", words, {"ratio": 0.0, "parameters": parameters}, required=False),
            Finding("label precision", "clean", words, required=False),
        ]
    ratio = identification_ratio(len(dataset), len(dataset.classes), dataset.views.count if dataset.views else None, parameters)
    side = "at least as many as" if ratio >= 1 else "fewer than"
    warning = (
        f"The labels hold {ratio:.2g} independent numbers for each of the {parameters:,} weights of a student, {side} would fix them all in a linear model. "
        "A warning number, not a verdict: labels leak below 1 as well."
    )
    found = [Finding("identification ratio", "inconclusive", warning, {"ratio": ratio, "parameters": parameters}, required=False)]
    precision = label_precision(dataset.labels)
    if precision is None:
        words = "The precision of labels for several views, or of values that are no probabilities, is not measured."
        return [*found, Finding("label precision", "not checked", words, required=False)]
    words = (
        f"An entry tells about {2**precision.bits:,.0f} values of an expert's logit apart ({precision.bits:.1f} bits, {precision.storage}, temperature "
        f"{precision.temperature:g}); {precision.below:.1%} of the entries are stored as zero, the smallest other one is {precision.smallest:.2g}."
    )
    return [*found, Finding("label precision", "inconclusive", words, precision.to_dict(), required=False)]


def draw_controls(private: ImageTable, count: int, generator: torch.Generator) -> Int[Tensor, " H"]:
    """Up to `count` private records that stand for held-out ones."""
    return torch.randperm(len(private), generator=generator)[:count]


def in_pieces(network_features: Embed, chunk: int = 256) -> Embed:
    """An embedding in pieces, without gradients."""

    def embed(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        with torch.inference_mode():
            found = torch.cat([network_features(part).flatten(1) for part in images.split(chunk)])
        return found.clone()

    return embed

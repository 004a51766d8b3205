"""Checks of a finished file against private data: what can be said without training anything again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from limbeck.data.tables import ImageTable
from limbeck.leak.duplicates import NearCopies, Nearest, near_copies, nearest
from limbeck.leak.precision import free_weights, identification_ratio, label_precision
from limbeck.methods import METHODS, PUBLISHES
from limbeck.streams import Streams
from limbeck.train.network import Network
from limbeck.types.distilled import DistilledDataset
from limbeck.types.finding import Finding, Verdict, p_words
from limbeck.types.pixels import PixelSpace

_HALF_LEVEL = 0.5 / 255  # pixel values 0 to 1: half a gray level is rounding
_LEAST_CONTROLS = 20
_SAMPLE = 1000
_SHOWN = 20
_NAMED = 3

Embed = Callable[[Float[Tensor, "B C H W"]], Float[Tensor, "B D"]]
"""Turns images into the features of a second space."""


@dataclass(frozen=True)
class Copies:
    """Which published images [N] are private ones: `exact` [N], the nearest private record of each in every space, and the calibrated comparison there.

    `same` is the distance below which an image is exact: how far half a gray level moves a private image in the first space.
    """

    exact: Bool[Tensor, " N"]
    same: float
    nearest: tuple[Nearest, ...]
    near: tuple[NearCopies, ...]
    rows: Int[Tensor, " n"]
    """Numbers in the file of the images that `near` is about: those that are no exact copies."""


def find_copies(
    dataset: DistilledDataset, private: ImageTable, controls: Int[Tensor, " H"], *, embed: Embed | None = None, rate: float = 0.01, chunk: int = 2048
) -> Copies:
    """Compares every image of a set with every private one, in pixel values and, with `embed`, in its features. `controls` are indices of private records that
    stand for held-out ones: each is compared with all others, of which exact duplicates count once.

    Images stored behind steps that cannot be undone have no pixel values; then the private images take the same steps, and all are compared behind them.
    """
    pixels = dataset.pixels
    known = pixels.invertible or pixels.stored == "raw" or dataset.images.dtype == torch.uint8
    published = pixels.to_pixels(dataset.images) if known else pixels(dataset.images)
    steps = PixelSpace(() if known else pixels.steps)
    spaces: list[tuple[str, Embed]] = [("pixels" if known else "network space", lambda images: images.flatten(1))]
    if embed is not None:
        spaces.append(("features", embed))
    distinct, number = _distinct(private)
    own = torch.from_numpy(number[controls.numpy()])
    found: list[Nearest] = []
    near: list[NearCopies] = []
    same, rows = 0.0, torch.arange(len(dataset))
    for name, features in spaces:
        members = torch.cat([features(steps(private.read(distinct[i : i + chunk]))) for i in range(0, len(distinct), chunk)])
        mine = nearest(features(published), members)
        moved = _moved(features, steps, private, distinct[mine.index[:_SAMPLE].numpy()])
        if not found:
            same, rows = moved, torch.nonzero(mine.distance >= moved)[:, 0]
        if len(rows) and len(controls) >= _LEAST_CONTROLS:
            clean = nearest(members[own], members, own=own)
            around = max(float(clean.around.median()), torch.finfo(torch.float32).tiny)
            given = mine.relative[rows].numpy(), clean.relative.numpy()
            near.append(near_copies(*given, space=name, half_level=min(1.0, moved / around), rate=rate))
        found.append(replace(mine, index=torch.from_numpy(distinct)[mine.index]))
    return Copies(found[0].distance < same, same, tuple(found), tuple(near), rows)


def _distinct(private: ImageTable) -> tuple[np.ndarray, np.ndarray]:
    """Indices of records without those that repeat an earlier one, and for every record its place (or that of its original) among them."""
    _, first, inverse = np.unique(private.record_digests(), return_index=True, return_inverse=True)
    distinct = np.sort(first)
    return distinct, np.searchsorted(distinct, first[inverse])


def _moved(features: Embed, steps: PixelSpace, private: ImageTable, records: np.ndarray) -> float:
    """How far noise of half a gray level moves private images in a space: the median over `records`."""
    images = private.read(records).float() / 255
    signs = torch.randint(0, 2, images.shape, generator=Streams(0).torch("audit", "half a gray level")) * 2 - 1
    gap = features(steps(images + _HALF_LEVEL * signs)).double() - features(steps(images)).double()
    return float(gap.square().mean(1).sqrt().median())


def copy_findings(dataset: DistilledDataset, copies: Copies, *, alpha: float) -> list[Finding]:
    """What is published by design, apart from what leaks beside it."""
    method = str(dataset.provenance.get("method", "unknown"))
    name = method.partition(":")[0].partition("@")[0]
    declared = METHODS[name].publishes if name in METHODS else PUBLISHES[0]
    exact = int(copies.exact.sum())
    evidence = {
        "images": len(dataset),
        "exact": exact,
        "method": method,
        "private_records": sorted({int(index) for index in copies.nearest[0].index[copies.exact]})[:_SHOWN],
    }
    verdict: Verdict = "leak"
    undeclared = exact
    if declared == PUBLISHES[0]:
        verdict, words = "clean", f"{method} declares no real image as part of the file."
    elif declared == PUBLISHES[2] and exact:
        words = f"The file discloses {exact} member images by design: {method} publishes {declared}. Who owns them must agree to that; no other check covers it."
        undeclared = 0
    else:
        whole = f"{exact} of its images are whole private ones" if exact > 1 else f"{exact or 'none'} of its images is a whole private one"
        words = f"{method[0].upper() + method[1:]} publishes {declared} by design; {whole}."
    return [Finding("published by design", verdict, words, evidence, required=False), _others(copies, undeclared, alpha)]


def _others(copies: Copies, exact: int, alpha: float) -> Finding:
    numbers = {"exact": exact, "compared": len(copies.rows), "spaces": [part.to_dict() for part in copies.near]}
    if exact:
        words = f"{exact} images of the file are private images to the gray level, and nothing declares them."
        return Finding("copies", "leak", words, numbers, threshold=copies.same, false_positive_rate=0.0)
    if not len(copies.rows):
        return Finding("copies", "clean", "Beyond the images published by design the file holds none.", numbers)
    if not copies.near:
        return Finding("copies", "not checked", "There are too few distinct private images to calibrate what a near copy is.", numbers)
    hits = _hits(copies)
    numbers |= {
        "near": hits[:_SHOWN],
        "flagged_images": [hit["image"] for hit in hits[:_SHOWN]],
        "private_records": [hit["private_record"] for hit in hits[:_SHOWN]],
    }
    level = alpha / len(copies.near)
    worst = min(copies.near, key=lambda part: part.p_value)
    single = [hit for hit in hits if hit["single"]]
    blind = [part.space for part in copies.near if not part.calibrated]
    coarse = [part.space for part in copies.near if not part.finds_one]
    count = (
        f"{len(worst.flagged)} of {worst.published} images lie nearer to one private image than {1 - worst.rate:.1%} of real images lie to another "
        f"(in {worst.space}); chance would give {worst.rate * worst.published:.1f} ({p_words(worst.p_value)})"
    )
    verdict: Verdict
    if worst.p_value <= level:
        verdict, words = "leak", f"{count}. Nearest: {_named(hits)}."
    elif single:
        verdict = "inconclusive"
        words = (
            f"{len(single)} of {worst.published} images lie at less than half the least relative distance of {worst.controls:,} real images to another, as copies "
            f"do: {_named(single)}. Look at them; as a number they are too few to be told from chance ({p_words(worst.p_value)})."
        )
    elif blind:
        verdict = "not checked"
        words = f"Private images are so much alike (in {' and '.join(blind)}) that a near copy cannot be told from a real image; only exact copies were looked for."
    elif coarse:
        verdict = "inconclusive"
        words = (
            f"{count}; but some private images are so much alike (in {' and '.join(coarse)}) that a single near copy cannot be told from one of them."
        )
    else:
        verdict = "clean"
        noise = max(part.gray_levels for part in copies.near)
        words = (
            f"No image lies at less than half the least relative distance of {worst.controls:,} real images to another, which excludes a single copy under "
            f"noise of up to about {noise:.2g} gray levels. {count}, which excludes {len(worst.flagged) + 1} or more copies that near."
        )
    return Finding("copies", verdict, words, numbers, threshold=worst.threshold, false_positive_rate=level)


def _hits(copies: Copies) -> list[dict[str, Any]]:
    """Every image that lies near to a private one, with the record and the space of its nearest hit; the nearest first."""
    best: dict[int, dict[str, Any]] = {}
    for part, found in zip(copies.near, copies.nearest, strict=True):
        for place in sorted({*part.flagged, *part.single}):
            image = int(copies.rows[place])
            relative = float(found.relative[image])
            hit: dict[str, Any] = {
                "image": image,
                "private_record": int(found.index[image]),
                "space": part.space,
                "relative": relative,
                "of_threshold": relative / part.threshold,
                "single": place in part.single,
            }
            if image not in best or (hit["single"], -hit["of_threshold"]) > (best[image]["single"], -best[image]["of_threshold"]):
                best[image] = hit
    return sorted(best.values(), key=lambda hit: (not hit["single"], hit["of_threshold"]))


def _named(hits: Sequence[Mapping[str, Any]]) -> str:
    pairs = [f"image {hit['image']} to private record {hit['private_record']} (in {hit['space']})" for hit in hits[:_NAMED]]
    return ", ".join(pairs) + (f" and {len(hits) - _NAMED} more" if len(hits) > _NAMED else "") + ", counted from 0"


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


def label_findings(dataset: DistilledDataset, student: Network) -> list[Finding]:
    """Warning numbers, no verdicts: the identification ratio, and what the stored entries can tell apart."""
    free = free_weights(student)
    if dataset.labels.kind == "hard":
        words = "The labels are classes alone, so they tell nothing of an expert."
        return [
            Finding("identification ratio", "clean", words, {"ratio": 0.0, "free_weights": free}, required=False),
            Finding("label precision", "clean", words, required=False),
        ]
    classes, views = len(dataset.classes), dataset.views.count if dataset.views else None
    ratio = identification_ratio(len(dataset), classes, views, free)
    of_class = free / (classes - 1)
    if of_class * classes == student.parameter_count:  # nothing but a linear head
        side = "which is enough to fix" if ratio >= 1 else "too few to fix"
        warning = f"The file labels {len(dataset) * (views or 1):,} images, for {of_class:,.0f} unknowns of a linear student, {side} a linear expert completely. "
    else:
        side = "at least as many as" if ratio >= 1 else "fewer than"
        warning = (
            f"The labels hold {ratio:.2g} independent numbers for each of the {free:,.0f} weights of a student that labels can tell apart, {side} would fix them "
            "all in a linear model. "
        )
    warning += "A warning number, not a verdict: labels leak below as well."
    found = [Finding("identification ratio", "inconclusive", warning, {"ratio": ratio, "free_weights": free}, required=False)]
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
    """Up to `count` distinct private records that stand for held-out ones: of exact duplicates only one can be drawn."""
    distinct, _ = _distinct(private)
    return torch.from_numpy(distinct)[torch.randperm(len(distinct), generator=generator)[:count]]


def in_pieces(network_features: Embed, chunk: int = 256) -> Embed:
    """An embedding in pieces, without gradients."""

    def embed(images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        with torch.inference_mode():
            found = torch.cat([network_features(part).flatten(1) for part in images.split(chunk)])
        return found.clone()

    return embed

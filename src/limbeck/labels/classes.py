"""Which classes an expert takes for each other: mean soft labels class by class, and an order of the classes that shows their groups."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from limbeck.errors import OptionError


def class_matrix(
    rows: Float[Tensor, "N K"], owners: Int[Tensor, " N"], by: Literal["predicted", "owner"] = "predicted", *, diagonal: bool = False
) -> Float[np.ndarray, "K K"]:
    """Row c is the mean label of the images of group c: those whose largest entry is c (`predicted`, as the label paper's figure 10 is described: Qin, Deng and
    Alvarez-Melis 2024, arXiv 2406.10485, appendix C.1), or those that are of class c (`owner`, as the authors' code does it).

    Without `diagonal` the group's own entry is zero, so that the rest can be seen. A group without images is a row of NaN.
    """
    classes = rows.shape[1]
    groups = (rows.argmax(1) if by == "predicted" else owners.long()).cpu()
    sums = torch.zeros(classes, classes, dtype=torch.float64).index_add_(0, groups, rows.double().cpu())
    sizes = torch.bincount(groups, minlength=classes)[:, None]
    means = torch.where(sizes > 0, sums / sizes, torch.nan)
    if not diagonal:
        means = means.masked_fill(torch.eye(classes, dtype=torch.bool) & (sizes > 0), 0)
    return means.numpy()


def cluster_order(matrix: Float[np.ndarray, "K K"]) -> list[int]:
    """The classes in the order of a hierarchical clustering, so that those which are taken for each other stand together.

    Similarity of two classes is the mean of their two entries; distance is the largest similarity minus it; linkage is average, leaves are ordered so that
    neighbors are near (Bar-Joseph, Gifford and Jaakkola 2001). NaN counts as no similarity.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return list(range(len(matrix)))
    filled = np.nan_to_num(np.asarray(matrix, dtype=np.float64))
    similarity = (filled + filled.T) / 2
    apart = ~np.eye(len(filled), dtype=bool)
    distance = np.where(apart, similarity[apart].max() - similarity, 0)
    return [int(leaf) for leaf in leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))]


def mass_on(matrix: Float[np.ndarray, "K K"], related: np.ndarray) -> tuple[float, float]:
    """How much of the off-diagonal mean label lies on `related` pairs of classes [K, K] (booleans), and how much would if it were spread evenly: their ratio says
    how strongly labels follow a grouping known beforehand. Classes without images, or without mass or relatives, are left out."""
    wanted = np.asarray(related, dtype=bool)
    if wanted.shape != matrix.shape:
        raise OptionError(f"relations of classes need shape {matrix.shape}, got {wanted.shape}; give one row and one column for each class")
    apart = ~np.eye(len(matrix), dtype=bool)
    mass, chosen = np.where(apart, matrix, 0), wanted & apart
    rows = np.isfinite(mass).all(1) & (np.nan_to_num(mass).sum(1) > 0) & chosen.any(1)
    if not rows.any():
        raise OptionError("no class has both images and relatives, so there is no mass to place; give labels with more classes")
    found = (mass * chosen)[rows].sum(1) / mass[rows].sum(1)
    return float(found.mean()), float((chosen[rows].sum(1) / (len(matrix) - 1)).mean())

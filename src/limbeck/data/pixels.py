"""Fits a `PixelSpace` on training images: per-channel normalization, and the field's three incompatible definitions of ZCA whitening."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from limbeck.data.tables import ImageTable
from limbeck.errors import OptionError
from limbeck.registry import Registry
from limbeck.types.pixels import CenterImage, PixelSpace, Scale, Standardize, UnitNormImage, Whiten

PIXEL_SPACES = Registry(
    "pixel space",
    {
        "raw": "limbeck.data.pixels:raw",
        "normalize": "limbeck.data.pixels:normalize",
        "zca-mtt": "limbeck.data.pixels:zca_mtt",
        "zca-kip": "limbeck.data.pixels:zca_kip",
        "zca-frepo": "limbeck.data.pixels:zca_frepo",
    },
)
_LARGEST_DENSE = 4096  # values per image; a dense whitening above this is blocked (zca-frepo) or refused


def raw(table: ImageTable) -> PixelSpace:
    """Pixels in [0, 1] as they are."""
    return PixelSpace()


def normalize(table: ImageTable) -> PixelSpace:
    """Per channel ``(x - mean) / std`` with the mean and the standard deviation of all training pixels (float64 sums, population form).

    Some published constants for CIFAR-10 (std 0.2023, ...) are the mean of per-image deviations instead; the exact constants in use travel with each file.
    """
    channels = table.shape[0]
    total, squares, count = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64), 0
    for images in _chunks(table):
        total += images.sum(dim=(0, 2, 3))
        squares += images.square().sum(dim=(0, 2, 3))
        count += images.numel() // channels
    mean = total / count
    # a channel that never varies (an unused alpha or infrared band) would divide by zero: it is only centered
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    return PixelSpace((Standardize(mean.float(), std.float()),))


def zca_mtt(table: ImageTable, eps: float = 0.1) -> PixelSpace:
    """ZCA as MTT, TESLA and the label paper use it: on [0, 1] pixels, subtract the mean image, ``W = U (S + eps)^(-1/2) U'`` with the unbiased covariance
    ``U S U'`` and an absolute `eps`. Source: Cazenavette et al. 2022 (arXiv 2203.11932)."""
    mean, covariance, count = _moments(table, PixelSpace())
    matrix = _inverse_root(covariance * count / max(count - 1, 1), eps)
    return PixelSpace((Whiten(mean.float(), matrix.float()[None]),))


def zca_kip(table: ImageTable, reg: float = 0.1) -> PixelSpace:
    """ZCA as KIP and RaT-BPTT use it: on 0-255 pixels, subtract each image's own mean, divide by its L2 norm, then whiten by the uncentered covariance X'X / n
    with ``reg x mean eigenvalue`` added. Per-image steps cannot be undone. Source: Nguyen et al. 2021 (arXiv 2107.13034)."""
    before = (Scale(torch.tensor(255.0)), CenterImage(), UnitNormImage())
    mean, covariance, _ = _moments(table, PixelSpace(before))
    uncentered = covariance + torch.outer(mean, mean)
    matrix = _inverse_root(uncentered, reg * float(uncentered.diagonal().mean()))
    return PixelSpace((*before, Whiten(torch.zeros(len(mean)), matrix.float()[None])))


def zca_frepo(table: ImageTable, reg: float = 0.1) -> PixelSpace:
    """ZCA as FRePo uses it: normalize per channel, subtract the mean vector, covariance / n, add ``reg x trace / d`` to the diagonal. Images above
    4096 values are whitened in four interleaved checkerboard blocks. Source: Zhou et al. 2022 (arXiv 2206.00719)."""
    base = normalize(table)
    channels, height, width = table.shape
    if channels * height * width <= _LARGEST_DENSE:
        mean, covariance, _ = _moments(table, base)
        matrix = _inverse_root(covariance, reg * float(covariance.diagonal().mean()))
        return PixelSpace((*base.steps, Whiten(mean.float(), matrix.float()[None])))
    if height % 2 or width % 2:
        raise OptionError(f"zca-frepo needs even sides for images above {_LARGEST_DENSE} values, got {height}x{width}; resize with --size")
    grid = torch.arange(channels * height * width).reshape(channels, height, width)
    blocks = torch.stack([grid[:, i::2, j::2].reshape(-1) for i in (0, 1) for j in (0, 1)])
    means, matrices = torch.zeros(channels * height * width, dtype=torch.float64), []
    for block in blocks:
        mean, covariance, _ = _moments(table, base, block)
        means[block] = mean
        matrices.append(_inverse_root(covariance, reg * float(covariance.diagonal().mean())))
    return PixelSpace((*base.steps, Whiten(means.float(), torch.stack(matrices).float(), blocks)))


def fit_pixel_space(name: str, table: ImageTable) -> PixelSpace:
    """Fits the named space on a training table. Raises `OptionError` for an unknown name or images too large for a dense whitening."""
    values = table.shape[0] * table.shape[1] * table.shape[2]
    if name in ("zca-mtt", "zca-kip") and values > _LARGEST_DENSE:
        raise OptionError(
            f"{name} whitens at most {_LARGEST_DENSE} values an image, got {values}; use --pixels zca-frepo (blocked) or normalize, or a smaller --size"
        )
    return PIXEL_SPACES[name](table)


def _chunks(table: ImageTable, size: int = 1024) -> Iterator[Float[Tensor, "B C H W"]]:
    for start in range(0, len(table), size):
        yield table.read(range(start, min(start + size, len(table)))).double() / 255


def _moments(table: ImageTable, space: PixelSpace, columns: Tensor | None = None) -> tuple[Float[Tensor, " D"], Float[Tensor, "D D"], int]:
    """Mean and population covariance of flattened images in `space`, in float64, in two passes (one pass cancels on bright images)."""

    def flat() -> Iterator[Tensor]:
        for images in _chunks(table):
            vectors = space(images.float()).flatten(1).double()
            yield vectors if columns is None else vectors[:, columns]

    count = len(table)
    mean = sum(vectors.sum(0) for vectors in flat()) / count
    assert isinstance(mean, Tensor)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for vectors in flat():
        centered = vectors - mean
        covariance += centered.T @ centered
    return mean, covariance / count, count


def _inverse_root(covariance: Float[Tensor, "D D"], ridge: float) -> Float[Tensor, "D D"]:
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * (values.clamp_min(0) + ridge).rsqrt()) @ vectors.T

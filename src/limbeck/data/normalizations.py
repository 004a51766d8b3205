"""The means and standard deviations that the field's published code normalizes pixels with. Free of torch.

They differ between repositories for one and the same data set, and a distilled set is only meaningful under those that it was made with.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Normalization:
    """Per channel ``(x - mean) / std`` of pixels x in [0, 1], and who uses it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    used_by: str


_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

NORMALIZATIONS: dict[str, Normalization] = {
    "mnist": Normalization((0.1307,), (0.3081,), "DC, DSA, DM; FRePo"),
    "fashion-mnist": Normalization((0.2861,), (0.3530,), "DC, DSA, DM; FRePo"),
    "svhn": Normalization((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), "DC, DSA, DM"),
    "cifar10": Normalization(*_CIFAR10, "DC, DSA, DM; MTT, TESLA, the label paper, DD-Ranking; the deviation is a mean over images, not over pixels"),
    "cifar10-frepo": Normalization(_CIFAR10[0], (0.2470, 0.2435, 0.2616), "FRePo"),
    "cifar100": Normalization((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), "DC, DSA, DM; FRePo"),
    "cifar100-mtt": Normalization(*_CIFAR10, "MTT, TESLA, the label paper, DD-Ranking, SRe2L: CIFAR-10's numbers on CIFAR-100"),
    "tiny-imagenet": Normalization(*_IMAGENET, "DC, DSA, DM; MTT, TESLA, the label paper, DD-Ranking: ImageNet's numbers"),
    "tiny-imagenet-frepo": Normalization((0.4759, 0.4481, 0.3926), (0.2763, 0.2687, 0.2813), "FRePo"),
    "imagenet": Normalization(*_IMAGENET, "DC, MTT, TESLA, the label paper, DD-Ranking"),
}

"""Label-robust and augmentation-robust scores: how much of a set's accuracy is the set's own, and how much its labels' or its augmentation's.

After DD-Ranking (2025, arXiv:2505.13300, version 0.2), with accuracies as fractions. Its code passes percentages into the same formulas, which saturates every
score near -0.157 or makes it explode, chooses learning rates on the test split, and searches one for random images but not for a set that brings its own; none
of that is repeated here.
"""

import math
from dataclasses import dataclass

from limbeck.errors import OptionError

NATURAL_ZERO = 1 / (1 + math.e)  # the score of a set that is exactly as good as what it is compared with: 0.269


def normalized(advantage: float) -> float:
    """``(e^x - e^-1) / (e - e^-1)``: maps -1, 0 and 1 to 0, 0.269 and 1, increasing and convex."""
    return (math.exp(advantage) - math.exp(-1)) / (math.e - math.exp(-1))


@dataclass(frozen=True)
class LabelRobustness:
    """The label-robust score and what it is made of. Accuracies are fractions on the test split, `weight` is w.

    ``HLR = Acc(real, hard) - Acc(set, hard)``: what the images lack when labels say no more than the class (smaller is better).
    ``IOR = Acc(set, own labels) - Acc(random real images, own kind of labels)``: what the set adds over real images under the same kind of labels.
    ``alpha = w IOR - (1 - w) HLR``; ``LRS = (e^alpha - e^-1) / (e - e^-1)``, in [0, 1].
    """

    real_hard: float
    set_hard: float
    set_own: float
    random_own: float
    weight: float = 0.5

    def __post_init__(self) -> None:
        _check_fractions(self.weight, self.real_hard, self.set_hard, self.set_own, self.random_own)

    @property
    def hard_label_recovery(self) -> float:
        """HLR: the gap between full data and the set, both under hard labels."""
        return self.real_hard - self.set_hard

    @property
    def improvement_over_random(self) -> float:
        """IOR."""
        return self.set_own - self.random_own

    @property
    def alpha(self) -> float:
        """The weighted advantage, in [-1, 1]."""
        return self.weight * self.improvement_over_random - (1 - self.weight) * self.hard_label_recovery

    @property
    def score(self) -> float:
        """LRS."""
        return normalized(self.alpha)


@dataclass(frozen=True)
class AugmentationRobustness:
    """The augmentation-robust score and what it is made of. Accuracies are fractions on the test split, `weight` is g.

    ``beta = g (Acc(set, augmented) - Acc(random, augmented)) + (1 - g) (Acc(set, plain) - Acc(random, plain))``, all under the set's own kind of labels;
    ``ARS = (e^beta - e^-1) / (e - e^-1)``, in [0, 1].
    """

    set_augmented: float
    random_augmented: float
    set_plain: float
    random_plain: float
    weight: float = 0.5

    def __post_init__(self) -> None:
        _check_fractions(self.weight, self.set_augmented, self.random_augmented, self.set_plain, self.random_plain)

    @property
    def beta(self) -> float:
        """The weighted advantage, in [-1, 1]."""
        return self.weight * (self.set_augmented - self.random_augmented) + (1 - self.weight) * (self.set_plain - self.random_plain)

    @property
    def score(self) -> float:
        """ARS."""
        return normalized(self.beta)


def _check_fractions(weight: float, *accuracies: float) -> None:
    for accuracy in accuracies:
        if not 0 <= accuracy <= 1:
            raise OptionError(f"robust scores need accuracies as fractions from 0 to 1, got {accuracy:g}; divide percentages by 100")
    if not 0 <= weight <= 1:
        raise OptionError(f"the weight of a robust score lies between 0 and 1, got {weight:g}; use 0.5")

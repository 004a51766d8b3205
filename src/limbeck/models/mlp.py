"""The field's multilayer perceptron."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.models.classifier import Classifier
from limbeck.models.spec import MLPOptions


class MLP(Classifier):
    """`depth` hidden ReLU layers of `width` units, then a linear head.

    The defaults are the "MLP" of dataset condensation (Zhao, Mopuri and Bilen 2021, arXiv:2006.05929): three linear layers counting the head, that
    is two hidden layers of 128. Features are the last hidden layer's activations.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: MLPOptions) -> None:
        super().__init__()
        sizes = [math.prod(shape)] + [options.width] * options.depth
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(options.width, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        activations: Tensor = self.body(images.flatten(1))
        return activations

"""Softmax regression."""

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.models.classifier import Classifier
from limbeck.models.spec import LinearOptions, SoftmaxOptions


class Softmax(Classifier):
    """One linear layer on the flattened pixels, which are the features. C*H*W*K + K parameters."""

    def __init__(self, shape: tuple[int, int, int], classes: int, options: SoftmaxOptions) -> None:
        super().__init__()
        channels, height, width = shape
        self.head = nn.Linear(channels * height * width, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        return images.flatten(1)


class Linear(Classifier):
    """Softmax regression without bias: the linear teachers and students of the leak experiments. C*H*W*K parameters."""

    def __init__(self, shape: tuple[int, int, int], classes: int, options: LinearOptions) -> None:
        super().__init__()
        channels, height, width = shape
        self.head = nn.Linear(channels * height * width, classes, bias=False)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        return images.flatten(1)

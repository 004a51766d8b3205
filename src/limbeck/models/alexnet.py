"""AlexNet for small images, as dataset condensation evaluates on it."""

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import OptionError
from limbeck.models.classifier import Classifier
from limbeck.models.norms import normalization
from limbeck.models.spec import AlexNetOptions

LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))  # channels, kernel, max pooling
SMALLEST = 8


class AlexNet(Classifier):
    """Five convolutions that keep the size: 5x5 of 128 and 192 channels, 3x3 of 256, 192 and 192; 2x2 max pooling after the first, second and fifth; linear.

    After Krizhevsky, Sutskever and Hinton (2012), in the form of dataset condensation's evaluation pool (Zhao, Mopuri and Bilen 2021, arXiv:2006.05929):
    1,872,202 parameters for 3x32x32 and 10 classes. As there, no normalization by default (``norm=batch`` is its AlexNetBN), and 28x28 grayscale images are
    padded to 32x32 in the first convolution.
    Raises `OptionError` for images below 8 pixels.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: AlexNetOptions) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < SMALLEST:
            raise OptionError(
                f"alexnet needs at least {SMALLEST} pixels on each side, got {channels}x{height}x{width}; "
                "use larger images, or the convnet, mlp or softmax model"
            )
        extra = 2 if shape == (1, 28, 28) else 0
        height, width = height + 2 * extra, width + 2 * extra
        layers: list[nn.Module] = []
        for outputs, kernel, pool in LAYERS:
            layers.append(nn.Conv2d(channels, outputs, kernel_size=kernel, padding=kernel // 2 + extra))
            if (norm := normalization(options.norm, outputs)) is not None:
                layers.append(norm)
            layers.append(nn.ReLU())
            if pool:
                layers.append(nn.MaxPool2d(2))
            channels, extra = outputs, 0
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * (height // 8) * (width // 8), classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        maps: Tensor = self.body(images)
        return maps.flatten(1)

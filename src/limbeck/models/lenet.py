"""LeNet, as dataset condensation evaluates on it."""

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import OptionError
from limbeck.models.classifier import Classifier
from limbeck.models.spec import LeNetOptions

UNPADDED = 16  # pixels on the shorter side that two unpadded 5x5 convolutions with 2x2 pooling leave something of
SMALLEST = 4


class LeNet(Classifier):
    """LeNet-5 with ReLU and max pooling: 5x5 convolutions of 6 and 16 channels, each followed by 2x2 max pooling, then 120 and 84 hidden units.

    After LeCun, Bottou, Bengio and Haffner (1998), in the form of dataset condensation's evaluation pool (Zhao, Mopuri and Bilen 2021, arXiv:2006.05929): no
    normalization; 61,706 parameters for 1x28x28 and 10 classes, 62,006 for 3x32x32 and 10. As there, 28x28 grayscale images are padded by 2 in the first
    convolution. Images whose shorter side is below 16 pixels are padded by 2 in both, which keeps the map's size. Features are the 84 hidden units.
    Raises `OptionError` for images below 4 pixels.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: LeNetOptions) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < SMALLEST:
            raise OptionError(
                f"lenet needs at least {SMALLEST} pixels on each side, got {channels}x{height}x{width}; use larger images, or the mlp or softmax model"
            )
        small = min(height, width) < UNPADDED
        paddings = (2 if small or shape == (1, 28, 28) else 0, 2 if small else 0)
        for padding in paddings:
            height, width = (height + 2 * padding - 4) // 2, (width + 2 * padding - 4) // 2
        self.maps = nn.Sequential(
            nn.Conv2d(channels, 6, kernel_size=5, padding=paddings[0]),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, kernel_size=5, padding=paddings[1]),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.hidden = nn.Sequential(nn.Linear(16 * height * width, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU())
        self.head = nn.Linear(84, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        units: Tensor = self.hidden(self.maps(images).flatten(1))
        return units

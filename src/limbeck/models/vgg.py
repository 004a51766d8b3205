"""VGG-11 for small images, as dataset condensation evaluates on it."""

from jaxtyping import Float
from torch import Tensor, nn

from limbeck.errors import OptionError
from limbeck.models.classifier import Classifier
from limbeck.models.norms import normalization
from limbeck.models.spec import VGGOptions

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(Classifier):
    """Eight 3x3 convolutions with normalization and ReLU in five stages (64; 128; 256, 256; 512, 512; 512, 512), each ended by 2x2 max pooling; linear.

    Configuration A of Simonyan and Zisserman (2015, arXiv:1409.1556) without its hidden linear layers, in the form of dataset condensation's evaluation pool
    (Zhao, Mopuri and Bilen 2021, arXiv:2006.05929): 9,231,114 parameters for 3x32x32 and 10 classes with instance normalization (the default) or batch
    normalization (its VGG11BN). As there, 28x28 grayscale images are padded to 32x32 in the first convolution. Larger images than 32 pixels leave a larger last
    map, which is flattened.
    A pooling that would leave the next stage a map of a single pixel (images below 32 pixels) is left out: instance normalization of such a map is a constant,
    and the network could not see its input. Raises `OptionError` for images below 2 pixels.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: VGGOptions) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < 2:
            raise OptionError(f"vgg11 needs at least 2 pixels on each side, got {channels}x{height}x{width}; use larger images, or the mlp model")
        padding = 3 if shape == (1, 28, 28) else 1
        height, width = height + 2 * (padding - 1), width + 2 * (padding - 1)
        layers: list[nn.Module] = []
        for number, stage in enumerate(STAGES):
            for outputs in stage:
                layers.append(nn.Conv2d(channels, outputs, kernel_size=3, padding=padding))
                if (norm := normalization(options.norm, outputs)) is not None:
                    layers.append(norm)
                layers.append(nn.ReLU())
                channels, padding = outputs, 1
            if number == len(STAGES) - 1 or min(height, width) >= 4:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels * height * width, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        maps: Tensor = self.body(images)
        return maps.flatten(1)

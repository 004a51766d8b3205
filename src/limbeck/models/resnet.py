"""ResNet-18 for small images."""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.models.classifier import Classifier
from limbeck.models.norms import normalization
from limbeck.models.spec import Norm, ResNetOptions

SMALLEST_MAP = 4


class ResNet18(Classifier):
    """He et al. (2016, arXiv:1512.03385) with a 3x3 stride-1 stem and no max-pooling: four stages of two basic blocks, strides 1, 2, 2, 2.

    Widths 64-128-256-512, convolutions without bias, global average pooling, so any size works; 11,173,962 parameters for 3x32x32 and 10 classes
    with instance or batch normalization.
    A stage keeps its resolution where halving would leave fewer than 4 pixels on the shorter side (images below 25 pixels). Instance normalization
    of a 1x1 map, which an 8x8 image would end in, is a constant: the network could not see its input.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: ResNetOptions) -> None:
        super().__init__()
        channels, height, width = shape
        if height * width < 2 and options.norm == "instance":
            raise OptionError(f"instance normalization needs more than one pixel, got {channels}x{height}x{width}; use norm=batch or the mlp model")
        side = min(height, width)
        outputs = options.width
        self.stem = convolution(channels, outputs, 3, 1, options.norm)
        stages: list[nn.Module] = []
        inputs = outputs
        for stage in range(4):
            outputs = options.width << stage
            halve = stage > 0 and -(-side // 2) >= SMALLEST_MAP
            side = -(-side // 2) if halve else side
            stages += [_Block(inputs, outputs, 2 if halve else 1, options.norm), _Block(outputs, outputs, 1, options.norm)]
            inputs = outputs
        self.body = nn.Sequential(*stages)
        self.head = nn.Linear(outputs, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        maps: Tensor = self.body(F.relu(self.stem(images)))
        return maps.mean(dim=(2, 3))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride, norm)
        self.second = convolution(outputs, outputs, 3, 1, norm)
        self.shortcut = nn.Identity() if stride == 1 and inputs == outputs else convolution(inputs, outputs, 1, stride, norm)

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        return F.relu(self.second(F.relu(self.first(maps))) + self.shortcut(maps))


def convolution(inputs: int, outputs: int, kernel: int, stride: int, norm: Norm) -> nn.Sequential:
    """A convolution without bias that keeps the size at stride 1, and its normalization."""
    conv = nn.Conv2d(inputs, outputs, kernel_size=kernel, stride=stride, padding=kernel // 2, bias=False)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if (layer := normalization(norm, outputs)) is not None:
        layers["norm"] = layer
    return nn.Sequential(layers)

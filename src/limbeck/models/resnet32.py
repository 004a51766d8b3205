"""ResNet-32, the residual network that its authors trained on CIFAR."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.models.classifier import Classifier
from limbeck.models.resnet import SMALLEST_MAP, convolution
from limbeck.models.spec import Norm, ResNet32Options

BLOCKS = 5


class ResNet32(Classifier):
    """He et al. (2016, arXiv:1512.03385), section 4.2 with n = 5: a 3x3 stem and three stages of five basic blocks, strides 1, 2, 2; global average pooling.

    Widths 16-32-64, convolutions without bias, shortcuts without parameters (option A: every second pixel, new channels zero): 464,154 parameters for 3x32x32
    and 10 classes, the paper's 0.46M. Instance normalization is the default, as for the field's other networks; ``norm=batch`` is the paper's. `width` scales
    all three stages.
    A stage keeps its resolution where halving would leave fewer than 4 pixels on the shorter side (images below 13 pixels), as in `resnet18`.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: ResNet32Options) -> None:
        super().__init__()
        channels, height, width = shape
        if height * width < 2 and options.norm == "instance":
            raise OptionError(f"instance normalization needs more than one pixel, got {channels}x{height}x{width}; use norm=batch or the mlp model")
        side, inputs = min(height, width), options.width
        self.stem = convolution(channels, inputs, 3, 1, options.norm)
        blocks: list[nn.Module] = []
        for stage in range(3):
            outputs = options.width << stage
            halve = stage > 0 and -(-side // 2) >= SMALLEST_MAP
            side = -(-side // 2) if halve else side
            for block in range(BLOCKS):
                blocks.append(_Block(inputs, outputs, 2 if halve and block == 0 else 1, options.norm))
                inputs = outputs
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        maps: Tensor = self.body(F.relu(self.stem(images)))
        return maps.mean(dim=(2, 3))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride, norm)
        self.second = convolution(outputs, outputs, 3, 1, norm)
        self.stride, self.new = stride, outputs - inputs

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        shortcut = F.pad(maps[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))
        return F.relu(self.second(F.relu(self.first(maps))) + shortcut)

"""ResNet-18 with average pooling in place of strides, as dataset condensation and trajectory matching evaluate on it."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.errors import OptionError
from limbeck.models.classifier import Classifier
from limbeck.models.norms import normalization
from limbeck.models.resnet import convolution
from limbeck.models.spec import Norm, ResNetOptions


class ResNet18AP(Classifier):
    """`resnet18` whose stride-2 convolutions have stride 1 and are followed by 2x2 average pooling, and whose last map is flattened, not averaged.

    The "ResNet18_AP" of Zhao and Bilen (2021, arXiv:2102.08259) and of Cazenavette et al. (2022, arXiv:2203.11932): 11,250,762 parameters for 3x32x32 and 10
    classes with instance (the default) or batch normalization. As there, in a block that halves the map, pooling comes after the first ReLU, and in its
    shortcut before the normalization.
    A stage keeps its resolution where halving would leave fewer than 2 pixels on the shorter side (images below 16 pixels). Raises `OptionError` for a single
    pixel, which instance normalization turns into a constant.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, options: ResNetOptions) -> None:
        super().__init__()
        channels, height, width = shape
        if height * width < 2 and options.norm == "instance":
            raise OptionError(f"instance normalization needs more than one pixel, got {channels}x{height}x{width}; use norm=batch or the mlp model")
        inputs = options.width
        self.stem = convolution(channels, inputs, 3, 1, options.norm)
        blocks: list[nn.Module] = []
        for stage in range(4):
            outputs = options.width << stage
            halve = stage > 0 and min(height, width) >= 4
            if halve:
                height, width = height // 2, width // 2
            blocks += [_Block(inputs, outputs, halve, options.norm), _Block(outputs, outputs, False, options.norm)]
            inputs = outputs
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs * height * width, classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B F"]:
        maps: Tensor = self.body(F.relu(self.stem(images)))
        return maps.flatten(1)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, halve: bool, norm: Norm) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, 1, norm)
        self.pool = nn.AvgPool2d(2) if halve else nn.Identity()
        self.second = convolution(outputs, outputs, 3, 1, norm)
        self.shortcut: nn.Module = nn.Identity()
        if halve or inputs != outputs:
            parts = [nn.Conv2d(inputs, outputs, kernel_size=1, bias=False), nn.AvgPool2d(2) if halve else None, normalization(norm, outputs)]
            self.shortcut = nn.Sequential(*(part for part in parts if part is not None))

    def forward(self, maps: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        inner = self.pool(F.relu(self.first(maps)))
        return F.relu(self.second(inner) + self.shortcut(maps))

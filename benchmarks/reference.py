"""The reference that speed is measured against: training and scoring written plainly, in the manner of the field's repositories.

One `nn.Module` at a time, eager, float32, whole batches; GroupNorm with one group per channel; differentiable augmentation whose operation is chosen on the host for
every batch; SGD with momentum and weight decay; scored once, after the last epoch, in batches of 256 (section 2 of the protocols of Zhao and Bilen 2021,
arXiv 2102.08259). Nothing of limbeck is used.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainConvNet(nn.Module):
    """ConvNet-D3-W128: three blocks of convolution, GroupNorm(C, C), ReLU and average pooling, then a linear layer."""

    def __init__(self, channels: int, classes: int = 10, width: int = 128) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for block in range(3):
            layers += [
                nn.Conv2d(channels if block == 0 else width, width, 3, padding=3 if block == 0 and channels == 1 else 1),
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(images).flatten(1))
        return out


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """One of six operations, chosen on the host for the batch; random parameters for every image."""
    batch, _, height, width = images.shape
    device = images.device
    match str(rng.choice(["color", "crop", "cutout", "flip", "scale", "rotate"])):
        case "color":
            images = images + (torch.rand(batch, 1, 1, 1, device=device) - 0.5)
            gray = images.mean(dim=1, keepdim=True)
            images = (images - gray) * (2 * torch.rand(batch, 1, 1, 1, device=device)) + gray
            mean = images.mean(dim=[1, 2, 3], keepdim=True)
            return (images - mean) * (torch.rand(batch, 1, 1, 1, device=device) + 0.5) + mean
        case "crop":
            reach = int(height * 0.125 + 0.5)
            padded = F.pad(images, [reach] * 4)
            rows = torch.randint(0, 2 * reach + 1, (batch, 1, 1), device=device) + torch.arange(height, device=device).view(1, -1, 1)
            columns = torch.randint(0, 2 * reach + 1, (batch, 1, 1), device=device) + torch.arange(width, device=device).view(1, 1, -1)
            which = torch.arange(batch, device=device).view(-1, 1, 1)
            return padded.permute(0, 2, 3, 1)[which, rows, columns].permute(0, 3, 1, 2)
        case "cutout":
            side = int(height * 0.5 + 0.5)
            top = torch.randint(0, height + 1, (batch, 1, 1), device=device) - side // 2
            left = torch.randint(0, width + 1, (batch, 1, 1), device=device) - side // 2
            rows, columns = torch.arange(height, device=device).view(1, -1, 1), torch.arange(width, device=device).view(1, 1, -1)
            inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
            return images * (~inside).unsqueeze(1)
        case "flip":
            return torch.where(torch.rand(batch, 1, 1, 1, device=device) < 0.5, images.flip(3), images)
        case "scale":
            factors = torch.rand(batch, 2, device=device) * (1.2 - 1 / 1.2) + 1 / 1.2
            theta = torch.zeros(batch, 2, 3, device=device)
            theta[:, 0, 0], theta[:, 1, 1] = factors[:, 0], factors[:, 1]
        case _:
            angle = (torch.rand(batch, device=device) - 0.5) * 2 * 15 / 180 * float(np.pi)
            theta = torch.zeros(batch, 2, 3, device=device)
            theta[:, 0, 0], theta[:, 0, 1], theta[:, 1, 0], theta[:, 1, 1] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
    return F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), align_corners=False)


def train(
    images: Tensor,
    labels: Tensor,
    *,
    steps: int,
    batch_size: int,
    augmented: bool,
    rng: np.random.Generator,
    width: int = 128,
    start: list[Tensor] | None = None,
    view: Callable[[int], tuple[Tensor, Tensor]] | None = None,
) -> nn.Module:
    """One network from its own initialization; images [N, C, H, W] in network space and label rows [N, K] on the device.

    `start` gives the initial parameters in order instead, and `view` the batch of a step, where two programs are to be compared student by student.
    """
    net = PlainConvNet(images.shape[1], labels.shape[1], width).to(images.device).train()
    if start is not None:
        for parameter, value in zip(net.parameters(), start, strict=True):
            parameter.data.copy_(value)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    criterion = nn.CrossEntropyLoss()
    taken = 0
    while taken < steps:
        for batch in torch.randperm(len(images)).split(batch_size):
            chosen, targets = images[batch.to(images.device)], labels[batch.to(images.device)]
            if view is not None:
                chosen, targets = view(taken)
            elif augmented:
                chosen = augment(chosen, rng)
            loss = criterion(net(chosen), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()  # the running loss that every one of these loops keeps
            taken += 1
            if taken == steps:
                break
    return net


def predict(net: nn.Module, images: Tensor) -> Tensor:
    """Logits [M, K] in batches of 256."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(batch).cpu() for batch in images.split(256)])

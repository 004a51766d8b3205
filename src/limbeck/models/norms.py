"""Normalization layers by name."""

from torch import nn

from limbeck.errors import OptionError
from limbeck.models.spec import Norm

GROUPS = 4


def normalization(kind: Norm, channels: int) -> nn.Module | None:
    """The layer for `channels` feature maps, with learnable scale and shift and eps 1e-5; None for ``none``.

    ``instance`` is the field's "InstanceNorm", GroupNorm with one group per channel: no running statistics, the same in training and evaluation.
    ``layer`` normalizes over (C, H, W) with one scale per channel (GroupNorm with one group), where DC's LayerNorm has one per element.
    ``group`` has 4 groups.
    """
    match kind:
        case "instance":
            return nn.GroupNorm(channels, channels)
        case "batch":
            return nn.BatchNorm2d(channels)
        case "layer":
            return nn.GroupNorm(1, channels)
        case "group":
            if channels % GROUPS:
                raise OptionError(f"norm=group splits the channels into {GROUPS} groups, got width {channels}; use a multiple of {GROUPS}")
            return nn.GroupNorm(GROUPS, channels)
        case "none":
            return None

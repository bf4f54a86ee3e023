"""Feature pyramid (arXiv:1612.03144). Shape letters: N images, H, W image size."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

from dcnzoo.models.layers import Conv1x1, Conv3x3

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
"""Pixels of the image per pixel of each level."""


def named(conv: nn.Module) -> nn.Sequential:
    """A convolution under the published name `….conv`."""
    return nn.Sequential(OrderedDict(conv=conv))


class FPN(nn.Module):
    """Top-down pyramid over c2–c5; p6 is every second pixel of p5.

    Args:
        in_channels: channels of c2–c5.
        channels: of every level of the pyramid.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(named(Conv1x1(each, channels)) for each in in_channels)
        self.fpn_convs = nn.ModuleList(named(Conv3x3(channels, channels)) for _ in in_channels)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps "c2" … "c5" to "p2" … "p6", each (N, channels, H/stride, W/stride).

        Takes the features out of the dictionary, so that each is freed where nobody else needs it.
        """
        sums = [self.lateral_convs[3](features.pop("c5"))]
        for level, name in ((2, "c4"), (1, "c3"), (0, "c2")):
            lateral = cast(Conv1x1, self.lateral_convs[level].conv)
            sums.append(lateral.add_upsampled(features.pop(name), sums[-1]))
        outputs = [conv(sums.pop()) for conv in self.fpn_convs]
        outputs.append(outputs[-1][:, :, ::2, ::2])
        return dict(zip(STRIDES, outputs, strict=True))

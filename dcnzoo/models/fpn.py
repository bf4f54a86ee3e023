"""Feature pyramid (arXiv:1612.03144). Shape letters: N images, H, W image size."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from dcnzoo.models.layers import Conv1x1, Conv3x3

CHANNELS = 256
"""Channels of every pyramid level, and of everything that reads them."""

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
"""Pixels of the image per pixel of each level."""


def named(conv: nn.Module) -> nn.Sequential:
    """A convolution under the published name `….conv`."""
    return nn.Sequential(OrderedDict(conv=conv))


class FPN(nn.Module):
    """Top-down pyramid over c2–c5; p6 is every second pixel of p5."""

    def __init__(self) -> None:
        super().__init__()
        self.lateral_convs = nn.ModuleList(named(Conv1x1(c, CHANNELS)) for c in (256, 512, 1024, 2048))
        self.fpn_convs = nn.ModuleList(named(Conv3x3(CHANNELS, CHANNELS)) for _ in range(4))

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps "c2" … "c5" to "p2" … "p6", each (N, 256, H/stride, W/stride)."""
        laterals = [conv(features[f"c{i}"]) for i, conv in enumerate(self.lateral_convs, start=2)]
        for finer, coarser in zip(laterals[-2::-1], laterals[:0:-1], strict=True):
            finer += F.interpolate(coarser, size=finer.shape[-2:], mode="nearest")
        outputs = [conv(lateral) for conv, lateral in zip(self.fpn_convs, laterals, strict=True)]
        outputs.append(outputs[-1][:, :, ::2, ::2])
        return dict(zip(STRIDES, outputs, strict=True))

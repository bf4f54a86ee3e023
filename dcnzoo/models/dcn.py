"""Deformable convolution as a layer: a plain convolution predicts where the kernel samples.

Shape letters: N images, C channels, H, W map size, O output channels, T taps, D deformable groups.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcnzoo.models.layers import Conv3x3, StridedConv3x3
from dcnzoo.ops import deform_conv2d, pack_deform_conv2d_weight


class DeformConv2d(nn.Module):
    """3×3 deformable convolution that predicts its own offsets (v1), and its own mask too (v2).

    Parameters are named as published: `weight`, `bias`, `conv_offset.weight`, `conv_offset.bias`.

    Args:
        in_channels: C.
        out_channels: O.
        stride: of both axes.
        groups: weight groups.
        deform_groups: D, groups of channels that share offsets; independent of `groups`.
        modulated: True is v2, which scales every tap by a mask in 0–1.
    """

    kernel_size = (3, 3)
    padding = (1, 1)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        modulated: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.groups = (stride, stride), groups
        self.relu = False
        self.half_products = False
        self.packed_weight: Tensor | None = None
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *self.kernel_size))
        self.bias: nn.Parameter | None = None
        taps = self.kernel_size[0] * self.kernel_size[1]
        self.num_offsets = 2 * deform_groups * taps
        num_masks = deform_groups * taps if modulated else 0
        predicted = self.num_offsets + num_masks
        self.conv_offset: nn.Conv2d = (
            Conv3x3(in_channels, predicted) if stride == 1 else StridedConv3x3(in_channels, predicted)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starts as a plain convolution: zero offsets, mask 0.5."""
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.conv_offset.weight)
        if self.conv_offset.bias is not None:
            nn.init.zeros_(self.conv_offset.bias)

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels, once instead of on every call.

        To be called when weight, device and dtype are final.
        """
        self.packed_weight = pack_deform_conv2d_weight(self.weight, self.groups, half=self.half_products)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, ⌈H/stride⌉, ⌈W/stride⌉)."""
        predicted = self.conv_offset(x)
        offset, mask = predicted.split([self.num_offsets, predicted.shape[1] - self.num_offsets], dim=1)
        return deform_conv2d(
            x,
            offset,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            mask=mask if mask.shape[1] else None,
            mask_is_logits=True,
            relu=self.relu,
            packed_weight=self.packed_weight,
        )

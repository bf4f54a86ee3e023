"""Features of regions of interest: each RoI is pooled from the pyramid level that suits its size.

Shape letters: N images, C channels, R RoIs, P output bins per axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcnzoo.models.fpn import STRIDES
from dcnzoo.models.layers import Linear, MapLinear
from dcnzoo.ops import deform_roi_pool, pool_levels, roi_align_pyramid

LEVELS = ("p2", "p3", "p4", "p5")
_FINEST_SIDE = 56
"""RoIs up to twice this side, in pixels of the resized image, are pooled from p2."""


def assign_levels(rois: Tensor) -> Tensor:
    """Index into `LEVELS` for each of (R, 5) rois (arXiv:1612.03144, eq. 1)."""
    side = (rois[:, 3:] - rois[:, 1:3]).prod(dim=1).sqrt()
    levels = torch.log2(side / _FINEST_SIDE + 1e-6).floor().nan_to_num(0)  # NaN would become any integer
    return levels.clamp(0, len(LEVELS) - 1).long()


class RoIAlign(nn.Module):
    """RoIAlign to a fixed size.

    Args:
        output_size: P.

    Attributes:
        half_output: the compiled CPU kernels round what they pool to 16 bits, for a layer that would do so.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size
        self.half_output = False

    def forward(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        """Pools (R, 5) rois, resized frame, to (R, C, P, P)."""
        return roi_align_pyramid(
            [features[name] for name in LEVELS],
            rois,
            assign_levels(rois),
            output_size=(self.output_size, self.output_size),
            spatial_scales=[1 / STRIDES[name] for name in LEVELS],
            half_output=self.half_output,
        )


class DeformRoIPoolLayer(nn.Module):
    """Deformable RoI pooling that predicts its own offsets: one per pyramid level.

    Args:
        modulated: "mdpool": a mask in 0–1 scales the result.
        stride: pixels of the image per pixel of the level.
        channels: C.
        hidden: width of the fully connected layers.
        output_size: P.
    """

    def __init__(self, modulated: bool, stride: int, channels: int, hidden: int, output_size: int) -> None:
        super().__init__()
        self.spatial_scale, self.output_size = 1 / stride, (output_size, output_size)
        bins = output_size**2
        self.offset_fc = nn.Sequential(
            MapLinear(channels, output_size, hidden), nn.ReLU(inplace=True),
            Linear(hidden, hidden), nn.ReLU(inplace=True),
            Linear(hidden, 2 * bins),
        )  # fmt: skip
        self.mask_fc = None
        if modulated:
            self.mask_fc = nn.Sequential(
                MapLinear(channels, output_size, hidden),
                nn.ReLU(inplace=True),
                Linear(hidden, bins),
                nn.Sigmoid(),
            )

    def forward(self, feature: Tensor, rois: Tensor) -> Tensor:
        """Pools (R, 5) rois from one level (N, C, H, W) to (R, C, P, P)."""
        rigid = self._pool(feature, rois, None)
        offset = self.offset_fc(rigid).reshape(-1, 2, *self.output_size)
        pooled = self._pool(feature, rois, offset)
        if self.mask_fc is not None:
            pooled = pooled * self.mask_fc(rigid).reshape(-1, 1, *self.output_size)
        return pooled

    def _pool(self, feature: Tensor, rois: Tensor, offset: Tensor | None) -> Tensor:
        return deform_roi_pool(
            feature, rois, offset, output_size=self.output_size, spatial_scale=self.spatial_scale
        )


class DeformRoIPool(nn.Module):
    """Deformable RoI pooling over the pyramid ("dpool", "mdpool").

    Args:
        modulated: "mdpool".
        channels: C.
        hidden: width of the fully connected layers.
        output_size: P.
    """

    def __init__(self, modulated: bool, channels: int, hidden: int, output_size: int = 7) -> None:
        super().__init__()
        self.output_size = output_size
        self.roi_layers = nn.ModuleList(
            DeformRoIPoolLayer(modulated, STRIDES[name], channels, hidden, output_size) for name in LEVELS
        )

    def forward(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        """Pools (R, 5) rois, resized frame, to (R, C, P, P)."""
        inputs = [features[name] for name in LEVELS]

        def pool(level: int, rois: Tensor) -> Tensor:
            pooled: Tensor = self.roi_layers[level](inputs[level], rois)
            return pooled

        return pool_levels(inputs, rois, assign_levels(rois), (self.output_size, self.output_size), pool)

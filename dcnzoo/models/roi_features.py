"""Features of regions of interest: each RoI is pooled from the pyramid level that suits its size.

Shape letters: N images, C channels, R RoIs, P output bins per axis.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dcnzoo.models.fpn import CHANNELS, STRIDES
from dcnzoo.models.layers import Linear
from dcnzoo.ops import deform_roi_pool, roi_align

LEVELS = ("p2", "p3", "p4", "p5")
_FINEST_SIDE = 56
"""RoIs up to twice this side, in pixels of the resized image, are pooled from p2."""


def assign_levels(rois: Tensor) -> Tensor:
    """Index into `LEVELS` for each of (R, 5) rois (arXiv:1612.03144, eq. 1)."""
    side = (rois[:, 3:] - rois[:, 1:3]).prod(dim=1).sqrt()
    return torch.log2(side / _FINEST_SIDE + 1e-6).floor().clamp(0, len(LEVELS) - 1).long()


def pool_levels(
    features: dict[str, Tensor], rois: Tensor, output_size: int, pool: Callable[[int, Tensor, Tensor], Tensor]
) -> Tensor:
    """Pools every RoI from its level.

    Args:
        features: "p2" … "p5", each (N, C, H, W).
        rois: (R, 5) image index, xyxy in the resized frame.
        output_size: P.
        pool: (index of the level, its features, rois of the level) → (R of the level, C, P, P).

    Returns:
        (R, C, P, P) in the order of `rois`.
    """
    levels = assign_levels(rois)
    pooled = features["p2"].new_zeros(len(rois), CHANNELS, output_size, output_size)
    pooled = pooled.contiguous(memory_format=torch.channels_last)
    for index, name in enumerate(LEVELS):
        chosen = (levels == index).nonzero()[:, 0]
        if len(chosen):
            pooled[chosen] = pool(index, features[name], rois[chosen])
    return pooled


class RoIAlign(nn.Module):
    """RoIAlign to a fixed size.

    Args:
        output_size: P.
    """

    def __init__(self, output_size: int) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        """Pools (R, 5) rois, resized frame, to (R, C, P, P)."""
        return pool_levels(features, rois, self.output_size, self._pool)

    def _pool(self, level: int, feature: Tensor, rois: Tensor) -> Tensor:
        size = (self.output_size, self.output_size)
        return roi_align(feature, rois, output_size=size, spatial_scale=1 / STRIDES[LEVELS[level]])


class DeformRoIPoolLayer(nn.Module):
    """Deformable RoI pooling that predicts its own offsets: one per pyramid level.

    Args:
        modulated: "mdpool": a mask in 0–1 scales the result.
        stride: pixels of the image per pixel of the level.
        output_size: P.
    """

    def __init__(self, modulated: bool, stride: int, output_size: int) -> None:
        super().__init__()
        self.spatial_scale, self.output_size = 1 / stride, (output_size, output_size)
        bins, inputs = output_size**2, CHANNELS * output_size**2
        self.offset_fc = nn.Sequential(
            Linear(inputs, 1024), nn.ReLU(inplace=True),
            Linear(1024, 1024), nn.ReLU(inplace=True),
            Linear(1024, 2 * bins),
        )  # fmt: skip
        self.mask_fc = None
        if modulated:
            self.mask_fc = nn.Sequential(
                Linear(inputs, 1024), nn.ReLU(inplace=True), Linear(1024, bins), nn.Sigmoid()
            )

    def forward(self, feature: Tensor, rois: Tensor) -> Tensor:
        """Pools (R, 5) rois from one level (N, C, H, W) to (R, C, P, P)."""
        rigid = self._pool(feature, rois, None).flatten(1)
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
        output_size: P.
    """

    def __init__(self, modulated: bool, output_size: int = 7) -> None:
        super().__init__()
        self.output_size = output_size
        self.roi_layers = nn.ModuleList(
            DeformRoIPoolLayer(modulated, STRIDES[name], output_size) for name in LEVELS
        )

    def forward(self, features: dict[str, Tensor], rois: Tensor) -> Tensor:
        """Pools (R, 5) rois, resized frame, to (R, C, P, P)."""
        return pool_levels(features, rois, self.output_size, self._pool)

    def _pool(self, level: int, feature: Tensor, rois: Tensor) -> Tensor:
        pooled: Tensor = self.roi_layers[level](feature, rois)
        return pooled

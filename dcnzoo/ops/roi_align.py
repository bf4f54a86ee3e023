"""RoIAlign as the detectors use it: aligned (half-pixel) with an adaptive sampling grid."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align

from dcnzoo.ops.types import Pair


def roi_align(input: Tensor, rois: Tensor, *, output_size: Pair, spatial_scale: float) -> Tensor:
    """Pools each RoI to a fixed size (arXiv:1703.06870), ceil(RoI/output) samples per bin and axis.

    Args:
        input: (N, C, H, W) feature map.
        rois: (R, 5) image index in the batch, then xyxy in the frame of the image.
        output_size: (rows, columns) of bins.
        spatial_scale: pixels of the map per pixel of the image (1 / stride).

    Returns:
        (R, C, *output_size) in the dtype of `input`.
    """
    # short floats would round RoI coordinates to whole pixels
    pooled: Tensor = torchvision_roi_align(
        input.float(), rois.float(), output_size, spatial_scale, sampling_ratio=-1, aligned=True
    )
    return pooled.to(input.dtype) if input.dtype != torch.float64 else pooled

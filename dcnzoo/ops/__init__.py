"""Operators that PyTorch lacks: checks and dispatch, one file per operator.

torchvision is imported where it computes, since that takes seconds and 160 MB.
"""

from __future__ import annotations

from dcnzoo.ops.backend import active_backend
from dcnzoo.ops.deform_conv2d import deform_conv2d, pack_deform_conv2d_weight
from dcnzoo.ops.deform_roi_pool import deform_roi_pool
from dcnzoo.ops.masks import paste_masks
from dcnzoo.ops.nms import batched_nms, nms, nms_sorted
from dcnzoo.ops.roi_align import pool_levels, roi_align, roi_align_pyramid

__all__ = [
    "active_backend",
    "batched_nms",
    "deform_conv2d",
    "deform_roi_pool",
    "nms",
    "nms_sorted",
    "pack_deform_conv2d_weight",
    "paste_masks",
    "pool_levels",
    "roi_align",
    "roi_align_pyramid",
]

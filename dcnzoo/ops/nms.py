"""Non-maximum suppression."""

from __future__ import annotations

from torch import Tensor
from torchvision.ops import batched_nms as torchvision_batched_nms
from torchvision.ops import nms as torchvision_nms


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: drops a box whose IoU with a kept, better one exceeds the threshold.

    Args:
        boxes: (A, 4) xyxy.
        scores: (A,).
        iou_threshold: in 0–1.

    Returns:
        Indices of the kept boxes by descending score, int64.
    """
    kept: Tensor = torchvision_nms(boxes, scores, iou_threshold)
    return kept


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Non-maximum suppression within each group (class, level): boxes of different groups never interact.

    Args:
        boxes: (A, 4) xyxy.
        scores: (A,).
        groups: (A,) int64 group of each box.
        iou_threshold: in 0–1.

    Returns:
        Indices of the kept boxes by descending score over all groups, int64.
    """
    kept: Tensor = torchvision_batched_nms(boxes, scores, groups, iou_threshold)
    return kept

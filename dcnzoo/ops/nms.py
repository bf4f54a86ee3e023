"""Non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from dcnzoo.ops import reference
from dcnzoo.ops.backend import NATIVE_PROBLEM, active_backend
from dcnzoo.ops.gpu import gpu_problem


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: drops a box whose IoU with a kept, better one exceeds the threshold.

    Args:
        boxes: (A, 4) xyxy.
        scores: (A,).
        iou_threshold: in 0–1.

    Returns:
        Indices of the kept boxes by descending score, int64.
    """
    if active_backend()[0] == "reference":
        return reference.nms(boxes, scores, iou_threshold)
    from torchvision.ops import nms as torchvision_nms

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
    usual = boxes.device.type == "cpu" and boxes.dtype == scores.dtype == torch.float32
    if usual and active_backend()[0] == "native":
        compiled: Tensor = torch.ops.dcnzoo.batched_nms(boxes, scores, groups, iou_threshold)
        return compiled
    members = [(groups == group).nonzero()[:, 0] for group in sorted(set(groups.tolist()))]
    parts = [index[nms(boxes[index], scores[index], iou_threshold)] for index in members]
    chosen = torch.cat([groups.new_empty(0), *parts])
    return chosen[scores[chosen].argsort(descending=True, stable=True)]


def nms_sorted(boxes: Tensor, counts: Tensor, iou_threshold: float) -> Tensor:
    """Suppression in many sets of boxes at once; on a GPU the compiled kernel needs no word from the host.

    Args:
        boxes: (B, A, 4) xyxy, each set by descending score.
        counts: (B,) int64; only the first so many boxes of a set exist.
        iou_threshold: in 0–1.

    Returns:
        (B, A) bool: the boxes that remain.
    """
    on_gpu = boxes.device.type == "cuda" and gpu_problem(boxes.device.index) is None
    if on_gpu and active_backend()[0] == "native":
        remain: Tensor = torch.ops.dcnzoo.nms_sorted(boxes.float(), counts, iou_threshold)
        return remain
    kept = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for index, count in enumerate(counts.tolist()):
        order = torch.arange(count, 0, -1, dtype=torch.float32, device=boxes.device)
        kept[index, nms(boxes[index, :count], order, iou_threshold)] = True
    return kept


if NATIVE_PROBLEM is None:

    @torch.library.register_fake("dcnzoo::nms_sorted")  # type: ignore[untyped-decorator]
    def _fake_nms_sorted(boxes: Tensor, counts: Tensor, iou_threshold: float) -> Tensor:  # noqa: ARG001
        return boxes.new_empty(boxes.shape[:2], dtype=torch.bool)

    @torch.library.register_fake("dcnzoo::batched_nms")  # type: ignore[untyped-decorator]
    def _fake_batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:  # noqa: ARG001
        size = torch.library.get_ctx().new_dynamic_size()
        return groups.new_empty((size,))

"""Box arithmetic. Boxes are xyxy in absolute pixels; shape letters: R boxes, K classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcnzoo.ops import batched_nms

_MAX_LOG_SCALE = abs(math.log(16 / 1000))
"""Largest change of a side in log space: keeps exp() finite, as the reference does."""


def decode_boxes(
    boxes: Tensor, deltas: Tensor, stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Applies regression deltas to boxes (arXiv:1506.01497).

    Args:
        boxes: (R, 4) anchors or proposals.
        deltas: (R, 4·K) of (dx, dy, dw, dh), K sets per box.
        stds: the deltas are in these units.

    Returns:
        (R, K, 4) boxes.
    """
    deltas = deltas.reshape(len(boxes), deltas.shape[-1] // 4, 4) * _row(stds, deltas)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) * 0.5, boxes[:, 2:] - boxes[:, :2]
    new_centre = centre[:, None] + size[:, None] * deltas[..., :2]
    new_size = size[:, None] * deltas[..., 2:].clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE).exp()
    return torch.cat([new_centre - new_size * 0.5, new_centre + new_size * 0.5], dim=-1)


def clip_boxes(boxes: Tensor, image_size: tuple[int, int] | Tensor) -> Tensor:
    """Clips (…, 4) boxes to an image of (height, width), or of (…, 4) width, height, width, height."""
    if isinstance(image_size, tuple):
        height, width = image_size
        image_size = _row((width, height, width, height), boxes)
    return torch.minimum(boxes.clamp(min=0), image_size)


def scale_factors(image_size: tuple[int, int], original_size: tuple[int, int]) -> tuple[float, float]:
    """(x, y) factors by which an image grew from `original_size` to `image_size`, (height, width) each."""
    return image_size[1] / original_size[1], image_size[0] / original_size[0]


def to_original_frame(boxes: Tensor, image_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
    """Maps (…, 4) boxes from the resized to the original image, sizes as (height, width)."""
    factor_x, factor_y = scale_factors(image_size, original_size)
    return boxes / _row((factor_x, factor_y, factor_x, factor_y), boxes)


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    labels: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Keeps confident boxes, suppresses duplicates per class, takes the best.

    Boxes that are not finite are dropped.

    Args:
        boxes: (R, K, 4), or (R, 1, 4) where all classes share one box.
        scores: (R, K).
        score_threshold: a score must exceed it.
        iou_threshold: of the suppression within a class.
        max_detections: at most so many.
        labels: (L,) int64, the classes to keep, ascending; None for all.

    Returns:
        boxes (D, 4), scores (D,) and labels (D,) int64, by descending score.
    """
    wanted = scores if labels is None else scores[:, labels]
    rows, columns = (wanted > score_threshold).nonzero(as_tuple=True)
    classes = columns if labels is None else labels[columns]
    candidates = boxes.expand(-1, scores.shape[1], -1)[rows, classes]
    confidences = wanted[rows, columns]
    finite = candidates.isfinite().all(dim=1)
    if not finite.all():
        candidates, confidences, classes = candidates[finite], confidences[finite], classes[finite]
    keep = batched_nms(candidates, confidences, classes, iou_threshold)[:max_detections]
    return candidates[keep], confidences[keep], classes[keep]


def boxes_to_rois(boxes: list[Tensor]) -> Tensor:
    """Stacks the boxes (R_i, 4) of each image of a batch to rois (R, 5): image index, xyxy."""
    indices = [box.new_full((len(box), 1), index) for index, box in enumerate(boxes)]
    return torch.cat([torch.cat(indices), torch.cat(boxes)], dim=1)


def _row(numbers: tuple[float, ...], like: Tensor) -> Tensor:
    """Numbers in the dtype and on the device of a tensor; to a GPU they are not copied, which would wait."""
    if like.device.type == "cpu":
        return like.new_tensor(numbers)
    return torch.cat([like.new_full((1,), number) for number in numbers])

"""One-to-one matching of detections, as the parity bars define it."""

from __future__ import annotations

from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(A, B) IoU of (A, 4) and (B, 4) xyxy boxes."""
    overlap = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
    intersection = overlap.clip(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union = areas[0][:, None] + areas[1] - intersection
    return intersection / np.maximum(union, 1e-9)


def match(expected: Arrays, found: Arrays, iou: float = 0.98, score: float = 2e-3) -> list[tuple[int, int]]:
    """Pairs (expected, found) of one label, close in box and score; the best pairs first, each used once."""
    overlap = box_iou(expected["boxes"], found["boxes"])
    score_difference = np.abs(expected["scores"][:, None] - found["scores"])
    allowed = (overlap >= iou) & (score_difference <= score)
    allowed &= expected["labels"][:, None] == found["labels"]
    order = np.argsort(-(overlap - score_difference), axis=None)
    pairs, used = [], (set(), set())
    for left, right in zip(*np.unravel_index(order, overlap.shape), strict=True):
        if allowed[left, right] and left not in used[0] and right not in used[1]:
            pairs.append((int(left), int(right)))
            used[0].add(left)
            used[1].add(right)
    return pairs


def mask_difference(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, int]:
    """IoU of two RLE masks (1 where both are empty), and the number of pixels that only one of them has."""
    from pycocotools import mask as coco_mask  # here, for detectors without masks where it is not installed

    intersection = int(coco_mask.area(coco_mask.merge([first, second], intersect=True)))
    union = int(coco_mask.area(coco_mask.merge([first, second])))
    return intersection / union if union else 1.0, union - intersection

"""Instance masks: from the maps of the mask head to COCO run-length encoding.

Shape letters: D detections, M side of a mask map.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from torch import Tensor

from dcnzoo.ops.types import Pair

FloatArray = npt.NDArray[np.float32]


class RLE(TypedDict):
    """A mask in COCO's compressed run-length encoding.

    Attributes:
        size: [height, width] of the image.
        counts: compressed run lengths, ASCII.
    """

    size: list[int]
    counts: str


def paste_masks(probs: Tensor, boxes: Tensor, image_size: Pair) -> list[RLE]:
    """Pastes each mask map into its box and encodes the result.

    The map is sampled bilinearly (zeros outside, half-pixel centres) at the pixel centres of the
    image; a pixel belongs to the mask when the sample is ≥ 0.5.

    Args:
        probs: (D, M, M) probabilities.
        boxes: (D, 4) xyxy, frame of the image.
        image_size: (height, width) of the image.

    Returns:
        One mask per detection, in the same order.
    """
    maps, corners = probs.float().cpu().numpy(), boxes.float().cpu().numpy()
    return [_paste(single, box, image_size) for single, box in zip(maps, corners, strict=True)]


def _paste(probs: FloatArray, box: FloatArray, image_size: Pair) -> RLE:
    rows = _pixels_of(box[1], box[3], image_size[0])
    columns = _pixels_of(box[0], box[2], image_size[1])
    # bilinear sampling on a regular grid is separable: two small matrix products
    vertical = _interpolation(rows, box[1], box[3], probs.shape[0])
    horizontal = _interpolation(columns, box[0], box[2], probs.shape[1])
    mask = np.zeros(image_size, dtype=np.uint8, order="F")
    mask[rows.start : rows.stop, columns.start : columns.stop] = vertical @ probs @ horizontal.T >= 0.5
    encoded = coco_mask.encode(mask)
    return RLE(size=list(image_size), counts=encoded["counts"].decode("ascii"))


def _pixels_of(low: float, high: float, size: int) -> range:
    """Pixels whose centres may lie in low–high: one outside gets less than half an edge cell, below 0.5."""
    if not high > low:
        return range(0)
    return range(math.floor(max(low, 0)), math.ceil(min(high, size)))


def _interpolation(pixels: range, low: float, high: float, cells: int) -> FloatArray:
    """(pixels, cells) bilinear weights of the map's cells at the centres of `pixels`."""
    centres = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    position = (centres - low) / np.float32(high - low) * np.float32(cells) - np.float32(0.5)
    distance = np.abs(position[:, None] - np.arange(cells, dtype=np.float32))
    weights: FloatArray = np.maximum(np.float32(1) - distance, np.float32(0))
    return weights

"""Instance masks: from the maps of the mask head to COCO run-length encoding.

Shape letters: D detections, M side of a mask map.
"""

from __future__ import annotations

import math
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcnzoo.ops.backend import NATIVE_PROBLEM, active_backend
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
    image; a pixel belongs to the mask when the sample is ≥ 0.5. A box or map that is not finite gives
    an empty mask.

    Args:
        probs: (D, M, M) probabilities, M ≥ 2.
        boxes: (D, 4) xyxy, frame of the image.
        image_size: (height, width) of the image.

    Returns:
        One mask per detection, in the same order.
    """
    probs, boxes = probs.detach().float().cpu(), boxes.detach().float().cpu()
    if active_backend()[0] == "native":
        lines = torch.ops.dcnzoo.paste_masks(probs, boxes, image_size).numpy().tobytes().decode("ascii")
        return [RLE(size=list(image_size), counts=line) for line in lines.splitlines()]
    pairs = zip(probs.numpy(), boxes.numpy(), strict=True)
    return [_paste(single, box, image_size) for single, box in pairs]


def _paste(probs: FloatArray, box: FloatArray, image_size: Pair) -> RLE:
    from pycocotools import mask as coco_mask  # here: the compiled operators do without

    rows = _pixels_of(box[1], box[3], image_size[0])
    columns = _pixels_of(box[0], box[2], image_size[1])
    mask = np.zeros(image_size, dtype=np.uint8, order="F")
    if rows and columns and np.isfinite(probs).all():
        # bilinear sampling on a regular grid is separable: two small matrix products
        vertical = _interpolation(rows, box[1], box[3], probs.shape[0])
        horizontal = _interpolation(columns, box[0], box[2], probs.shape[1])
        mask[rows.start : rows.stop, columns.start : columns.stop] = vertical @ probs @ horizontal.T >= 0.5
    encoded = coco_mask.encode(mask)
    return RLE(size=list(image_size), counts=encoded["counts"].decode("ascii"))


def _pixels_of(low: float, high: float, size: int) -> range:
    """Pixels whose centres may lie in low–high: one outside gets less than half an edge cell, below 0.5."""
    if not (high > low and math.isfinite(low) and math.isfinite(high)):
        return range(0)
    return range(math.floor(max(low, 0)), math.ceil(min(high, size)))


def _interpolation(pixels: range, low: float, high: float, cells: int) -> FloatArray:
    """(pixels, cells) bilinear weights of the map's cells at the centres of `pixels`."""
    centres = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    position = (centres - low) / np.float32(high - low) * np.float32(cells) - np.float32(0.5)
    distance = np.abs(position[:, None] - np.arange(cells, dtype=np.float32))
    weights: FloatArray = np.maximum(np.float32(1) - distance, np.float32(0))
    return weights


if NATIVE_PROBLEM is None:

    @torch.library.register_fake("dcnzoo::paste_masks")  # type: ignore[untyped-decorator]
    def _fake_paste_masks(probs: Tensor, boxes: Tensor, image_size: Pair) -> Tensor:  # noqa: ARG001
        size = torch.library.get_ctx().new_dynamic_size()
        return probs.new_empty((size,), dtype=torch.uint8)

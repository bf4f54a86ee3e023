"""Anchors of the region proposal network. Shape letters: A anchors per cell, H, W map size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SCALE = 8
"""Side of a square anchor in strides."""

RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the A = 3 anchors of a cell."""


def cell_anchors(stride: int, device: torch.device) -> Tensor:
    """(A, 4) xyxy anchors around the origin, pixels; a GPU gets them without waiting for a copy."""
    side = np.float32(SCALE * stride)
    root = np.sqrt(np.array(RATIOS, np.float32))
    width, height = side / root, side * root
    corners = np.stack([-width, -height, width, height], axis=1) / np.float32(2)
    if device.type == "cpu":
        return torch.from_numpy(corners)
    sides = [torch.full((), side, device=device) for side in corners.flatten().tolist()]
    return torch.stack(sides).reshape(corners.shape)


def grid_anchors(map_size: tuple[int, int], stride: int, device: torch.device) -> Tensor:
    """All anchors of a level.

    Args:
        map_size: (H, W) of the level.
        stride: pixels of the image per cell.
        device: where to make them.

    Returns:
        (H·W·A, 4) xyxy, pixels of the padded image, in the order row, column, anchor; centred on
        (column·stride, row·stride) without a half-pixel shift.
    """
    height, width = map_size
    return anchors_at(torch.arange(height * width * len(RATIOS), device=device), width, stride)


def anchors_at(index: Tensor, map_width: int, stride: int) -> Tensor:
    """Some anchors of a level.

    Args:
        index: (R,) int64, places in `grid_anchors`.
        map_width: W of the level.
        stride: pixels of the image per cell.

    Returns:
        (R, 4) xyxy, pixels of the padded image.
    """
    cell, anchor = index // len(RATIOS), index % len(RATIOS)
    x, y = cell % map_width * stride, cell // map_width * stride
    return torch.stack([x, y, x, y], dim=1).float() + cell_anchors(stride, index.device)[anchor]

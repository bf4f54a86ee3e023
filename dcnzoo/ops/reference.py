"""What every operator computes, written to be read: the oracle of the tests.

Plain PyTorch, differentiable where the definition is, any floating dtype and device, and slow.

Shape letters: N images, C channels, H, W map size, O output channels, Ho, Wo output size, T taps
(kernel height × kernel width), D deformable groups, G weight groups, R RoIs, P output bins per axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dcnzoo.ops.types import Pair


def bilinear_zero(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples with zeros outside: a corner outside the map contributes 0 (deformable convolution).

    Args:
        plane: (C, H, W).
        y: rows, any shape S, pixels of the map.
        x: columns, shape S.

    Returns:
        (C, *S); 0 where the point is at or beyond -1 or H (W), or is not a number.
    """
    height, width = plane.shape[-2:]
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = torch.where(inside, y, 0.0), torch.where(inside, x, 0.0)
    top, left = y.floor(), x.floor()
    total = plane.new_zeros(plane.shape[0], *y.shape)
    for row, row_weight in ((top, top + 1 - y), (top + 1, y - top)):
        for column, column_weight in ((left, left + 1 - x), (left + 1, x - left)):
            valid = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
            values = plane[:, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            total = total + values * torch.where(valid, row_weight * column_weight, 0.0)
    return total


def bilinear_border(plane: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Samples with clamping: the border rule of RoIAlign.

    Args:
        plane: (C, H, W).
        y: rows, any shape S, pixels of the map.
        x: columns, shape S.

    Returns:
        (C, *S); 0 where the point is below -1 or above H (W), otherwise the point clamped into the map.
    """
    height, width = plane.shape[-2:]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = torch.where(inside, y, 0.0), torch.where(inside, x, 0.0)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    return bilinear_zero(plane, y, x) * inside


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Deformable convolution v1, and v2 with a mask (arXiv:1703.06211, arXiv:1811.11168).

    Arguments and result as `dcnzoo.ops.deform_conv2d`.
    """
    num_images, channels, _, _ = input.shape
    out_channels, group_channels, kernel_h, kernel_w = weight.shape
    taps, (out_h, out_w) = kernel_h * kernel_w, offset.shape[-2:]
    deform_groups, groups = offset.shape[1] // (2 * taps), channels // group_channels
    offset = offset.reshape(num_images, deform_groups, taps, 2, out_h, out_w)
    scale = None if mask is None else mask.reshape(num_images, deform_groups, taps, out_h, out_w)

    rows = torch.arange(out_h, dtype=input.dtype, device=input.device)[:, None] * stride[0] - padding[0]
    columns = torch.arange(out_w, dtype=input.dtype, device=input.device) * stride[1] - padding[1]
    output = input.new_zeros(num_images, out_channels, out_h, out_w)
    for tap in range(taps):
        tap_y, tap_x = divmod(tap, kernel_w)
        sampled = []
        for image in range(num_images):
            for group, planes in enumerate(input[image].chunk(deform_groups)):
                delta_y, delta_x = offset[image, group, tap]
                y = rows + tap_y * dilation[0] + delta_y
                x = columns + tap_x * dilation[1] + delta_x
                values = bilinear_zero(planes, y, x)
                sampled.append(values if scale is None else values * scale[image, group, tap])
        columns_of_tap = torch.cat(sampled).reshape(num_images, groups, group_channels, out_h, out_w)
        tap_weight = weight[:, :, tap_y, tap_x].reshape(groups, -1, group_channels)
        product = torch.einsum("ngchw,goc->ngohw", columns_of_tap, tap_weight)
        output = output + product.reshape(num_images, out_channels, out_h, out_w)
    return output if bias is None else output + bias[:, None, None]


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None = None,
    *,
    output_size: Pair,
    spatial_scale: float = 1.0,
    gamma: float = 0.1,
) -> Tensor:
    """Deformable RoI pooling (arXiv:1703.06211); without `offset` it is RoIAlign, aligned and adaptive.

    Arguments and result as `dcnzoo.ops.deform_roi_pool`.
    """
    pooled_h, pooled_w = output_size
    pooled = [input.new_zeros(0, input.shape[1], pooled_h, pooled_w)]
    for index, roi in enumerate(rois):
        image = input[int(roi[0])]
        start_x, start_y, end_x, end_y = roi[1:] * spatial_scale - 0.5
        width, height = end_x - start_x, end_y - start_y
        bin_h, bin_w = height / pooled_h, width / pooled_w
        grid_h, grid_w = max(math.ceil(bin_h), 0), max(math.ceil(bin_w), 0)
        # (P, 1) and (P,) corners of the bins, then (P, P, grid) sample positions
        y = (start_y + torch.arange(pooled_h).to(roi) * bin_h)[:, None].expand(pooled_h, pooled_w)
        x = (start_x + torch.arange(pooled_w).to(roi) * bin_w).expand(pooled_h, pooled_w)
        if offset is not None:
            x = x + gamma * width * offset[index, 0]
            y = y + gamma * height * offset[index, 1]
        y = y[..., None] + (torch.arange(grid_h).to(roi) + 0.5) * bin_h / grid_h
        x = x[..., None] + (torch.arange(grid_w).to(roi) + 0.5) * bin_w / grid_w
        y, x = y[..., :, None].expand(-1, -1, -1, grid_w), x[..., None, :].expand(-1, -1, grid_h, -1)
        samples = bilinear_border(image, y, x)
        pooled.append(samples.sum((-2, -1))[None] / max(grid_h * grid_w, 1))
    return torch.cat(pooled)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Arguments and result as `dcnzoo.ops.nms`.
    """
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    keep: list[int] = []
    for candidate in scores.argsort(descending=True, stable=True).tolist():
        kept = boxes[keep]
        overlap = torch.minimum(kept[:, 2:], boxes[candidate, 2:])
        overlap = overlap - torch.maximum(kept[:, :2], boxes[candidate, :2])
        intersection = overlap.clamp(min=0).prod(1)
        iou = intersection / (area[keep] + area[candidate] - intersection)
        if not bool((iou > iou_threshold).any()):
            keep.append(candidate)
    return torch.tensor(keep, dtype=torch.int64, device=boxes.device)


def paste_mask(probs: Tensor, box: Tensor, image_size: Pair) -> Tensor:
    """Pastes one probability map into its box over the whole image.

    Args:
        probs: (M, M) probabilities.
        box: (4,) xyxy in pixels of the image.
        image_size: (height, width) of the image.

    Returns:
        (height, width) bool: bilinear sample (zeros outside, half-pixel centres) ≥ 0.5.
    """
    height, width = image_size
    left, top, right, bottom = box
    y = (torch.arange(height).to(box) + 0.5 - top) / (bottom - top) * probs.shape[0] - 0.5
    x = (torch.arange(width).to(box) + 0.5 - left) / (right - left) * probs.shape[1] - 0.5
    y, x = y[:, None].expand(height, width), x.expand(height, width)
    return bilinear_zero(probs[None], y, x)[0] >= 0.5

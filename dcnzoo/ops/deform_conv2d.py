"""Deformable convolution, v1 and v2.

Shape letters: N images, C channels, H, W map size, O output channels, Ho, Wo output size, T taps
(kernel height × kernel width), D deformable groups, G weight groups.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from dcnzoo.ops.types import Pair

_SHORT_DTYPES = (torch.float16, torch.bfloat16)


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

    Weight groups and deformable groups follow from the shapes and are independent. Sampling is
    bilinear; a corner outside the map contributes 0, and a point at or beyond -1 or H (W) is 0.

    Args:
        input: (N, C, H, W) feature map.
        offset: (N, 2·D·T, Ho, Wo) pixels of the input map; per deformable group and tap first Δy, then Δx.
        weight: (O, C/G, kernel height, kernel width).
        bias: (O,).
        stride: (vertical, horizontal).
        padding: zeros around the map, (vertical, horizontal).
        dilation: distance between taps, (vertical, horizontal).
        mask: (N, D·T, Ho, Wo), scales each tap (v2).

    Returns:
        (N, O, Ho, Wo), in the memory format of `input`.

    Raises:
        ValueError: shapes that do not fit together.
    """
    _check_shapes(input, offset, weight, mask, stride, padding, dilation)
    arguments: list[Tensor | None] = [input, offset, weight, bias, mask]
    if input.dtype in _SHORT_DTYPES and input.device.type == "cpu":
        # torchvision's CPU kernel knows no short floats
        arguments = [None if tensor is None else tensor.float() for tensor in arguments]
    output: Tensor = torchvision_deform_conv2d(*arguments[:4], stride, padding, dilation, arguments[4])
    if input.is_contiguous(memory_format=torch.channels_last):
        output = output.contiguous(memory_format=torch.channels_last)
    return output.to(input.dtype)


def _check_shapes(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> None:
    if input.ndim != 4 or weight.ndim != 4 or offset.ndim != 4:
        raise ValueError(
            "input, offset and weight must have 4 dimensions, "
            f"got {input.ndim}, {offset.ndim} and {weight.ndim}"
        )
    channels, (out_channels, group_channels, *kernel) = input.shape[1], weight.shape
    if group_channels == 0 or channels % group_channels or out_channels % (channels // group_channels):
        raise ValueError(
            f"weight {tuple(weight.shape)} does not divide {channels} input channels into groups"
        )
    out_size = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(input.shape[2:], kernel, stride, padding, dilation, strict=True)
    )
    taps = kernel[0] * kernel[1]
    deform_groups = offset.shape[1] // (2 * taps)
    expected = (input.shape[0], 2 * deform_groups * taps, *out_size)
    if deform_groups == 0 or channels % deform_groups or tuple(offset.shape) != expected:
        raise ValueError(
            f"offset must be (N, 2·deform_groups·{taps}, {out_size[0]}, {out_size[1]}) for input "
            f"{tuple(input.shape)}, got {tuple(offset.shape)}"
        )
    if mask is not None and tuple(mask.shape) != (input.shape[0], deform_groups * taps, *out_size):
        raise ValueError(
            f"mask must be {(input.shape[0], deform_groups * taps, *out_size)}, got {tuple(mask.shape)}"
        )

"""Deformable convolution, v1 and v2.

Shape letters: N images, C channels, H, W map size, O output channels, Ho, Wo output size, T taps
(kernel height × kernel width), D deformable groups, G weight groups.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d

from dcnzoo.ops import reference
from dcnzoo.ops.backend import NATIVE_PROBLEM, active_backend
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
    mask_is_logits: bool = False,
    relu: bool = False,
    packed_weight: Tensor | None = None,
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
        mask_is_logits: the mask goes through a sigmoid first.
        relu: negative outputs become 0.
        packed_weight: what `pack_deform_conv2d_weight` made of `weight`; saves packing it on every call.

    Returns:
        (N, O, Ho, Wo), in the memory format of `input`.

    Raises:
        ValueError: shapes, types or devices that do not fit together.
    """
    _check_shapes(input, offset, weight, mask, stride, padding, dilation)
    if bias is not None and tuple(bias.shape) != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    tensors: tuple[Tensor | None, ...] = (input, offset, weight, bias, mask)
    if input.dtype in _SHORT_DTYPES and input.device.type == "cpu":
        # neither CPU kernel knows short floats: computing in float32 is also what accuracy wants
        tensors, packed_weight = tuple(None if t is None else t.float() for t in tensors), None
    _check_kinds(tensors)
    output = _compute(tensors, (stride, padding, dilation), mask_is_logits, relu, packed_weight)
    last = input.is_contiguous(memory_format=torch.channels_last)
    return output.to(input.dtype).contiguous(
        memory_format=torch.channels_last if last else torch.contiguous_format
    )


def pack_deform_conv2d_weight(weight: Tensor, groups: int = 1) -> Tensor | None:
    """Arranges a weight as the compiled kernels of this processor read it.

    The result is for this process, and for this weight: pack again when the weight changes.

    Args:
        weight: (O, C/G, kernel height, kernel width).
        groups: G.

    Returns:
        The weight's elements in an order of the kernels' own; None where the compiled kernels do not
        compute with this weight (another backend, device or dtype).

    Raises:
        ValueError: `groups` does not divide O.
    """
    if weight.ndim != 4 or groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"weight {tuple(weight.shape)} cannot have {groups} groups")
    if active_backend()[0] != "native" or not _kernels_take(weight.detach()):
        return None
    packed: Tensor = torch.ops.dcnzoo.pack_deform_conv2d_weight(weight.detach(), groups)
    return packed


def _compute(
    tensors: tuple[Tensor | None, ...],
    geometry: tuple[Pair, Pair, Pair],
    mask_is_logits: bool,
    relu: bool,
    packed_weight: Tensor | None,
) -> Tensor:
    x, offset, weight, bias, mask = cast(tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], tensors)
    backend, _ = active_backend()
    if backend == "native" and _kernels_take(*tensors):
        output: Tensor = torch.ops.dcnzoo.deform_conv2d(
            x, weight, offset, mask, bias, *geometry, packed_weight, mask_is_logits, relu
        )
        return output
    if mask is not None and mask_is_logits:
        mask = mask.sigmoid()
    compute = reference.deform_conv2d if backend == "reference" else torchvision_deform_conv2d
    stride, padding, dilation = geometry
    output = compute(x, offset, weight, bias, mask=mask, stride=stride, padding=padding, dilation=dilation)
    return output.relu() if relu else output


def _kernels_take(*tensors: Tensor | None) -> bool:
    """Whether the compiled kernels compute with these; they know no derivatives."""
    present = [tensor for tensor in tensors if tensor is not None]
    kinds = {(tensor.device.type, tensor.dtype) for tensor in present}
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present)
    return not trains and kinds in ({("cpu", torch.float32)}, {("cpu", torch.float64)})


if NATIVE_PROBLEM is None:

    @torch.library.register_fake("dcnzoo::deform_conv2d")  # type: ignore[untyped-decorator]
    def _fake_deform_conv2d(
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        *_: object,
    ) -> Tensor:
        shape = (input.shape[0], weight.shape[0], *offset.shape[2:])
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)

    @torch.library.register_fake("dcnzoo::pack_deform_conv2d_weight")  # type: ignore[untyped-decorator]
    def _fake_pack_deform_conv2d_weight(weight: Tensor, groups: int) -> Tensor:
        numel = torch.ops.dcnzoo.packed_deform_conv2d_numel(
            weight.shape, groups, weight.dtype == torch.float64
        )
        return weight.new_empty(numel)


def _check_kinds(tensors: tuple[Tensor | None, ...]) -> None:
    kinds = {(tensor.device, tensor.dtype) for tensor in tensors if tensor is not None}
    if len(kinds) != 1 or not all(dtype.is_floating_point for _, dtype in kinds):
        found = " and ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise ValueError(f"expected tensors of one floating point type on one device, got {found}")


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
    if min(*stride, *dilation) < 1 or min(padding) < 0 or 0 in weight.shape[2:]:
        raise ValueError(
            "expected a stride, dilation and kernel of at least 1 and a padding of at least 0, got"
            f" {stride}, {dilation}, {tuple(weight.shape[2:])} and {padding}"
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

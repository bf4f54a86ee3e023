"""Deformable convolution, v1 and v2.

Shape letters: N images, C channels, H, W map size, O output channels, Ho, Wo output size, T taps
(kernel height × kernel width), D deformable groups, G weight groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from dcnzoo.ops import autocast, deform_conv2d_grad, gpu_tuning, reference
from dcnzoo.ops.backend import NATIVE_PROBLEM, active_backend, half_factor
from dcnzoo.ops.gpu import allows_tf32, gpu_problem
from dcnzoo.ops.types import KERNEL_DTYPES, Pair, wide_dtype


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

    Weight groups and deformable groups follow from the shapes and are independent. Sampling is bilinear; a
    corner outside the map contributes 0, and a point at or beyond -1 or H (W), or NaN, is 0. (In a map with
    infinities or NaN a corner outside may give NaN.) With short floats (float16, bfloat16) positions and
    sums are float32 all the same. Autocast lowers input, weight and bias. On a GPU float32 factors are
    rounded to TensorFloat-32 where PyTorch's switch for convolutions,
    `torch.backends.cudnn.conv.fp32_precision`, allows it; with `torch.backends.cudnn.benchmark` the first
    inference of a shape looks for the fastest kernel.

    Args:
        input: (N, C, H, W) feature map.
        offset: (N, 2·D·T, Ho, Wo) pixels of the input map; per deformable group and tap first Δy, then Δx.
            Of any floating dtype, like `mask`.
        weight: (O, C/G, kernel height, kernel width) in the dtype of `input`; or in float32 for a
            bfloat16 input with a `packed_weight` of bfloat16.
        bias: (O,) in the dtype of `weight`.
        stride: (vertical, horizontal).
        padding: zeros around the map, (vertical, horizontal).
        dilation: distance between taps, (vertical, horizontal).
        mask: (N, D·T, Ho, Wo), scales each tap (v2).
        mask_is_logits: the mask goes through a sigmoid first.
        relu: negative outputs become 0.
        packed_weight: what `pack_deform_conv2d_weight` made of `weight`; saves packing it on every call.

    Returns:
        (N, O, Ho, Wo), in the dtype and memory format of `input`.

    Raises:
        ValueError: shapes, types or devices that do not fit together.
        RuntimeError: autocast or a gradient asks for a weight of which only the packed copy is left.
    """
    _check_shapes(input, offset, weight, mask, stride, padding, dilation)
    if bias is not None and tuple(bias.shape) != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    _check_kinds((input, offset, weight, bias, mask))
    tensors = (*autocast.lowered(input, weight, bias), offset, mask)
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (input, offset, mask))
    if (learns or tensors[1] is not weight) and _is_released(weight):
        raise RuntimeError("only the packed weight is left, which knows neither gradients nor autocast")
    if tensors[1] is not weight:
        packed_weight = None  # made before autocast lowered the weight
    x, weight, bias = cast(tuple[Tensor, Tensor, Tensor | None], tensors[:3])
    _check_dtypes(x, weight, bias, packed_weight)
    if active_backend()[0] == "native" and _kernels_take(*tensors):
        geometry = stride, padding, dilation
        on_gpu = x.device.type == "cuda"
        rounded = on_gpu and x.dtype == torch.float32 and allows_tf32()
        operator = torch.ops.dcnzoo.deform_conv2d_tf32 if rounded else torch.ops.dcnzoo.deform_conv2d
        operands = x, weight, offset, mask, bias, *geometry
        output: Tensor
        if on_gpu and gpu_tuning.applies(*tensors):
            output = gpu_tuning.deform_conv2d(gpu_tuning.Call(*operands, mask_is_logits, relu, rounded))
        else:
            output = operator(*operands, packed_weight, mask_is_logits, relu)
    else:
        scale = mask.sigmoid() if mask is not None and mask_is_logits else mask
        output = _compute_elsewhere((x, offset, weight), bias, scale, stride, padding, dilation)
        output = output.relu() if relu else output
    last = input.is_contiguous(memory_format=torch.channels_last)
    return output.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def pack_deform_conv2d_weight(weight: Tensor, groups: int = 1, *, half: bool = False) -> Tensor | None:
    """Arranges a weight as the compiled kernels of this processor read it.

    The result is for this process, and for this weight: pack again when the weight changes.

    Args:
        weight: (O, C/G, kernel height, kernel width).
        groups: G.
        half: float32 samples and weights are rounded to the type that `dcnzoo.ops.backend.half_factor` names
            as they are multiplied; the result is float32.

    Returns:
        The weight's elements in an order of the kernels' own, in that type if `half`; None where the compiled
        kernels do not compute with this weight (another backend or dtype), or read it as it is (a GPU).

    Raises:
        ValueError: `groups` does not divide O.
        RuntimeError: `half` with another dtype, or where there is no such type.
    """
    if weight.ndim != 4 or groups < 1 or weight.shape[0] % groups:
        raise ValueError(f"weight {tuple(weight.shape)} cannot have {groups} groups")
    if active_backend()[0] != "native" or weight.device.type != "cpu" or not _kernels_take(weight.detach()):
        return None
    packed: Tensor = torch.ops.dcnzoo.pack_deform_conv2d_weight(weight.detach(), groups, half)
    return packed


def released(weight: Tensor) -> Tensor:
    """What stands for a weight that is kept packed only: its shape and dtype, one NaN for all elements."""
    return weight.new_full((), math.nan).expand_as(weight)


def _is_released(weight: Tensor) -> bool:
    return not any(weight.stride()) and bool(weight[:1, :1, :1, :1].isnan().any())


def _compute_elsewhere(
    tensors: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    scale: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """The convolution by torchvision or the reference; short floats in float32, as the compiled kernels."""
    dtype = tensors[0].dtype
    wide = wide_dtype(dtype)
    x, offset, weight = (tensor.to(wide) for tensor in tensors)
    bias, scale = (None if tensor is None else tensor.to(wide) for tensor in (bias, scale))
    if active_backend()[0] == "reference":
        compute = reference.deform_conv2d
    else:
        compute = _torchvision_deform_conv2d()
        offset = offset.nan_to_num(torch.inf, torch.inf, -torch.inf)  # it takes NaN for a place in memory
    output = compute(x, offset, weight, bias, mask=scale, stride=stride, padding=padding, dilation=dilation)
    return output.to(dtype)


def _torchvision_deform_conv2d() -> Callable[..., Tensor]:
    from torchvision.ops import deform_conv2d as compute

    return cast("Callable[..., Tensor]", compute)


def _kernels_take(*tensors: Tensor | None) -> bool:
    """Whether the compiled kernels compute with these."""
    present = [t for t in tensors if t is not None]
    device = present[0].device
    if any(t.device != device or t.dtype not in KERNEL_DTYPES for t in present):
        return False
    return device.type == "cpu" or (device.type == "cuda" and gpu_problem(device.index) is None)


if NATIVE_PROBLEM is None:

    @torch.library.register_fake("dcnzoo::deform_conv2d_by_kernel")  # type: ignore[untyped-decorator]
    @torch.library.register_fake("dcnzoo::deform_conv2d_tf32")  # type: ignore[untyped-decorator]
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
    def _fake_pack_deform_conv2d_weight(weight: Tensor, groups: int, half: bool = False) -> Tensor:
        numel = torch.ops.dcnzoo.packed_deform_conv2d_numel(weight.shape, groups, weight.dtype, half)
        return weight.new_empty(numel, dtype=half_factor() if half else None)

    def _autocast_rule(
        dtype: torch.dtype,
        input: Tensor,
        weight: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        packed_weight: Tensor | None = None,
        *flags: bool,
    ) -> tuple[object, ...]:
        x, low_weight, low_bias = autocast.lowered_to(dtype, input, weight, bias)
        packed = packed_weight if low_weight is weight else None
        return x, low_weight, offset, mask, low_bias, stride, padding, dilation, packed, *flags

    autocast.register_rule("deform_conv2d", _autocast_rule)
    autocast.register_rule("deform_conv2d_tf32", _autocast_rule)
    deform_conv2d_grad.register()


def _check_dtypes(input: Tensor, weight: Tensor, bias: Tensor | None, packed_weight: Tensor | None) -> None:
    found = [input.dtype, weight.dtype] + ([] if bias is None else [bias.dtype])
    if input.dtype == torch.bfloat16 and packed_weight is not None and packed_weight.dtype == torch.bfloat16:
        found[0] = weight.dtype  # a map of 16-bit factors
    if len(set(found)) > 1:
        raise ValueError(f"input, weight and bias must have one dtype, got {', '.join(map(str, found))}")


def _check_kinds(tensors: tuple[Tensor | None, ...]) -> None:
    given = [tensor for tensor in tensors if tensor is not None]
    if len({tensor.device for tensor in given}) != 1 or not all(t.is_floating_point() for t in given):
        found = " and ".join(sorted({f"{tensor.dtype} on {tensor.device}" for tensor in given}))
        raise ValueError(f"expected floating point tensors on one device, got {found}")


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
    groups = channels // max(1, group_channels)
    if groups == 0 or groups * group_channels != channels or out_channels % groups:
        raise ValueError(
            f"weight {tuple(weight.shape)} does not divide {channels} input channels into groups"
        )
    out_size = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip(input.shape[2:], kernel, stride, padding, dilation, strict=True)
    )
    if min(out_size) < 1:
        raise ValueError(
            f"input {tuple(input.shape)} is smaller than a kernel {tuple(kernel)} with this geometry"
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

"""RoIAlign as the detectors use it: aligned (half-pixel) with an adaptive sampling grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from dcnzoo.ops import autocast, reference, roi_pool_grad
from dcnzoo.ops.backend import NATIVE_PROBLEM, active_backend, half_factor
from dcnzoo.ops.gpu import gpu_problem
from dcnzoo.ops.types import KERNEL_DTYPES, Pair, wide_dtype

_LARGEST_SIDE = 2**15


def roi_align(input: Tensor, rois: Tensor, *, output_size: Pair, spatial_scale: float) -> Tensor:
    """Pools each RoI to a fixed size (arXiv:1703.06870), ceil(RoI/output) samples per bin and axis.

    Positions and sums are float32 at least. Autocast lowers the map. There is a derivative by the map, none
    by the RoIs.

    Args:
        input: (N, C, H, W) feature map.
        rois: (R, 5) image index in the batch, then xyxy in the frame of the image.
        output_size: (rows, columns) of bins.
        spatial_scale: pixels of the map per pixel of the image (1 / stride).

    Returns:
        (R, C, *output_size) in the dtype of `input`.

    Raises:
        ValueError: other shapes, no bins, or an image that is not there.
    """
    _check_shapes(input, rois, output_size)
    (input,) = cast(tuple[Tensor], autocast.lowered(input))
    backend, _ = active_backend()
    if backend == "native" and kernels_take_rois(input, rois):
        aligned: Tensor = torch.ops.dcnzoo.roi_pool(input, rois, None, output_size, spatial_scale, 0.0)
        return aligned
    wide = wide_dtype(input.dtype)
    maps, boxes = input.to(wide), rois.to(wide)
    if backend == "reference":
        pooled: Tensor = reference.deform_roi_pool(
            maps, boxes, output_size=output_size, spatial_scale=spatial_scale
        )
        return pooled.to(input.dtype)
    if rois.device.type == "cpu":  # on a GPU the look at the values would wait for all that was begun
        _check_values(boxes, len(input), spatial_scale)
    if input.numel() == 0:  # torchvision would look for the last row and column
        return input.new_zeros((len(rois), input.shape[1], *output_size))
    from torchvision.ops import roi_align as torchvision_roi_align

    pooled = torchvision_roi_align(maps, boxes, output_size, spatial_scale, sampling_ratio=-1, aligned=True)
    return pooled.to(input.dtype)


def roi_align_pyramid(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    *,
    output_size: Pair,
    spatial_scales: Sequence[float],
    half_output: bool = False,
) -> Tensor:
    """`roi_align` of each RoI from its own level of a pyramid (arXiv:1612.03144).

    Args:
        inputs: feature maps (N, C, H, W), one per level.
        rois: (R, 5) image index in the batch, then xyxy in the frame of the image.
        levels: (R,) int64, index into `inputs` for each RoI.
        output_size: (rows, columns) of bins.
        spatial_scales: pixels of each map per pixel of the image.
        half_output: on a CPU, the compiled kernels' output of float32 maps is of the type that
            `dcnzoo.ops.backend.half_factor` names.

    Returns:
        (R, C, *output_size) in the dtype of the inputs, in the order of `rois`.
    """
    inputs = cast("list[Tensor]", list(autocast.lowered(*inputs))) if inputs else []
    native = active_backend()[0] == "native" and all(kernels_take_rois(input, rois) for input in inputs)
    if native and not _trains(*inputs):  # that kernel knows no derivatives
        scales = list(spatial_scales)
        aligned: Tensor = torch.ops.dcnzoo.roi_align_pyramid(
            inputs, rois, levels, scales, output_size, half_output
        )
        return aligned

    def pool(level: int, rois: Tensor) -> Tensor:
        return roi_align(inputs[level], rois, output_size=output_size, spatial_scale=spatial_scales[level])

    return pool_levels(inputs, rois, levels, output_size, pool)


def pool_levels(
    inputs: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    output_size: Pair,
    pool: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Pools level by level and puts the RoIs back in order; on a GPU without waiting for the numbers of RoIs.

    Args:
        inputs: feature maps (N, C, H, W), one per level.
        rois: (R, 5).
        levels: (R,) int64, index into `inputs` for each RoI.
        output_size: (rows, columns) of bins.
        pool: (level, its RoIs (S, 5)) → (S, C, *output_size).

    Returns:
        (R, C, *output_size) in the order of `rois`.
    """
    if rois.device.type == "cuda":
        return pool_levels_in_fixed_shape(inputs, rois, levels, pool)
    (like,) = cast(tuple[Tensor], autocast.lowered(inputs[0]))
    pooled = like.new_zeros(len(rois), like.shape[1], *output_size).contiguous(
        memory_format=torch.channels_last
    )
    for level in range(len(inputs)):
        chosen = (levels == level).nonzero()[:, 0]
        if len(chosen):
            pooled[chosen] = pool(level, rois[chosen])
    return pooled


def pool_levels_in_fixed_shape(
    inputs: Sequence[Tensor], rois: Tensor, levels: Tensor, pool: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """As `pool_levels`: each level pools all RoIs, foreign ones as boxes of zeros, which pool to zeros."""
    of_level = (torch.where((levels == level)[:, None], rois, 0.0) for level in range(len(inputs)))
    return sum((pool(level, chosen) for level, chosen in enumerate(of_level)), start=inputs[0].new_zeros(()))


def _check_values(rois: Tensor, num_images: int, spatial_scale: float) -> None:
    """Refuses RoIs with which torchvision would read other memory: it counts the samples of one in an int."""
    if not ((rois[:, 0] >= 0) & (rois[:, 0] < num_images)).all():
        raise ValueError(f"the first column of the RoIs must name images, 0 to {num_images - 1}")
    corners = rois[:, 1:] * spatial_scale
    sides = (corners[:, 2:] - corners[:, :2]).abs()
    if not (sides <= _LARGEST_SIDE).all():  # nor is a corner infinite, or no number
        raise ValueError(f"sides of RoIs must be numbers of at most {_LARGEST_SIDE} pixels of the map")


def kernels_take_rois(input: Tensor, rois: Tensor, offset: Tensor | None = None) -> bool:
    """Whether the compiled kernels compute with these."""
    tensors = [input, rois] if offset is None else [input, rois, offset]
    if any(t.device != input.device or t.dtype not in KERNEL_DTYPES for t in tensors) or input.numel() == 0:
        return False
    if input.device.type == "cuda":
        return gpu_problem(input.device.index) is None
    return input.device.type == "cpu"


def _trains(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


if NATIVE_PROBLEM is None:

    @torch.library.register_fake("dcnzoo::roi_pool")  # type: ignore[untyped-decorator]
    def _fake_roi_pool(
        input: Tensor,
        rois: Tensor,
        offset: Tensor | None,
        output_size: Pair,
        *_: object,
    ) -> Tensor:
        shape = (rois.shape[0], input.shape[1], *output_size)
        return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)

    @torch.library.register_fake("dcnzoo::roi_align_pyramid")  # type: ignore[untyped-decorator]
    def _fake_roi_align_pyramid(
        inputs: list[Tensor],
        rois: Tensor,
        levels: Tensor,
        spatial_scales: list[float],
        output_size: Pair,
        half_output: bool = False,
    ) -> Tensor:
        shape = (rois.shape[0], inputs[0].shape[1], *output_size)
        pooled = inputs[0].new_empty(shape, dtype=half_factor() if half_output else None)
        return pooled.contiguous(memory_format=torch.channels_last)

    def _pool_autocast_rule(dtype: torch.dtype, input: Tensor, *others: object) -> tuple[object, ...]:
        return *autocast.lowered_to(dtype, input), *others

    def _pyramid_autocast_rule(
        dtype: torch.dtype, inputs: list[Tensor], *others: object
    ) -> tuple[object, ...]:
        return list(autocast.lowered_to(dtype, *inputs)), *others

    autocast.register_rule("roi_pool", _pool_autocast_rule)
    autocast.register_rule("roi_align_pyramid", _pyramid_autocast_rule)
    roi_pool_grad.register()


def _check_shapes(input: Tensor, rois: Tensor, output_size: Pair) -> None:
    if input.ndim != 4 or rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(
            f"expected maps (N, C, H, W) and RoIs (R, 5), got {tuple(input.shape)} and {tuple(rois.shape)}"
        )
    if min(output_size) < 1:
        raise ValueError(f"expected at least one bin per axis, got {output_size}")

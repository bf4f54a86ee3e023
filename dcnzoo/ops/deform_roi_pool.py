"""Deformable RoI pooling.

Shape letters: N images, C channels, H, W map size, R RoIs, P output bins per axis.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from dcnzoo.ops import autocast, reference
from dcnzoo.ops.backend import active_backend
from dcnzoo.ops.roi_align import kernels_take_rois, roi_align
from dcnzoo.ops.types import Pair, wide_dtype

_MARGIN = 1e-4
"""Pixels by which a bin keeps away from a whole number of them."""


def deform_roi_pool(
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None = None,
    *,
    output_size: Pair,
    spatial_scale: float = 1.0,
    gamma: float = 0.1,
) -> Tensor:
    """Deformable RoI pooling (arXiv:1703.06211): RoIAlign whose bins are shifted, each by its own offset.

    Positions and sums are float32 at least. Autocast lowers the map. There are derivatives by the map and the
    offsets, none by the RoIs.

    Args:
        input: (N, C, H, W) feature map.
        rois: (R, 5) image index in the batch, then xyxy in the frame of the image.
        offset: (R, 2, P, P) shift of each bin, first x, then y, in units of gamma × RoI width (height);
            None shifts nothing.
        output_size: (rows, columns) of bins.
        spatial_scale: pixels of the map per pixel of the image (1 / stride).
        gamma: scale of the offsets.

    Returns:
        (R, C, P, P) in the dtype of `input`.

    Raises:
        ValueError: `offset` of another shape than (R, 2, P, P).
    """
    if offset is None:
        return roi_align(input, rois, output_size=output_size, spatial_scale=spatial_scale)
    expected = (rois.shape[0], 2, *output_size)
    if tuple(offset.shape) != expected:
        raise ValueError(f"offset must be {expected}, got {tuple(offset.shape)}")
    (input,) = cast(tuple[Tensor], autocast.lowered(input))
    backend, _ = active_backend()
    if backend == "native" and kernels_take_rois(input, rois, offset):
        pooled: Tensor = torch.ops.dcnzoo.roi_pool(input, rois, offset, output_size, spatial_scale, gamma)
        return pooled
    wide = wide_dtype(input.dtype)
    maps, boxes, shifts = input.to(wide), rois.to(wide), offset.to(wide)
    if backend == "reference":
        pooled = reference.deform_roi_pool(
            maps, boxes, shifts, output_size=output_size, spatial_scale=spatial_scale, gamma=gamma
        )
        return pooled.to(input.dtype)
    if torch.is_grad_enabled() and shifts.requires_grad:  # torchvision knows no derivative by a bin's place
        return _pool_samples(maps, boxes, shifts, spatial_scale, gamma).to(input.dtype)
    bins = _shifted_bins(boxes, shifts, output_size, spatial_scale, gamma)
    separate = roi_align(input, bins, output_size=(1, 1), spatial_scale=1.0)
    return separate.reshape(len(rois), *output_size, input.shape[1]).permute(0, 3, 1, 2)


def _shifted_bins(
    rois: Tensor, offset: Tensor, output_size: Pair, spatial_scale: float, gamma: float
) -> Tensor:
    """Every bin as a RoI of its own, (R·P·P, 5) in the frame of the feature map.

    RoIAlign of such a RoI to 1×1 takes the same samples: ceil(bin) per axis, spread over the bin.
    """
    scaled = rois[:, 1:] * spatial_scale
    size = scaled[:, 2:] - scaled[:, :2]
    bins_yx = torch.stack(
        torch.meshgrid(*[torch.arange(n, device=rois.device) for n in output_size], indexing="ij")
    )
    bin_size = size / torch.tensor(output_size[::-1], device=rois.device)
    start = scaled[:, :2, None, None] + bins_yx.flip(0) * bin_size[:, :, None, None]
    start = start + gamma * size[:, :, None, None] * offset
    # the number of samples must survive the rounding of `end - start`
    samples = bin_size.ceil()
    end = start + bin_size.clamp(samples - 1 + _MARGIN, samples - _MARGIN)[:, :, None, None]
    image = rois[:, 0, None, None, None].expand(-1, 1, *output_size)
    return torch.cat([image, start, end], dim=1).permute(0, 2, 3, 1).reshape(-1, 5)


def _pool_samples(input: Tensor, rois: Tensor, offset: Tensor, spatial_scale: float, gamma: float) -> Tensor:
    """The pooling with derivatives by the offsets, too, which RoIAlign lacks: sample by sample."""
    bins, points = _sample_points(rois, offset, spatial_scale, gamma)
    num_bins, channels = offset[:, 0].numel(), input.shape[1]
    image_of_bin = rois[:, 0].long().repeat_interleave(num_bins // max(len(rois), 1))
    size = points.new_tensor([input.shape[3], input.shape[2]])
    inside = ((points >= -1) & (points <= size)).all(dim=1)
    places = (2 * points + 1) / size - 1  # as grid_sample counts: the outer edges of the map are -1 and 1
    sums = input.new_zeros(num_bins, channels)
    for image in range(len(input)):
        chosen = (inside & (image_of_bin[bins] == image)).nonzero()[:, 0]
        values = F.grid_sample(
            input[image : image + 1],
            places[chosen][None, :, None],
            padding_mode="border",
            align_corners=False,
        )
        sums = sums.index_add(0, bins[chosen], values[0, :, :, 0].t())
    count = bins.bincount(minlength=num_bins).clamp(min=1)
    pooled = (sums / count[:, None]).reshape(len(rois), *offset.shape[2:], channels)
    return pooled.permute(0, 3, 1, 2)


def _sample_points(rois: Tensor, offset: Tensor, spatial_scale: float, gamma: float) -> tuple[Tensor, Tensor]:
    """The bin of every sample, (S,) int64 ascending, and its place, (S, 2) of (x, y) in pixels of the map."""
    rows, columns = offset.shape[2:]
    scaled = rois[:, 1:] * spatial_scale - 0.5
    size = scaled[:, 2:] - scaled[:, :2]
    bin_size = size / size.new_tensor([columns, rows])
    y, x = torch.meshgrid(
        *(torch.arange(n, dtype=size.dtype, device=size.device) for n in (rows, columns)), indexing="ij"
    )
    corner = scaled[:, :2, None, None] + torch.stack([x, y]) * bin_size[:, :, None, None]
    corner = (corner + gamma * size[:, :, None, None] * offset).permute(0, 2, 3, 1).reshape(-1, 2)
    grid = bin_size.detach().ceil().clamp(min=0).repeat_interleave(rows * columns, dim=0)
    samples = grid.prod(dim=1).long()
    bins = torch.arange(len(samples), device=size.device).repeat_interleave(samples)
    within = torch.arange(len(bins), device=size.device) - (samples.cumsum(0) - samples)[bins]
    across = grid[bins, 0].long()
    cell = torch.stack([within % across, within // across], dim=1) + 0.5
    step = bin_size.repeat_interleave(rows * columns, dim=0)[bins] / grid[bins]
    return bins, corner.index_select(0, bins) + cell * step

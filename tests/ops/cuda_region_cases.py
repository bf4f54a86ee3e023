"""Runs the CUDA kernels for regions, and that behind convolutions, on the emulated GPU, and compares.

Run as a program, it prints a line of JSON per run; see `emulated_gpu` for why it is one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcnzoo.ops import reference
from tests.ops import emulated_gpu

HALF, BFLOAT16, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
TOLERANCE = {HALF: 2e-3, BFLOAT16: 1.6e-2, SINGLE: 1e-4, DOUBLE: 1e-12}
"""Largest error of pooling, absolute: the maps have a standard deviation of 1."""

GRAD_TOLERANCE = {HALF: 1e-3, BFLOAT16: 8e-3, SINGLE: 1e-4, DOUBLE: 1e-13}
"""Largest error of a gradient, relative to its largest number."""


def random_rois(count: int, images: int, height: int, width: int) -> Tensor:
    corners = torch.rand(count, 2, 2) * torch.tensor([width, height]) * 1.2 - 0.1 * min(height, width)
    image = torch.randint(images, (count, 1)).float()
    return torch.cat([image, corners.amin(1), corners.amax(1)], dim=1)


def pooling(
    dtype: torch.dtype, channels: int, deformed: bool, output_size: tuple[int, int] = (3, 5)
) -> float:
    torch.manual_seed(0)
    maps = torch.randn(2, channels, 19, 23).to(dtype)
    rois = random_rois(20, 2, 76, 92)
    offset = torch.randn(20, 2, *output_size).to(dtype) if deformed else None
    found = emulated_gpu.roi_pool([maps], rois, None, offset, output_size=output_size, spatial_scales=[0.25])
    wanted = reference.deform_roi_pool(
        maps.double(),
        rois.double(),
        None if offset is None else offset.double(),
        output_size=output_size,
        spatial_scale=0.25,
    )
    return float((found.double() - wanted).abs().max()) / TOLERANCE[dtype]


def grads(dtype: torch.dtype, channels: int, deformed: bool, output_size: tuple[int, int] = (3, 5)) -> float:
    """Largest error of a gradient, relative to its largest number, in tolerances."""
    torch.manual_seed(0)
    maps = torch.randn(2, channels, 19, 23, dtype=torch.float64).to(dtype)
    rois = random_rois(20, 2, 76, 92).double()
    offset = torch.randn(20, 2, *output_size, dtype=torch.float64).to(dtype) if deformed else None
    grad = torch.randn(20, channels, *output_size, dtype=torch.float64).to(dtype)
    options: dict[str, Any] = {"output_size": output_size, "spatial_scale": 0.25}
    found = emulated_gpu.roi_pool_grads(grad, maps, rois, offset, **options)
    leaves = [tensor.double().requires_grad_() for tensor in (maps, offset) if tensor is not None]
    pooled = reference.deform_roi_pool(leaves[0], rois, leaves[1] if deformed else None, **options)
    wanted = torch.autograd.grad(pooled, leaves, grad.double())
    pairs = zip([tensor for tensor in found if tensor is not None], wanted, strict=True)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs) / GRAD_TOLERANCE[dtype]


def pyramid() -> float:
    torch.manual_seed(0)
    maps = [torch.randn(2, 16, 40 >> i, 48 >> i) for i in range(3)]
    rois, levels = random_rois(24, 2, 160, 192), torch.randint(3, (24,))
    scales = [1 / (4 << i) for i in range(3)]
    found = emulated_gpu.roi_pool(maps, rois, levels, None, output_size=(7, 7), spatial_scales=scales)
    error = 0.0
    for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        chosen = levels == level
        wanted = reference.deform_roi_pool(
            features.double(), rois[chosen].double(), output_size=(7, 7), spatial_scale=scale
        )
        error = max(error, float((found[chosen] - wanted).abs().max()))
    return error / TOLERANCE[SINGLE]


def impossible_rois() -> float:
    """Number of RoIs that do not pool to what the interface says."""
    nan, maps = torch.nan, torch.ones(2, 8, 9, 11)
    rois = [[-1, 1, 1, 8, 8], [2, 1, 1, 8, 8], [0, 0, 0, 1e30, 1], [0, 0, 0, nan, 1], [nan, 0, 0, 1, 1]]
    pooled = emulated_gpu.roi_pool(
        [maps], torch.tensor([*rois, [1, 1, 1, 8, 8]]), None, None, output_size=(2, 2), spatial_scales=[1.0]
    )
    padding, *wrong, usual = pooled
    right = [bool((padding == 0).all()), bool((usual == 1).all()), *(bool(p.isnan().all()) for p in wrong)]
    return float(right.count(False))


def far_offsets() -> float:
    """Largest result of bins that lie outside the map."""
    rois = torch.tensor([[0.0, 1, 1, 8, 8]]).repeat(3, 1)
    offset = torch.tensor([1e30, -1e30, torch.nan]).reshape(3, 1, 1, 1).repeat(1, 2, 1, 1)
    pooled = emulated_gpu.roi_pool(
        [torch.ones(1, 8, 9, 11)], rois, None, offset, output_size=(1, 1), spatial_scales=[1.0]
    )
    return float(pooled.abs().max())


def suppression(counts: list[int], boxes_per_problem: int, threshold: float, seed: int = 0) -> float:
    """Number of boxes about which kernel and reference disagree."""
    torch.manual_seed(len(counts))
    boxes = random_rois(len(counts) * boxes_per_problem, 1, 100, 100)[:, 1:]
    boxes = boxes.reshape(len(counts), boxes_per_problem, 4).contiguous()
    found = emulated_gpu.nms_sorted(boxes, torch.tensor(counts), threshold, seed)
    return float((found != kept_by_reference(boxes, counts, threshold)).sum())


def kept_by_reference(boxes: Tensor, counts: list[int], threshold: float) -> Tensor:
    """Which of the boxes (P, B, 4) of P problems, best first, the definition keeps: (P, B) bool."""
    wanted = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    for kept, problem, asked in zip(wanted, boxes, counts, strict=True):
        count = min(asked, len(problem))
        kept[reference.nms(problem[:count], -torch.arange(float(count)), threshold)] = True
    return wanted


def equal_boxes() -> float:
    boxes = torch.tensor([10.0, 10, 30, 40]).expand(1, 200, 4).contiguous()
    return float((emulated_gpu.nms_sorted(boxes, torch.tensor([200]), 0.5)[0].nonzero() != 0).sum())


def bias_relu(dtype: torch.dtype, with_added: bool, relu: bool, blocks: int) -> float:
    """Number of elements that are not the exact sum, rounded once."""
    torch.manual_seed(0)
    shape = (2, 24, 5, 7)
    maps, added = (
        torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    maps[0, 3, 2, 1] = torch.nan
    bias = torch.randn(24).to(dtype)
    found = emulated_gpu.bias_relu(maps, bias, added if with_added else None, relu, blocks)
    shift = bias.float()[:, None, None]
    wanted = (added.float() + shift + maps.float()) if with_added else maps.float() + shift
    wanted = (wanted.relu() if relu else wanted).to(dtype)
    return float(((found != wanted) & ~(found.isnan() & wanted.isnan())).sum())


RUNS: dict[str, Callable[[], float]] = {
    **{
        f"pooling-{dtype}-{channels}-{'deformed' if deformed else 'rigid'}": partial(
            pooling, dtype, channels, deformed
        )
        for dtype, channels in (
            (HALF, 16),
            (HALF, 300),
            (BFLOAT16, 64),
            (BFLOAT16, 9),
            (SINGLE, 140),
            (SINGLE, 7),
            (DOUBLE, 5),
        )
        for deformed in (False, True)
    },
    **{
        f"gradient-{dtype}-{channels}-{'deformed' if deformed else 'rigid'}": partial(
            grads, dtype, channels, deformed
        )
        for dtype, channels in ((DOUBLE, 35), (SINGLE, 64), (HALF, 16), (BFLOAT16, 9))
        for deformed in (False, True)
    },
    "pyramid": pyramid,
    "impossible-rois": impossible_rois,
    "far-offsets": far_offsets,
    **{
        f"bias-{dtype}-{'added' if added else 'alone'}-{relu}": partial(bias_relu, dtype, added, relu, blocks)
        for dtype, blocks in ((HALF, 2), (BFLOAT16, 1), (SINGLE, 3))
        for added, relu in ((False, True), (True, True), (True, False))
    },
    "suppression": partial(suppression, [300, 0, 1, 64, 299], 300, 0.5),
    "suppression-many": partial(suppression, [1500], 1500, 0.7, 1),
    "suppression-few": partial(suppression, [5, 3], 5, 0.3, 2),
    "suppression-more-than-there-are": partial(suppression, [70], 65, 0.3),
    "equal-boxes": equal_boxes,
}
"""Name → a run's error; at most 1 is right."""


def main() -> None:
    """Runs all, or those named."""
    torch.set_num_threads(1)
    for name, run in RUNS.items():
        if len(sys.argv) == 1 or name in sys.argv:
            print(json.dumps({"name": name, "error": run()}), flush=True)


if __name__ == "__main__":
    main()

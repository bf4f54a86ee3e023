"""Runs each CUDA kernel once on small tensors, for compute-sanitizer to watch; compares nothing."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product

import torch

from dcnzoo import ops
from dcnzoo.ops.gpu import gpu_problem
from dcnzoo.ops.gpu_tuning import KERNELS, UNTRIED

HOPPER_KERNELS = [kernel for kernel in KERNELS if kernel.startswith(UNTRIED)]
OTHER_KERNELS = [kernel for kernel in KERNELS if kernel not in (*HOPPER_KERNELS, "grouped")]


def forced_convolutions(kernels: list[str], dtypes: tuple[torch.dtype, ...]) -> None:
    """The deformable convolution by each of these kernels, on shapes that fill no tile."""
    for kernel, dtype in product(kernels, dtypes):
        print(kernel, dtype, flush=True)
        os.environ["DCNZOO_CUDA_KERNEL"] = f"{kernel}/2"
        convolve(dtype, channels=72, groups=1)
    os.environ.pop("DCNZOO_CUDA_KERNEL")


def convolutions() -> None:
    """Every kernel of the deformable convolution but those with wgmma."""
    forced_convolutions(OTHER_KERNELS, (torch.float16, torch.bfloat16, torch.float32))
    convolve(torch.float64, channels=24, groups=2)
    for channels, dtype in product((128, 256, 512), (torch.float16, torch.float32)):
        convolve(dtype, channels, groups=32)


def convolve(dtype: torch.dtype, channels: int, groups: int) -> None:
    """A modulated convolution with bias, forward and backward."""
    size = (7, 9)
    x = torch.randn(2, channels, *size, dtype=dtype, device="cuda").to(memory_format=torch.channels_last)
    offset = 2 * torch.randn(2, 18, *size, dtype=dtype, device="cuda")
    mask = torch.randn(2, 9, *size, dtype=dtype, device="cuda")
    weight = torch.randn(channels, channels // groups, 3, 3, dtype=dtype, device="cuda")
    bias = torch.randn(channels, dtype=dtype, device="cuda")
    leaves = [tensor.requires_grad_() for tensor in (x, offset, weight, bias, mask)]
    output = ops.deform_conv2d(
        x, offset, weight, bias, padding=(1, 1), mask=mask, mask_is_logits=True, relu=True
    )
    torch.autograd.grad(output.sum(), leaves)


def regions() -> None:
    """RoI pooling, rigid and deformable, forward and backward, and suppression."""
    maps = torch.randn(2, 40, 19, 23, device="cuda")
    corners = 90 * torch.rand(30, 2, 2, device="cuda")
    boxes = torch.cat([corners.amin(1), corners.amax(1)], dim=1)
    rois = torch.cat([torch.randint(-1, 2, (30, 1), device="cuda").float(), boxes], dim=1)
    offset = torch.randn(30, 2, 7, 7, device="cuda")
    options = {"output_size": (7, 7), "spatial_scale": 0.25}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        leaves = [maps.to(dtype).requires_grad_(), offset.to(dtype).requires_grad_()]
        torch.autograd.grad(ops.deform_roi_pool(leaves[0], rois, leaves[1], **options).sum(), leaves)
        odd = maps[:, :9].to(dtype).requires_grad_()
        torch.autograd.grad(ops.roi_align(odd, rois, **options).sum(), odd)
    counts = torch.tensor([300, 100], device="cuda")
    many = boxes.repeat(20, 1).reshape(2, 300, 4)
    ops.nms_sorted(many, counts, 0.5)


def dense_layers() -> None:
    """What follows the libraries' convolutions, with and without a sum, over maps that fill no block."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        maps = torch.randn(1, 24, 7, 9, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        bias = torch.randn(24, device="cuda", dtype=dtype)
        torch.ops.dcnzoo.bias_relu_(maps, bias, None, True)
        torch.ops.dcnzoo.bias_relu_(maps, bias, maps.clone(), False)


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wgmma", choices=("with", "without", "only"), default="with")
    wgmma = parser.parse_args().wgmma
    problem = gpu_problem()
    if problem is not None:
        raise SystemExit(problem)
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    if wgmma != "only":
        convolutions()
        regions()
        dense_layers()
    if wgmma != "without" and torch.cuda.get_device_capability() == (9, 0):
        forced_convolutions(HOPPER_KERNELS, (torch.float16, torch.bfloat16))
    torch.cuda.synchronize()
    print("ran every kernel")


if __name__ == "__main__":
    sys.exit(main())

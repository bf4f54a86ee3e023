"""3×3 convolutions that learn, on a CPU.

PyTorch 2.15 (oneDNN, AVX2, channels-last) computes the gradient of the weight at a fraction of the speed
of the forward pass, the slower the larger the map. Here it is nine matrix products: with a border of zeros
around both, map and gradient are matrices with a row per pixel, and a tap of the kernel is a distance between
rows.

Shape letters: N images, C channels, O output channels, H, W map size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST_PRODUCTS = 2**23
LEAST_PIXELS = 2**11
"""Multiplications per tap, and pixels of the maps, from which on this is faster than PyTorch."""

Convolve = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Maps (N, C, H, W) by a weight (O, C, 3, 3) and a bias (O,) to (N, O, H, W), without derivatives."""


def is_faster(input: Tensor, weight: Tensor) -> bool:
    """Whether `conv3x3` is what to call: there will be a gradient of the weight, and it is large."""
    images, channels, height, width = input.shape
    pixels = images * height * width
    return (
        not torch.compiler.is_compiling()  # first, lest a trace depends on the size that it saw
        and input.device.type == "cpu"
        and input.dtype == weight.dtype
        and input.dtype in (torch.float32, torch.float64)
        and weight.requires_grad
        and torch.is_grad_enabled()
        and pixels >= LEAST_PIXELS
        and pixels * channels * weight.shape[0] >= LEAST_PRODUCTS
        and not torch.is_autocast_enabled("cpu")
    )


def conv3x3(input: Tensor, weight: Tensor, bias: Tensor | None, convolve: Convolve) -> Tensor:
    """3×3 convolution with stride 1 and padding 1.

    Args:
        input: (N, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,).
        convolve: computes it, and the gradient of the input.

    Returns:
        (N, O, H, W); can be differentiated once.
    """
    output: Tensor = _Conv3x3.apply(input, weight, bias, convolve)
    return output


def weight_grad(input: Tensor, grad: Tensor) -> Tensor:
    """Gradient of the weight.

    Args:
        input: (N, C, H, W) of the convolution.
        grad: (N, O, H, W) of its output.

    Returns:
        (O, C, 3, 3).
    """
    channels, width = input.shape[1], input.shape[3] + 2
    pixels = F.pad(input.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).reshape(-1, channels)
    grads = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, 2, 0, 2)).reshape(-1, grad.shape[1])
    count = len(grads) - 2 * width - 2  # what is left of `grads` belongs to the border of the last image
    taps = grad.new_empty(3, 3, grad.shape[1], channels)
    for row in range(3):
        for column in range(3):
            first = row * width + column
            torch.mm(grads[:count].t(), pixels[first : first + count], out=taps[row, column])
    return taps.permute(2, 3, 0, 1)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, convolve: Convolve) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.convolve = convolve
        return convolve(input, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None]:
        input, weight = ctx.saved_tensors
        wants_input, _, wants_bias, _ = ctx.needs_input_grad
        turned = weight.flip(2, 3).transpose(0, 1)
        input_grad = ctx.convolve(grad, turned, None) if wants_input else None
        return input_grad, weight_grad(input, grad), grad.sum((0, 2, 3)) if wants_bias else None, None

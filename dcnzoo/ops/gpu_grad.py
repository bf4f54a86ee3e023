"""Derivatives of the deformable convolution on a GPU: matrix products of PyTorch, sampling of our own.

The samples of some output pixels at a time are laid out as columns, (G, pixels, T·C/G) in the dtype of
the input, whose product with the weight is the output. Sums are float32, for float64 float64; a product in
float16 or bfloat16 is rounded once per piece. Shape letters as in `deform_conv2d`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from dcnzoo.ops.types import Pair, wide_dtype

COLUMN_BYTES = 128 << 20
"""Most memory that columns take."""


def register() -> None:
    """Makes these the CUDA kernels of the operators, which must be loaded."""
    for name, kernel in (("input_grads", input_grads), ("weight_grad", weight_grad)):
        torch.library.impl(f"dcnzoo::deform_conv2d_{name}", "CUDA", kernel)


def input_grads(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask_is_logits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of what is sampled and where, given that of the output, (N, O, Ho, Wo).

    The input's is added up by atomic additions, whose order changes from run to run; the others are
    always the same.

    Returns:
        Gradients of input (channels-last), offset and mask (empty without a mask).

    Raises:
        RuntimeError: deterministic algorithms were asked for.
    """
    refuse_if_deterministic("deform_conv2d")
    images, channels, height, width = input.shape
    sums = torch.zeros((images, height, width, channels), dtype=wide_dtype(input.dtype), device=input.device)
    grad_input = sums.permute(0, 3, 1, 2)
    grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    grad_mask = None if mask is None else torch.empty_like(mask, memory_format=torch.contiguous_format)
    rows, matrix = _rows(grad.to(input.dtype), input, weight), weight_matrix(input, weight)
    call = (input, weight, offset, mask, stride, padding, dilation, mask_is_logits)
    for begin, end in column_pieces(rows.shape[1], matrix):
        columns = torch.bmm(rows[:, begin:end], matrix)
        torch.ops.dcnzoo.deform_conv2d_scatter_(grad_input, grad_offset, grad_mask, columns, *call, begin)
    return grad_input.to(input.dtype), grad_offset, offset.new_empty(0) if grad_mask is None else grad_mask


def weight_grad(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask_is_logits: bool,
) -> Tensor:
    """Gradient of the weight, given that of the output, (N, O, Ho, Wo)."""
    rows, matrix = _rows(grad.to(input.dtype), input, weight), weight_matrix(input, weight)
    sums = torch.zeros_like(matrix, dtype=wide_dtype(input.dtype))
    call = (input, weight, offset, mask, stride, padding, dilation, mask_is_logits)
    for begin, end in column_pieces(rows.shape[1], matrix):
        columns = torch.ops.dcnzoo.deform_conv2d_columns(*call, begin, end - begin)
        sums += torch.bmm(rows[:, begin:end].transpose(1, 2), columns)
    out_channels, group_channels, *kernel = weight.shape
    by_tap = sums.to(weight.dtype).reshape(out_channels, *kernel, group_channels)
    return by_tap.permute(0, 3, 1, 2).contiguous()


def refuse_if_deterministic(operator: str) -> None:
    """Does what PyTorch does where `torch.use_deterministic_algorithms` cannot be obeyed.

    Raises:
        RuntimeError: unless a warning is enough.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = f"the gradient of {operator}'s input has no deterministic implementation on a GPU"
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _rows(grad: Tensor, input: Tensor, weight: Tensor) -> Tensor:
    """(N, O, Ho, Wo) → (G, pixels, O/G)."""
    groups = input.shape[1] // weight.shape[1]
    by_pixel = grad.permute(0, 2, 3, 1).reshape(-1, groups, grad.shape[1] // groups)
    return by_pixel.transpose(0, 1)


def weight_matrix(input: Tensor, weight: Tensor) -> Tensor:
    """(O, C/G, kernel height, kernel width) → (G, O/G, T·C/G)."""
    groups = input.shape[1] // weight.shape[1]
    return weight.permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)


def column_pieces(pixels: int, matrix: Tensor) -> Iterator[tuple[int, int]]:
    """Ranges of output pixels whose columns take no more than `COLUMN_BYTES`.

    Args:
        pixels: of all images.
        matrix: of `weight_matrix`.
    """
    step = max(1, COLUMN_BYTES // (matrix.shape[0] * matrix.shape[2] * matrix.element_size()))
    for begin in range(0, pixels, step):
        yield begin, min(begin + step, pixels)

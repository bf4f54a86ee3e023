"""Derivatives of the compiled RoI pooling, by the map and by the offsets of the bins.

Shape letters as in `deform_roi_pool`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcnzoo.ops.derivatives import refuse_second_derivatives
from dcnzoo.ops.gpu_grad import refuse_if_deterministic
from dcnzoo.ops.types import Pair


def register() -> None:
    """Tells PyTorch the derivatives of torch.ops.dcnzoo.roi_pool, which must be loaded."""
    torch.library.register_fake("dcnzoo::roi_pool_grads", _fake_grads)
    torch.library.register_autograd("dcnzoo::roi_pool", _backward, setup_context=_save_for_backward)
    refuse_second_derivatives("deform_roi_pool", "roi_pool_grads")


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    x, rois, offset, *ctx.options = inputs
    ctx.save_for_backward(x, rois, offset)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    if grad.is_cuda:
        refuse_if_deterministic("deform_roi_pool")
    grad_input, grad_offset = torch.ops.dcnzoo.roi_pool_grads(grad, *ctx.saved_tensors, *ctx.options)
    by_input, _, by_offset, *_ = ctx.needs_input_grad
    return grad_input if by_input else None, None, grad_offset if by_offset else None, None, None, None


def _fake_grads(
    grad: Tensor, input: Tensor, rois: Tensor, offset: Tensor | None, output_size: Pair, *_: float
) -> tuple[Tensor, Tensor]:
    del grad
    grad_input = torch.empty_like(input, memory_format=torch.channels_last)
    if offset is None:
        return grad_input, input.new_empty(rois.shape[0], 0, *output_size)
    return grad_input, torch.empty_like(offset, memory_format=torch.contiguous_format)

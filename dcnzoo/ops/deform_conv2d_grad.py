"""Derivatives of the compiled deformable convolution.

Shape letters as in `deform_conv2d`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dcnzoo.ops import gpu_grad
from dcnzoo.ops.derivatives import refuse_second_derivatives
from dcnzoo.ops.types import Pair


def register() -> None:
    """Tells PyTorch the derivatives of torch.ops.dcnzoo.deform_conv2d, which must be loaded."""
    gpu_grad.register()
    torch.library.register_fake("dcnzoo::deform_conv2d_input_grads", _fake_input_grads)
    torch.library.register_fake("dcnzoo::deform_conv2d_weight_grad", _fake_weight_grad)
    for name in ("deform_conv2d", "deform_conv2d_tf32"):
        torch.library.register_autograd(f"dcnzoo::{name}", _backward, setup_context=_save_for_backward)
    refuse_second_derivatives("deform_conv2d", "deform_conv2d_input_grads", "deform_conv2d_weight_grad")


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, offset, mask, _, *geometry, _, mask_is_logits, relu = inputs
    ctx.save_for_backward(x, weight, offset, mask, output if relu else None)
    ctx.options = (*geometry, mask_is_logits)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, offset, mask, output = ctx.saved_tensors
    wanted = dict(zip(("input", "weight", "offset", "mask", "bias"), ctx.needs_input_grad, strict=False))
    if output is not None:  # ReLU
        grad = grad.masked_fill(output <= 0, 0)
    found: dict[str, Tensor] = {}
    arguments = (grad, x, weight, offset, mask, *ctx.options)
    if wanted["input"] or wanted["offset"] or wanted["mask"]:
        grads = torch.ops.dcnzoo.deform_conv2d_input_grads(*arguments)
        found |= dict(zip(("input", "offset", "mask"), grads, strict=True))
    if wanted["weight"]:
        found["weight"] = torch.ops.dcnzoo.deform_conv2d_weight_grad(*arguments)
    if wanted["bias"]:
        found["bias"] = grad.sum((0, 2, 3))
    given = tuple(found.get(name) if needed else None for name, needed in wanted.items())
    return given + (None,) * (len(ctx.needs_input_grad) - len(given))


def _fake_input_grads(
    grad: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, *_: Pair | bool
) -> tuple[Tensor, Tensor, Tensor]:
    del grad, weight
    grad_input = torch.empty_like(input, memory_format=torch.channels_last)
    grad_offset = torch.empty_like(offset, memory_format=torch.contiguous_format)
    if mask is None:
        return grad_input, grad_offset, offset.new_empty(0)
    return grad_input, grad_offset, torch.empty_like(mask, memory_format=torch.contiguous_format)


def _fake_weight_grad(grad: Tensor, input: Tensor, weight: Tensor, *_: object) -> Tensor:
    del grad, input
    return torch.empty_like(weight, memory_format=torch.contiguous_format)

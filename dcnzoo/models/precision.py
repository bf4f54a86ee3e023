"""A detector on a CPU in a lower precision: what is rounded, and what stays float32.

A detection hangs on comparisons (which proposals are kept, which of two boxes suppresses the other), so
small errors change it. There are two ways, and docs/performance.md says what each choice gave.

Where the processor multiplies float16 or bfloat16 at twice the rate of float32
(`dcnzoo.ops.backend.half_factor`), factors are rounded to that type within the layers, and maps stay float32.
That is done in nearly all of them, but not in

- the stem, since the image itself would lose grey levels;
- the last layers, where rounded scores are ties;
- with float16, what predicts offsets;
- with bfloat16, the first shortcut's convolution, whose errors all stages inherit and whose time goes by
  for memory.

bfloat16 is coarser, so weights of 1×1 and deformable convolutions are rounded so that their errors cancel.
Maps inside a bottleneck, and what is pooled for the box head, are stored in it: the layers behind them round
them anyway.

Elsewhere layers compute in the lower precision themselves, maps and all, and these stay float32:

- the stem, and stages c2 and c3, whose errors all inherit;
- the pyramid, the proposals and the convolutions of the masks: nearly all their work is plain 3×3
  convolutions, which Winograd's algorithm computes with a quarter of the multiplications;
- what predicts offsets, and the last layers;
- the sums along the shortcuts, which would be rounded in every block.

What multiplies in the lower precision are then the 1×1, deformable, grouped and strided convolutions of c4
and c5, and the linear layers.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from dcnzoo.models.dcn import DeformConv2d
from dcnzoo.models.fold import FoldedBasicBlock, FoldedBottleneck
from dcnzoo.models.layers import (
    Conv1x1,
    Conv3x3,
    ConvTranspose2x2,
    GroupedConv3x3,
    Linear,
    StridedConv3x3,
)
from dcnzoo.models.rcnn import RCNN
from dcnzoo.models.roi_features import RoIAlign
from dcnzoo.ops import dense
from dcnzoo.ops.backend import half_factor

_LAST = ("fc_cls", "fc_reg", "rpn_cls", "rpn_reg")
_OFFSETS = "conv_offset"
_FIRST_SHORTCUT = "backbone.layer1.0.downsample"
"""Names of layers that stay float32, some of them always (see above)."""

_HALF_LAYERS = (Conv1x1, Conv3x3, ConvTranspose2x2, DeformConv2d, Linear, StridedConv3x3)
"""Layers that can round their factors to 16 bits."""


def lower_precision(model: RCNN, dtype: torch.dtype) -> RCNN:
    """Prepares a detector on a CPU for a lower precision, in place.

    Args:
        model: with batch norm folded, in float32; not packed yet.
        dtype: of what is lowered, where nothing is multiplied faster (see above).

    Returns:
        `model`; it takes float32 images.
    """
    if half_factor() is not None:
        return _multiply_in_half(model)
    backbone = model.backbone
    parts = (backbone.conv1, backbone.layer1, backbone.layer2, model.neck, model.rpn_head)
    wide = {module for part in parts for module in part.modules()}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear | DeformConv2d):
            continue
        kept = isinstance(module, Conv3x3) or module in wide or name.rpartition(".")[2] in (*_LAST, _OFFSETS)
        if not kept:
            _lower(module, dtype)
        module.register_forward_pre_hook(_take_any_input)
    for module in backbone.modules():
        if isinstance(module, FoldedBasicBlock):
            module.conv2.register_forward_hook(partial(_put_out, torch.float32))
        elif isinstance(module, FoldedBottleneck):
            module.conv2.register_forward_hook(partial(_put_out, module.conv3.weight.dtype))
            if module.downsample is not None:
                module.downsample.register_forward_hook(partial(_put_out, torch.float32))
    return model


def round_kernels(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds a convolution's weight so that the errors of a kernel's taps cancel.

    Neighbouring pixels are nearly equal, so the sum of a kernel's errors counts more than each of them:
    every tap is rounded together with the error of the tap before (error diffusion, in one dimension).

    Args:
        weight: (O, C, kernel height, kernel width).
        dtype: of the result.

    Returns:
        The rounded weight, of the same shape.
    """
    taps = weight.flatten(2)
    rounded = torch.empty_like(taps, dtype=dtype)
    error = torch.zeros_like(taps[..., 0])
    for tap in range(taps.shape[-1]):
        wanted = taps[..., tap] + error
        rounded[..., tap] = wanted
        error = wanted - rounded[..., tap].to(weight.dtype)
    return rounded.reshape(weight.shape)


def round_balanced(weight: Tensor) -> Tensor:
    """Rounds a weight to bfloat16 so that the errors of each output cancel.

    Inputs behind ReLU are not negative, so the sum of an output's errors moves all of its pixels alike.
    Weights near the middle between two numbers, for which it makes the least difference, are rounded the
    other way until that sum is about 0 (bias correction without data, in the manner of arXiv:1906.04721).

    Args:
        weight: (O, …), float32.

    Returns:
        bfloat16 numbers as float32, of the same shape.
    """
    exact = weight.flatten(1)
    nearest = exact.bfloat16()
    error = nearest.float() - exact
    bits = nearest.view(torch.int16)
    other = torch.where((error > 0) == (nearest > 0), bits - 1, bits + 1).view(torch.bfloat16)
    change = other.float() - nearest.float()
    total = error.sum(1, keepdim=True)
    helps = change * total < 0
    from_middle = (1 - 2 * (error / change).abs()).masked_fill(~helps, torch.inf)
    enough = min(exact.shape[1], 8 + 4 * int(exact.shape[1] ** 0.5))  # the sum is that of random errors
    candidates = from_middle.topk(enough, largest=False).indices
    sums = total + change.where(helps, 0.0).gather(1, candidates).cumsum(1)
    count = torch.cat([total, sums], 1).abs().argmin(1, keepdim=True)  # so many go the other way
    swapped = torch.zeros_like(helps).scatter_(1, candidates, torch.arange(enough) < count)
    return torch.where(helps & swapped, other, nearest).to(weight.dtype).reshape(weight.shape)


def _multiply_in_half(model: RCNN) -> RCNN:
    coarse = half_factor() == torch.bfloat16
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        kept = last in _LAST or (name == _FIRST_SHORTCUT if coarse else last == _OFFSETS)
        if kept or not isinstance(module, _HALF_LAYERS):
            continue
        module.half_products = True
        if coarse and isinstance(module, Conv1x1):
            module.weight = nn.Parameter(round_balanced(module.weight), requires_grad=False)
        elif coarse and isinstance(module, DeformConv2d):
            rounded = round_kernels(module.weight, torch.bfloat16).to(module.weight.dtype)
            module.weight = nn.Parameter(rounded, requires_grad=False)
    if coarse:
        for block in model.modules():
            if isinstance(block, FoldedBottleneck):
                _store_in_half(block)
        if isinstance(model.roi_head.bbox_roi_extractor, RoIAlign):
            model.roi_head.bbox_roi_extractor.half_output = True
    return model


def _store_in_half(block: FoldedBottleneck) -> None:
    """Has the maps between the convolutions of a block stored in 16 bits."""
    conv2 = block.conv2
    if isinstance(conv2, Conv3x3) or (
        isinstance(conv2, GroupedConv3x3) and dense.packs_grouped_conv3x3(conv2.weight)
    ):
        block.conv1.half_output = conv2.half_output = True
    elif isinstance(conv2, DeformConv2d):  # whose output is of the type of its input
        block.conv1.half_output = True


def _lower(module: nn.Conv2d | nn.ConvTranspose2d | nn.Linear | DeformConv2d, dtype: torch.dtype) -> None:
    weight, bias = module.weight, module.bias
    if weight.ndim == 4 and not isinstance(module, nn.ConvTranspose2d):
        lowered = round_kernels(weight, dtype).to(memory_format=torch.channels_last)
    else:  # the taps of a transposed convolution meet in no sum
        lowered = weight.to(dtype)
    module.weight = nn.Parameter(lowered, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


def _take_any_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return (inputs[0].to(weight.dtype),)


def _put_out(dtype: torch.dtype, _module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output.to(dtype)

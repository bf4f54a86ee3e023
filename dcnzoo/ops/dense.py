"""Dense layers: convolution and matrix product with packed weights and fused ReLU.

Each function takes a layer's weight and, optionally, what its `pack_…_weight` made of it. With the latter the
compiled kernels compute (float32, and 16 bits as below; no gradients); without it, PyTorch does, but for
large `conv3x3` that learn, whose derivatives are those of `conv_grad` (once, and not in `torch.func`). The
results agree to rounding: `conv3x3` is Winograd's (arXiv:1509.09308), with an error of about 1e-5 standard
deviations of the output at most, and 1e-6 in the mean; `small_conv3x3` has 15 and 9 times that. Large linear
layers and 1×1 convolutions take one step of Strassen's algorithm, with 1e-5 at most, and 4e-7 in the mean.

Packed weights are for this process, and for that weight: pack again when the weight changes. With `half` they
consist of 16-bit factors, the inputs are rounded to such as well, and multiplied at twice the rate of
float32; `dcnzoo.ops.backend.half_factor` says of what type, or that the processor has none (RuntimeError
then). The results are float32, with errors of about 2e-3 standard deviations of the output in the mean, in
`conv3x3` 5e-3 and in `small_conv3x3` up to three times that. With float16, sums of up to 128 products are
float16, too, and what exceeds 65504 becomes infinite.

On a GPU its libraries compute, and bias, shortcut and ReLU follow a convolution in one pass of the compiled
kernels, which PyTorch's own operators would take two or three for.

Where a layer rounds its input anyway, the one before may store it so (`half_output`), which halves what goes
through memory: convolutions and linear layers with 16-bit factors take inputs of that type, too.

Shape letters: N images, C channels, H, W map size, O output channels, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dcnzoo.ops import conv_grad
from dcnzoo.ops.backend import NATIVE_PROBLEM, active_backend, half_factor
from dcnzoo.ops.gpu import gpu_problem


def conv3x3(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    packed_weight: Tensor | None = None,
    half_output: bool = False,
) -> Tensor:
    """3×3 convolution with stride 1 and padding 1.

    Args:
        input: (N, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,).
        relu: negative outputs become 0.
        packed_weight: from `pack_conv3x3_weight`.
        half_output: the compiled kernels' output is of the type of `packed_weight`, a 16-bit one.

    Returns:
        (N, O, H, W), channels-last when the weight is packed.
    """
    if packed_weight is not None and _kernels_take(input, half=packed_weight.dtype):
        output: Tensor = torch.ops.dcnzoo.conv3x3(
            input, packed_weight, bias, weight.shape[0], relu, half_output
        )
        return output
    if conv_grad.is_faster(input, weight):
        return _activate(conv_grad.conv3x3(input, weight, bias, _learning_conv3x3), relu)
    return _convolve(input, weight, bias, padding=1, relu=relu)


def conv3x3_conv1x1(
    input: Tensor,
    packed_weight: Tensor,
    bias: Tensor | None,
    channels: int,
    packed_point_weight: Tensor,
    point_bias: Tensor | None,
    out_channels: int,
) -> Tensor:
    """`conv3x3` with ReLU and `conv1x1` behind it, by the compiled kernels; what is between is never stored.

    Args:
        input: (N, C, H, W) float32.
        packed_weight: from `pack_conv3x3_weight`.
        bias: (channels,).
        channels: between the two.
        packed_point_weight: from `pack_linear_weight`, not in float16.
        point_bias: (O,).
        out_channels: O, at most 64.

    Returns:
        (N, O, H, W), channels-last.
    """
    output: Tensor = torch.ops.dcnzoo.conv3x3_conv1x1(
        input, packed_weight, bias, channels, packed_point_weight, point_bias, out_channels
    )
    return output


def small_conv3x3(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """`conv3x3` for maps of 14 × 14, as RoIs have: faster there, with about ten times its rounding errors.

    Args:
        input: (N, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,).
        relu: negative outputs become 0.
        packed_weight: from `pack_small_conv3x3_weight`.

    Returns:
        (N, O, H, W), channels-last when the weight is packed.
    """
    if packed_weight is not None and _kernels_take(input, half=packed_weight.dtype):
        output: Tensor = torch.ops.dcnzoo.small_conv3x3(input, packed_weight, bias, weight.shape[0], relu)
        return output
    return conv3x3(input, weight, bias, relu=relu)


def strided_conv3x3(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, packed_weight: Tensor | None = None
) -> Tensor:
    """3×3 convolution with stride 2 and padding 1, for few output channels.

    Args:
        input: (N, C, H, W); when the weight is packed, of the type of that.
        weight: (O, C, 3, 3).
        bias: (O,).
        packed_weight: from `pack_strided_conv3x3_weight`.

    Returns:
        (N, O, ⌈H/2⌉, ⌈W/2⌉), channels-last when the weight is packed.
    """
    if packed_weight is not None and _kernels_take(input, half=packed_weight.dtype):
        output: Tensor = torch.ops.dcnzoo.strided_conv3x3(input, packed_weight, bias, weight.shape[0])
        return output
    return F.conv2d(input, weight, bias, stride=2, padding=1)


def grouped_conv3x3(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    packed_weight: Tensor | None = None,
    half_output: bool = False,
) -> Tensor:
    """3×3 convolution with stride 1 and padding 1, in groups.

    Args:
        input: (N, C, H, W); when the weight is packed, it may be of the type of 16-bit factors.
        weight: (O, C/G, 3, 3).
        bias: (O,).
        relu: negative outputs become 0.
        packed_weight: from `pack_grouped_conv3x3_weight`.
        half_output: the compiled kernels' output is of that 16-bit type.

    Returns:
        (N, O, H, W), channels-last when the weight is packed.
    """
    as_many = weight.shape[0] == input.shape[1]  # the kernels map groups of four to groups of four
    if packed_weight is not None and as_many and _kernels_take(input, half=half_factor()):
        output: Tensor = torch.ops.dcnzoo.grouped_conv3x3(input, packed_weight, bias, relu, half_output)
        return output
    groups = input.shape[1] // weight.shape[1]
    return _convolve(input, weight, bias, padding=1, groups=groups, relu=relu)


@torch.no_grad()
def _learning_conv3x3(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv3x3` with a weight that will be another one next time."""
    return conv3x3(input, weight, bias, packed_weight=pack_conv3x3_weight(weight))


def conv1x1(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    relu: bool = False,
    packed_weight: Tensor | None = None,
    half_output: bool = False,
) -> Tensor:
    """1×1 convolution.

    Args:
        input: (N, C, H, W).
        weight: (O, C, 1, 1).
        bias: (O,).
        stride: in both directions.
        relu: negative outputs become 0.
        packed_weight: from `pack_linear_weight`.
        half_output: as of `conv3x3`; without a stride.

    Returns:
        (N, O, ⌈H/stride⌉, ⌈W/stride⌉), channels-last when the weight is packed.
    """
    if packed_weight is not None and _kernels_take(input, half=packed_weight.dtype):
        output: Tensor = torch.ops.dcnzoo.conv1x1(
            input, packed_weight, bias, weight.shape[0], stride, relu, half_output
        )
        return output
    return _convolve(input, weight, bias, stride=stride, relu=relu)


def conv1x1_add_(
    output: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """Adds a 1×1 convolution to `output`, in place: the end of a residual block.

    Args:
        output: (N, O, H, W), the shortcut; overwritten.
        input: (N, C, H, W).
        weight: (O, C, 1, 1).
        bias: (O,).
        relu: negative sums become 0.
        packed_weight: from `pack_linear_weight`.

    Returns:
        `output`.
    """
    last = output.is_contiguous(memory_format=torch.channels_last)
    if packed_weight is not None and last and _kernels_take(input, output, half=packed_weight.dtype):
        torch.ops.dcnzoo.conv1x1_add_(output, input, packed_weight, bias, relu)
        return output
    if bias is not None and last and _takes_one_pass(bias, weight, input, output):
        return _finish(output, bias, relu=relu, added=F.conv2d(input, weight))
    output += F.conv2d(input, weight, bias)
    return output.relu_() if relu else output


def conv1x1_add_upsampled(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    coarse: Tensor,
    *,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """1×1 convolution plus `upsample2x` of another map: a step down a feature pyramid.

    Args:
        input: (N, C, 2H, 2W).
        weight: (O, C, 1, 1).
        bias: (O,).
        coarse: (N, O, H, W).
        packed_weight: from `pack_linear_weight`.

    Returns:
        (N, O, 2H, 2W), channels-last when the weight is packed.
    """
    if packed_weight is not None and _kernels_take(input, coarse):
        output: Tensor = torch.ops.dcnzoo.conv1x1_add_upsampled(input, packed_weight, bias, coarse)
        return output
    return conv1x1_add_(upsample2x(coarse), input, weight, bias, packed_weight=packed_weight)


def conv1x1_add_conv1x1_(
    output: Tensor,
    input: Tensor,
    packed_weight: Tensor,
    bias: Tensor | None,
    packed_next_weight: Tensor,
    next_bias: Tensor | None,
    next_channels: int,
    *,
    half_result: bool = False,
) -> Tensor | None:
    """`conv1x1_add_` with ReLU, and `conv1x1` with ReLU of the sum, which is then read from the cache.

    Args:
        output: (N, O, H, W), the shortcut; overwritten.
        input: (N, C, H, W).
        packed_weight: from `pack_linear_weight`, as the next one with or without `half`.
        bias: (O,).
        packed_next_weight: of the convolution of the sum.
        next_bias: (P,).
        next_channels: P.
        half_result: it is of the packed weights' 16-bit type.

    Returns:
        (N, P, H, W), channels-last; None, and nothing is computed, if the compiled kernels cannot.
    """
    last = output.is_contiguous(memory_format=torch.channels_last)
    alike = packed_weight.dtype == packed_next_weight.dtype
    if not (last and alike and _kernels_take(input, output, half=packed_weight.dtype)):
        return None
    result: Tensor = torch.ops.dcnzoo.conv1x1_add_conv1x1_(
        output, input, packed_weight, bias, packed_next_weight, next_bias, next_channels, half_result
    )
    return result


def conv_transpose2x2(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """2×2 transposed convolution with stride 2: each pixel becomes four.

    Args:
        input: (N, C, H, W).
        weight: (C, O, 2, 2).
        bias: (O,).
        relu: negative outputs become 0.
        packed_weight: from `pack_conv_transpose2x2_weight`.

    Returns:
        (N, O, 2H, 2W), channels-last when the weight is packed.
    """
    if packed_weight is not None and _kernels_take(input):
        pair_bias = None if bias is None else bias.repeat(2)  # of two neighbouring pixels
        output: Tensor = torch.ops.dcnzoo.conv_transpose2x2(
            input, packed_weight, pair_bias, weight.shape[1], relu
        )
        return output
    if relu and bias is not None and _takes_one_pass(bias, weight, input):
        return _finish(F.conv_transpose2d(input, weight, stride=2), bias, relu=True)
    return _activate(F.conv_transpose2d(input, weight, bias, stride=2), relu)


def class_mask_logits(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    class_weight: Tensor,
    class_bias: Tensor | None,
    labels: Tensor,
    *,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """The end of a mask head: `conv_transpose2x2` with ReLU, then the logits of each RoI's own class of K.

    Args:
        input: (N, C, H, W).
        weight: (C, O, 2, 2), of the transposed convolution.
        bias: (O,).
        class_weight: (K, O, 1, 1), of the convolution behind it.
        class_bias: (K,).
        labels: (N,) int64, below K.
        packed_weight: from `pack_conv_transpose2x2_weight`.

    Returns:
        (N, 2H, 2W).
    """
    if packed_weight is not None and _kernels_take(input, class_weight):
        pair_bias = None if bias is None else bias.repeat(2)  # of two neighbouring pixels
        output: Tensor = torch.ops.dcnzoo.class_mask_logits(
            input, packed_weight, pair_bias, class_weight.flatten(1), class_bias, labels
        )
        return output
    upsampled = conv_transpose2x2(input, weight, bias, relu=True, packed_weight=packed_weight)
    rows = torch.arange(len(labels), device=labels.device)
    return F.conv2d(upsampled, class_weight, class_bias)[rows, labels]


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """Fully connected layer.

    Args:
        input: (R, C).
        weight: (O, C).
        bias: (O,).
        relu: negative outputs become 0.
        packed_weight: from `pack_linear_weight`.

    Returns:
        (R, O).
    """
    if packed_weight is not None and _kernels_take(input, half=packed_weight.dtype):
        output: Tensor = torch.ops.dcnzoo.linear(input, packed_weight, bias, weight.shape[0], relu)
        return output
    return _activate(F.linear(input, weight, bias), relu)


def map_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    relu: bool = False,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """Fully connected layer over the elements of maps.

    When the weight is packed or permuted, channels-last maps are taken as they lie.

    Args:
        input: (R, C, H, W).
        weight: (O, C·H·W), for maps flattened channels first.
        bias: (O,).
        relu: negative outputs become 0.
        packed_weight: from `pack_map_linear_weight`, or of two axes from `permute_map_linear_weight`.

    Returns:
        (R, O).
    """
    if packed_weight is not None and packed_weight.ndim == 2:
        return _activate(F.linear(input.permute(0, 2, 3, 1).flatten(1), packed_weight, bias), relu)
    if packed_weight is not None and _kernels_take(input, half=packed_weight.dtype):
        rows = input.permute(0, 2, 3, 1).flatten(1)
        output: Tensor = torch.ops.dcnzoo.linear(rows, packed_weight, bias, weight.shape[0], relu)
        return output
    return _activate(F.linear(input.flatten(1), weight, bias), relu)


def stem(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *, packed_weight: Tensor | None = None
) -> Tensor:
    """7×7 convolution with stride 2 and padding 3, ReLU, 3×3 maximum with stride 2 and padding 1.

    Args:
        input: (N, C, H, W).
        weight: (O, C, 7, 7).
        bias: (O,).
        packed_weight: from `pack_stem_weight`.

    Returns:
        (N, O, ⌈H/4⌉, ⌈W/4⌉), channels-last when the weight is packed.
    """
    if packed_weight is not None and _kernels_take(input):
        output: Tensor = torch.ops.dcnzoo.stem(input, packed_weight, bias, weight.shape[0])
        return output
    if bias is not None and _takes_one_pass(bias, weight, input):  # behind the maximum, which is the same
        maps = F.conv2d(input, weight, stride=2, padding=3)
        return _finish(F.max_pool2d(maps, kernel_size=3, stride=2, padding=1), bias, relu=True)
    maps = _activate(F.conv2d(input, weight, bias, stride=2, padding=3), relu=True)
    return F.max_pool2d(maps, kernel_size=3, stride=2, padding=1)


def upsample2x(input: Tensor) -> Tensor:
    """Nearest-neighbour upsampling: maps (N, C, H, W) to (N, C, 2H, 2W), channels-last if the input is."""
    last = input.is_contiguous(memory_format=torch.channels_last)
    if last and _kernels_take(input) and active_backend()[0] == "native":
        output: Tensor = torch.ops.dcnzoo.upsample2x(input)
        return output
    return F.interpolate(input, scale_factor=2, mode="nearest")


def pack_conv3x3_weight(weight: Tensor, *, half: bool = False) -> Tensor | None:
    """Transforms the weight (O, C, 3, 3) of `conv3x3`, to four times as many elements, at most.

    None without compiled kernels.

    Raises:
        ValueError: another shape.
    """
    if not _packs_3x3(weight):
        return None
    packed: Tensor = torch.ops.dcnzoo.pack_conv3x3_weight(weight.detach(), half)
    return packed


def pack_small_conv3x3_weight(weight: Tensor, *, half: bool = False) -> Tensor | None:
    """Transforms the weight (O, C, 3, 3) of `small_conv3x3`, to nine times as many elements, at most.

    None without compiled kernels.

    Raises:
        ValueError: another shape.
    """
    if not _packs_3x3(weight):
        return None
    packed: Tensor = torch.ops.dcnzoo.pack_small_conv3x3_weight(weight.detach(), half)
    return packed


def pack_strided_conv3x3_weight(weight: Tensor, *, half: bool = False) -> Tensor | None:
    """Arranges the weight (O, C, 3, 3) of `strided_conv3x3`; None without compiled kernels.

    Raises:
        ValueError: another shape.
    """
    if not _packs_3x3(weight):
        return None
    taps = weight.detach().permute(2, 3, 0, 1).flatten(0, 1)
    return torch.stack([torch.ops.dcnzoo.pack_linear_weight(tap, half) for tap in taps])


def pack_grouped_conv3x3_weight(weight: Tensor) -> Tensor | None:
    """Arranges the weight (O, C/G, 3, 3) of `grouped_conv3x3`.

    None without compiled kernels, and unless groups have 4 channels, and O is a multiple of 16. Computed with
    where O equals C.

    Raises:
        ValueError: another shape.
    """
    if not packs_grouped_conv3x3(weight):
        return None
    packed: Tensor = torch.ops.dcnzoo.pack_grouped_conv3x3_weight(weight.detach())
    return packed


def packs_grouped_conv3x3(weight: Tensor) -> bool:
    """Whether `pack_grouped_conv3x3_weight` packs this weight."""
    return _packs_3x3(weight) and weight.shape[1] == 4 and weight.shape[0] % 16 == 0


def pack_linear_weight(weight: Tensor, *, half: bool = False) -> Tensor | None:
    """Arranges the weight (O, C) of `linear`, or (O, C, 1, 1) of `conv1x1`; None without compiled kernels.

    Raises:
        ValueError: another shape.
    """
    if weight.ndim not in (2, 4) or any(size != 1 for size in weight.shape[2:]):
        raise ValueError(f"weight must be (O, C) or (O, C, 1, 1), got {tuple(weight.shape)}")
    if not _packs(weight):
        return None
    packed: Tensor = torch.ops.dcnzoo.pack_linear_weight(weight.detach(), half)
    return packed


def pack_map_linear_weight(
    weight: Tensor, map_size: tuple[int, int, int], *, half: bool = False
) -> Tensor | None:
    """Arranges the weight (O, C·H·W) of `map_linear` for maps (C, H, W).

    For the compiled kernels of a CPU, without which there is None; on a GPU by `permute_map_linear_weight`.
    """
    rows = permute_map_linear_weight(weight, map_size)
    return rows if weight.device.type == "cuda" else pack_linear_weight(rows, half=half)


def permute_map_linear_weight(weight: Tensor, map_size: tuple[int, int, int]) -> Tensor:
    """The weight (O, C·H·W) of `map_linear` in the order of channels-last maps, (O, H·W·C)."""
    return weight.detach().reshape(-1, *map_size).permute(0, 2, 3, 1).flatten(1)


def pack_stem_weight(weight: Tensor) -> Tensor | None:
    """Transforms the weight (O, C, 7, 7) of `stem`, to three times its size; None without compiled kernels.

    Raises:
        ValueError: another shape.
    """
    if weight.ndim != 4 or weight.shape[2:] != (7, 7):
        raise ValueError(f"weight must be (O, C, 7, 7), got {tuple(weight.shape)}")
    if not _packs(weight):
        return None
    packed: Tensor = torch.ops.dcnzoo.pack_stem_weight(weight.detach())
    return packed


def pack_conv_transpose2x2_weight(weight: Tensor, *, half: bool = False) -> Tensor | None:
    """Arranges the weight (C, O, 2, 2) of `conv_transpose2x2`; None without compiled kernels.

    Raises:
        ValueError: another shape.
    """
    if weight.ndim != 4 or weight.shape[2:] != (2, 2):
        raise ValueError(f"weight must be (C, O, 2, 2), got {tuple(weight.shape)}")
    if not _packs(weight):
        return None
    rows = weight.detach().permute(2, 3, 1, 0).flatten(1, 2)  # (2, 2·O, C): both pixels of a row together
    return torch.stack([torch.ops.dcnzoo.pack_linear_weight(row, half) for row in rows])


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    relu: bool,
) -> Tensor:
    """A convolution by PyTorch, on a GPU with bias and ReLU in one pass."""
    if relu and bias is not None and _takes_one_pass(bias, weight, input):
        return _finish(F.conv2d(input, weight, None, stride, padding, groups=groups), bias, relu=True)
    return _activate(F.conv2d(input, weight, bias, stride, padding, groups=groups), relu)


def _takes_one_pass(bias: Tensor, *others: Tensor) -> bool:
    """Whether the compiled kernels add the bias of a convolution on a GPU to what comes of the others."""
    tensors = bias, *others
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    if bias.device.type != "cuda" or any((t.device, t.dtype) != (bias.device, bias.dtype) for t in others):
        return False
    whole_chunks = bias.itemsize <= 4 and len(bias) % (16 // bias.itemsize) == 0
    return whole_chunks and active_backend()[0] == "native" and gpu_problem(bias.device.index) is None


def _finish(maps: Tensor, bias: Tensor, *, relu: bool, added: Tensor | None = None) -> Tensor:
    """Adds bias and other maps to maps on a GPU, in place, then ReLU; returns them."""
    maps = maps.contiguous(memory_format=torch.channels_last)
    if added is not None:
        added = added.contiguous(memory_format=torch.channels_last)
    torch.ops.dcnzoo.bias_relu_(maps, bias, added, relu)
    return maps


def _activate(output: Tensor, relu: bool) -> Tensor:
    if not relu:
        return output
    return output.relu() if output.requires_grad else output.relu_()


def _packs(weight: Tensor) -> bool:
    takes = weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0
    return takes and active_backend()[0] == "native"


def _packs_3x3(weight: Tensor) -> bool:
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must be (O, C, 3, 3), got {tuple(weight.shape)}")
    return _packs(weight)


def _kernels_take(input: Tensor, *others: Tensor, half: torch.dtype | None = None) -> bool:
    """Whether the compiled kernels compute with these; they know no derivatives.

    Args:
        input: float32, or `half`.
        others: float32.
        half: another type that the input may have.
    """
    tensors = input, *others
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    float32 = input.dtype in (torch.float32, half) and all(tensor.dtype == torch.float32 for tensor in others)
    return float32 and all(tensor.device.type == "cpu" for tensor in tensors)


if NATIVE_PROBLEM is None:

    def _maps(
        input: Tensor,
        channels: int,
        size: Sequence[int | torch.SymInt],
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        shape, dtype = (input.shape[0], channels, *size), dtype or torch.float32
        return torch.empty(shape, dtype=dtype, device=input.device, memory_format=torch.channels_last)

    @torch.library.register_fake("dcnzoo::conv3x3")  # type: ignore[untyped-decorator]
    def _fake_conv3x3(
        input: Tensor,
        packed_weight: Tensor,
        bias: Tensor | None,
        out_channels: int,
        relu: bool,
        half_output: bool = False,
    ) -> Tensor:
        return _maps(input, out_channels, input.shape[2:], packed_weight.dtype if half_output else None)

    @torch.library.register_fake("dcnzoo::small_conv3x3")  # type: ignore[untyped-decorator]
    def _fake_small_conv3x3(
        input: Tensor, packed_weight: Tensor, bias: Tensor | None, out_channels: int, relu: bool
    ) -> Tensor:
        return _maps(input, out_channels, input.shape[2:])

    @torch.library.register_fake("dcnzoo::conv3x3_conv1x1")  # type: ignore[untyped-decorator]
    def _fake_conv3x3_conv1x1(
        input: Tensor,
        packed_weight: Tensor,
        bias: Tensor | None,
        channels: int,
        packed_point_weight: Tensor,
        point_bias: Tensor | None,
        out_channels: int,
    ) -> Tensor:
        return _maps(input, out_channels, input.shape[2:])

    @torch.library.register_fake("dcnzoo::conv1x1")  # type: ignore[untyped-decorator]
    def _fake_conv1x1(
        input: Tensor,
        packed_weight: Tensor,
        bias: Tensor | None,
        out_channels: int,
        stride: int,
        relu: bool,
        half_output: bool = False,
    ) -> Tensor:
        size = [(side + stride - 1) // stride for side in input.shape[2:]]
        return _maps(input, out_channels, size, packed_weight.dtype if half_output else None)

    @torch.library.register_fake("dcnzoo::conv1x1_add_")  # type: ignore[untyped-decorator]
    def _fake_conv1x1_add_(*_: object) -> None:
        return None

    @torch.library.register_fake("dcnzoo::bias_relu_")  # type: ignore[untyped-decorator]
    def _fake_bias_relu_(*_: object) -> None:
        return None

    @torch.library.register_fake("dcnzoo::conv1x1_add_upsampled")  # type: ignore[untyped-decorator]
    def _fake_conv1x1_add_upsampled(
        input: Tensor, packed_weight: Tensor, bias: Tensor | None, coarse: Tensor
    ) -> Tensor:
        return _maps(input, coarse.shape[1], input.shape[2:])

    @torch.library.register_fake("dcnzoo::conv1x1_add_conv1x1_")  # type: ignore[untyped-decorator]
    def _fake_conv1x1_add_conv1x1_(
        output: Tensor,
        input: Tensor,
        packed_weight: Tensor,
        bias: Tensor | None,
        packed_next_weight: Tensor,
        next_bias: Tensor | None,
        next_channels: int,
        half_result: bool = False,
    ) -> Tensor:
        return _maps(input, next_channels, input.shape[2:], packed_next_weight.dtype if half_result else None)

    @torch.library.register_fake("dcnzoo::conv_transpose2x2")  # type: ignore[untyped-decorator]
    def _fake_conv_transpose2x2(
        input: Tensor, packed_weight: Tensor, bias: Tensor | None, out_channels: int, relu: bool
    ) -> Tensor:
        return _maps(input, out_channels, [2 * side for side in input.shape[2:]])

    @torch.library.register_fake("dcnzoo::linear")  # type: ignore[untyped-decorator]
    def _fake_linear(
        input: Tensor, packed_weight: Tensor, bias: Tensor | None, out_channels: int, relu: bool
    ) -> Tensor:
        return input.new_empty(input.shape[0], out_channels, dtype=torch.float32)

    @torch.library.register_fake("dcnzoo::class_mask_logits")  # type: ignore[untyped-decorator]
    def _fake_class_mask_logits(
        input: Tensor,
        packed_weight: Tensor,
        bias: Tensor | None,
        class_weight: Tensor,
        class_bias: Tensor | None,
        labels: Tensor,
    ) -> Tensor:
        return input.new_empty(input.shape[0], 2 * input.shape[2], 2 * input.shape[3])

    @torch.library.register_fake("dcnzoo::strided_conv3x3")  # type: ignore[untyped-decorator]
    def _fake_strided_conv3x3(
        input: Tensor, packed_weight: Tensor, bias: Tensor | None, out_channels: int
    ) -> Tensor:
        return _maps(input, out_channels, [(side + 1) // 2 for side in input.shape[2:]])

    @torch.library.register_fake("dcnzoo::grouped_conv3x3")  # type: ignore[untyped-decorator]
    def _fake_grouped_conv3x3(
        input: Tensor, packed_weight: Tensor, bias: Tensor | None, relu: bool, half_output: bool = False
    ) -> Tensor:
        return _maps(input, input.shape[1], input.shape[2:], half_factor() if half_output else None)

    @torch.library.register_fake("dcnzoo::pack_grouped_conv3x3_weight")  # type: ignore[untyped-decorator]
    def _fake_pack_grouped_conv3x3_weight(weight: Tensor) -> Tensor:
        return weight.new_empty(weight.numel())

    @torch.library.register_fake("dcnzoo::stem")  # type: ignore[untyped-decorator]
    def _fake_stem(input: Tensor, packed_weight: Tensor, bias: Tensor | None, out_channels: int) -> Tensor:
        return _maps(input, out_channels, [(side + 3) // 4 for side in input.shape[2:]])

    @torch.library.register_fake("dcnzoo::upsample2x")  # type: ignore[untyped-decorator]
    def _fake_upsample2x(input: Tensor) -> Tensor:
        return _maps(input, input.shape[1], [2 * side for side in input.shape[2:]])

    def _packed(weight: Tensor, numel: int, half: bool) -> Tensor:
        return weight.new_empty(numel, dtype=half_factor() if half else None)

    @torch.library.register_fake("dcnzoo::pack_conv3x3_weight")  # type: ignore[untyped-decorator]
    def _fake_pack_conv3x3_weight(weight: Tensor, half: bool = False) -> Tensor:
        return _packed(weight, torch.ops.dcnzoo.packed_conv3x3_numel(*weight.shape[:2], half), half)

    @torch.library.register_fake("dcnzoo::pack_small_conv3x3_weight")  # type: ignore[untyped-decorator]
    def _fake_pack_small_conv3x3_weight(weight: Tensor, half: bool = False) -> Tensor:
        return _packed(weight, torch.ops.dcnzoo.packed_small_conv3x3_numel(*weight.shape[:2], half), half)

    @torch.library.register_fake("dcnzoo::pack_linear_weight")  # type: ignore[untyped-decorator]
    def _fake_pack_linear_weight(weight: Tensor, half: bool = False) -> Tensor:
        return _packed(weight, torch.ops.dcnzoo.packed_linear_numel(*weight.shape[:2], half), half)

    @torch.library.register_fake("dcnzoo::pack_stem_weight")  # type: ignore[untyped-decorator]
    def _fake_pack_stem_weight(weight: Tensor) -> Tensor:
        return _packed(weight, torch.ops.dcnzoo.packed_stem_numel(*weight.shape[:2]), half=False)

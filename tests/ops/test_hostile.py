"""Arguments that no detector gives: the operators compute or complain, and touch no other memory.

That nothing else is touched shows under `scripts/sanitize.sh`, which runs this file too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import dense

COMPLAINTS = (ValueError, TypeError, RuntimeError, NotImplementedError, IndexError, MemoryError)
EXTREME = (
    float("nan"),
    float("inf"),
    float("-inf"),
    1e30,
    -1e30,
    3.4e38,
    -(2.0**31),
    2.0**31,
    2.0**63,
    1e-38,
)
DTYPES = (torch.float32,) * 40 + (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)
SMALL = st.integers(0, 6)
Shape = Sequence[int]
Case = tuple[Callable[..., object], list[Any], dict[str, Any]]


def _layouts(values: Tensor) -> list[Callable[[], Tensor]]:
    """Ways in which the same tensor may lie in memory."""
    doubled = torch.zeros([2 * size for size in values.shape], dtype=values.dtype)
    every_second = doubled[(slice(None, None, 2),) * values.dim()]
    return [
        lambda: values,
        lambda: values.transpose(0, -1).contiguous().transpose(0, -1),
        lambda: every_second.copy_(values),
        lambda: values[:1].expand(values.shape) if len(values) else values,
        lambda: values.to(memory_format=torch.channels_last) if values.dim() == 4 else values,
        lambda: torch.cat([values.new_ones(3), values.flatten()])[3:].view(values.shape),
    ]


@st.composite
def tensors(draw: st.DrawFn, shape: Shape, scale: float = 1.0) -> Tensor:
    """A tensor of about that shape, with any type, layout and some extreme values."""
    sizes = list(shape)
    if sizes and draw(st.integers(0, 9)) == 0:
        sizes[draw(st.integers(0, len(sizes) - 1))] = draw(SMALL)
    if draw(st.integers(0, 30)) == 0:
        sizes = sizes[1:]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    values = torch.randn(sizes, generator=generator) * scale
    if values.numel() and draw(st.booleans()):
        for _ in range(draw(st.integers(1, 4))):
            values.view(-1)[draw(st.integers(0, values.numel() - 1))] = draw(st.sampled_from(EXTREME))
    values = values.to(draw(st.sampled_from(DTYPES)))
    return draw(st.sampled_from(_layouts(values)))() if values.dim() else values


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


def mostly(*usual: Any, odd: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the usual values, nine times out of ten."""
    return st.integers(0, 9).flatmap(lambda number: st.sampled_from(usual if number else tuple(odd)))


def usual_pairs(low: int, high: int, odd: Sequence[int]) -> st.SearchStrategy[tuple[int, int]]:
    """Numbers from `low` to `high`, seldom one of the odd ones."""
    number = mostly(*range(low, high + 1), odd=odd)
    return st.tuples(number, number)


def maybe(strategy: st.SearchStrategy[Tensor]) -> st.SearchStrategy[Tensor | None]:
    return st.none() | strategy


@st.composite
def deform_conv2d(draw: st.DrawFn) -> Case:
    n, groups, per_group, out, deformable = (draw(st.integers(0 if k == 0 else 1, 3)) for k in range(5))
    (height, width), (kh, kw) = draw(usual_pairs(1, 9, odd=[0])), draw(pairs(1, 3))
    stride, dilation = draw(usual_pairs(1, 3, odd=[0])), draw(usual_pairs(1, 3, odd=[0]))
    padding = draw(usual_pairs(0, 3, odd=[-1]))
    channels = groups * per_group * deformable
    rows, columns = (
        max(0, (size + 2 * pad - step * (kernel - 1) - 1) // max(1, hop) + 1)
        for size, pad, step, kernel, hop in zip(
            (height, width), padding, dilation, (kh, kw), stride, strict=True
        )
    )
    taps = deformable * kh * kw
    arguments = [
        draw(tensors((n, channels, height, width))),
        draw(tensors((n, 2 * taps, rows, columns), scale=3)),
        draw(tensors((out * groups, channels // groups, kh, kw))),
        draw(maybe(tensors((out * groups,)))),
    ]
    mask = draw(maybe(tensors((n, taps, rows, columns))))
    flags = {name: draw(st.booleans()) for name in ("mask_is_logits", "relu")}
    return ops.deform_conv2d, arguments, {
        "stride": stride, "padding": padding, "dilation": dilation, "mask": mask, **flags
    }  # fmt: skip


@st.composite
def rois(draw: st.DrawFn, images: int) -> Tensor:
    """Regions of some images, in and out of the map, turned round or empty."""
    count = draw(SMALL)
    boxes = draw(tensors((count, 5), scale=20))
    if boxes.dim() == 2 and boxes.shape[1] and draw(st.integers(0, 9)):
        boxes = boxes.clone()
        boxes[:, 0] = draw(mostly(*range(max(1, images)), odd=[-1, images]))
    return boxes


@st.composite
def roi_align(draw: st.DrawFn) -> Case:
    n, channels = draw(pairs(0, 3))
    map_ = draw(tensors((n, channels, *draw(pairs(0, 7)))))
    scale = draw(mostly(0.25, 1.0, odd=[0.0, -1.0, float("nan"), 1e30]))
    size = draw(usual_pairs(1, 5, odd=[-1, 0]))
    return ops.roi_align, [map_, draw(rois(n))], {"output_size": size, "spatial_scale": scale}


@st.composite
def roi_align_pyramid(draw: st.DrawFn) -> Case:
    n, channels = draw(pairs(0, 3))
    maps = [draw(tensors((n, channels, *draw(pairs(0, 7))))) for _ in range(draw(st.integers(0, 3)))]
    boxes = draw(rois(n))
    level = mostly(*range(max(1, len(maps))), odd=[-1, 3])
    levels = torch.tensor([draw(level) for _ in range(draw(mostly(len(boxes), odd=[1])))], dtype=torch.int64)
    scales = [0.25] * draw(mostly(len(maps), odd=[1]))
    return ops.roi_align_pyramid, [maps, boxes, levels], {
        "output_size": draw(usual_pairs(1, 5, odd=[-1, 0])), "spatial_scales": scales
    }  # fmt: skip


@st.composite
def deform_roi_pool(draw: st.DrawFn) -> Case:
    n, channels = draw(pairs(0, 3))
    map_, boxes = draw(tensors((n, channels, *draw(pairs(0, 7))))), draw(rois(n))
    size = draw(usual_pairs(1, 4, odd=[-1, 0]))
    offset = draw(maybe(tensors((len(boxes), 2, *(max(0, side) for side in size)))))
    return (
        ops.deform_roi_pool,
        [map_, boxes, offset],
        {
            "output_size": size,
            "spatial_scale": draw(mostly(0.25, 1.0, odd=[float("nan"), -1e30])),
            "gamma": draw(mostly(0.1, 0.0, odd=[1e30, float("nan")])),
        },
    )


LAYERS = (
    "conv3x3",
    "small_conv3x3",
    "strided_conv3x3",
    "grouped_conv3x3",
    "conv1x1",
    "conv1x1_add_upsampled",
    "conv_transpose2x2",
    "linear",
    "map_linear",
    "stem",
)


@st.composite
def layers(draw: st.DrawFn) -> Case:
    """The dense layers, with the packed weight or without."""
    n, (channels, out), (height, width) = draw(st.integers(0, 4)), draw(pairs(0, 20)), draw(pairs(0, 9))
    name = draw(st.sampled_from(LAYERS))
    packs = {
        "conv3x3": ((out, channels, 3, 3), dense.pack_conv3x3_weight),
        "small_conv3x3": ((out, channels, 3, 3), dense.pack_small_conv3x3_weight),
        "strided_conv3x3": ((out, channels, 3, 3), dense.pack_strided_conv3x3_weight),
        "grouped_conv3x3": ((16 * out, 4, 3, 3), dense.pack_grouped_conv3x3_weight),
        "conv1x1": ((out, channels, 1, 1), dense.pack_linear_weight),
        "conv1x1_add_upsampled": ((out, channels, 1, 1), dense.pack_linear_weight),
        "conv_transpose2x2": ((channels, out, 2, 2), dense.pack_conv_transpose2x2_weight),
        "linear": ((out, channels), dense.pack_linear_weight),
        "map_linear": (
            (out, channels * height * width),
            lambda weight: dense.pack_map_linear_weight(weight, (channels, height, width)),
        ),
        "stem": ((out, channels, 7, 7), dense.pack_stem_weight),
    }
    shape, pack = packs[name]
    weight = draw(tensors(shape))
    without = ("stem", "strided_conv3x3", "conv1x1_add_upsampled")
    options: dict[str, Any] = {} if name in without else {"relu": draw(st.booleans())}
    if draw(st.booleans()):
        try:
            options["packed_weight"] = pack(weight)
        except COMPLAINTS:
            options["packed_weight"] = draw(tensors((5, 7)))
    if name == "conv1x1":
        options["stride"] = draw(st.integers(-1, 3))
    bias = draw(maybe(tensors(shape[:1] if name == "grouped_conv3x3" else (out,))))
    if name == "conv1x1_add_upsampled":
        input, coarse = (
            draw(tensors((n, channels, 2 * height, 2 * width))),
            draw(tensors((n, out, height, width))),
        )
        return dense.conv1x1_add_upsampled, [input, weight, bias, coarse], options
    channels = 16 * out if name == "grouped_conv3x3" else channels
    input = draw(tensors((n, channels) if name == "linear" else (n, channels, height, width)))
    return getattr(dense, name), [input, weight, bias], options


@st.composite
def packed_weights_of_others(draw: st.DrawFn) -> Case:
    """A packed weight that belongs to another weight, or to none."""
    function, arguments, options = draw(layers())
    return (
        function,
        arguments,
        {**options, "packed_weight": draw(tensors(draw(st.tuples(SMALL, SMALL, SMALL))))},
    )


@st.composite
def nms(draw: st.DrawFn) -> Case:
    count = draw(st.integers(0, 9))
    boxes, scores = draw(tensors((count, 4), scale=20)), draw(tensors((count,)))
    threshold = draw(st.sampled_from((0.5, 0.0, 1.0, -1.0, 2.0, float("nan"))))
    if draw(st.booleans()):
        return ops.nms, [boxes, scores, threshold], {}
    groups = torch.randint(-3, 3, (draw(st.sampled_from((count, 1))),))
    return ops.batched_nms, [boxes, scores, groups, threshold], {}


@st.composite
def paste_masks(draw: st.DrawFn) -> Case:
    count, side = draw(SMALL), draw(SMALL)
    boxes = draw(tensors((count, 4), scale=30))
    return ops.paste_masks, [draw(tensors((count, side, side))), boxes, draw(pairs(-1, 40))], {}


CASES = {
    "deform_conv2d": deform_conv2d(),
    "roi_align": roi_align(),
    "roi_align_pyramid": roi_align_pyramid(),
    "deform_roi_pool": deform_roi_pool(),
    "layers": layers(),
    "packed weights of others": packed_weights_of_others(),
    "upsample2x": tensors((2, 3, 4, 5)).map(lambda input: (dense.upsample2x, [input], {})),
    "nms": nms(),
    "paste_masks": paste_masks(),
}


@pytest.mark.filterwarnings("ignore:.*(Casting complex|invalid value|overflow).*")
@pytest.mark.parametrize("name", CASES)
def test_computes_or_complains(name: str) -> None:
    computed = []

    @settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(CASES[name])
    def test(case: Case) -> None:
        function, arguments, options = case
        try:
            with torch.inference_mode():
                computed.append(function(*arguments, **options))
        except COMPLAINTS:
            return

    test()
    assert len(computed) > 2 or name == "packed weights of others"  # those may all be refused

"""Shapes for the dense layers, and their comparison with PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dcnzoo.ops import dense
from dcnzoo.ops.backend import active_backend, half_factor

WINOGRAD_TOLERANCE = 2e-5
SMALL_WINOGRAD_TOLERANCE = 4e-4
STRASSEN_TOLERANCE = 2e-5
TOLERANCE = 5e-6
HALF_TOLERANCE = 2e-2
HALF_WINOGRAD_TOLERANCE = 6e-2
HALF_SMALL_WINOGRAD_TOLERANCE = 0.25
"""Largest error, in standard deviations of the output before its ReLU."""

CONV3X3 = {  # N, C, O, H, W
    "one-pixel": (1, 3, 5, 1, 1),
    "less-than-a-tile": (2, 8, 8, 3, 2),
    "one-tile": (1, 16, 16, 4, 4),
    "odd-everything": (3, 17, 33, 7, 10),
    "one-channel": (1, 1, 1, 9, 9),
    "one-row": (1, 16, 24, 1, 37),
    "one-column": (1, 24, 16, 37, 1),
    "p5": (1, 256, 256, 13, 19),
    "mask-head": (5, 256, 256, 14, 14),
    "layer1": (1, 64, 64, 40, 60),
    "c5": (1, 512, 512, 13, 19),
    "two-odd-pieces": (1, 300, 70, 6, 5),
}

SMALL_CONV3X3 = {  # N, C, O, H, W
    "one-pixel": (1, 3, 5, 1, 1),
    "pixels": (7, 3, 5, 1, 1),
    "one-map": (1, 16, 16, 6, 6),
    "two-maps": (2, 16, 16, 14, 14),
    "odd-number": (5, 256, 256, 14, 14),
    "many": (41, 20, 24, 14, 14),
    "odd-everything": (3, 17, 33, 7, 10),
    "rows": (9, 8, 8, 1, 13),
    "columns": (9, 8, 8, 13, 1),
    "two-odd-pieces": (4, 300, 70, 6, 5),
}

STRIDED_CONV3X3 = {  # N, C, O, H, W
    "one-pixel": (1, 3, 5, 1, 1),
    "two-pixels": (1, 4, 5, 2, 2),
    "one-row": (1, 16, 18, 1, 37),
    "one-column": (1, 24, 18, 8, 1),
    "odd-everything": (3, 17, 33, 7, 11),
    "two-odd-pieces": (1, 601, 27, 6, 5),
    "offsets": (2, 256, 18, 20, 31),
    "many-columns": (1, 64, 130, 9, 12),
}

GROUPED_CONV3X3 = {  # N, C, H, W
    "one-pixel": (1, 16, 1, 1),
    "one-row": (1, 32, 1, 37),
    "one-column": (1, 48, 9, 1),
    "odd": (3, 16, 7, 11),
    "layer1": (2, 128, 20, 31),
}

CONV1X1 = {  # N, C, O, H, W, stride
    "one-pixel": (1, 3, 5, 1, 1, 1),
    "batch": (3, 64, 256, 7, 9, 1),
    "logits": (2, 256, 15, 13, 19, 1),
    "two-pieces": (1, 300, 24, 5, 5, 1),
    "two-odd-pieces": (1, 1025, 24, 5, 5, 1),
    "stride": (2, 64, 128, 9, 12, 2),
    "stride-odd": (2, 40, 33, 7, 7, 2),
    "stride-beyond": (1, 16, 16, 2, 3, 5),
    "few-channels-many-rows": (1, 64, 24, 130, 60, 1),
    "unequal-parts": (1, 64, 48, 2, 49, 1),  # upsampled, 49 pixels become 24 and 25, of which one is a block
}

CONV1X1_PAIRS = {  # N, C, O, P, H, W: to O channels, which are added, and from there to P
    "one-pixel": (1, 3, 5, 2, 1, 1),
    "layer1": (1, 64, 256, 64, 20, 31),
    "layer1-to-layer2": (1, 64, 256, 128, 20, 31),
    "batch": (3, 20, 40, 33, 7, 9),
    "many-rows": (1, 16, 48, 8, 90, 61),
    "strassen-second": (1, 40, 1024, 256, 11, 13),
    "strassen-both": (1, 512, 2048, 512, 5, 7),
    "strassen-batch": (3, 512, 512, 512, 7, 9),
    "strassen-one-pixel": (1, 512, 512, 512, 1, 1),
}

STRASSEN_CONV1X1 = {  # large enough for Strassen's algorithm in every vector width
    "c4": (1, 1024, 256, 13, 19, 1),
    "c5-odd": (1, 512, 2048, 5, 7, 1),
    "batch": (3, 512, 512, 7, 9, 1),
    "one-pixel": (1, 512, 512, 1, 1, 1),
    "two-pixels": (1, 512, 512, 1, 2, 1),
    "stride": (2, 514, 640, 9, 12, 2),
    "one-row": (1, 640, 448, 1, 97, 1),
    "wide": (1, 1026, 1280, 11, 12, 1),
}

CONV_TRANSPOSE2X2 = {  # N, C, O, H, W
    "one-pixel": (1, 3, 5, 1, 1),
    "mask-head": (5, 256, 256, 14, 14),
    "wide": (1, 20, 9, 3, 200),
    "odd": (2, 300, 7, 5, 3),
    "strassen": (2, 514, 256, 5, 7),
    "strassen-one-pixel": (1, 512, 256, 1, 1),
}

MASK_LOGITS = {  # N, C, O, K, H, W
    "one-pixel": (1, 3, 5, 2, 1, 1),
    "mask-head": (5, 256, 256, 80, 14, 14),
    "strassen": (3, 512, 256, 7, 14, 14),
    "wide": (2, 20, 9, 3, 3, 200),
    "odd": (4, 300, 7, 1, 9, 3),
}

STEM = {  # N, C, O, H, W
    "one-pixel": (1, 3, 5, 1, 1),
    "small": (2, 3, 64, 6, 5),
    "odd": (1, 2, 17, 33, 47),
    "even": (2, 3, 64, 64, 96),
    "wide": (1, 3, 64, 9, 450),
    "strassen": (1, 12, 512, 30, 210),
    "strassen-one-pixel": (1, 14, 384, 1, 1),
}

LINEAR = {  # R, C, O
    "one": (1, 1, 1),
    "odd": (7, 5, 3),
    "many-pieces": (33, 1000, 81),
    "three-vectors-left": (40, 300, 112),  # behind a whole panel, with AVX-512
    "box-head": (100, 12544, 64),
}

STRASSEN_LINEAR = {
    "one": (1, 512, 512),
    "streamed": (300, 1100, 4096),
    "box-head": (101, 12544, 256),
    "more-than-a-block": (507, 576, 512),
}


def tolerance(name: str) -> float:
    """Of a case whose name says by what it is computed."""
    return STRASSEN_TOLERANCE if name.startswith("strassen") else TOLERANCE


def random(*shape: int, scale: float = 1.0) -> Tensor:
    """Random numbers; maps are channels-last."""
    values = scale * torch.randn(*shape)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def error(found: Tensor, expected: Tensor, relu: bool) -> float:
    """Largest difference, in standard deviations of the expected output before its ReLU."""
    scale = expected.std().item() if expected.numel() > 1 else 1.0
    expected = expected.relu() if relu else expected
    assert found.shape == expected.shape
    return ((found.double() - expected).abs().max() / max(scale, 0.1)).item()


def conv3x3_error(name: str, bias: bool = True, relu: bool = False, half: bool = False) -> float:
    """Error of `conv3x3` for one of CONV3X3."""
    n, c, o, h, w = CONV3X3[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 3, 3, scale=(9 * c) ** -0.5), random(o) if bias else None
    found = dense.conv3x3(x, weight, b, relu=relu, packed_weight=dense.pack_conv3x3_weight(weight, half=half))
    expected = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), padding=1)
    return error(found, expected, relu)


def conv3x3_conv1x1_error(name: str, out_channels: int = 15, bias: bool = True, half: bool = False) -> float:
    """Error of `conv3x3_conv1x1` for one of CONV3X3."""
    n, c, o, h, w = CONV3X3[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 3, 3, scale=(9 * c) ** -0.5), random(o) if bias else None
    point = random(out_channels, o, 1, 1, scale=o**-0.5)
    point_bias = random(out_channels) if bias else None
    packed = dense.pack_conv3x3_weight(weight, half=half), dense.pack_linear_weight(point)
    assert packed[0] is not None
    assert packed[1] is not None
    found = dense.conv3x3_conv1x1(x, packed[0], b, o, packed[1], point_bias, out_channels)
    doubles = [None if t is None else t.double() for t in (b, point_bias)]
    features = F.conv2d(x.double(), weight.double(), doubles[0], padding=1).relu()
    return error(found, F.conv2d(features, point.double(), doubles[1]), relu=False)


def small_conv3x3_error(name: str, bias: bool = True, relu: bool = False, half: bool = False) -> float:
    """Error of `small_conv3x3` for one of SMALL_CONV3X3."""
    n, c, o, h, w = SMALL_CONV3X3[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 3, 3, scale=(9 * c) ** -0.5), random(o) if bias else None
    packed = dense.pack_small_conv3x3_weight(weight, half=half)
    found = dense.small_conv3x3(x, weight, b, relu=relu, packed_weight=packed)
    expected = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), padding=1)
    return error(found, expected, relu)


def strided_conv3x3_error(name: str, bias: bool = True, half: bool = False) -> float:
    """Error of `strided_conv3x3` for one of STRIDED_CONV3X3."""
    n, c, o, h, w = STRIDED_CONV3X3[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 3, 3, scale=(9 * c) ** -0.5), random(o) if bias else None
    packed = dense.pack_strided_conv3x3_weight(weight, half=half)
    found = dense.strided_conv3x3(x.to(half_factor()) if half else x, weight, b, packed_weight=packed)
    expected = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), 2, 1)
    return error(found, expected, relu=False)


def grouped_conv3x3_error(name: str, bias: bool = True, relu: bool = False) -> float:
    """Error of `grouped_conv3x3` for one of GROUPED_CONV3X3."""
    n, c, h, w = GROUPED_CONV3X3[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(c, 4, 3, 3, scale=1 / 6), random(c) if bias else None
    packed = dense.pack_grouped_conv3x3_weight(weight)
    found = dense.grouped_conv3x3(x, weight, b, relu=relu, packed_weight=packed)
    expected = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), padding=1, groups=c // 4)
    return error(found, expected, relu)


def conv1x1_error(
    sizes: tuple[int, int, int, int, int, int], bias: bool = True, relu: bool = False, half: bool = False
) -> float:
    """Error of `conv1x1`, where the stride is 1 of `conv1x1_add_` and `conv1x1_add_upsampled`, too.

    Sizes are (N, C, O, H, W, stride).
    """
    n, c, o, h, w, stride = sizes
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 1, 1, scale=c**-0.5), random(o) if bias else None
    packed = dense.pack_linear_weight(weight, half=half)
    found = dense.conv1x1(x, weight, b, stride=stride, relu=relu, packed_weight=packed)
    expected = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), stride)
    largest = error(found, expected, relu)
    if stride == 1:
        shortcut = random(n, o, h, w)
        expected += shortcut
        dense.conv1x1_add_(shortcut, x, weight, b, relu=relu, packed_weight=packed)
        largest = max(largest, error(shortcut, expected, relu))
        wide, coarse = x.repeat(1, 1, 2, 2), random(n, o, h, w)
        found = dense.conv1x1_add_upsampled(wide, weight, b, coarse, packed_weight=packed)
        expected = F.conv2d(wide.double(), weight.double(), b if b is None else b.double())
        expected += F.interpolate(coarse.double(), scale_factor=2)
        largest = max(largest, error(found, expected, relu=False))
    return largest


def conv1x1_pair_error(name: str, bias: bool = True, half: bool = False) -> float:
    """Error of `conv1x1_add_conv1x1_` for one of CONV1X1_PAIRS: the larger one of sum and result."""
    n, c, o, p, h, w = CONV1X1_PAIRS[name]
    torch.manual_seed(0)
    x, shortcut = random(n, c, h, w), random(n, o, h, w)
    weight, following = random(o, c, 1, 1, scale=c**-0.5), random(p, o, 1, 1, scale=o**-0.5)
    b, following_b = (random(o), random(p)) if bias else (None, None)
    packed, packed_following = (dense.pack_linear_weight(w, half=half) for w in (weight, following))
    assert packed is not None
    assert packed_following is not None
    doubles = [None if t is None else t.double() for t in (b, following_b)]
    expected_sum = F.conv2d(x.double(), weight.double(), doubles[0]) + shortcut
    expected = F.conv2d(expected_sum.relu(), following.double(), doubles[1])
    found = dense.conv1x1_add_conv1x1_(shortcut, x, packed, b, packed_following, following_b, p)
    assert found is not None
    return max(error(shortcut, expected_sum, relu=True), error(found, expected, relu=True))


def conv_transpose2x2_error(name: str, bias: bool = True, relu: bool = False, half: bool = False) -> float:
    """Error of `conv_transpose2x2` for one of CONV_TRANSPOSE2X2."""
    n, c, o, h, w = CONV_TRANSPOSE2X2[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(c, o, 2, 2, scale=c**-0.5), random(o) if bias else None
    packed = dense.pack_conv_transpose2x2_weight(weight, half=half)
    found = dense.conv_transpose2x2(x, weight, b, relu=relu, packed_weight=packed)
    expected = F.conv_transpose2d(x.double(), weight.double(), b if b is None else b.double(), stride=2)
    return error(found, expected, relu)


def mask_logits_error(name: str, bias: bool = True, half: bool = False) -> float:
    """Error of `class_mask_logits` for one of MASK_LOGITS."""
    n, c, o, k, h, w = MASK_LOGITS[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(c, o, 2, 2, scale=c**-0.5), random(o) if bias else None
    class_weight, class_bias = random(k, o, 1, 1, scale=o**-0.5), random(k) if bias else None
    labels = torch.randint(k, (n,))
    packed = dense.pack_conv_transpose2x2_weight(weight, half=half)
    found = dense.class_mask_logits(x, weight, b, class_weight, class_bias, labels, packed_weight=packed)
    doubles = [None if t is None else t.double() for t in (b, class_bias)]
    upsampled = F.conv_transpose2d(x.double(), weight.double(), doubles[0], stride=2).relu()
    expected = F.conv2d(upsampled, class_weight.double(), doubles[1])[torch.arange(n), labels]
    return error(found, expected, relu=False)


def stem_error(name: str, bias: bool = True) -> float:
    """Error of `stem` for one of STEM."""
    n, c, o, h, w = STEM[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 7, 7, scale=(49 * c) ** -0.5), random(o) if bias else None
    found = dense.stem(x, weight, b, packed_weight=dense.pack_stem_weight(weight))
    maps = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), stride=2, padding=3)
    return error(found, F.max_pool2d(maps.relu(), 3, 2, 1), relu=False)


def linear_error(
    sizes: tuple[int, int, int], bias: bool = True, relu: bool = False, half: bool = False
) -> float:
    """Error of `linear` for (R, C, O)."""
    r, c, o = sizes
    torch.manual_seed(0)
    x, weight, b = random(r, c), random(o, c, scale=c**-0.5), random(o) if bias else None
    found = dense.linear(x, weight, b, relu=relu, packed_weight=dense.pack_linear_weight(weight, half=half))
    return error(found, F.linear(x.double(), weight.double(), b if b is None else b.double()), relu)


def half_errors() -> dict[str, float]:
    """Errors of products of 16-bit factors, in multiples of what is tolerated, by case."""
    winograd = {f"conv3x3 {name}": conv3x3_error(name, half=True) for name in CONV3X3}
    others = {
        f"conv_transpose2x2 {name}": conv_transpose2x2_error(name, half=True) for name in CONV_TRANSPOSE2X2
    }
    others |= {f"mask logits {name}": mask_logits_error(name, half=True) for name in MASK_LOGITS}
    winograd |= {f"conv3x3_conv1x1 {name}": conv3x3_conv1x1_error(name, half=True) for name in CONV3X3}
    others |= {f"conv1x1 pair {name}": conv1x1_pair_error(name, half=True) for name in CONV1X1_PAIRS}
    for name, conv_sizes in (CONV1X1 | STRASSEN_CONV1X1).items():
        others[f"conv1x1 {name}"] = conv1x1_error(conv_sizes, relu=True, half=True)
    for name, sizes in (LINEAR | STRASSEN_LINEAR).items():
        others[f"linear {name}"] = linear_error(sizes, half=True)
    others |= {f"strided_conv3x3 {name}": strided_conv3x3_error(name, half=True) for name in STRIDED_CONV3X3}
    errors = {name: value / HALF_WINOGRAD_TOLERANCE for name, value in winograd.items()}
    for name in SMALL_CONV3X3:
        errors[f"small_conv3x3 {name}"] = small_conv3x3_error(name, half=True) / HALF_SMALL_WINOGRAD_TOLERANCE
    errors |= {name: value / HALF_TOLERANCE for name, value in others.items()}
    return {f"{name} in 16 bits": value for name, value in errors.items()}


def wrong_half_maps() -> list[str]:
    """Layers whose result differs where input and output are stored in 16 bits.

    What is computed from such an input is what is computed from the same numbers in float32, and such an
    output is the float32 one, rounded.
    """
    factor = half_factor()
    assert factor is not None
    cases: dict[str, tuple[Tensor, Callable[..., Tensor]]] = {}
    torch.manual_seed(0)
    for name, (n, c, o, h, w) in CONV3X3.items():
        x, weight, b = random(n, c, h, w).to(factor), random(o, c, 3, 3, scale=(9 * c) ** -0.5), random(o)
        packed = dense.pack_conv3x3_weight(weight, half=True)
        cases[f"conv3x3 {name}"] = x, partial(dense.conv3x3, weight=weight, bias=b, packed_weight=packed)
        small = dense.pack_small_conv3x3_weight(weight, half=True)
        layer = partial(_rounded, dense.small_conv3x3, weight=weight, bias=b, packed_weight=small)
        cases[f"small_conv3x3 {name}"] = x, layer
    for name, (n, c, o, h, w, stride) in (CONV1X1 | STRASSEN_CONV1X1).items():
        x, weight, b = random(n, c, h, w).to(factor), random(o, c, 1, 1, scale=c**-0.5), random(o)
        packed = dense.pack_linear_weight(weight, half=True)
        if stride == 1:
            cases[f"conv1x1 {name}"] = x, partial(dense.conv1x1, weight=weight, bias=b, packed_weight=packed)
    for name, (r, c, o) in LINEAR.items():
        weight = random(o, c, scale=c**-0.5)
        packed = dense.pack_linear_weight(weight, half=True)
        layer = partial(_rounded, dense.linear, weight=weight, packed_weight=packed)
        cases[f"linear {name}"] = random(r, c).to(factor), layer
    for name, (n, c, o, p, h, w) in CONV1X1_PAIRS.items():
        weights = random(o, c, 1, 1, scale=c**-0.5), random(p, o, 1, 1, scale=o**-0.5)
        both = [dense.pack_linear_weight(weight, half=True) for weight in weights]
        layer = partial(_pair, random(n, o, h, w), both, p)
        cases[f"conv1x1 pair {name}"] = random(n, c, h, w).to(factor), layer
    for name, (n, c, h, w) in GROUPED_CONV3X3.items():
        weight, b = random(c, 4, 3, 3, scale=1 / 6), random(c)
        packed = dense.pack_grouped_conv3x3_weight(weight)
        layer = partial(dense.grouped_conv3x3, weight=weight, bias=b, packed_weight=packed)
        cases[f"grouped_conv3x3 {name}"] = random(n, c, h, w).to(factor), layer
    wrong = []
    for name, (x, layer) in cases.items():
        exact, found = layer(x.float()), layer(x, half_output=True)
        if exact.dtype != torch.float32 or not torch.equal(found, exact.to(factor)):
            wrong.append(name)
    return wrong


def _rounded(
    layer: Callable[..., Tensor], input: Tensor, *, half_output: bool = False, **options: Any
) -> Tensor:
    """A layer whose kernel has no output of 16 bits."""
    output = layer(input, **options)
    return output.to(half_factor()) if half_output else output


def _pair(
    shortcut: Tensor, packed: list[Tensor | None], channels: int, input: Tensor, *, half_output: bool = False
) -> Tensor:
    assert packed[0] is not None
    assert packed[1] is not None
    output = dense.conv1x1_add_conv1x1_(
        shortcut.clone(), input, packed[0], None, packed[1], None, channels, half_result=half_output
    )
    assert output is not None
    return output


def check() -> None:
    """Compares everything."""
    errors = {f"conv3x3 {name}": conv3x3_error(name) / WINOGRAD_TOLERANCE for name in CONV3X3}
    for name in CONV3X3 if active_backend()[0] == "native" else ():
        errors[f"conv3x3_conv1x1 {name}"] = conv3x3_conv1x1_error(name) / WINOGRAD_TOLERANCE
    for name in CONV1X1_PAIRS if active_backend()[0] == "native" else ():
        errors[f"conv1x1 pair {name}"] = conv1x1_pair_error(name) / tolerance(name)
    for name in SMALL_CONV3X3:
        errors[f"small_conv3x3 {name}"] = small_conv3x3_error(name) / SMALL_WINOGRAD_TOLERANCE
    for limit, conv1x1, linear in (
        (TOLERANCE, CONV1X1, LINEAR),
        (STRASSEN_TOLERANCE, STRASSEN_CONV1X1, STRASSEN_LINEAR),
    ):
        for name, conv_sizes in conv1x1.items():
            errors[f"conv1x1 {name}"] = conv1x1_error(conv_sizes, relu=True) / limit
        for name, sizes in linear.items():
            errors[f"linear {name}"] = linear_error(sizes) / limit
    errors |= {
        f"conv_transpose2x2 {name}": conv_transpose2x2_error(name) / tolerance(name)
        for name in CONV_TRANSPOSE2X2
    }
    errors |= {f"mask logits {name}": mask_logits_error(name) / STRASSEN_TOLERANCE for name in MASK_LOGITS}
    errors |= {f"stem {name}": stem_error(name) / tolerance(name) for name in STEM}
    for name in STRIDED_CONV3X3:
        errors[f"strided_conv3x3 {name}"] = strided_conv3x3_error(name) / STRASSEN_TOLERANCE
    for name in GROUPED_CONV3X3:
        errors[f"grouped_conv3x3 {name}"] = grouped_conv3x3_error(name) / TOLERANCE
    wrong = {name: value for name, value in errors.items() if not value <= 1}
    if half_factor() is not None:
        wrong |= {name: value for name, value in half_errors().items() if not value <= 1}
        wrong |= dict.fromkeys(wrong_half_maps(), 1.0)
    if wrong:
        raise SystemExit(f"beyond the tolerance: {wrong}")

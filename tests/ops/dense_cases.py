"""Shapes for the dense layers, and their comparison with PyTorch in float64."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dcnzoo.ops import dense

WINOGRAD_TOLERANCE = 2e-5
TOLERANCE = 5e-6
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

CONV1X1 = {  # N, C, O, H, W, stride
    "one-pixel": (1, 3, 5, 1, 1, 1),
    "batch": (3, 64, 256, 7, 9, 1),
    "logits": (2, 256, 15, 13, 19, 1),
    "two-pieces": (1, 300, 24, 5, 5, 1),
    "stride": (2, 64, 128, 9, 12, 2),
    "stride-odd": (2, 40, 33, 7, 7, 2),
    "stride-beyond": (1, 16, 16, 2, 3, 5),
}

CONV_TRANSPOSE2X2 = {  # N, C, O, H, W
    "one-pixel": (1, 3, 5, 1, 1),
    "mask-head": (5, 256, 256, 14, 14),
    "wide": (1, 20, 9, 3, 200),
    "odd": (2, 300, 7, 5, 3),
}

STEM = {  # N, C, O, H, W
    "one-pixel": (1, 3, 5, 1, 1),
    "small": (2, 3, 64, 6, 5),
    "odd": (1, 2, 17, 33, 47),
    "even": (2, 3, 64, 64, 96),
    "wide": (1, 3, 64, 9, 450),
}

LINEAR = {  # R, C, O
    "one": (1, 1, 1),
    "odd": (7, 5, 3),
    "many-pieces": (33, 1000, 81),
    "streamed": (300, 1100, 4096),
    "box-head": (100, 12544, 64),
}


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


def conv3x3_error(name: str, bias: bool = True, relu: bool = False) -> float:
    """Error of `conv3x3` for one of CONV3X3."""
    n, c, o, h, w = CONV3X3[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 3, 3, scale=(9 * c) ** -0.5), random(o) if bias else None
    found = dense.conv3x3(x, weight, b, relu=relu, packed_weight=dense.pack_conv3x3_weight(weight))
    expected = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), padding=1)
    return error(found, expected, relu)


def conv1x1_error(name: str, bias: bool = True, relu: bool = False) -> float:
    """Error of `conv1x1`, and of `conv1x1_add_` where the stride is 1, for one of CONV1X1."""
    n, c, o, h, w, stride = CONV1X1[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 1, 1, scale=c**-0.5), random(o) if bias else None
    packed = dense.pack_linear_weight(weight)
    found = dense.conv1x1(x, weight, b, stride=stride, relu=relu, packed_weight=packed)
    expected = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), stride)
    largest = error(found, expected, relu)
    if stride == 1:
        shortcut = random(n, o, h, w)
        expected += shortcut
        dense.conv1x1_add_(shortcut, x, weight, b, relu=relu, packed_weight=packed)
        largest = max(largest, error(shortcut, expected, relu))
    return largest


def conv_transpose2x2_error(name: str, bias: bool = True, relu: bool = False) -> float:
    """Error of `conv_transpose2x2` for one of CONV_TRANSPOSE2X2."""
    n, c, o, h, w = CONV_TRANSPOSE2X2[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(c, o, 2, 2, scale=c**-0.5), random(o) if bias else None
    packed = dense.pack_conv_transpose2x2_weight(weight)
    found = dense.conv_transpose2x2(x, weight, b, relu=relu, packed_weight=packed)
    expected = F.conv_transpose2d(x.double(), weight.double(), b if b is None else b.double(), stride=2)
    return error(found, expected, relu)


def stem_error(name: str, bias: bool = True) -> float:
    """Error of `stem` for one of STEM."""
    n, c, o, h, w = STEM[name]
    torch.manual_seed(0)
    x, weight, b = random(n, c, h, w), random(o, c, 7, 7, scale=(49 * c) ** -0.5), random(o) if bias else None
    found = dense.stem(x, weight, b, packed_weight=dense.pack_stem_weight(weight))
    maps = F.conv2d(x.double(), weight.double(), b if b is None else b.double(), stride=2, padding=3)
    return error(found, F.max_pool2d(maps.relu(), 3, 2, 1), relu=False)


def linear_error(name: str, bias: bool = True, relu: bool = False) -> float:
    """Error of `linear` for one of LINEAR."""
    r, c, o = LINEAR[name]
    torch.manual_seed(0)
    x, weight, b = random(r, c), random(o, c, scale=c**-0.5), random(o) if bias else None
    found = dense.linear(x, weight, b, relu=relu, packed_weight=dense.pack_linear_weight(weight))
    return error(found, F.linear(x.double(), weight.double(), b if b is None else b.double()), relu)


def check() -> None:
    """Compares everything."""
    errors = {f"conv3x3 {name}": conv3x3_error(name) / WINOGRAD_TOLERANCE for name in CONV3X3}
    errors |= {f"conv1x1 {name}": conv1x1_error(name, relu=True) / TOLERANCE for name in CONV1X1}
    errors |= {f"linear {name}": linear_error(name) / TOLERANCE for name in LINEAR}
    errors |= {
        f"conv_transpose2x2 {name}": conv_transpose2x2_error(name) / TOLERANCE for name in CONV_TRANSPOSE2X2
    }
    errors |= {f"stem {name}": stem_error(name) / TOLERANCE for name in STEM}
    wrong = {name: value for name, value in errors.items() if not value <= 1}
    if wrong:
        raise SystemExit(f"beyond the tolerance: {wrong}")

"""Deformable convolution: whichever backend is active against the readable reference."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcnzoo import ops
from dcnzoo.ops.backend import NATIVE_PROBLEM, half_factor
from dcnzoo.ops.deform_conv2d import released
from tests.ops.deform_conv2d_cases import (
    CASES,
    HALF_TOLERANCE,
    TOLERANCE,
    Case,
    conversion_errors,
    error,
    half_error,
    rounds_bfloat16_maps,
)

needs_native = pytest.mark.skipif(
    NATIVE_PROBLEM is not None and not os.environ.get("CI"), reason=f"not built: {NATIVE_PROBLEM}"
)

SMALL = Case(2, 8, 6, (9, 11), groups=2, deform_groups=2, mask=True, bias=True, relu=True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    assert error(CASES[name], dtype) <= TOLERANCE[dtype]


needs_half = pytest.mark.skipif(half_factor() is None, reason="this processor has no fast 16-bit factors")
needs_bfloat16 = pytest.mark.skipif(half_factor() != torch.bfloat16, reason="no fast factors in bfloat16")
SHORT = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@SHORT
def test_short_floats_are_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    assert conversion_errors(dtype) == 0


@SHORT
@pytest.mark.parametrize("name", ["offset", "mask"])
def test_offset_and_mask_may_be_of_another_dtype(name: str, dtype: torch.dtype) -> None:
    tensors, options = SMALL.tensors(dtype), SMALL.options()
    found = ops.deform_conv2d(**tensors | {name: tensors[name].double()}, **options)
    assert found.dtype == dtype
    assert torch.equal(found, ops.deform_conv2d(**tensors, **options))


def test_positions_are_exact_in_short_floats() -> None:
    ramp = torch.arange(256, dtype=torch.bfloat16).expand(1, 1, 2, 256)
    weight = torch.ones(1, 1, 1, 1, dtype=torch.bfloat16)
    offset = torch.zeros(1, 2, 2, 256)
    offset[:, 1] = 0.5  # 200.5 is no bfloat16
    expected = (ramp.float() + 0.5)[..., :255].bfloat16()
    assert torch.equal(ops.deform_conv2d(ramp, offset, weight)[..., :255], expected)


@SHORT
@pytest.mark.filterwarnings("ignore:.*autocast.*")
def test_autocast_stays_in_the_lower_precision(dtype: torch.dtype) -> None:
    tensors, options = SMALL.tensors(torch.float32), SMALL.options()
    packed = ops.pack_deform_conv2d_weight(tensors["weight"], SMALL.groups)
    low = {name: tensors[name].to(dtype) for name in ("input", "weight", "bias")}
    expected = ops.deform_conv2d(**tensors | low, **options)
    with torch.autocast("cpu", dtype):
        found = ops.deform_conv2d(**tensors, **options, packed_weight=packed)
    assert torch.equal(found, expected)
    assert found.dtype == dtype


@SHORT
@needs_native
def test_the_operator_has_an_autocast_rule(dtype: torch.dtype) -> None:
    names = ("input", "weight", "offset", "mask", "bias")
    tensors = [SMALL.tensors(torch.float32)[name] for name in names]
    with torch.autocast("cpu", dtype):
        assert torch.ops.dcnzoo.deform_conv2d(*tensors, [1, 1], [1, 1], [1, 1]).dtype == dtype
        wide = [tensor.double() for tensor in tensors]
        assert torch.ops.dcnzoo.deform_conv2d(*wide, [1, 1], [1, 1], [1, 1]).dtype == torch.float64


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_mixed_dtypes_are_refused(name: str) -> None:
    tensors = SMALL.tensors(torch.float32)
    with pytest.raises(ValueError, match="one dtype"):
        ops.deform_conv2d(**tensors | {name: tensors[name].bfloat16()}, **SMALL.options())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_result_has_the_layout_of_the_input(layout: torch.memory_format) -> None:
    tensors, options = SMALL.tensors(torch.float32), SMALL.options()
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    assert ops.deform_conv2d(**tensors, **options).is_contiguous(memory_format=layout)


def test_tensors_may_be_views() -> None:
    tensors, options = SMALL.tensors(torch.float32), SMALL.options()
    expected = ops.deform_conv2d(**tensors, **options)
    both = torch.cat([tensors["offset"], tensors["mask"]], dim=1)
    tensors["offset"], tensors["mask"] = both.split([36, 18], dim=1)
    tensors["input"] = torch.stack([tensors["input"]] * 2, dim=-1)[..., 1]
    tensors["weight"] = tensors["weight"].transpose(2, 3).contiguous().transpose(2, 3)
    tensors["bias"] = tensors["bias"].repeat_interleave(2)[::2]
    torch.testing.assert_close(ops.deform_conv2d(**tensors, **options), expected, rtol=0, atol=0)


def test_zero_offsets_are_a_plain_convolution() -> None:
    image, weight = torch.randn(1, 32, 30, 40), torch.randn(40, 32, 3, 3)
    found = ops.deform_conv2d(image, torch.zeros(1, 18, 30, 40), weight, padding=(1, 1))
    torch.testing.assert_close(found, F.conv2d(image, weight, padding=1), rtol=1e-4, atol=1e-4)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("y", "x", "expected"),
    [
        (0, 0, 1.0),
        (0.5, 0.25, 3.25),
        (-0.5, 1, 1.0),
        (2.5, 3, 6.0),
        (1, 3.75, 2.0),
        (-1, 0, 0),
        (3, 0, 0),
        (1, 4, 0),
        (NAN, 1, 0),
        (1, NAN, 0),
        (INF, 0, 0),
        (0, -INF, 0),
        (1e30, 1, 0),
        (1, -3e38, 0),
    ],
)
def test_borders_and_numbers_that_are_none(y: float, x: float, expected: float) -> None:
    image = torch.arange(1.0, 13).reshape(1, 1, 3, 4)  # 1 + 4·row + column
    offset = torch.tensor([y, x], dtype=torch.float32).reshape(1, 2, 1, 1).expand(1, 2, 3, 4)
    assert ops.deform_conv2d(image, offset, torch.ones(1, 1, 1, 1))[0, 0, 0, 0].item() == expected


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_packed_weight_changes_nothing(dtype: torch.dtype) -> None:
    tensors, options = SMALL.tensors(dtype), SMALL.options()
    packed = ops.pack_deform_conv2d_weight(tensors["weight"], SMALL.groups)
    assert (packed is None) == (ops.active_backend()[0] != "native")
    expected = ops.deform_conv2d(**tensors, **options)
    found = ops.deform_conv2d(**tensors, **options, packed_weight=packed)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_an_offset_that_is_no_number_gives_zero_elsewhere_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's operator reads wild memory there."""
    module = importlib.import_module("dcnzoo.ops.deform_conv2d")
    monkeypatch.setattr(module, "_kernels_take", lambda *_: False)
    x, weight = torch.randn(1, 8, 101, 103), torch.randn(8, 8, 3, 3)
    offset = torch.full((1, 18, 101, 103), float("nan"))
    offset[0, 1::2] = float("inf")
    found = ops.deform_conv2d(x, offset, weight, padding=(1, 1))
    assert not found.any()


@needs_native
def test_a_weight_that_is_left_packed_only_is_not_used_unpacked() -> None:
    x, offset, weight = torch.randn(1, 8, 5, 7), torch.zeros(1, 18, 5, 7), torch.randn(8, 8, 3, 3)
    packed, left = ops.pack_deform_conv2d_weight(weight), released(weight)
    given: dict[str, Any] = {"padding": (1, 1), "packed_weight": packed}
    expected = ops.deform_conv2d(x, offset, weight, **given)
    assert torch.equal(ops.deform_conv2d(x, offset, left, **given), expected)
    with pytest.raises(RuntimeError, match="autocast"), torch.autocast("cpu", torch.bfloat16):
        ops.deform_conv2d(x, offset, left, **given)
    with pytest.raises(RuntimeError, match="gradients"):
        ops.deform_conv2d(x.requires_grad_(), offset, left, **given)


def test_no_images_give_no_outputs() -> None:
    tensors = {name: value[:0] for name, value in Case().tensors(torch.float32).items() if name != "weight"}
    output = ops.deform_conv2d(**tensors, weight=torch.randn(16, 16, 3, 3), padding=(1, 1))
    assert output.shape == (0, 16, 9, 11)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("offset", (2, 35, 9, 11), "offset must be"),
        ("offset", (2, 36, 9, 10), "offset must be"),
        ("mask", (2, 9, 9, 11), "mask must be"),
        ("weight", (6, 3, 3, 3), "does not divide"),
        ("input", (8, 9, 11), "4 dimensions"),
        ("input", (2, 0, 9, 11), "does not divide"),
    ],
)
def test_misfits_are_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    tensors = SMALL.tensors(torch.float32) | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=words):
        ops.deform_conv2d(**tensors, **SMALL.options())


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(SMALL.tensors(torch.float32)["weight"], requires_grad=False)

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        options = SMALL.options()
        return ops.deform_conv2d(2 * x, offset, self.weight, mask=mask, **options) + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool) -> None:
    tensors, layer = SMALL.tensors(torch.float32), _Layer()
    arguments = tensors["input"], tensors["offset"], tensors["mask"]
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), layer(*arguments))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exports() -> None:
    tensors, layer = SMALL.tensors(torch.float32), _Layer()
    arguments = tensors["input"], tensors["offset"], tensors["mask"]
    exported = torch.export.export(layer, arguments)
    torch.testing.assert_close(exported.module()(*arguments), layer(*arguments))


@needs_native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_operator_obeys_the_rules_of_pytorch(packed: bool, dtype: torch.dtype) -> None:
    tensors = SMALL.tensors(dtype)
    geometry = [1, 1], [1, 1], [1, 1]
    tail = (ops.pack_deform_conv2d_weight(tensors["weight"], SMALL.groups), True, True) if packed else ()
    head = [tensors[name] for name in ("input", "weight", "offset", "mask", "bias")]
    torch.library.opcheck(torch.ops.dcnzoo.deform_conv2d.default, (*head, *geometry, *tail))
    arguments = tensors["weight"], SMALL.groups
    torch.library.opcheck(torch.ops.dcnzoo.pack_deform_conv2d_weight.default, arguments)


@needs_half
@pytest.mark.parametrize("name", CASES)
def test_products_of_16_bits_are_near(name: str) -> None:
    assert half_error(CASES[name]) <= HALF_TOLERANCE


@needs_bfloat16
@pytest.mark.parametrize("name", CASES)
def test_maps_of_16_bits_are_those_of_float32_rounded(name: str) -> None:
    assert rounds_bfloat16_maps(CASES[name])


@needs_half
def test_operator_with_16_bits_obeys_the_rules_of_pytorch() -> None:
    tensors = SMALL.tensors(torch.float32)
    head = [tensors[name] for name in ("input", "weight", "offset", "mask", "bias")]
    packed = ops.pack_deform_conv2d_weight(tensors["weight"], SMALL.groups, half=True)
    arguments = (*head, [1, 1], [1, 1], [1, 1], packed, True, True)
    torch.library.opcheck(torch.ops.dcnzoo.deform_conv2d.default, arguments)
    pack = torch.ops.dcnzoo.pack_deform_conv2d_weight.default
    torch.library.opcheck(pack, (tensors["weight"], SMALL.groups, True))
    with pytest.raises(RuntimeError, match="only float32 can be rounded as it is multiplied"):
        ops.pack_deform_conv2d_weight(tensors["weight"].double(), SMALL.groups, half=True)
    another = torch.float16 if half_factor() == torch.bfloat16 else torch.bfloat16
    lowered = [tensor.to(another) for tensor in head]
    with pytest.raises(RuntimeError, match="packed_weight does not fit"):
        torch.ops.dcnzoo.deform_conv2d(*lowered, *arguments[5:])


@needs_native
def test_operator_refuses_what_would_read_outside() -> None:
    operator = torch.ops.dcnzoo.deform_conv2d
    tensors, geometry = SMALL.tensors(torch.float32), ([1, 1], [1, 1], [1, 1])
    image, weight, offset = (tensors[name] for name in ("input", "weight", "offset"))
    row = torch.zeros(1, 1, 1, 1).expand(1, 1, 1, 2**24 + 1)  # float32 cannot tell its last two pixels apart
    wide = [1, 2**23], [0, 0], [1, 1]
    wrong = [
        (row, torch.ones(1, 1, 1, 1), torch.zeros(1, 2, 1, 3), None, None, *wide),
        (image, weight, offset[..., 1:], None, None, *geometry),
        (image, weight, offset, offset, None, *geometry),
        (image, weight, offset, None, torch.zeros(5), *geometry),
        (image, weight, offset, None, None, *geometry, torch.zeros(7)),
        (image, weight, offset, None, None, [0, 1], *geometry[1:]),
        (image.half(), weight, offset, None, None, *geometry),
        (image.long(), weight.long(), offset, None, None, *geometry),
        (image, weight, offset.long(), None, None, *geometry),
        (image, weight, offset, None, None, *geometry, torch.zeros(10000)[::2]),
    ]
    for arguments in wrong:
        with pytest.raises(RuntimeError, match=r"deform_conv2d|dcnzoo"):
            operator(*arguments)

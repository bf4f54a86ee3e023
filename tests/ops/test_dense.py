"""Dense layers: the compiled kernels, or PyTorch in their place, against PyTorch in float64."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from dcnzoo.models.layers import GroupedConv3x3
from dcnzoo.ops import dense
from dcnzoo.ops.backend import NATIVE_PROBLEM, half_factor
from tests.ops import dense_cases as cases
from tests.ops.dense_cases import (
    SMALL_WINOGRAD_TOLERANCE,
    STRASSEN_TOLERANCE,
    TOLERANCE,
    WINOGRAD_TOLERANCE,
    random,
)

needs_native = pytest.mark.skipif(
    NATIVE_PROBLEM is not None and not os.environ.get("CI"), reason=f"not built: {NATIVE_PROBLEM}"
)

needs_half = pytest.mark.skipif(half_factor() is None, reason="this processor has no fast 16-bit factors")
needs_float16 = pytest.mark.skipif(half_factor() != torch.float16, reason="this processor has no AVX512-FP16")

LAYERS = (
    "conv3x3",
    "small_conv3x3",
    "conv1x1",
    "conv1x1_add_",
    "conv1x1_add_upsampled",
    "conv1x1_add_conv1x1_",
    "conv_transpose2x2",
    "class_mask_logits",
    "linear",
    "strided_conv3x3",
)
"""Operators that take weights packed in float32 and in 16 bits."""

OPTIONS = [pytest.param(True, False, id="bias"), pytest.param(False, True, id="relu")]


@pytest.mark.parametrize(("bias", "relu"), OPTIONS)
@pytest.mark.parametrize("name", cases.CONV3X3)
def test_conv3x3(name: str, bias: bool, relu: bool) -> None:
    assert cases.conv3x3_error(name, bias, relu) <= WINOGRAD_TOLERANCE


@needs_native
@pytest.mark.parametrize(("out_channels", "bias"), [(1, True), (15, False), (15, True), (64, True)])
@pytest.mark.parametrize("name", cases.CONV3X3)
def test_conv3x3_conv1x1(name: str, out_channels: int, bias: bool) -> None:
    assert cases.conv3x3_conv1x1_error(name, out_channels, bias) <= WINOGRAD_TOLERANCE


@needs_native
def test_conv3x3_conv1x1_has_room_for_few_channels() -> None:
    x, packed = random(1, 8, 5, 5), dense.pack_conv3x3_weight(random(8, 8, 3, 3))
    point = dense.pack_linear_weight(random(65, 8, 1, 1))
    assert packed is not None
    assert point is not None
    with pytest.raises(RuntimeError, match="out_channels must be 1 to 64"):
        dense.conv3x3_conv1x1(x, packed, None, 8, point, None, 65)
    with pytest.raises(RuntimeError, match="packed_weight does not fit"):
        dense.conv3x3_conv1x1(x, packed, None, 8, point, None, 64)


@pytest.mark.parametrize(("bias", "relu"), OPTIONS)
@pytest.mark.parametrize("name", cases.SMALL_CONV3X3)
def test_small_conv3x3(name: str, bias: bool, relu: bool) -> None:
    assert cases.small_conv3x3_error(name, bias, relu) <= SMALL_WINOGRAD_TOLERANCE


@pytest.mark.parametrize(("bias", "relu"), OPTIONS)
@pytest.mark.parametrize("name", cases.CONV1X1)
def test_conv1x1(name: str, bias: bool, relu: bool) -> None:
    assert cases.conv1x1_error(cases.CONV1X1[name], bias, relu) <= TOLERANCE


@needs_native
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", cases.CONV1X1_PAIRS)
def test_conv1x1_add_conv1x1(name: str, bias: bool) -> None:
    assert cases.conv1x1_pair_error(name, bias) <= cases.tolerance(name)


@needs_native
def test_conv1x1_add_conv1x1_computes_all_or_nothing() -> None:
    x, y, point = random(1, 16, 5, 5), random(1, 16, 5, 5), random(16, 16, 1, 1)
    before, packed = y.clone(), dense.pack_linear_weight(point)
    assert packed is not None
    unusual = y.contiguous()  # not channels-last
    assert dense.conv1x1_add_conv1x1_(unusual, x, packed, None, packed, None, 16) is None
    assert dense.conv1x1_add_conv1x1_(y, x.double(), packed, None, packed, None, 16) is None
    assert dense.conv1x1_add_conv1x1_(y, x, packed, None, packed.half(), None, 16) is None
    for wrong in ({"input": x[..., :4]}, {"next_channels": 17}, {"next_channels": 0}, {"bias": x[0, 0, 0]}):
        arguments = {"input": x, "packed_weight": packed, "bias": None}
        arguments |= {"packed_next_weight": packed, "next_bias": None, "next_channels": 16, **wrong}
        with pytest.raises(RuntimeError, match=r"differ in size|does not fit|must be positive|one element"):
            dense.conv1x1_add_conv1x1_(y, **arguments)
    assert torch.equal(y, before)


@pytest.mark.parametrize(("bias", "relu"), OPTIONS)
@pytest.mark.parametrize("name", cases.STRASSEN_CONV1X1)
def test_conv1x1_by_strassens_algorithm(name: str, bias: bool, relu: bool) -> None:
    assert cases.conv1x1_error(cases.STRASSEN_CONV1X1[name], bias, relu) <= STRASSEN_TOLERANCE


@pytest.mark.parametrize(("bias", "relu"), OPTIONS)
@pytest.mark.parametrize("name", cases.CONV_TRANSPOSE2X2)
def test_conv_transpose2x2(name: str, bias: bool, relu: bool) -> None:
    assert cases.conv_transpose2x2_error(name, bias, relu) <= cases.tolerance(name)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", cases.MASK_LOGITS)
def test_class_mask_logits(name: str, bias: bool) -> None:
    assert cases.mask_logits_error(name, bias) <= STRASSEN_TOLERANCE


@needs_native
@pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0], [0.0, 1.0]], ids=str)
def test_class_mask_logits_refuses_labels_that_are_no_classes(labels: list[int]) -> None:
    weight = random(8, 8, 2, 2)
    with pytest.raises(RuntimeError, match="label"):
        dense.class_mask_logits(
            random(2, 8, 3, 3),
            weight,
            None,
            random(3, 8, 1, 1),
            None,
            torch.tensor(labels),
            packed_weight=dense.pack_conv_transpose2x2_weight(weight),
        )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", cases.STEM)
def test_stem(name: str, bias: bool) -> None:
    assert cases.stem_error(name, bias) <= cases.tolerance(name)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_map_linear(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(9, 40, 3, 5), random(17, 600, scale=600**-0.5), random(17)
    packed = dense.pack_map_linear_weight(weight, (40, 3, 5))
    found = dense.map_linear(x.contiguous(memory_format=layout), weight, bias, packed_weight=packed)
    expected = F.linear(x.flatten(1).double(), weight.double(), bias.double())
    assert cases.error(found, expected, relu=False) <= TOLERANCE


def test_map_linear_of_a_permuted_weight_copies_no_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which multiplies channels-last maps as they lie."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(9, 40, 3, 5), random(17, 600, scale=600**-0.5), random(17)
    expected = F.linear(x.flatten(1).double(), weight.double(), bias.double())
    x = x.contiguous(memory_format=torch.channels_last)
    permuted = dense.permute_map_linear_weight(weight, (40, 3, 5))
    multiplied: list[int] = []

    def linear(rows: Tensor, *others: Tensor) -> Tensor:
        multiplied.append(rows.data_ptr())
        return torch._C._nn.linear(rows, *others)

    monkeypatch.setattr(F, "linear", linear)
    found = dense.map_linear(x, weight.to("meta"), bias, relu=True, packed_weight=permuted)
    assert cases.error(found, expected, relu=True) <= TOLERANCE
    assert multiplied == [x.data_ptr()]


def test_map_linear_has_a_permuted_weight_on_a_gpu() -> None:
    with FakeTensorMode():
        weight = torch.empty(17, 600, device="cuda", dtype=torch.float16)
        packed = dense.pack_map_linear_weight(weight, (40, 3, 5))
    assert packed is not None
    assert (packed.shape, packed.dtype, packed.device.type) == ((17, 600), torch.float16, "cuda")


@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 5, 3, 4), (1, 256, 13, 19)])
def test_upsample2x(size: tuple[int, int, int, int]) -> None:
    x = random(*size)
    assert torch.equal(dense.upsample2x(x), F.interpolate(x, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize(("bias", "relu"), OPTIONS)
@pytest.mark.parametrize("name", cases.LINEAR)
def test_linear(name: str, bias: bool, relu: bool) -> None:
    assert cases.linear_error(cases.LINEAR[name], bias, relu) <= TOLERANCE


@pytest.mark.parametrize(("bias", "relu"), OPTIONS)
@pytest.mark.parametrize("name", cases.STRASSEN_LINEAR)
def test_linear_by_strassens_algorithm(name: str, bias: bool, relu: bool) -> None:
    assert cases.linear_error(cases.STRASSEN_LINEAR[name], bias, relu) <= STRASSEN_TOLERANCE


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 400),
    half_channels=st.integers(256, 640),
    panels=st.integers(4, 10),
    threads=st.integers(1, 5),
    accumulate=st.booleans(),
)
def test_strassens_algorithm_for_any_size(
    rows: int, half_channels: int, panels: int, threads: int, accumulate: bool
) -> None:
    n, c, o = rows, 2 * half_channels, 128 * panels
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight, shortcut = random(1, c, n, 1), random(o, c, 1, 1, scale=c**-0.5), random(1, o, n, 1)
        expected = F.conv2d(x.double(), weight.double()) + accumulate * shortcut.double()
        packed = dense.pack_linear_weight(weight)
        if accumulate:
            found = dense.conv1x1_add_(shortcut, x, weight, packed_weight=packed)
        else:
            found = dense.conv1x1(x, weight, packed_weight=packed)
    finally:
        torch.set_num_threads(before)
    assert (found.double() - expected).abs().max().item() <= STRASSEN_TOLERANCE * 2


@needs_native
def test_small_conv3x3_keeps_the_maps_apart() -> None:
    """Whatever stands in the other maps, a map comes out the same."""
    torch.manual_seed(0)
    x, weight = random(7, 16, 14, 14), random(16, 16, 3, 3, scale=1 / 12)
    packed = dense.pack_small_conv3x3_weight(weight)
    found = dense.small_conv3x3(x, weight, packed_weight=packed)
    for index, elsewhere in itertools.product(range(7), (0, torch.nan)):
        others = torch.full_like(x, elsewhere)
        others[index] = x[index]
        again = dense.small_conv3x3(others, weight, packed_weight=packed)
        assert torch.equal(again[index], found[index])
        again[index] = elsewhere
        torch.testing.assert_close(again, torch.full_like(x, elsewhere), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, n) for n in (3, 40, 40, 23, 23)]),
    threads=st.integers(1, 5),
)
def test_conv3x3_of_any_size(sizes: tuple[int, int, int, int, int], threads: int) -> None:
    n, c, o, h, w = sizes
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight, bias = random(n, c, h, w), random(o, c, 3, 3, scale=(9 * c) ** -0.5), random(o)
        found = dense.conv3x3(x, weight, bias, packed_weight=dense.pack_conv3x3_weight(weight))
    finally:
        torch.set_num_threads(before)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert (found.double() - expected).abs().max().item() <= WINOGRAD_TOLERANCE * 2


def test_conv3x3_of_one_pixel_shows_the_kernel_mirrored() -> None:
    image = torch.zeros(1, 1, 7, 9)
    image[0, 0, 4, 4] = 1
    weight = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    found = dense.conv3x3(image, weight, packed_weight=dense.pack_conv3x3_weight(weight))
    expected = F.pad(weight.flip(2, 3), (3, 3, 3, 1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_linear_is_exact_for_small_integers() -> None:
    x, weight = torch.arange(12.0).reshape(3, 4), torch.arange(20.0).reshape(5, 4)
    found = dense.linear(x, weight, packed_weight=dense.pack_linear_weight(weight))
    assert torch.equal(found, x @ weight.T)


def test_conv1x1_add_works_in_place() -> None:
    x, weight, shortcut = random(1, 8, 3, 3), random(8, 8, 1, 1), random(1, 8, 3, 3)
    packed = dense.pack_linear_weight(weight)
    assert dense.conv1x1_add_(shortcut, x, weight, packed_weight=packed) is shortcut


@pytest.mark.parametrize("view", ["contiguous", "slice", "expanded"])
def test_inputs_may_be_views(view: str) -> None:
    x = random(2, 16, 9, 9)
    views = {
        "contiguous": x.contiguous(),
        "slice": x[:, :, 1:8, ::2],
        "expanded": x[:1].expand(3, -1, -1, -1),
    }
    weight = random(16, 16, 3, 3).transpose(2, 3)
    packed = dense.pack_conv3x3_weight(weight)
    found = dense.conv3x3(views[view], weight, packed_weight=packed)
    torch.testing.assert_close(found, F.conv2d(views[view], weight, padding=1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_reach_the_output(bad: float) -> None:
    x, weight = random(1, 16, 8, 8), random(16, 16, 3, 3)
    x[0, 3, 2, 2] = bad
    found = dense.conv3x3(x, weight, relu=True, packed_weight=dense.pack_conv3x3_weight(weight))
    assert not found[0, :, 1:4, 1:4].isfinite().all()


def test_stem_keeps_what_is_no_number() -> None:
    """PyTorch's pooling keeps NaN; so a broken image does not look like a good one."""
    x, weight = random(1, 3, 32, 32), random(64, 3, 7, 7)
    x[0, 1, 10, 12] = float("nan")
    expected = F.max_pool2d(F.conv2d(x, weight, stride=2, padding=3).relu(), 3, stride=2, padding=1)
    found = dense.stem(x, weight, None, packed_weight=dense.pack_stem_weight(weight))
    assert expected.isnan().any()
    assert found.isnan()[expected.isnan()].all()
    assert found.isfinite().float().mean() > 0.5  # only those that are computed together with them


def test_no_images_give_no_outputs() -> None:
    x, weight, point = random(0, 16, 5, 7), random(24, 16, 3, 3), random(24, 16, 1, 1)
    found = dense.conv3x3(x, weight, packed_weight=dense.pack_conv3x3_weight(weight))
    assert found.shape == (0, 24, 5, 7)
    packed = dense.pack_linear_weight(point)
    found = dense.conv1x1(x, point, stride=2, packed_weight=packed)
    assert found.shape == (0, 24, 3, 4)
    for size in ((4, 0), (0, 4)):
        wide, coarse = random(1, 16, *size), random(1, 24, size[0] // 2, size[1] // 2)
        found = dense.conv1x1_add_upsampled(wide, point, None, coarse, packed_weight=packed)
        assert found.shape == (1, 24, *size)


@needs_native
def test_a_sum_with_its_own_input_is_refused() -> None:
    x, weight = random(1, 16, 5, 7).contiguous(memory_format=torch.channels_last), random(16, 16, 1, 1)
    with pytest.raises(RuntimeError, match="overlap"):
        dense.conv1x1_add_(x, x, weight, packed_weight=dense.pack_linear_weight(weight))


def test_groups_that_are_not_packed_are_computed() -> None:
    x, layer = random(1, 32, 5, 7), GroupedConv3x3(32, 64, 8)
    layer.pack()
    with torch.no_grad():
        expected = F.conv2d(x, layer.weight, layer.bias, padding=1, groups=8)
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_training_still_has_gradients() -> None:
    x, weight = random(1, 16, 5, 5).requires_grad_(), random(16, 16, 3, 3)
    dense.conv3x3(x, weight, relu=True, packed_weight=dense.pack_conv3x3_weight(weight)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def add_to_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """As a feature pyramid adds its levels."""
    y = dense.conv1x1_add_upsampled(dense.upsample2x(x), weight, bias, x)
    return dense.conv1x1_add_(y, dense.upsample2x(x), weight, bias, relu=True)


TRAINED: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[..., Tensor]]] = {
    "conv3x3": ((2, 3, 4, 5), (4, 3, 3, 3), dense.conv3x3),
    "conv1x1": ((2, 3, 5, 4), (4, 3, 1, 1), lambda *given: dense.conv1x1(*given, stride=2, relu=True)),
    "conv1x1_add_": ((2, 3, 2, 2), (3, 3, 1, 1), add_to_relu),
    "conv_transpose2x2": (
        (2, 4, 3, 2),
        (4, 4, 2, 2),
        lambda *given: dense.conv_transpose2x2(*given, relu=True),
    ),
    "linear": ((5, 3), (4, 3), lambda *given: dense.linear(*given, relu=True)),
    "map_linear": ((3, 2, 2, 3), (4, 12), dense.map_linear),
    "stem": ((1, 2, 9, 8), (4, 2, 7, 7), dense.stem),
}


@pytest.mark.parametrize("name", TRAINED)
def test_unpacked_layers_can_be_trained(name: str) -> None:
    input_size, weight_size, layer = TRAINED[name]
    torch.manual_seed(0)
    sizes = input_size, weight_size, (3 if "add" in name else 4,)
    exact = tuple(torch.randn(size, dtype=torch.float64, requires_grad=True) for size in sizes)
    assert torch.autograd.gradcheck(layer, exact)
    single = tuple(value.detach().float().requires_grad_() for value in exact)
    layer(*exact).square().sum().backward()
    layer(*single).square().sum().backward()  # the compiled kernels know this type, but no derivatives
    for found, expected in zip(single, exact, strict=True):
        torch.testing.assert_close(found.grad, expected.grad.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_left_to_pytorch(dtype: torch.dtype) -> None:
    x, weight = random(1, 16, 5, 5).to(dtype), random(16, 16, 3, 3).to(dtype)
    assert dense.pack_conv3x3_weight(weight) is None
    assert torch.equal(dense.conv3x3(x, weight), F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize(
    ("pack", "shape"),
    [
        (dense.pack_conv3x3_weight, (8, 8, 5, 5)),
        (dense.pack_small_conv3x3_weight, (8, 8, 5, 5)),
        (dense.pack_linear_weight, (8, 8, 3, 3)),
        (dense.pack_linear_weight, (8,)),
        (dense.pack_conv_transpose2x2_weight, (8, 8, 3, 3)),
    ],
)
def test_weights_of_other_shapes_are_refused(pack: object, shape: tuple[int, ...]) -> None:
    assert callable(pack)
    with pytest.raises(ValueError, match="weight must be"):
        pack(torch.zeros(shape))


class _Layers(nn.Module):
    """Every operator once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.square, self.point = random(16, 16, 3, 3), random(16, 16, 1, 1)
        self.corner, self.full = random(16, 16, 2, 2), random(10, 16)
        self.packed_square = dense.pack_conv3x3_weight(self.square)
        self.packed_small = dense.pack_small_conv3x3_weight(self.square)
        self.packed_point = dense.pack_linear_weight(self.point)
        self.packed_corner = dense.pack_conv_transpose2x2_weight(self.corner)
        self.packed_full = dense.pack_linear_weight(self.full)
        self.packed_strided = dense.pack_strided_conv3x3_weight(self.square)
        self.group = random(16, 4, 3, 3)
        self.packed_group = dense.pack_grouped_conv3x3_weight(self.group)

    def forward(self, x: Tensor) -> Tensor:
        y = dense.conv3x3(2 * x, self.square, relu=True, packed_weight=self.packed_square)
        y = dense.small_conv3x3(y, self.square, packed_weight=self.packed_small)
        y = dense.conv1x1_add_(y, x, self.point, packed_weight=self.packed_point)
        packed = self.packed_point
        y = dense.conv1x1_add_upsampled(dense.upsample2x(x), self.point, None, y, packed_weight=packed)
        y = dense.conv1x1(y, self.point, stride=2, packed_weight=self.packed_point)
        y = dense.grouped_conv3x3(y, self.group, relu=True, packed_weight=self.packed_group)
        y = dense.strided_conv3x3(y, self.square, packed_weight=self.packed_strided)
        y = dense.conv_transpose2x2(y, self.corner, packed_weight=self.packed_corner)
        labels = torch.arange(len(y))
        y += dense.class_mask_logits(
            y, self.corner, None, self.point, None, labels, packed_weight=self.packed_corner
        ).mean()
        return dense.linear(y.mean((2, 3)), self.full, packed_weight=self.packed_full)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool) -> None:
    x, layers = random(2, 16, 9, 11), _Layers()
    compiled = torch.compile(layers, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layers(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_exports() -> None:
    x, layers = random(2, 16, 9, 11), _Layers()
    torch.testing.assert_close(torch.export.export(layers, (x,)).module()(x), layers(x))


@needs_native
@pytest.mark.parametrize(
    "name",
    [
        *LAYERS,
        "conv3x3_conv1x1",
        "pack_conv3x3_weight",
        "pack_small_conv3x3_weight",
        "pack_linear_weight",
        "pack_stem_weight",
        "grouped_conv3x3",
        "pack_grouped_conv3x3_weight",
    ],
)
def test_operators_obey_the_rules_of_pytorch(name: str) -> None:
    layers, x, bias = _Layers(), random(2, 16, 6, 7), random(16)
    arguments: dict[str, tuple[object, ...]] = {
        "conv3x3": (x, layers.packed_square, bias, 16, True),
        "conv3x3_conv1x1": (x, layers.packed_square, bias, 16, layers.packed_point, bias, 16),
        "small_conv3x3": (x, layers.packed_small, bias, 16, True),
        "conv1x1": (x, layers.packed_point, bias, 16, 2, True),
        "conv1x1_add_": (x.clone(), x, layers.packed_point, bias, True),
        "conv1x1_add_upsampled": (x.repeat(1, 1, 2, 2), layers.packed_point, bias, x),
        "conv1x1_add_conv1x1_": (
            x.clone(),
            x,
            layers.packed_point,
            bias,
            layers.packed_point,
            None,
            16,
        ),
        "conv_transpose2x2": (x, layers.packed_corner, bias.repeat(2), 16, True),
        "class_mask_logits": (x, layers.packed_corner, None, layers.full, None, torch.tensor([9, 0])),
        "linear": (random(5, 16), layers.packed_full, None, 10, False),
        "strided_conv3x3": (x, dense.pack_strided_conv3x3_weight(layers.square), bias, 16),
        "grouped_conv3x3": (x, dense.pack_grouped_conv3x3_weight(random(16, 4, 3, 3)), bias, True),
        "pack_grouped_conv3x3_weight": (random(16, 4, 3, 3),),
        "pack_conv3x3_weight": (layers.square,),
        "pack_small_conv3x3_weight": (layers.square,),
        "pack_linear_weight": (layers.full,),
        "pack_stem_weight": (random(5, 3, 7, 7),),
    }
    torch.library.opcheck(getattr(torch.ops.dcnzoo, name).default, arguments[name])


def _other(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype == torch.float16 else torch.float16


@needs_half
def test_products_of_16_bits_are_near() -> None:
    errors = cases.half_errors()
    assert {name: value for name, value in errors.items() if not 0 < value <= 1} == {}


@needs_half
def test_maps_of_16_bits_are_those_of_float32_rounded() -> None:
    assert cases.wrong_half_maps() == []


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", cases.STRIDED_CONV3X3)
def test_strided_conv3x3(name: str, bias: bool) -> None:
    assert cases.strided_conv3x3_error(name, bias) <= STRASSEN_TOLERANCE


@pytest.mark.parametrize(("bias", "relu"), OPTIONS)
@pytest.mark.parametrize("name", cases.GROUPED_CONV3X3)
def test_grouped_conv3x3(name: str, bias: bool, relu: bool) -> None:
    assert cases.grouped_conv3x3_error(name, bias, relu) <= TOLERANCE


def test_grouped_conv3x3_of_other_groups() -> None:
    x = random(1, 24, 5, 6)
    for weight in (random(24, 2, 3, 3), random(24, 4, 3, 3), random(32, 8, 3, 3)):
        assert dense.pack_grouped_conv3x3_weight(weight) is None
    weight = random(24, 2, 3, 3)
    expected = F.conv2d(x, weight, padding=1, groups=12)
    torch.testing.assert_close(dense.grouped_conv3x3(x, weight), expected)


@needs_float16
def test_float16_overflows_to_infinity() -> None:
    weight = torch.eye(64)
    x = torch.zeros(5, 64)
    x[1, 2], x[2, 3], x[3, 4] = 65000, -66000, torch.nan
    found = dense.linear(x, weight, packed_weight=dense.pack_linear_weight(weight, half=True))
    assert found[1, 2] == 64992  # the nearest float16
    assert not found[2].isfinite().any()  # infinity times 0
    assert found[3].isnan().all()
    assert torch.equal(found[[0, 4]], x[[0, 4]])


@needs_half
@pytest.mark.parametrize("name", LAYERS)
def test_operators_with_16_bits_obey_the_rules_of_pytorch(name: str) -> None:
    layers, x, bias = _Layers(), random(2, 16, 6, 7), random(16)
    pack = torch.ops.dcnzoo.pack_linear_weight
    point, full = pack(layers.point, True), pack(layers.full, True)
    corner = dense.pack_conv_transpose2x2_weight(layers.corner, half=True)
    arguments: dict[str, tuple[object, ...]] = {
        "conv3x3": (x, dense.pack_conv3x3_weight(layers.square, half=True), bias, 16, True),
        "small_conv3x3": (x, dense.pack_small_conv3x3_weight(layers.square, half=True), bias, 16, True),
        "conv1x1": (x, point, bias, 16, 2, True),
        "conv1x1_add_": (x.clone(), x, point, bias, True),
        "conv1x1_add_upsampled": (x.repeat(1, 1, 2, 2), point, bias, x),
        "conv1x1_add_conv1x1_": (x.clone(), x, point, bias, point, None, 16),
        "conv_transpose2x2": (x, corner, bias.repeat(2), 16, True),
        "class_mask_logits": (x, corner, None, layers.full, None, torch.tensor([9, 0])),
        "linear": (random(5, 16), full, None, 10, False),
        "strided_conv3x3": (
            x.to(point.dtype),
            dense.pack_strided_conv3x3_weight(layers.square, half=True),
            bias,
            16,
        ),
    }
    operator = getattr(torch.ops.dcnzoo, name).default
    torch.library.opcheck(operator, arguments[name])
    low = x.to(point.dtype)
    stored = {
        "conv3x3": (low, *arguments["conv3x3"][1:], True),
        "conv1x1": (low, point, bias, 16, 1, True, True),
        "conv1x1_add_conv1x1_": (x.clone(), low, point, bias, point, None, 16, True),
    }
    if name in stored:
        torch.library.opcheck(operator, stored[name])
        assert operator(*stored[name]).dtype == point.dtype
    torch.library.opcheck(pack.default, (layers.full, True))
    torch.library.opcheck(torch.ops.dcnzoo.pack_conv3x3_weight.default, (layers.square, True))
    torch.library.opcheck(torch.ops.dcnzoo.pack_small_conv3x3_weight.default, (layers.square, True))


@needs_native
def test_16_bits_are_refused_where_they_are_not_multiplied() -> None:
    program = "import torch, dcnzoo.ops.dense as d; d.pack_linear_weight(torch.ones(2, 2), half=True)"
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"DCNZOO_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "the kernels for default do not multiply in 16 bits" in run.stderr


@needs_half
def test_16_bit_weights_of_another_layer_are_refused() -> None:
    layers, x = _Layers(), random(2, 16, 6, 7)
    half = dense.pack_conv3x3_weight(layers.square, half=True)
    point = dense.pack_linear_weight(layers.point, half=True)
    grouped = dense.pack_grouped_conv3x3_weight(random(16, 4, 3, 3))
    assert point is not None
    assert grouped is not None
    wrong = [
        lambda: torch.ops.dcnzoo.conv3x3(x, point, None, 16, False),
        lambda: torch.ops.dcnzoo.small_conv3x3(x, point, None, 16, False),
        lambda: torch.ops.dcnzoo.small_conv3x3(x, half, None, 16, False),
        lambda: torch.ops.dcnzoo.conv1x1(x, half, None, 16, 1, False),
        lambda: torch.ops.dcnzoo.linear(x.half(), point, None, 16, False),
        lambda: torch.ops.dcnzoo.stem(x[:, :3], point, None, 16),
        lambda: torch.ops.dcnzoo.conv1x1(x, point.view(_other(point.dtype)), None, 16, 1, False),
        lambda: torch.ops.dcnzoo.conv1x1(x.to(_other(point.dtype)), point, None, 16, 1, False),
        lambda: torch.ops.dcnzoo.conv1x1(x.to(point.dtype), point, None, 16, 2, False),
        lambda: torch.ops.dcnzoo.conv1x1(x, layers.packed_point, None, 16, 1, False, True),
        lambda: torch.ops.dcnzoo.conv1x1_add_(x.to(point.dtype), x, point, None, False),
        lambda: torch.ops.dcnzoo.strided_conv3x3(x, torch.stack([point] * 9), None, 16),
        lambda: torch.ops.dcnzoo.strided_conv3x3(x.to(point.dtype), torch.stack([point] * 8), None, 16),
        lambda: torch.ops.dcnzoo.grouped_conv3x3(x.to(_other(point.dtype)), grouped, None, False),
        lambda: torch.ops.dcnzoo.grouped_conv3x3(x, grouped.to(point.dtype), None, False),
        lambda: torch.ops.dcnzoo.grouped_conv3x3(x[:, :12], grouped, None, False),
    ]
    for call in wrong:
        with pytest.raises(RuntimeError):
            call()


@needs_native
def test_operators_refuse_what_would_read_outside() -> None:
    layers, x = _Layers(), random(2, 16, 6, 7)
    add = torch.ops.dcnzoo.conv1x1_add_
    wrong = [
        lambda: torch.ops.dcnzoo.conv3x3(x, layers.packed_point, None, 16, False),
        lambda: torch.ops.dcnzoo.small_conv3x3(x, layers.packed_square, None, 16, False),
        lambda: torch.ops.dcnzoo.conv3x3(x[0], layers.packed_square, None, 16, False),
        lambda: torch.ops.dcnzoo.conv3x3(x, layers.packed_square, torch.zeros(5), 16, False),
        lambda: torch.ops.dcnzoo.conv3x3(x.double(), layers.packed_square, None, 16, False),
        lambda: torch.ops.dcnzoo.conv1x1(x, layers.packed_square, None, 16, 1, False),
        lambda: torch.ops.dcnzoo.conv1x1(x, layers.packed_point, None, 16, 0, False),
        lambda: torch.ops.dcnzoo.linear(x, layers.packed_full, None, 10, False),
        lambda: torch.ops.dcnzoo.conv_transpose2x2(x, layers.packed_corner, random(16), 16, False),
        lambda: torch.ops.dcnzoo.conv1x1_add_upsampled(x, layers.packed_point, None, x),
        lambda: torch.ops.dcnzoo.conv1x1_add_upsampled(x, layers.packed_square, None, x[:, :, :3, :3]),
        lambda: add(x[:, :, 1:].clone(), x, layers.packed_point, None, False),
        lambda: add(x.contiguous(), x, layers.packed_point, None, False),
    ]
    for call in wrong:
        with pytest.raises(RuntimeError):
            call()

"""What follows convolutions on a GPU, in one pass: as PyTorch's operators, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dcnzoo.ops import dense, gpu

pytestmark = pytest.mark.cuda

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-4}
"""Largest error, relative to the largest output."""

SHAPES = {
    "conv3x3": (24, 16, 3, 3),
    "conv1x1": (24, 16, 1, 1),
    "strided": (24, 16, 1, 1),
    "grouped_conv3x3": (16, 4, 3, 3),
    "conv1x1_add_": (24, 16, 1, 1),
    "conv1x1_add_upsampled": (24, 16, 1, 1),
    "conv_transpose2x2": (16, 24, 2, 2),
    "stem": (24, 16, 7, 7),
}
"""Of the weights."""


@pytest.fixture(autouse=True)
def kernels_are_there() -> None:
    """A GPU without the kernels would compare PyTorch with itself."""
    assert gpu.gpu_problem() is None


def compute(name: str, maps: Tensor, weight: Tensor, bias: Tensor, others: list[Tensor]) -> Tensor:
    shortcut, coarse = others
    layers: dict[str, Callable[[], Tensor]] = {
        "conv3x3": lambda: dense.conv3x3(maps, weight, bias, relu=True),
        "conv1x1": lambda: dense.conv1x1(maps, weight, bias, relu=True),
        "strided": lambda: dense.conv1x1(maps, weight, bias, stride=2, relu=True),
        "grouped_conv3x3": lambda: dense.grouped_conv3x3(maps, weight, bias, relu=True),
        "conv1x1_add_": lambda: dense.conv1x1_add_(shortcut.clone(), maps, weight, bias, relu=True),
        "conv1x1_add_upsampled": lambda: dense.conv1x1_add_upsampled(maps, weight, bias, coarse),
        "conv_transpose2x2": lambda: dense.conv_transpose2x2(maps, weight, bias, relu=True),
        "stem": lambda: dense.stem(maps, weight, bias),
    }
    return layers[name]()


def operands(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(0)
    weight = torch.randn(SHAPES[name]) / 8
    bias = torch.randn(weight.shape[1 if name == "conv_transpose2x2" else 0])
    maps = [torch.randn(2, channels, *size) for channels, *size in ((16, 14, 22), (24, 14, 22), (24, 7, 11))]
    input, *others = (each.to(dtype).contiguous(memory_format=torch.channels_last) for each in maps)
    return input, weight.to(dtype), bias.to(dtype), others


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_float64(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = []
    finish = dense._finish
    monkeypatch.setattr(dense, "_finish", lambda *args, **kw: passes.append(name) or finish(*args, **kw))  # type: ignore[func-returns-value]
    input, weight, bias, others = operands(name, dtype)
    with torch.inference_mode():
        found = compute(name, input.cuda(), weight.cuda(), bias.cuda(), [each.cuda() for each in others])
    assert passes == [name]
    assert found.dtype == dtype
    wanted = compute(name, input.double(), weight.double(), bias.double(), [each.double() for each in others])
    assert found.shape == wanted.shape
    assert (found.double().cpu() - wanted).abs().max() <= TOLERANCE[dtype] * wanted.abs().max()


def test_a_shortcut_is_overwritten() -> None:
    input, weight, bias, (shortcut, _) = operands("conv1x1_add_", torch.float16)
    output = shortcut.cuda()
    assert dense.conv1x1_add_(output, input.cuda(), weight.cuda(), bias.cuda(), relu=True) is output
    assert not output.cpu().equal(shortcut)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("outputs", [3, 24])
def test_learning_and_what_the_kernel_does_not_take(outputs: int, dtype: torch.dtype) -> None:
    """Odd numbers of channels, and float64, take the usual way, as gradients do."""
    input, _, bias, _ = operands("conv1x1", dtype)
    weight = torch.randn(outputs, 16, 1, 1, dtype=dtype)
    leaves = [each.cuda().requires_grad_() for each in (input, weight, bias[:outputs])]
    dense.conv1x1(*leaves, relu=True).sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)
    with torch.no_grad():
        assert dense.conv1x1(*leaves, relu=True).min() >= 0


def test_operator_obeys_the_rules_of_pytorch() -> None:
    maps = torch.randn(2, 8, 5, 7, device="cuda").contiguous(memory_format=torch.channels_last)
    bias = torch.randn(8, device="cuda")
    torch.library.opcheck(torch.ops.dcnzoo.bias_relu_, (maps, bias, None, True))
    torch.library.opcheck(torch.ops.dcnzoo.bias_relu_, (maps, bias, maps.clone(), False))


def test_refuses_what_does_not_fit() -> None:
    maps = torch.zeros(1, 8, 4, 4, device="cuda").contiguous(memory_format=torch.channels_last)
    bias, run = torch.zeros(8, device="cuda"), torch.ops.dcnzoo.bias_relu_
    bad = {
        "4-d and channels-last": (maps.contiguous(), bias, None),
        "bias must be": (maps, bias[:4], None),
        "of the type of the maps": (maps, bias.half(), None),
        "the shape of the maps": (maps, bias, maps[:, :, :2]),
        "must be aligned": (maps, torch.zeros(9, device="cuda")[1:], None),
        "float64": (maps.double(), bias.double(), None),
    }
    for message, (first, second, third) in bad.items():
        with pytest.raises(RuntimeError, match=message):
            run(first, second, third, True)


def test_nothing_is_done_to_no_maps() -> None:
    maps = torch.zeros(0, 8, 4, 4, device="cuda").contiguous(memory_format=torch.channels_last)
    torch.ops.dcnzoo.bias_relu_(maps, torch.zeros(8, device="cuda"), None, True)


def test_beyond_32_bits() -> None:
    size = 2**31 // (64 * 1024) + 1
    if torch.cuda.mem_get_info()[0] < 3 * 64 * 1024 * size:
        pytest.skip("the GPU's memory is too small")
    maps = torch.zeros(1, 64, 1024, size, device="cuda", dtype=torch.float16).contiguous(
        memory_format=torch.channels_last
    )
    bias = torch.arange(64, device="cuda", dtype=torch.float16)
    torch.ops.dcnzoo.bias_relu_(maps, bias, None, True)
    assert maps[0, :, -1, -1].equal(bias)
    assert maps[0, :, 0, 0].equal(bias)

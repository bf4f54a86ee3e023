"""The derivative of plain 3×3 convolutions against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from dcnzoo.ops import conv_grad, dense

SIZES = ((2, 6, 5, 7), (4, 6, 3, 3), (4,))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small convolutions are differentiated like large ones."""
    monkeypatch.setattr(conv_grad, "LEAST_PRODUCTS", 0)
    monkeypatch.setattr(conv_grad, "LEAST_PIXELS", 0)


def leaves() -> list[Tensor]:
    """Input, weight and bias."""
    torch.manual_seed(0)
    return [torch.randn(*size, dtype=torch.float64).requires_grad_() for size in SIZES]


@settings(max_examples=60, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, n) for n in (3, 5, 5, 9, 9)]), channels_last=st.booleans())
def test_weight_grad_of_any_size(sizes: tuple[int, int, int, int, int], channels_last: bool) -> None:
    n, c, o, h, w = sizes
    layout = torch.channels_last if channels_last else torch.contiguous_format
    input, grad = (torch.randn(n, k, h, w, dtype=torch.float64).to(memory_format=layout) for k in (c, o))
    expected = conv2d_weight(input, (o, c, 3, 3), grad, padding=1)
    torch.testing.assert_close(conv_grad.weight_grad(input, grad), expected)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("bias", [False, True])
def test_all_gradients(bias: bool) -> None:
    given = leaves() if bias else leaves()[:2]
    assert conv_grad.is_faster(given[0], given[1])
    assert torch.autograd.gradcheck(lambda *values: dense.conv3x3(*values, relu=True), given)
    found, expected = dense.conv3x3(*given), F.conv2d(*given, padding=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["native", "torchvision"])
def test_large_ones_in_float32(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCNZOO_OPS", backend)
    torch.manual_seed(0)
    sizes = ((2, 40, 41, 43), (72, 40, 3, 3), (72,))
    tensors = [torch.randn(*size).requires_grad_() for size in sizes]
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    assert conv_grad.is_faster(tensors[0], tensors[1])
    found, expected = dense.conv3x3(*tensors), F.conv2d(*exact, padding=1)
    grad = torch.randn(expected.shape)
    found.backward(grad)
    expected.backward(grad.double())
    for one, other in [(found, expected), *((t.grad, e.grad) for t, e in zip(tensors, exact, strict=True))]:
        assert one is not None
        assert other is not None
        assert (one - other).abs().max() <= 2e-5 * other.std()


@pytest.mark.usefixtures("always")
def test_only_what_is_wanted() -> None:
    input, weight, bias = (tensor.detach() for tensor in leaves())
    assert not conv_grad.is_faster(input, weight)
    weight.requires_grad_()
    dense.conv3x3(input, weight, bias).sum().backward()
    assert weight.grad is not None
    assert input.grad is None
    assert bias.grad is None
    with torch.no_grad():
        assert not conv_grad.is_faster(input, weight)


@pytest.mark.usefixtures("always")
def test_autocast_and_compilation_are_pytorchs() -> None:
    input, weight, bias = (tensor.detach().float() for tensor in leaves())
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = dense.conv3x3(input, weight, bias)
    assert found.dtype == torch.bfloat16
    assert "ConvolutionBackward" in type(found.grad_fn).__name__


def test_small_convolutions_are_pytorchs() -> None:
    input, weight, bias = leaves()
    assert not conv_grad.is_faster(input, weight)
    assert "ConvolutionBackward" in type(dense.conv3x3(input, weight, bias).grad_fn).__name__

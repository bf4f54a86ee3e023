"""Shapes for the deformable convolution, and their comparison with the readable reference in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import reference
from dcnzoo.ops.backend import half_factor
from dcnzoo.ops.types import Pair

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-14, torch.bfloat16: 1e-2, torch.float16: 2e-3}
"""Largest error, relative to the largest output, by dtype."""

HALF_TOLERANCE = {torch.float16: 3e-3, torch.bfloat16: 4e-3, None: 0.0}[half_factor()]
"""The same of float32 whose factors are rounded to 16 bits."""


@dataclass(frozen=True)
class Case:
    images: int = 1
    channels: int = 16
    out_channels: int = 16
    size: Pair = (9, 11)
    kernel: Pair = (3, 3)
    stride: Pair = (1, 1)
    padding: Pair = (1, 1)
    dilation: Pair = (1, 1)
    groups: int = 1
    deform_groups: int = 1
    mask: bool = False
    bias: bool = False
    relu: bool = False
    spread: float = 2.0
    """Standard deviation of the offsets, in pixels."""

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Random arguments, channels-last."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        taps = self.kernel[0] * self.kernel[1]
        geometry = zip(self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True)
        out_size = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in geometry]
        tensors = {
            "input": random(self.images, self.channels, *self.size),
            "offset": self.spread * random(self.images, 2 * self.deform_groups * taps, *out_size),
            "weight": random(self.out_channels, self.channels // self.groups, *self.kernel),
        }
        if self.mask:
            tensors["mask"] = random(self.images, self.deform_groups * taps, *out_size)
        tensors = {name: value.to(memory_format=torch.channels_last) for name, value in tensors.items()}
        return tensors | ({"bias": random(self.out_channels)} if self.bias else {})

    def options(self) -> dict[str, object]:
        """Everything that is not a tensor."""
        options = {name: getattr(self, name) for name in ("stride", "padding", "dilation", "relu")}
        return options | {"mask_is_logits": self.mask}


CASES = {
    "one_pixel": Case(size=(1, 1)),
    "one_row": Case(size=(1, 40), channels=3, out_channels=5),
    "smaller_than_the_kernel": Case(size=(2, 2), padding=(2, 2), bias=True),
    "odd_everything": Case(2, 7, 13, (11, 5), (2, 5), (2, 1), (3, 2), (1, 2), mask=True, bias=True),
    "pointwise": Case(channels=40, out_channels=24, kernel=(1, 1), padding=(0, 0), relu=True),
    "large_kernel": Case(kernel=(5, 7), padding=(2, 3), deform_groups=2, mask=True),
    "dense": Case(2, 64, 48, (13, 17), mask=True, bias=True, relu=True),
    "offset_convolution": Case(channels=256, out_channels=27),
    "channels_in_pieces": Case(channels=600, out_channels=40, size=(5, 5), bias=True),
    "deformable_groups": Case(channels=64, out_channels=36, deform_groups=4, mask=True),
    "deformable_groups_of_odd_width": Case(channels=60, out_channels=33, deform_groups=12, mask=True),
    "resnext_4": Case(channels=128, out_channels=128, groups=32, bias=True, relu=True),
    "resnext_8": Case(channels=256, out_channels=256, groups=32, stride=(2, 2)),
    "resnext_16": Case(channels=512, out_channels=512, groups=32, size=(5, 7), mask=True),
    "resnext_32": Case(channels=1024, out_channels=1024, groups=32, size=(4, 5), deform_groups=4),
    "depthwise": Case(channels=24, out_channels=48, groups=24, mask=True, bias=True),
    "groups_across_deformable_groups": Case(channels=36, out_channels=24, groups=6, deform_groups=4),
    "few_wide_groups": Case(channels=1200, out_channels=26, groups=2, size=(3, 4), deform_groups=3),
    "odd_groups": Case(channels=15, out_channels=25, groups=5, deform_groups=3, mask=True),
    "many_tiles": Case(2, 8, 8, (70, 90), spread=20.0, mask=True),
    "far_offsets": Case(spread=1e6, bias=True),
}


def reference_output(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """What the readable definition makes of float64 tensors."""
    arguments = dict(tensors)
    if "mask" in arguments:
        arguments["mask"] = arguments["mask"].sigmoid()
    geometry = {name: getattr(case, name) for name in ("stride", "padding", "dilation")}
    output = reference.deform_conv2d(**arguments, **geometry)  # type: ignore[arg-type]
    return output.relu() if case.relu else output


def error(case: Case, dtype: torch.dtype) -> float:
    """Largest deviation from the reference in float64, relative to the largest output."""
    tensors = case.tensors(dtype)
    expected = reference_output(case, {name: value.double() for name, value in tensors.items()})
    found = ops.deform_conv2d(**tensors, **case.options())  # type: ignore[arg-type]
    assert found.dtype == dtype
    assert found.shape == expected.shape
    return deviation(found, expected)


def half_error(case: Case) -> float:
    """The same for float32 whose factors are rounded to 16 bits."""
    tensors = case.tensors(torch.float32)
    expected = reference_output(case, {name: value.double() for name, value in tensors.items()})
    packed = ops.pack_deform_conv2d_weight(tensors["weight"], case.groups, half=True)
    assert packed is not None
    assert packed.dtype == half_factor()
    found = ops.deform_conv2d(**tensors, **case.options(), packed_weight=packed)  # type: ignore[arg-type]
    assert found.dtype == torch.float32
    return deviation(found, expected)


def rounds_bfloat16_maps(case: Case) -> bool:
    """Whether a map of bfloat16 factors gives what its numbers in float32 give, rounded."""
    tensors = case.tensors(torch.float32)
    packed = ops.pack_deform_conv2d_weight(tensors["weight"], case.groups, half=True)
    low = tensors["input"].bfloat16()
    options = {**tensors, **case.options(), "packed_weight": packed}
    exact, found = (ops.deform_conv2d(**(options | {"input": x})) for x in (low.float(), low))  # type: ignore[arg-type]
    return torch.equal(found, exact.bfloat16())


def gradient_errors(case: Case, dtype: torch.dtype) -> dict[str, float]:
    """The same for the gradient of every tensor, by its name."""
    tensors = {name: value.requires_grad_() for name, value in case.tensors(dtype).items()}
    exact = {name: value.detach().double().requires_grad_() for name, value in tensors.items()}
    output = ops.deform_conv2d(**tensors, **case.options())  # type: ignore[arg-type]
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    if case.relu:  # rounding may switch an output on or off
        grad, case = grad * (output > 0), replace(case, relu=False)
    output.backward(grad)
    reference_output(case, exact).backward(grad.double())
    errors = {}
    for name, tensor in tensors.items():
        grad, expected = tensor.grad, exact[name].grad
        assert grad is not None and expected is not None  # noqa: PT018
        assert (grad.dtype, grad.shape) == (dtype, expected.shape)
        errors[name] = deviation(grad, expected)
    return errors


def deviation(found: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest number expected."""
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


def conversion_errors(dtype: torch.dtype) -> int:
    """Numbers that a convolution which only scales every pixel rounds otherwise than PyTorch does.

    All numbers of a 16-bit type times random scales; float16's subnormal ones, and products that overflow,
    too. Not those near the ends of float32: the instruction for bfloat16 takes subnormal ones as 0.
    """
    numbers = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
    usual = (numbers.abs() < 1e30) & (numbers.abs() > 1e-30)
    image = torch.where(usual, numbers, 0).reshape(1, 16, 64, 64)
    scale = torch.exp(3 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)))
    weight = torch.eye(16, dtype=dtype).reshape(16, 16, 1, 1)
    found = ops.deform_conv2d(image, torch.zeros(1, 2, 64, 64), weight, mask=scale)
    return int((found != (image.float() * scale).to(dtype)).sum())


def check() -> None:
    """Compares every case."""
    for case_name, case in CASES.items():
        for dtype in TOLERANCE:
            found = error(case, dtype)
            if found > TOLERANCE[dtype]:
                raise SystemExit(f"{case_name} in {dtype}: error {found} > {TOLERANCE[dtype]}")
        for dtype in (torch.float32, torch.float64):
            for tensor, found in gradient_errors(case, dtype).items():
                if found > TOLERANCE[dtype]:
                    raise SystemExit(f"{case_name} in {dtype}: gradient of {tensor} has error {found}")
        if half_factor() is not None and not half_error(case) <= HALF_TOLERANCE:
            raise SystemExit(f"{case_name} in 16 bits: error {half_error(case)} > {HALF_TOLERANCE}")
        if half_factor() == torch.bfloat16 and not rounds_bfloat16_maps(case):
            raise SystemExit(f"{case_name}: a map of bfloat16 factors gives something else")
    for dtype in (torch.bfloat16, torch.float16):
        if wrong := conversion_errors(dtype):
            raise SystemExit(f"{wrong} numbers rounded wrongly to {dtype}")

"""Runs for compiled kernels: each of them with what makes its code branch.

In source these are the same few lines for all types; the compiler makes something else of them for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dcnzoo.ops import gpu_grad, gpu_tuning, reference
from dcnzoo.ops.gpu_tuning import KERNELS, Call
from tests.ops import cuda_grad_cases, cuda_region_cases, emulated_gpu
from tests.ops.cuda_deform_conv2d_cases import (
    BFLOAT16,
    DOUBLE,
    HALF,
    ODD_SIZES,
    SINGLE,
    SINGLE_TOLERANCE,
    TOLERANCE,
    UNALIGNED_OUTPUT,
    WGMMA,
    forced,
)
from tests.ops.cuda_grad_cases import relative
from tests.ops.cuda_region_cases import random_rois
from tests.ops.deform_conv2d_cases import CASES, Case
from tests.ops.emulated_gpu import H100, RTX_3090, Run

DTYPES = HALF, BFLOAT16, SINGLE, DOUBLE
FAR = 1e4
"""An offset that leads out of every map; whatever is not a number does too."""

STRANGE = torch.tensor([torch.nan, torch.inf, -torch.inf, 6e4, -6e4])

SHAPES = (
    replace(ODD_SIZES, deform_groups=2),
    Case(1, 64, 203, (7, 9), deform_groups=2, mask=True, bias=True),
    UNALIGNED_OUTPUT,
    Case(2, 64, 144, (6, 7), stride=(2, 1), mask=True, relu=True),
)
"""One for each type of offsets; the masks of the second are not logits."""

NARROW_TABLE = Case(1, 128, 40, (3, 5), deform_groups=16, mask=True)
NARROW_SIMT_TABLE = Case(1, 256, 20, (3, 4), deform_groups=256, mask=True)
"""Of so many deformable groups that the table of samples is filled for some taps, or channels, at a time."""

NARROW_GROUPS = {
    8: Case(1, 64, 64, (6, 7), groups=8, mask=True, bias=True, relu=True),
    16: Case(1, 64, 96, (6, 7), groups=4, deform_groups=2, bias=True),
    32: Case(1, 128, 128, (6, 7), groups=4, mask=True, stride=(1, 2), bias=True),
}
"""By width: what `grouped` computes."""

SEVERAL_TABLES = Case(1, 512, 512, (4, 5), (7, 7), padding=(3, 3), groups=16, deform_groups=16, mask=True)
"""What it fills its table for more than once."""


def strange_offsets(offset: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Offsets in another type, some of which are not numbers; and numbers that mean the same."""
    given, meant = offset.to(dtype).flatten(), offset.to(dtype).double().flatten()
    places = torch.arange(0, len(given), 37)
    given[places] = STRANGE.repeat(len(places))[: len(places)].to(dtype)
    meant[places] = FAR
    return given.view(offset.shape), meant.view(offset.shape)


def mixed(case: Case, dtype: torch.dtype, maps: int) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Tensors with maps of other types; what they mean in float64; whether masks are logits."""
    tensors: dict[str, Any] = {key: value.contiguous() for key, value in case.tensors(dtype).items()}
    tensors["offset"], meant = strange_offsets(tensors["offset"], DTYPES[maps])
    if "mask" in tensors:
        tensors["mask"] = tensors["mask"].to(DTYPES[maps - 1])
    exact = {key: value.double() for key, value in tensors.items()} | {"offset": meant}
    logits = case.mask and maps != 1
    if logits:
        exact["mask"] = exact["mask"].sigmoid()
    return tensors, exact, logits


def exact_output(case: Case, exact: dict[str, Any]) -> Tensor:
    geometry: dict[str, Any] = {name: getattr(case, name) for name in ("stride", "padding", "dilation")}
    output = reference.deform_conv2d(**exact, **geometry)
    return output.relu() if case.relu else output


def convolution(case: Case, dtype: torch.dtype, maps: int, run: Run) -> float:
    tensors, exact, logits = mixed(case, dtype, maps)
    options: dict[str, Any] = case.options() | {"mask_is_logits": logits}
    found, plan = emulated_gpu.deform_conv2d(run, **tensors, **options)
    if run.forced is not None:
        assert plan.kernel == run.forced.kernel
    tolerance = SINGLE_TOLERANCE[plan.tf32] if dtype == SINGLE else TOLERANCE[dtype]
    return relative(found, exact_output(case, exact)) / tolerance


def narrow(width: int, dtype: torch.dtype, maps: int) -> float:
    return convolution(NARROW_GROUPS[width], dtype, maps, Run(seed=maps))


def two_steps(case: Case, dtype: torch.dtype, maps: int) -> float:
    tensors, exact, logits = mixed(case, dtype, maps)
    operands: list[Any] = [tensors.get(name) for name in ("input", "weight", "offset", "mask", "bias")]
    operands += [case.stride, case.padding, case.dilation, logits, case.relu, False]
    call = Call._make(operands)
    return relative(gpu_tuning.two_step(call), exact_output(case, exact)) / cuda_grad_cases.TOLERANCE[dtype]


def input_grads(case: Case, dtype: torch.dtype, maps: int) -> float:
    case = replace(case, relu=False, bias=False)
    tensors, exact, logits = mixed(case, dtype, maps)
    output = exact_output(case, exact)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    tensors.setdefault("mask", None)
    operands = {name: tensors[name] for name in ("input", "weight", "offset", "mask")}
    geometry: dict[str, Any] = {name: getattr(case, name) for name in ("stride", "padding", "dilation")}
    found = gpu_grad.input_grads(grad, **operands, **geometry, mask_is_logits=logits)
    leaves = {key: value.requires_grad_() for key, value in exact.items()}
    if logits:
        leaves["mask"] = tensors["mask"].double().requires_grad_()
        exact = exact | {"mask": leaves["mask"].sigmoid()}
    names = [name for name in ("input", "offset", "mask") if name in leaves]
    wanted = torch.autograd.grad(exact_output(case, exact), [leaves[name] for name in names], grad.double())
    coarsest = max(cuda_grad_cases.TOLERANCE[kind] for kind in (dtype, DTYPES[maps], DTYPES[maps - 1]))
    return max(relative(a, b) for a, b in zip(found, wanted, strict=False)) / coarsest


def pooling(dtype: torch.dtype, channels: int, maps: int) -> float:
    """Several levels, without offsets for the first type of RoIs."""
    torch.manual_seed(maps)
    levels = [torch.randn(2, channels, 24 >> i, 32 >> i).to(dtype) for i in range(2)]
    rois, level = random_rois(24, 2, 96, 128).to(DTYPES[maps]), torch.randint(2, (24,))
    offset = torch.randn(24, 2, 2, 3).to(DTYPES[maps - 1]) if maps else None
    scales = [0.25, 0.125]
    found = emulated_gpu.roi_pool(levels, rois, level, offset, output_size=(2, 3), spatial_scales=scales)
    error = 0.0
    for i, scale in enumerate(scales):
        chosen = level == i
        wanted = reference.deform_roi_pool(
            levels[i].double(),
            rois[chosen].double(),
            None if offset is None else offset[chosen].double(),
            output_size=(2, 3),
            spatial_scale=scale,
        )
        error = max(error, float((found[chosen].double() - wanted).abs().max()))
    return error / cuda_region_cases.TOLERANCE[dtype]


def pooling_grads(dtype: torch.dtype, channels: int, maps: int) -> float:
    torch.manual_seed(maps)
    features = torch.randn(2, channels, 19, 23, dtype=torch.float64).to(dtype)
    rois = random_rois(20, 2, 76, 92).to(DTYPES[maps])
    offset = torch.randn(20, 2, 2, 3).to(DTYPES[maps - 1])
    grad = torch.randn(20, channels, 2, 3).to(dtype)
    options: dict[str, Any] = {"output_size": (2, 3), "spatial_scale": 0.25}
    found = emulated_gpu.roi_pool_grads(grad, features, rois, offset, **options)
    leaves = [tensor.double().requires_grad_() for tensor in (features, offset)]
    pooled = reference.deform_roi_pool(leaves[0], rois.double(), leaves[1], **options)
    wanted = torch.autograd.grad(pooled, leaves, grad.double())
    tolerances = cuda_region_cases.GRAD_TOLERANCE
    coarsest = max(tolerances[kind] for kind in (dtype, DTYPES[maps - 1]))
    pairs = zip(found, wanted, strict=True)
    return max(relative(a, b) for a, b in pairs if a is not None) / coarsest


def _convolutions() -> dict[str, Callable[[], float]]:
    runs: dict[str, Callable[[], float]] = {}
    for maps, kind in enumerate(DTYPES):
        for kernel in KERNELS:
            for dtype in DTYPES:
                few = kernel in WGMMA and dtype == SINGLE
                if kernel == "grouped" or few or (dtype == DOUBLE and kernel != "simt"):
                    continue
                run = Run(forced=forced(kernel), seed=maps, allow_tf32=kernel != "simt")
                runs[f"{kernel}-{dtype}-of-{kind}"] = partial(convolution, SHAPES[maps], dtype, maps, run)
                if (maps + DTYPES.index(dtype)) % 2 == 0:
                    little = kernel in ("simt", "mma_64x128", "mma_128x64")  # is enough for them
                    small = replace(run, gpu=RTX_3090 if little else H100)
                    shape = NARROW_SIMT_TABLE if kernel == "simt" else NARROW_TABLE
                    name = f"{kernel}-narrow-table-{dtype}-of-{kind}"
                    runs[name] = partial(convolution, shape, dtype, maps, small)
        for width in NARROW_GROUPS:
            for dtype in DTYPES[:3]:
                runs[f"grouped-{width}-{dtype}-of-{kind}"] = partial(narrow, width, dtype, maps)
    for dtype in DTYPES[:3]:
        runs[f"grouped-several-tables-{dtype}"] = partial(
            convolution, SEVERAL_TABLES, dtype, 2, Run(RTX_3090)
        )
    return runs


CONVOLUTIONS = _convolutions()
"""Name, which begins with that of the kernel → a run's error; at most 1 is right."""


def _others() -> dict[str, Callable[[], float]]:
    runs: dict[str, Callable[[], float]] = {}
    for maps, kind in enumerate(DTYPES):
        for dtype in DTYPES:
            types = f"{dtype}-of-{kind}"
            for channels in (48, 35):
                runs[f"pooling-{channels}-{types}"] = partial(pooling, dtype, channels, maps)
            runs[f"pooling-grads-{types}"] = partial(pooling_grads, dtype, 140, maps)
            for shape, case in (("wide", SHAPES[maps]), ("odd", CASES["odd_everything"])):
                runs[f"two-steps-{shape}-{types}"] = partial(two_steps, case, dtype, maps)
                runs[f"input-grads-{shape}-{types}"] = partial(input_grads, case, dtype, maps)
    return runs


OTHERS = _others()
"""The same of the other kernels."""

"""Runs what columns of samples serve on GPUs, kernels emulated, and compares with the reference in float64.

Those are the derivatives, and the forward pass in two steps.

Run as a program, it prints a line of JSON per run; see `emulated_gpu` for why it is one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import gpu_grad, gpu_tuning
from dcnzoo.ops.gpu_tuning import Call
from tests.ops import emulated_gpu
from tests.ops.cuda_deform_conv2d_cases import BFLOAT16, DOUBLE, HALF, SINGLE, expected
from tests.ops.deform_conv2d_cases import CASES, Case

NAMES = ("input", "offset", "weight", "mask")
TOLERANCE = {HALF: 1e-3, BFLOAT16: 8e-3, SINGLE: 2e-6, DOUBLE: 1e-14}
"""Largest error of a gradient, relative to its largest number, by dtype."""

GROUPS = Case(2, 24, 36, (5, 6), groups=6, deform_groups=4, mask=True, stride=(2, 1))
"""Weight groups that share deformable groups, and the other way round."""

GROUPS_OF_CHUNKS = Case(2, 96, 24, (5, 6), groups=3, deform_groups=2, mask=True, bias=True)
"""The same, of whole chunks of 16 bytes."""

RUNS: dict[str, tuple[Case, torch.dtype]] = {
    **{
        f"{name}-{dtype}": (CASES[name], dtype)
        for name, dtypes in {
            "one_pixel": (DOUBLE,),
            "smaller_than_the_kernel": (DOUBLE,),
            "odd_everything": (DOUBLE, SINGLE, HALF, BFLOAT16),
            "dense": (SINGLE, HALF),
            "deformable_groups_of_odd_width": (SINGLE,),
            "depthwise": (DOUBLE,),
            "groups_across_deformable_groups": (DOUBLE,),
            "far_offsets": (DOUBLE,),
        }.items()
        for dtype in dtypes
    },
    **{f"groups-{dtype}": (GROUPS, dtype) for dtype in (DOUBLE, BFLOAT16)},
}

TWO_STEPS: dict[str, tuple[Case, torch.dtype]] = {
    f"two-step-{name}-{dtype}": (case, dtype)
    for name, case, dtype in (
        ("one_pixel", CASES["one_pixel"], DOUBLE),
        ("odd_everything", CASES["odd_everything"], SINGLE),
        ("dense", CASES["dense"], HALF),
        ("dense", CASES["dense"], BFLOAT16),
        ("groups", replace(GROUPS, bias=True, relu=True), DOUBLE),
        *(("groups_of_chunks", GROUPS_OF_CHUNKS, dtype) for dtype in (SINGLE, HALF, BFLOAT16)),
    )
}
"""The forward pass by the same columns."""


def exact_grads(case: Case, tensors: dict[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Gradients that autograd finds for the reference in float64."""
    leaves = {name: value.double().requires_grad_() for name, value in tensors.items()}
    output = expected(case, leaves)
    names = [name for name in NAMES if name in leaves]
    found = torch.autograd.grad(output, [leaves[name] for name in names], grad.double())
    return dict(zip(names, found, strict=True))


def error_on_gpu(name: str) -> float:
    """Largest error of a gradient of a run on a GPU, in twice its tolerance: sums come in another order."""
    case, dtype = RUNS[name]
    case = replace(case, relu=False, bias=False)
    tensors = case.tensors(dtype)
    leaves = {key: value.cuda().requires_grad_() for key, value in tensors.items()}
    output = ops.deform_conv2d(**leaves, **case.options())
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    output.backward(grad.cuda())
    worst = 0.0
    for key, wanted in exact_grads(case, tensors, grad).items():
        found = leaves[key].grad
        assert found is not None
        assert found.dtype == dtype
        worst = max(worst, relative(found.cpu(), wanted))
    return worst / (2 * TOLERANCE[dtype])


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference from what is wanted, relative to the largest number in it."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3))


def error(case: Case, dtype: torch.dtype) -> float:
    """Largest error of a gradient, in tolerances; output pixels in several pieces."""
    tensors, options = case.tensors(dtype), case.options()
    tensors.pop("bias", None)
    plain = replace(case, relu=False, bias=False)
    output = torch.empty(len(tensors["input"]), case.out_channels, *tensors["offset"].shape[2:])
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    geometry = [options[name] for name in ("stride", "padding", "dilation")]
    call = (
        grad,
        *(tensors.get(name) for name in ("input", "weight", "offset", "mask")),
        *geometry,
        case.mask,
    )
    columns = tensors["weight"][0].numel() * case.groups * tensors["weight"].element_size()
    gpu_grad.COLUMN_BYTES = 50 * columns  # pixels at a time
    found = dict(zip(("input", "offset", "mask"), gpu_grad.input_grads(*call), strict=True))
    found["weight"] = gpu_grad.weight_grad(*call)
    worst = 0.0
    for name, wanted in exact_grads(plain, tensors, grad).items():
        assert found[name].dtype == tensors[name].dtype
        worst = max(worst, relative(found[name], wanted))
    return worst / TOLERANCE[dtype]


def two_step_call(case: Case, tensors: dict[str, Tensor]) -> Call:
    """The arguments of `gpu_tuning.compute`."""
    options = case.options()
    operands = (tensors.get(name) for name in ("input", "weight", "offset", "mask", "bias"))
    geometry = (options[name] for name in ("stride", "padding", "dilation"))
    return Call(*operands, *geometry, case.mask, case.relu, False)  # type: ignore[arg-type]


def two_step_error(case: Case, dtype: torch.dtype) -> float:
    """Largest error of the output, in tolerances; output pixels in several pieces."""
    tensors = case.tensors(dtype)
    columns = tensors["weight"][0].numel() * case.groups * tensors["weight"].element_size()
    gpu_grad.COLUMN_BYTES = 50 * columns  # pixels at a time
    found = gpu_tuning.two_step(two_step_call(case, tensors))
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    return relative(found, expected(case, tensors)) / TOLERANCE[dtype]


def main() -> None:
    """Runs all, or those named."""
    torch.set_num_threads(1)
    torch.library.impl("dcnzoo::deform_conv2d_columns", "CPU", emulated_gpu.deform_conv2d_columns)
    torch.library.impl("dcnzoo::deform_conv2d_scatter_", "CPU", emulated_gpu.deform_conv2d_scatter)
    for name, (case, dtype) in RUNS.items():
        if len(sys.argv) == 1 or name in sys.argv:
            print(json.dumps({"name": name, "error": error(case, dtype)}), flush=True)
    for name, (case, dtype) in TWO_STEPS.items():
        if len(sys.argv) == 1 or name in sys.argv:
            print(json.dumps({"name": name, "error": two_step_error(case, dtype)}), flush=True)


if __name__ == "__main__":
    main()

"""Runs the CUDA kernels of the deformable convolution on the emulated GPU and compares with the reference.

Run as a program, it prints a line of JSON per run; see `emulated_gpu` for why it is one.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import torch
from torch import Tensor

from dcnzoo.ops import reference
from dcnzoo.ops.gpu_tuning import KERNELS
from tests.ops.deform_conv2d_cases import CASES, Case
from tests.ops.emulated_gpu import H100, RTX_3090, Choice, Plan, Run, deform_conv2d

HALF, BFLOAT16, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64

TOLERANCE = {HALF: 1e-3, BFLOAT16: 8e-3, DOUBLE: 1e-14}
SINGLE_TOLERANCE = {False: 1e-5, True: 1e-3}
"""Largest error, relative to the largest output, by dtype; for float32 without and with TensorFloat-32.

Without, places far from the corner are rounded most (`many_tiles`: 5e-6, as on a CPU), then long sums
(`channels_in_pieces`: 3e-6).
"""


def forced(kernel: str, splits: int = 1) -> Choice:
    return Choice(KERNELS.index(kernel), splits)


ODD_SIZES = Case(2, 48, 72, (7, 9), mask=True, bias=True, relu=True)
"""Tiles, steps and columns that are not full."""

UNALIGNED_OUTPUT = Case(channels=64, out_channels=27, bias=True)
MANY_STEPS = Case(2, 136, 40, (5, 9), stride=(2, 1), deform_groups=17, mask=True)
TILES = Case(1, 64, 300, (9, 31), deform_groups=2, mask=True, bias=True)
"""Several tiles of pixels and of columns, whichever kernel."""

WIDE_GROUPS = Case(2, 192, 160, (6, 7), groups=2, deform_groups=3, bias=True, relu=True)
NARROW_TABLE = Case(1, 64, 64, (5, 30), deform_groups=8, mask=True)
WIDE_TABLE = Case(1, 256, 40, (3, 5), deform_groups=16, mask=True)
"""Of so many deformable groups that shared memory holds the samples of one tap or two."""

SEVERAL_ROUNDS = Case(1, 72, 136, (4, 5), mask=True, bias=True, relu=True)
"""Stages are used again and again."""

WGMMA = KERNELS[6:]

RUNS: dict[str, tuple[Case, torch.dtype, Run]] = {
    **{f"{name}-float64": (case, DOUBLE, Run()) for name, case in CASES.items()},
    **{f"{name}-float16": (case, HALF, Run()) for name, case in CASES.items() if name != "many_tiles"},
    **{
        f"{name}-{dtype}": (CASES[name], dtype, Run())
        for name in ("dense", "odd_everything", "resnext_16")
        for dtype in (BFLOAT16, SINGLE)
    },
    **{
        f"{name}-exact": (CASES[name], SINGLE, Run(allow_tf32=False))
        for name in ("dense", "odd_everything", "resnext_8", "deformable_groups_of_odd_width")
    },
    **{f"resnext_{width}-tf32": (CASES[f"resnext_{width}"], SINGLE, Run()) for width in (4, 8, 32)},
    **{
        f"{kernel}/{splits}-{dtype}": (case, dtype, Run(forced=forced(kernel, splits), seed=splits))
        for kernel in KERNELS[2:]
        for splits, dtype, case in ((1, HALF, ODD_SIZES), (3, SINGLE, ODD_SIZES), (4, BFLOAT16, MANY_STEPS))
        if dtype != SINGLE or kernel not in WGMMA
    },
    **{f"{kernel}-tiles": (TILES, HALF, Run(forced=forced(kernel, 2))) for kernel in KERNELS[2:]},
    **{f"{kernel}-groups": (WIDE_GROUPS, HALF, Run(forced=forced(kernel))) for kernel in KERNELS[2:]},
    **{
        f"{kernel}-{name}-{dtype}": (case, dtype, Run(forced=forced(kernel, splits), seed=splits))
        for kernel in WGMMA
        for name, case, dtype, splits in (
            ("odd-sizes", ODD_SIZES, BFLOAT16, 2),
            ("many-steps", MANY_STEPS, HALF, 1),
            ("wide-groups", WIDE_GROUPS, BFLOAT16, 2),
            ("unaligned-output", UNALIGNED_OUTPUT, HALF, 1),
            ("unaligned-output", UNALIGNED_OUTPUT, BFLOAT16, 2),
            ("narrow-table", WIDE_TABLE, HALF, 1),
            ("narrow-table", WIDE_TABLE, BFLOAT16, 5),
            ("one-step", CASES["pointwise"], BFLOAT16, 1),
        )
    },
    **{
        f"{kernel}-seed-{seed}": (SEVERAL_ROUNDS, HALF, Run(forced=forced(kernel), seed=seed))
        for kernel in WGMMA
        for seed in range(1, 5)
    },
    "unaligned-output": (UNALIGNED_OUTPUT, HALF, Run(forced=forced("mma_128x64"))),
    "unaligned-output-split": (UNALIGNED_OUTPUT, BFLOAT16, Run(forced=forced("mma_64x128", 2))),
    "little-shared-memory": (NARROW_TABLE, HALF, Run(RTX_3090, forced=forced("mma_128x128"))),
    "windows-in-parts": (WIDE_TABLE, HALF, Run(RTX_3090, forced=forced("mma_64x128", 5))),
    "small-blocks-on-a-small-gpu": (CASES["dense"], SINGLE, Run(RTX_3090)),
    **{f"seed-{seed}": (ODD_SIZES, HALF, Run(seed=seed)) for seed in range(1, 4)},
}


def needs_wgmma(run: Run) -> bool:
    """Whether a kernel with wgmma is asked for."""
    return run.forced is not None and KERNELS[run.forced.kernel] in WGMMA


def has_kernel(run: Run) -> bool:
    """Whether the GPU here can have the kernel that is asked for: compute capability 9.0 alone has wgmma."""
    return not needs_wgmma(run) or torch.cuda.get_device_capability() == (9, 0)


def expected(case: Case, tensors: dict[str, Tensor]) -> Tensor:
    """The reference in float64."""
    exact = {name: value.double() for name, value in tensors.items()}
    if "mask" in exact:
        exact["mask"] = exact["mask"].sigmoid()
    output = reference.deform_conv2d(
        **exact, stride=case.stride, padding=case.padding, dilation=case.dilation
    )
    return output.relu() if case.relu else output


def compare(case: Case, dtype: torch.dtype, run: Run, tensors: dict[str, Tensor]) -> tuple[float, Plan]:
    """Largest error in tolerances, and the plan."""
    found, plan = deform_conv2d(run, **tensors, **case.options())  # type: ignore[arg-type]
    wanted = expected(case, tensors)
    error = (found.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)
    tolerance = SINGLE_TOLERANCE[plan.tf32] if dtype == SINGLE else TOLERANCE[dtype]
    return float(error) / tolerance, plan


def report(name: str, error: float, plan: Plan) -> None:
    fields = {field: getattr(plan, field) for field, *_ in Plan._fields_}
    print(json.dumps({"name": name, "error": error} | fields | {"kernel": KERNELS[plan.kernel]}), flush=True)


VIEWS = {"views": Run(H100)} | {f"{kernel}-views": Run(forced=forced(kernel)) for kernel in WGMMA}


def views() -> tuple[Case, dict[str, Tensor]]:
    """Offsets and mask are parts of one tensor, as the layer's convolution gives them, in another dtype."""
    case = replace(ODD_SIZES, deform_groups=2)
    tensors = case.tensors(HALF)
    both = torch.cat([tensors["offset"], tensors["mask"]], dim=1).float().contiguous()
    offset, mask = both.split([tensors["offset"].shape[1], tensors["mask"].shape[1]], dim=1)
    return case, tensors | {"offset": offset, "mask": mask}


def main() -> None:
    """Runs all, or those named."""
    torch.set_num_threads(1)
    names = sys.argv[1:]
    for name, (case, dtype, run) in RUNS.items():
        if not names or name in names:
            report(name, *compare(case, dtype, run, case.tensors(dtype)))
    case, tensors = views()
    for name, run in VIEWS.items():
        if not names or name in names:
            report(name, *compare(case, HALF, run, tensors))


if __name__ == "__main__":
    main()

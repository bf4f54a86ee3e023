"""Compares the operators on a GPU with the readable reference, gradients too; needs PyTorch and nothing else.

A part of the tests marked `cuda`, for machines without pytest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dcnzoo import ops
from dcnzoo.ops import reference
from dcnzoo.ops.gpu import gpu_is_well, gpu_problem
from dcnzoo.ops.gpu_tuning import KERNELS
from tests.ops import cuda_deform_conv2d_cases as convolutions
from tests.ops import cuda_grad_cases as grads
from tests.ops import cuda_region_cases as regions
from tests.ops.emulated_gpu import Run

SUBJECTS = ("convolution", "gradients", "pooling", "suppression")
"""What the names of comparisons begin with."""


def convolution(name: str) -> float:
    """Error of the forward pass, in tolerances."""
    case, dtype, run = convolutions.RUNS[name]
    tensors = case.tensors(dtype)
    with prepared(run):
        found = ops.deform_conv2d(**{key: t.cuda() for key, t in tensors.items()}, **case.options())
    wanted = convolutions.expected(case, tensors)
    error = (found.double().cpu() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)
    single = convolutions.SINGLE_TOLERANCE[run.allow_tf32]
    return float(error) / (single if dtype == torch.float32 else convolutions.TOLERANCE[dtype])


class prepared:  # noqa: N801
    """Asks for the kernel and precision of a run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        torch.backends.cudnn.conv.fp32_precision = "tf32" if self._run.allow_tf32 else "ieee"
        if self._run.forced is not None:
            forced = self._run.forced
            os.environ["DCNZOO_CUDA_KERNEL"] = f"{KERNELS[forced.kernel]}/{forced.splits}"

    def __exit__(self, *_: object) -> None:
        os.environ.pop("DCNZOO_CUDA_KERNEL", None)
        torch.backends.cudnn.conv.fp32_precision = "ieee"


def pooling(dtype: torch.dtype, deformed: bool) -> float:
    """Error of RoI pooling and its gradients, in tolerances."""
    torch.manual_seed(0)
    maps, rois = torch.randn(2, 40, 19, 23).to(dtype), regions.random_rois(40, 2, 76, 92)
    inputs = [maps, torch.randn(40, 2, 7, 7).to(dtype)] if deformed else [maps]
    options = {"output_size": (7, 7), "spatial_scale": 0.25}
    leaves = [tensor.cuda().requires_grad_() for tensor in inputs]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    found = ops.deform_roi_pool(leaves[0], rois.cuda(), leaves[1] if deformed else None, **options)
    wanted = reference.deform_roi_pool(exact[0], rois.double(), exact[1] if deformed else None, **options)
    error = float((found.double().cpu() - wanted).abs().max()) / regions.TOLERANCE[dtype]
    grad = torch.randn(wanted.shape).to(dtype)
    pairs = zip(
        torch.autograd.grad(found, leaves, grad.cuda()),
        torch.autograd.grad(wanted, exact, grad.double()),
        strict=True,
    )
    return max(
        error,
        *(grads.relative(one.cpu(), other) / (2 * regions.GRAD_TOLERANCE[dtype]) for one, other in pairs),
    )


def suppression(boxes_per_set: int) -> float:
    """Boxes about which GPU and definition disagree."""
    torch.manual_seed(0)
    counts = [boxes_per_set, boxes_per_set // 2, 0]
    boxes = regions.random_rois(3 * boxes_per_set, 1, 300, 300)[:, 1:].reshape(3, boxes_per_set, 4)
    found = ops.nms_sorted(boxes.cuda(), torch.tensor(counts).cuda(), 0.5)
    return float((found.cpu() != regions.kept_by_reference(boxes, counts, 0.5)).sum())


def comparisons(wgmma: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """Names, and what gives an error of at most 1; with, without or only the kernels with wgmma."""
    for name, (_, _, run) in convolutions.RUNS.items():
        excluded = "without" if convolutions.needs_wgmma(run) else "only"
        if wgmma != excluded and convolutions.has_kernel(run):
            yield f"convolution {name}", partial(convolution, name)
    if wgmma == "only":
        return
    for name in grads.RUNS:
        yield f"gradients {name}", partial(grads.error_on_gpu, name)
    for dtype in regions.GRAD_TOLERANCE:
        for deformed in (False, True):
            yield f"pooling {dtype} {'deformed' if deformed else 'rigid'}", partial(pooling, dtype, deformed)
    for count in (1, 64, 300, 1000, 5000):
        yield f"suppression {count}", partial(suppression, count)


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="Write the errors here too.")
    parser.add_argument("--wgmma", choices=("with", "without", "only"), default="with")
    parser.add_argument("--subject", choices=SUBJECTS, help="Only these comparisons.")
    options = parser.parse_args()
    problem = gpu_problem()
    if problem is not None:
        raise SystemExit(problem)
    errors: dict[str, float | str] = {}
    for name, compare in comparisons(options.wgmma):
        if options.subject is not None and not name.startswith(options.subject):
            continue
        print(name, end=": ", flush=True)  # before it computes: one that hangs or crashes is the last
        try:
            errors[name] = compare()
        except Exception as error:  # the next comparison may say more
            errors[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        print(errors[name], flush=True)
        well = gpu_is_well()
        if not well:
            errors[name] = f"{errors[name]}; the GPU computes no more, what follows was not compared"
        if options.json is not None:  # each time, for it may be stopped
            options.json.write_text(json.dumps(errors, indent=2) + "\n", encoding="utf-8")
        if not well:
            break
    wrong = {name: error for name, error in errors.items() if isinstance(error, str) or not error <= 1}
    print(f"\n{len(errors) - len(wrong)} of {len(errors)} comparisons right")
    for name, error in wrong.items():
        print(f"wrong: {name}: {error}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""The compiled kernels on a GPU: whether they are there, and in which precision they compute.

The environment variable DCNZOO_CUDA_KERNEL forces a kernel of the deformable convolution, for
measurements: "mma_128x128/2" is that kernel with the reduction in 2 parts. DCNZOO_CUDA_WGMMA=1 lets the
estimates and the search (`dcnzoo.ops.gpu_tuning`) choose kernels that have not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TypeVar

import torch

from dcnzoo.ops.backend import NATIVE_PROBLEM, active_backend

LEAST_CAPABILITY = (8, 0)
"""Compute capability from which on the tensor cores know bfloat16 and TensorFloat-32."""

_Function = TypeVar("_Function", bound=Callable[..., object])


def _constant_in_graphs(function: _Function) -> _Function:
    """Marks a function as `torch.compiler.assume_constant_result` does.

    That imports the whole compiler, which takes seconds and 100 MB also where nothing is compiled.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@_constant_in_graphs
def gpu_problem(index: int | None = None) -> str | None:
    """Why the compiled kernels do not run on a GPU; None if they do.

    Args:
        index: number of the GPU; the current one by default.
    """
    if not torch.cuda.is_available():
        return "no GPU was found"
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CAPABILITY:
        found, least = (".".join(map(str, pair)) for pair in (capability, LEAST_CAPABILITY))
        return f"the GPU's compute capability is {found}, the kernels need {least}"
    return load_problem()


def gpu_is_well() -> bool:
    """Whether the GPU computes on; after an error in a kernel it does not, for this process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def gpu_backend(index: int | None = None) -> tuple[str, str]:
    """Backend that runs the operators on a GPU, and why.

    Args:
        index: number of the GPU; the current one by default.

    Returns:
        (name, reason), the name as of `dcnzoo.ops.active_backend`.
    """
    name, reason = active_backend()
    if name != "native":
        return name, reason
    problem = gpu_problem(index)
    return ("native", "compiled kernels for GPUs") if problem is None else ("torchvision", problem)


@cache
def load_problem() -> str | None:
    """Why the compiled kernels for GPUs cannot be loaded; None when they are, and loads them."""
    if NATIVE_PROBLEM is not None:
        return NATIVE_PROBLEM
    try:
        import_module("dcnzoo._C_cuda")  # registers its kernels for torch.ops.dcnzoo
    except ImportError as error:
        return f"the CUDA kernels cannot be loaded ({error})"
    return None


@_constant_in_graphs
def allows_tf32() -> bool:
    """Whether PyTorch's switch for convolutions lets float32 factors be rounded to TensorFloat-32."""
    return bool(torch.backends.cudnn.conv.fp32_precision == "tf32")  # type: ignore[attr-defined]

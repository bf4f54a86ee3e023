"""Which implementation computes the operators: the compiled ones, torchvision's, or the readable reference.

The environment variable DCNZOO_OPS (native, torchvision or reference) forces one, and
DCNZOO_CPU_CAPABILITY (default, avx2, avx512, avx512_bf16, avx512_fp16) forces a variant of the compiled CPU
kernels.
"""

from __future__ import annotations

import contextlib
import os
from importlib import import_module

import torch

from dcnzoo.errors import OpsUnavailableError

BACKENDS = ("native", "torchvision", "reference")

_chosen: tuple[str, str] | None = None


def active_backend() -> tuple[str, str]:
    """Backend that runs the deformable operators, and why; decided once per process.

    Returns:
        (name, reason).

    Raises:
        OpsUnavailableError: DCNZOO_OPS or DCNZOO_CPU_CAPABILITY asks for something that is not there.
    """
    global _chosen
    if _chosen is None:
        _chosen = _choose(os.environ.get("DCNZOO_OPS", ""))
    return _chosen


def half_factor() -> torch.dtype | None:
    """The 16-bit type that the compiled CPU kernels multiply at twice the rate of float32.

    Returns:
        float16 with AVX512-FP16, bfloat16 with AVX512-BF16 alone, None on other processors and without the
        compiled kernels.
    """
    return _half_factor if active_backend()[0] == "native" else None


def _choose(wanted: str) -> tuple[str, str]:
    if wanted and wanted not in BACKENDS:
        raise OpsUnavailableError(f"DCNZOO_OPS={wanted} is unknown; it is one of {', '.join(BACKENDS)}")
    if wanted in ("torchvision", "reference"):
        return wanted, f"DCNZOO_OPS={wanted}"
    if NATIVE_PROBLEM is None:
        return "native", f"compiled kernels, {_cpu_capability()}"
    if wanted == "native":
        raise OpsUnavailableError(
            f"DCNZOO_OPS=native: {NATIVE_PROBLEM}; reinstall dcnzoo with a C++ compiler present"
        )
    return "torchvision", NATIVE_PROBLEM


def _cpu_capability() -> str:
    try:
        capability: str = torch.ops.dcnzoo.cpu_capability()
    except RuntimeError as error:
        raise OpsUnavailableError(str(error)) from error
    return capability


def _load_native() -> str | None:
    try:
        import_module("dcnzoo._C")  # registers torch.ops.dcnzoo
    except ImportError as error:
        return f"the compiled operators cannot be loaded ({error})"
    return None


NATIVE_PROBLEM = _load_native()
"""Why the compiled operators are missing; None when they are loaded."""

_half_factor: torch.dtype | None = None

with contextlib.suppress(OpsUnavailableError):  # raised again on use
    if active_backend()[0] == "native":  # now, so that torch.compile finds constants
        _types = {"float16": torch.float16, "bfloat16": torch.bfloat16}
        _half_factor = _types.get(torch.ops.dcnzoo.cpu_half_factor())

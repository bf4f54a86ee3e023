"""Facts about the machine and its software, for `dcnzoo doctor` and beside everything that is measured."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dcnzoo import __version__

if TYPE_CHECKING:
    import torch

PACKAGES = {
    "torch": "torch",
    "torchvision.ops": "torchvision",
    "numpy": "numpy",
    "PIL.Image": "pillow",
    "pycocotools.mask": "pycocotools",
}
"""Module to import (with its compiled part) → name of the distribution."""


class PeakMemory(NamedTuple):
    """Most memory that the process has used, in GiB.

    Attributes:
        host_gib: of the machine, resident.
        gpu_gib: of tensors on the GPU; None without one.
    """

    host_gib: float
    gpu_gib: float | None

    def __str__(self) -> str:
        text = f"{self.host_gib:.2f} GiB"
        return text if self.gpu_gib is None else f"{text}, on the GPU {self.gpu_gib:.2f} GiB"


def peak_memory(device: torch.device) -> PeakMemory:
    """Returns how much memory the process has used at most, and of a GPU that it computes on."""
    host = peak_resident() / 2**30
    if device.type != "cuda":
        return PeakMemory(host, None)
    import torch

    return PeakMemory(host, torch.cuda.max_memory_allocated(device) / 2**30)


def peak_resident() -> int:
    """Returns the most memory, in bytes, that this process has had resident."""
    # getrusage would count what the parent held when it started this process, too
    peaks = _field_of(Path("/proc/self/status"), "VmHWM")
    if peaks:
        return int(peaks[0].removesuffix(" kB")) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def hardware_stamp(device: torch.device) -> dict[str, object]:
    """Returns what speed depends on, with the time (UTC) and the load that others caused; in JSON types."""
    import torch

    packages = {name: _version_or_problem(module, name) for module, name in PACKAGES.items()}
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"dcnzoo": __version__, "python": platform.python_version(), **packages},
        "platform": platform.platform(),
        "cpu": cpu(),
        "gpu": describe_gpu(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "operators": operators(device),
        "load_average": round(os.getloadavg()[0], 2),
    }


def package_version(module: str, distribution: str) -> str:
    """Imports a package, which must work, and returns its version."""
    from importlib.metadata import version  # slow to import, and `--help` imports this module

    import_module(module)
    return version(distribution)


def _version_or_problem(module: str, distribution: str) -> str:
    try:
        return package_version(module, distribution)
    except ImportError as error:  # what was measured did without it
        return f"missing ({error})"


def cpu() -> dict[str, object]:
    """Describes the processor, and how PyTorch uses it."""
    import torch

    return {
        "model": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_model() -> str:
    """Marketing name of the processor: Linux has it in a file, elsewhere the platform module knows best."""
    names = _field_of(Path("/proc/cpuinfo"), "model name")
    return names[0] if names else platform.processor() or platform.machine()


def operators(device: torch.device | None = None) -> dict[str, object]:
    """Says which operators run on a device, by default the CPU, and why."""
    from dcnzoo.ops import active_backend
    from dcnzoo.ops.gpu import gpu_backend

    if device is not None and device.type == "cuda":
        name, reason = gpu_backend(device.index)
    else:
        name, reason = active_backend()
    return {"backend": name, "because": reason}


def cuda() -> dict[str, object]:
    """Lists the GPUs, or says why there are none, and whether the compiled kernels for them are there."""
    import torch

    from dcnzoo.ops.gpu import gpu_problem, load_problem

    if not torch.version.cuda:
        return {"devices": [], "because": "this PyTorch is built without CUDA"}
    try:
        torch.empty(0, device="cuda")
    except (RuntimeError, AssertionError) as error:
        problem = load_problem()
        return {
            "devices": [],
            "because": str(error).splitlines()[0],
            "operators": "compiled kernels: loaded, unused" if problem is None else _where(problem),
        }
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    problem = next(filter(None, (gpu_problem(device.index) for device in devices)), None)
    return {
        "built_for": torch.version.cuda,
        "devices": [describe_gpu(device) for device in devices],
        "operators": _where(problem),
    }


def _where(problem: str | None) -> str:
    """Who computes the operators on a GPU."""
    return "compiled kernels" if problem is None else f"torchvision's: {problem}"


def describe_gpu(device: torch.device) -> str:
    """Name, memory and compute capability of a GPU."""
    import torch

    gpu = torch.cuda.get_device_properties(device)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, capability {gpu.major}.{gpu.minor}"


def _field_of(table: Path, name: str) -> list[str]:
    """Values of a field of a table under /proc, none on systems that have no such table."""
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    fields = (line.partition(":") for line in lines)
    return [value.strip() for title, _, value in fields if title.strip() == name]

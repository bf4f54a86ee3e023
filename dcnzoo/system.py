"""Facts about the machine and its software, for `dcnzoo doctor` and the stamp of a benchmark."""

from __future__ import annotations

import os
import platform
import sys
from datetime import datetime, timezone
from importlib import import_module
from pathlib import Path

from dcnzoo import __version__

PACKAGES = {
    "torch": "torch",
    "torchvision.ops": "torchvision",
    "numpy": "numpy",
    "PIL.Image": "pillow",
    "pycocotools.mask": "pycocotools",
}
"""Module to import (with its compiled part) → name of the distribution."""


def stamp() -> dict[str, object]:
    """Describes what a measurement was made on, with its time (UTC) and the load that others caused."""
    packages = {name: package_version(module, name) for module, name in PACKAGES.items()}
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"dcnzoo": __version__, "python": platform.python_version(), **packages},
        "platform": platform.platform(),
        "CPU": cpu(),
        "load average": round(os.getloadavg()[0], 2),
        "operators": operators(),
        "CUDA": cuda(),
    }


def package_version(module: str, distribution: str) -> str:
    """Imports a package, which must work, and returns its version."""
    from importlib.metadata import version  # slow to import, and `--help` imports this module

    import_module(module)
    return version(distribution)


def cpu() -> dict[str, object]:
    """Describes the processor, and how PyTorch uses it."""
    import torch

    return {
        "model": _cpu_model(),
        "cores": os.cpu_count(),
        "threads of PyTorch": torch.get_num_threads(),
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _cpu_model() -> str:
    """Marketing name of the processor: Linux has it in a file, elsewhere the platform module knows best."""
    names = _field_of(Path("/proc/cpuinfo"), "model name")
    return names[0] if names else platform.processor() or platform.machine()


def operators() -> dict[str, object]:
    """Says which operators run, and why."""
    from dcnzoo.ops import active_backend

    name, reason = active_backend()
    return {"backend": name, "because": reason}


def cuda() -> dict[str, object]:
    """Lists the GPUs, or says why there are none."""
    import torch

    if not torch.version.cuda:
        return {"devices": [], "because": "this PyTorch is built without CUDA"}
    try:
        torch.empty(0, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return {"devices": [], "because": str(error).splitlines()[0]}
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "built for": torch.version.cuda,
        "devices": [
            f"{device.name}, {device.total_memory / 2**30:.1f} GiB, capability {device.major}.{device.minor}"
            for device in devices
        ],
    }


def peak_memory() -> int:
    """Returns the most memory, in bytes, that this process has had resident."""
    # getrusage would count what the parent held when it started this process, too
    peaks = _field_of(Path("/proc/self/status"), "VmHWM")
    if peaks:
        return int(peaks[0].removesuffix(" kB")) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _field_of(table: Path, name: str) -> list[str]:
    """Values of a field of a table under /proc, none on systems that have no such table."""
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    fields = (line.partition(":") for line in lines)
    return [value.strip() for title, _, value in fields if title.strip() == name]

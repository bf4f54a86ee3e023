"""What a run was made on, and how much memory it took."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class PeakMemory(NamedTuple):
    """Most memory that the process has used, in GiB.

    Attributes:
        host_gib: of the machine.
        gpu_gib: that PyTorch has allocated on the GPU; None without one.
    """

    host_gib: float
    gpu_gib: float | None

    def __str__(self) -> str:
        text = f"{self.host_gib:.2f} GiB"
        return text if self.gpu_gib is None else f"{text}, on the GPU {self.gpu_gib:.2f} GiB"


def peak_memory(device: torch.device) -> PeakMemory:
    """Returns how much memory the process has used at most, and of a GPU that it computes on."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    if device.type != "cuda":
        return PeakMemory(host, None)
    import torch

    return PeakMemory(host, torch.cuda.max_memory_allocated(device) / 2**30)


def hardware_stamp(device: torch.device) -> dict[str, str | int | None]:
    """Returns what speed depends on: machine, device, versions, operators; in JSON types."""
    import torch

    from dcnzoo import __version__
    from dcnzoo.ops import active_backend

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "dcnzoo": __version__,
        "torch": torch.__version__,
        "operators": active_backend()[0],
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    }


def cpu_model() -> str:
    """Marketing name of the processor: Linux has it in a file, elsewhere the platform module knows best."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

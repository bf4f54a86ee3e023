"""Runs the CUDA kernels as nvcc compiles them on a machine for PTX, and compares with the reference.

Run as a program with a target and the folder of the PTX, it prints a line of JSON per run; DCNZOO_EMULATOR
names the library that takes the place of the emulated GPU's.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tests.ops import cuda_grad_cases, cuda_region_cases, emulated_gpu
from tests.ops.cuda_deform_conv2d_cases import HALF, RUNS, VIEWS, WGMMA, compare, needs_wgmma, views
from tests.ops.deform_conv2d_cases import Case
from tests.ops.emulated_gpu import Run
from tests.ops.ptx_variants import CONVOLUTIONS, OTHERS
from tests.simulator.machine import KERNEL_SOURCES

TARGETS = "80", "90a"
ON_HOPPER = (
    *("dense-float64", "dense-float16", "dense-exact", "resnext_16-torch.bfloat16", "resnext_32-tf32"),
    *(f"mma_{size}/3-torch.float32" for size in ("64x128", "128x64", "128x128", "128x256")),
    *("grad-odd_everything-torch.float16", "two-step-groups_of_chunks-torch.bfloat16"),
    *("pooling-torch.float16-16-deformed", "gradient-torch.float32-64-deformed", "suppression"),
)
"""Runs without its instructions that code for it is run with too: a few of each kernel."""


@dataclass(frozen=True)
class Fault:
    """A change of the PTX of a file, and what the machine must then say of a run."""

    target: str
    source: str
    run: str
    pattern: str
    replacement: str
    message: str

    def matches(self, said: str) -> bool:
        """Whether the machine has said this."""
        return re.search(self.message, said) is not None


_WGMMA = "90a", "deform_conv2d", "wgmma_128x128-seed-1"
_MMA = "80", "deform_conv2d", "mma_128x128-tiles"
FAULTS = {
    "not published": Fault(*_WGMMA, r"fence\.proxy\.async[^;]*;", "", "without fence.proxy.async"),
    "published late": Fault(
        *(*_WGMMA, r"(fence\.proxy\.async[^;]*;)([^@]*?bar\.warp\.sync[^;]*;)", r"\2 \1"),
        "without fence.proxy.async",
    ),
    "no wgmma.fence": Fault(*_WGMMA, r"wgmma\.fence[^;]*;", "", "without wgmma.fence"),
    "batch awaited late": Fault(
        *(*_WGMMA, r"(wgmma\.wait_group[^;]*) 1;", r"\1 2;"),
        "the write is not ordered after a read by the tensor cores",
    ),
    "sums used early": Fault(*_WGMMA, r"wgmma\.wait_group[^;]* 0;", "", "an accumulator is used while"),
    "full not awaited": Fault(
        *(*_WGMMA, r"(setmaxnreg\.inc.*?)mbarrier\.try_wait[^;]*;", r"\1 setp.eq.u32 p, 0, 0;"),
        "nothing has written|is not ordered after the write|initializes|asynchronous copy",
    ),
    "no arrival": Fault(*_WGMMA, r"mbarrier\.arrive[^;]*;", "", "nothing can run any more"),
    "no registers given": Fault(*_WGMMA, r"setmaxnreg\.dec[^;]*;", "", "nothing can run any more"),
    "warps not together": Fault(*_WGMMA, r"bar\.warp\.sync[^;]*;", "", "fence.proxy.async|a race"),
    "copies not awaited": Fault(*_MMA, r"cp\.async\.wait_all;", "", "before it is waited for"),
    "blocks not together": Fault(*_MMA, r"bar\.sync[^;]*;", "", "a race|nothing has written"),
    "copies of too much": Fault(
        *_MMA, r"(cp\.async\.cg[^;]*), %r\d+;", r"\1, 16;", "is not its own|another block writes"
    ),
    "votes alone": Fault("80", "regions", "suppression", r"bar\.warp\.sync[^;]*;", "", "a race"),
    "copies misplaced": Fault(*_MMA, r"(cp\.async\.cg\.shared\.global \[%r\d+)\]", r"\1+8]", "misaligned"),
}


def error_of(library: ctypes.CDLL, run: Callable[[], float]) -> dict[str, float | str]:
    """What a run reports."""
    library.take_error()
    error = run()
    fault = library.take_error().decode()
    return {"error": error} if not fault else {"fault": fault}


def all_runs() -> dict[str, tuple[bool, Callable[[], float]]]:
    """By the name of a run whether it needs wgmma, and what gives its error."""
    runs: dict[str, tuple[bool, Callable[[], float]]] = {}
    for name, arguments in RUNS.items():
        runs[name] = needs_wgmma(arguments[2]), partial(convolution, *arguments)
    case, tensors = views()
    for name, run in VIEWS.items():
        runs[name] = needs_wgmma(run), partial(view, case, run, tensors)
    for name, of_grads in cuda_grad_cases.RUNS.items():
        runs[f"grad-{name}"] = False, partial(cuda_grad_cases.error, *of_grads)
    for name, of_steps in cuda_grad_cases.TWO_STEPS.items():
        runs[name] = False, partial(cuda_grad_cases.two_step_error, *of_steps)
    for name, call in cuda_region_cases.RUNS.items():
        runs[name] = False, call
    for name, call in (CONVOLUTIONS | OTHERS).items():
        runs[f"{name}-types"] = name.startswith(WGMMA), call
    return runs


def convolution(case: Case, dtype: torch.dtype, run: Run) -> float:
    return compare(case, dtype, run, case.tensors(dtype))[0]


def view(case: Case, run: Run, tensors: dict[str, Tensor]) -> float:
    return compare(case, HALF, run, tensors)[0]


def runs_of(target: str) -> dict[str, Callable[[], float]]:
    """Those that are run with code for a target."""
    return {
        name: run
        for name, (needs_hopper, run) in all_runs().items()
        if (needs_hopper or name in ON_HOPPER if target == "90a" else not needs_hopper)
    }


def watch_memory(library: ctypes.CDLL) -> None:
    """Lets kernels touch what tensors hold, and nothing else."""

    class Watched(emulated_gpu.Guarded):
        def __init__(self, tensor: Tensor) -> None:
            super().__init__(tensor)
            address = ctypes.c_uint64(self.address)
            library.allow_memory(address, ctypes.c_uint64(self._elements * tensor.element_size()))
            weakref.finalize(self, library.forbid_memory, address)

    emulated_gpu.Guarded = Watched  # type: ignore[misc]


def fault_of(
    library: ctypes.CDLL, fault: Fault, texts: dict[str, str], run: Callable[[], float]
) -> dict[str, float | str]:
    """What the machine says of changed PTX, in the first order of threads in which it says anything."""
    changed, changes = re.subn(fault.pattern, fault.replacement, texts[fault.source], flags=re.DOTALL)
    assert changes > 0
    library.load_kernels(changed.encode())
    report: dict[str, float | str] = {}
    for order in range(4):
        library.set_order(ctypes.c_uint64(order))
        report = error_of(library, run)
        if "fault" in report:
            break
    library.load_kernels(texts[fault.source].encode())
    return report


def main() -> None:
    torch.set_num_threads(1)
    target, folder = sys.argv[1], Path(sys.argv[2])
    library = emulated_gpu.library()
    library.take_error.restype = ctypes.c_char_p
    watch_memory(library)
    torch.library.impl("dcnzoo::deform_conv2d_columns", "CPU", emulated_gpu.deform_conv2d_columns)
    torch.library.impl("dcnzoo::deform_conv2d_scatter_", "CPU", emulated_gpu.deform_conv2d_scatter)
    texts = {source.stem: (folder / f"{source.stem}.{target}.ptx").read_text() for source in KERNEL_SOURCES}
    for text in texts.values():
        library.load_kernels(text.encode())
    assert library.take_error() == b""
    runs = runs_of(target)
    for name, run in runs.items():
        print(json.dumps({"name": name} | error_of(library, run)), flush=True)
    for name, fault in FAULTS.items():
        if fault.target == target:
            print(json.dumps({"name": name} | fault_of(library, fault, texts, runs[fault.run])), flush=True)


if __name__ == "__main__":
    main()

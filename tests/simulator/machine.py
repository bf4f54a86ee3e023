"""A machine that executes PTX on a CPU: builds it from its sources, and PTX from those of CUDA."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SOURCES = tuple(
    FOLDER / f"{name}.cpp" for name in ("arithmetic", "machine", "memory", "parser", "tensor_cores")
)
LAUNCHER = FOLDER / "kernels" / "launcher.cpp"
"""The kernels of csrc/cuda by the interface of their emulation."""

KERNEL_SOURCES = tuple(sorted((ROOT / "csrc" / "cuda").glob("*.cu")))
_ERROR_BYTES = 4096


class PtxError(RuntimeError):
    """What the machine does not know, or a GPU leaves undefined."""


def build(target: Path, sources: Sequence[Path] = SOURCES) -> Path:
    """Compiles the machine as a library, with every warning an error; two files at a time."""
    flags = ["-std=c++17", "-O2", "-march=native", "-ffp-contract=off", "-fPIC"]
    flags += ["-Wall", "-Wextra", "-Werror"]
    flags += [f"-I{ROOT / 'csrc' / 'cuda'}", f"-I{ROOT / 'tests' / 'ops' / 'emulator'}"]
    compiler = os.environ.get("CXX", "g++")

    def compiled(source: Path) -> str:
        path = str(target.with_name(f"{target.stem}-{source.stem}.o"))
        subprocess.run([compiler, *flags, "-c", str(source), "-o", path], check=True)
        return path

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    subprocess.run([compiler, "-shared", *objects, "-o", str(target)], check=True)
    return target


def compile_ptx(source: Path, target: str, folder: Path) -> Path:
    """PTX of a CUDA file for a virtual architecture, such as "90a"."""
    path = folder / f"{source.stem}.{target}.ptx"
    command = ["nvcc", "-std=c++17", "-O3", "-ptx", f"-arch=compute_{target}", str(source), "-o", str(path)]
    subprocess.run(command, check=True)
    return path


class KernelInfo(ctypes.Structure):
    """PtxKernel."""

    _fields_ = [
        (name, ctypes.c_uint32) for name in ("max_threads", "static_shared_bytes", "num_params", "is_stub")
    ]


class Machine:
    """A library that `build` made."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.ptx_load.restype = ctypes.c_void_p
        self._library.ptx_load.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t]
        module, name, numbers = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32 * 3
        self._library.ptx_find.argtypes = [module, name, ctypes.c_void_p]
        self._library.ptx_launch.argtypes = [
            *(module, name, numbers, numbers, ctypes.c_uint32, ctypes.c_void_p),
            *(ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t),
        ]
        self._library.ptx_unload.argtypes = [module]

    def load(self, text: str) -> Module:
        """Reads PTX."""
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        handle = self._library.ptx_load(text.encode(), error, _ERROR_BYTES)
        if not handle:
            raise PtxError(error.value.decode())
        return Module(self._library, handle)


class Module:
    """The kernels of a PTX text."""

    def __init__(self, library: ctypes.CDLL, handle: int) -> None:
        self._library, self._handle = library, handle

    def __del__(self) -> None:
        self._library.ptx_unload(self._handle)

    def find(self, name: str) -> KernelInfo | None:
        """What is known of a kernel; None where there is none of this name."""
        found = KernelInfo()
        missing = self._library.ptx_find(self._handle, name.encode(), ctypes.byref(found))
        return None if missing else found

    def launch(
        self,
        name: str,
        *params: ctypes._SimpleCData[int] | ctypes.Structure,
        threads: int = 32,
        blocks: int = 1,
        shared_bytes: int = 0,
        seed: int = 0,
    ) -> None:
        """Runs a kernel to its end.

        Raises:
            PtxError: it does what a GPU leaves undefined.
        """
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        addresses = (ctypes.c_void_p * max(len(params), 1))(*(ctypes.addressof(param) for param in params))
        numbers = ctypes.c_uint32 * 3
        grid, block = numbers(blocks, 1, 1), numbers(threads, 1, 1)
        if self._library.ptx_launch(
            *(self._handle, name.encode(), grid, block, shared_bytes, addresses, seed, error, _ERROR_BYTES)
        ):
            raise PtxError(error.value.decode())

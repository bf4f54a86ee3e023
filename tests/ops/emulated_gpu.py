"""The CUDA kernels on a CPU: compiled from their own headers for an emulated GPU (tests/ops/emulator).

The emulation ends the process when a kernel does what a GPU leaves undefined, and so does the operating
system when it reads beyond the end of a tensor: run it in a process of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
ELEMENTS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
KERNELS = ("simt", "grouped", "mma_64x128", "mma_128x64", "mma_128x128", "mma_128x256")


class _Maps(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("element", ctypes.c_int32), *[(n, ctypes.c_int64) for n in "nchw"]]


class Shape(ctypes.Structure):
    """ConvShape."""

    _fields_ = [
        ("images", ctypes.c_int64),
        *[
            (name, ctypes.c_int32)
            for name in (
                "channels height width out_channels out_height out_width kernel_h kernel_w stride_h stride_w "
                "pad_h pad_w dilation_h dilation_w groups deform_groups"
            ).split()
        ],
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("shape", Shape),
        *[(name, ctypes.c_void_p) for name in ("input", "weight", "bias", "output", "partial")],
        ("offset", _Maps),
        ("mask", _Maps),
        ("element", ctypes.c_int32),
        ("mask_is_logits", ctypes.c_bool),
        ("relu", ctypes.c_bool),
    ]


class Plan(ctypes.Structure):
    """Plan, its Tiling spelt out."""

    _fields_ = [
        ("kernel", ctypes.c_int32),
        ("tf32", ctypes.c_bool),
        ("pixel_tiles", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("column_tiles", "splits", "window_taps", "table_capacity")],
        ("blocks", ctypes.c_int64),
        ("threads", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
    ]


class Gpu(ctypes.Structure):
    """What a GPU offers."""

    _fields_ = [("multiprocessors", ctypes.c_int32), ("shared_bytes", ctypes.c_int32)]


class Choice(ctypes.Structure):
    """A kernel and a number of splits to use."""

    _fields_ = [("kernel", ctypes.c_int32), ("splits", ctypes.c_int32)]


H100 = Gpu(132, 232448)
RTX_3090 = Gpu(82, 101376)


@cache
def library() -> ctypes.CDLL:
    """The emulator, compiled once per process, or given by DCNZOO_EMULATOR."""
    if "DCNZOO_EMULATOR" in os.environ:
        return ctypes.CDLL(os.environ["DCNZOO_EMULATOR"])
    with TemporaryDirectory() as folder:
        return ctypes.CDLL(str(build(Path(folder) / "emulator.so")))


def build(target: Path) -> Path:
    """Compiles the emulator, with every warning an error."""
    folder = ROOT / "tests" / "ops" / "emulator"
    flags = ["-std=c++17", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    flags += ["-fsanitize=undefined", "-fno-sanitize-recover=all", "-U_FORTIFY_SOURCE"]
    includes = [f"-I{ROOT / 'csrc' / 'cuda'}", f"-I{folder}"]
    sources = map(str, sorted(folder.glob("*.cpp")))
    subprocess.run([os.environ.get("CXX", "c++"), *flags, *includes, *sources, "-o", str(target)], check=True)
    return target


class Guarded:
    """A copy of a tensor's memory, in its layout, that ends where the memory ends: reading beyond is a fault.

    Args:
        tensor: may be a view with gaps.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._shape, self._stride, self._dtype = tensor.shape, tensor.stride(), tensor.dtype
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        self._elements = sum((size - 1) * step for size, step in steps) + 1 if tensor.numel() else 0
        size = self._elements * tensor.element_size()
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, room + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + room), mmap.PAGESIZE, 0):
            raise OSError("mprotect failed")
        self.address = start + room - size
        ctypes.memmove(self.address, tensor.data_ptr(), size)

    def tensor(self) -> Tensor:
        """What the memory holds now."""
        flat = torch.empty(self._elements, dtype=self._dtype)
        ctypes.memmove(flat.data_ptr(), self.address, flat.nbytes)
        return flat.as_strided(self._shape, self._stride)


@dataclass
class Run:
    """What to run a convolution with, beside its tensors."""

    gpu: Gpu = H100
    allow_tf32: bool = True
    forced: Choice | None = None
    seed: int = 0


def plan(shape: Shape, dtype: torch.dtype, run: Run) -> Plan:
    """How a convolution would be computed."""
    found = Plan()
    forced = None if run.forced is None else ctypes.byref(run.forced)
    library().plan_deform_conv2d(
        ctypes.byref(shape), ELEMENTS[dtype], int(run.allow_tf32), ctypes.byref(run.gpu), forced, ctypes.byref(found)
    )
    return found


def _maps(tensor: Tensor | None, kept: list[Guarded]) -> _Maps:
    if tensor is None:
        return _Maps(None, 0, 0, 0, 0, 0)
    kept.append(Guarded(tensor))
    return _Maps(kept[-1].address, ELEMENTS[tensor.dtype], *tensor.stride())


def _address(tensor: Tensor | None, kept: list[Guarded]) -> int | None:
    if tensor is None:
        return None
    kept.append(Guarded(tensor))
    return kept[-1].address


def deform_conv2d(
    run: Run,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None = None,
    mask_is_logits: bool = False,
    relu: bool = False,
) -> tuple[Tensor, Plan]:
    """`dcnzoo.ops.deform_conv2d` on the emulated GPU, and the plan that it followed."""
    images, channels, height, width = input.shape
    out_channels, group_channels, *kernel = weight.shape
    taps = kernel[0] * kernel[1]
    shape = Shape(
        images, channels, height, width, out_channels, *offset.shape[2:], *kernel, *stride, *padding, *dilation,
        channels // group_channels, offset.shape[1] // (2 * taps),
    )  # fmt: skip
    found = plan(shape, input.dtype, run)
    last = torch.channels_last
    output = torch.full((images, out_channels, *offset.shape[2:]), torch.nan, dtype=input.dtype)
    target = Guarded(output.contiguous(memory_format=last))
    partial = None
    kept: list[Guarded] = []
    if found.splits > 1:
        partial = _address(torch.full((found.splits * output.numel(),), torch.nan), kept)
    call = _Call(
        shape,
        _address(input.contiguous(memory_format=last), kept),
        _address(weight.permute(0, 2, 3, 1).contiguous(), kept),
        _address(bias, kept),
        target.address,
        partial,
        _maps(offset, kept),
        _maps(mask, kept),
        ELEMENTS[input.dtype],
        mask_is_logits,
        relu,
    )
    library().run_deform_conv2d(ctypes.byref(call), ctypes.byref(found), run.seed)
    return target.tensor(), found

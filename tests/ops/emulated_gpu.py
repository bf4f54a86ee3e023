"""The CUDA kernels on a CPU: compiled from their own headers for an emulated GPU (tests/ops/emulator).

The emulation ends the process when a kernel does what a GPU leaves undefined, and so does the operating
system when it reads beyond the end of a tensor: run it in a process of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
ELEMENTS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}


class _Maps(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("element", ctypes.c_int32),
        *[(name, ctypes.c_int64) for name in "nchw"],
    ]


_SIZES = (
    *("channels", "height", "width", "out_channels", "out_height", "out_width", "kernel_h", "kernel_w"),
    *("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "groups", "deform_groups"),
)


class Shape(ctypes.Structure):
    """ConvShape."""

    _fields_ = [("images", ctypes.c_int64), *[(name, ctypes.c_int32) for name in _SIZES]]


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
        ("cycles", ctypes.c_double),
    ]


class Gpu(ctypes.Structure):
    """What a GPU offers."""

    _fields_ = [
        ("multiprocessors", ctypes.c_int32),
        ("shared_bytes", ctypes.c_int32),
        ("wgmma", ctypes.c_bool),
        ("try_wgmma", ctypes.c_bool),
    ]


class Choice(ctypes.Structure):
    """A kernel and a number of splits to use."""

    _fields_ = [("kernel", ctypes.c_int32), ("splits", ctypes.c_int32)]


H100 = Gpu(132, 232448, wgmma=True)
RTX_3090 = Gpu(82, 101376, wgmma=False)


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
    settings = ELEMENTS[dtype], int(run.allow_tf32), ctypes.byref(run.gpu), forced
    library().plan_deform_conv2d(ctypes.byref(shape), *settings, ctypes.byref(found))
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


def _shape(input: Tensor, weight: Tensor, offset: Tensor, *geometry: Sequence[int]) -> Shape:
    """Of a convolution with this stride, padding and dilation."""
    images, channels, height, width = input.shape
    out_channels, group_channels, *kernel = weight.shape
    groups = channels // group_channels, offset.shape[1] // (2 * kernel[0] * kernel[1])
    sizes = (channels, height, width, out_channels, *offset.shape[2:])
    return Shape(images, *sizes, *kernel, *(n for pair in geometry for n in pair), *groups)


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
    shape = _shape(input, weight, offset, stride, padding, dilation)
    found = plan(shape, input.dtype, run)
    last = torch.channels_last
    output = torch.full((len(input), len(weight), *offset.shape[2:]), torch.nan, dtype=input.dtype)
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


class _Columns(ctypes.Structure):
    _fields_ = [
        ("call", _Call),
        ("first_pixel", ctypes.c_int64),
        ("pixels", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("columns", "grad_input", "grad_offset", "grad_mask")],
    ]


def _columns_call(
    kept: list[Guarded],
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    mask_is_logits: bool,
) -> _Columns:
    last = input.contiguous(memory_format=torch.channels_last)
    call = _Call(
        shape=_shape(input, weight, offset, stride, padding, dilation),
        input=_address(last, kept),
        offset=_maps(offset, kept),
        mask=_maps(mask, kept),
        element=ELEMENTS[input.dtype],
        mask_is_logits=mask_is_logits,
    )
    return _Columns(call=call)


def deform_conv2d_columns(
    input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, *options: Any
) -> Tensor:
    """The operator of that name on the emulated GPU."""
    kept: list[Guarded] = []
    *others, first_pixel, pixels = options
    work = _columns_call(kept, input, weight, offset, mask, *others)
    groups = input.shape[1] // weight.shape[1]
    target = Guarded(torch.full((groups, pixels, weight[0].numel()), torch.nan, dtype=input.dtype))
    work.first_pixel, work.pixels, work.columns = first_pixel, pixels, target.address
    library().run_columns(ctypes.byref(work), 0, 0)
    return target.tensor()


def deform_conv2d_scatter(
    grad_input: Tensor, grad_offset: Tensor, grad_mask: Tensor | None, columns: Tensor, *options: Any
) -> None:
    """The operator of that name on the emulated GPU."""
    kept: list[Guarded] = []
    work = _columns_call(kept, *options[:-1])
    work.first_pixel, work.pixels = options[-1], columns.shape[1]
    work.columns = _address(columns, kept)
    for name, grad in (("input", grad_input), ("offset", grad_offset), ("mask", grad_mask)):
        setattr(work, f"grad_{name}", _address(grad, kept))
    targets = kept[-2 if grad_mask is None else -3 :]
    library().run_columns(ctypes.byref(work), 1, 1)
    for grad, target in zip((grad_input, grad_offset, grad_mask), targets, strict=False):
        if grad is not None:
            grad.copy_(target.tensor())


class _Level(ctypes.Structure):
    _fields_ = [
        ("input", ctypes.c_void_p),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("spatial_scale", ctypes.c_double),
    ]


class _RoiPool(ctypes.Structure):
    _fields_ = [
        ("levels", _Level * 8),
        ("num_levels", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("images", ctypes.c_int64),
        ("num_rois", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("rois", "level_of_roi", "offset")],
        *[(name, ctypes.c_int32) for name in ("rois_element", "offset_element", "element")],
        *[(name, ctypes.c_int32) for name in ("pooled_h", "pooled_w")],
        ("gamma", ctypes.c_double),
        ("output", ctypes.c_void_p),
    ]


class _RoiPoolGrad(ctypes.Structure):
    _fields_ = [
        ("pool", _RoiPool),
        *[(name, ctypes.c_void_p) for name in ("grad_output", "grad_input", "grad_offset")],
    ]


def roi_pool(
    inputs: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offset: Tensor | None,
    *,
    output_size: tuple[int, int],
    spatial_scales: list[float],
    gamma: float = 0.1,
) -> Tensor:
    """`dcnzoo.ops.deform_roi_pool`, or `roi_align_pyramid`, on the emulated GPU."""
    kept: list[Guarded] = []
    call = _roi_call(kept, inputs, rois, levels, offset, output_size, spatial_scales, gamma)
    output = torch.full((len(rois), call.channels, *output_size), torch.nan, dtype=inputs[0].dtype)
    target = Guarded(output.contiguous(memory_format=torch.channels_last))
    call.output = target.address
    library().run_roi_pool(ctypes.byref(call))
    return target.tensor()


def roi_pool_grads(
    grad: Tensor,
    input: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    *,
    output_size: tuple[int, int],
    spatial_scale: float,
    gamma: float = 0.1,
) -> tuple[Tensor, Tensor | None]:
    """Gradients of input and offset, the former in the type of its sums, on the emulated GPU."""
    kept: list[Guarded] = []
    call = _RoiPoolGrad(_roi_call(kept, [input], rois, None, offset, output_size, [spatial_scale], gamma))
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    sums = Guarded(torch.zeros_like(input, dtype=wide, memory_format=torch.channels_last))
    call.grad_input = sums.address
    call.grad_output = _address(grad.contiguous(memory_format=torch.channels_last), kept)
    by_offset = None if offset is None else Guarded(torch.full_like(offset, torch.nan))
    if by_offset is not None:
        call.grad_offset = by_offset.address
    library().run_roi_pool_grad(ctypes.byref(call))
    return sums.tensor(), None if by_offset is None else by_offset.tensor()


def _roi_call(
    kept: list[Guarded],
    inputs: list[Tensor],
    rois: Tensor,
    levels: Tensor | None,
    offset: Tensor | None,
    output_size: tuple[int, int],
    spatial_scales: list[float],
    gamma: float,
) -> _RoiPool:
    call = _RoiPool(
        num_levels=len(inputs),
        channels=inputs[0].shape[1],
        images=inputs[0].shape[0],
        num_rois=len(rois),
        rois=_address(rois, kept),
        level_of_roi=_address(levels, kept),
        offset=_address(offset, kept),
        rois_element=ELEMENTS[rois.dtype],
        offset_element=0 if offset is None else ELEMENTS[offset.dtype],
        element=ELEMENTS[inputs[0].dtype],
        pooled_h=output_size[0],
        pooled_w=output_size[1],
        gamma=gamma,
    )
    for index, (maps, scale) in enumerate(zip(inputs, spatial_scales, strict=True)):
        last = maps.contiguous(memory_format=torch.channels_last)
        call.levels[index] = _Level(_address(last, kept), *maps.shape[2:], scale)
    return call


class _Suppression(ctypes.Structure):
    _fields_ = [
        ("boxes", ctypes.c_void_p),
        ("counts", ctypes.c_void_p),
        ("problems", ctypes.c_int64),
        ("num_boxes", ctypes.c_int32),
        ("iou_threshold", ctypes.c_float),
        ("kept", ctypes.c_void_p),
    ]


def nms_sorted(boxes: Tensor, counts: Tensor, iou_threshold: float, seed: int = 0) -> Tensor:
    """Which of (problems, A, 4) sorted boxes stay, on the emulated GPU."""
    kept: list[Guarded] = []
    target = Guarded(torch.full(boxes.shape[:2], 7, dtype=torch.uint8))
    addresses = _address(boxes, kept), _address(counts, kept)
    call = _Suppression(*addresses, len(boxes), boxes.shape[1], iou_threshold, target.address)
    library().run_suppression(ctypes.byref(call), seed)
    return target.tensor()


class _BiasRelu(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("maps", "bias", "added")],
        *[(name, ctypes.c_int64) for name in ("chunks", "bias_chunks")],
        ("element", ctypes.c_int32),
        ("relu", ctypes.c_bool),
    ]


def bias_relu(maps: Tensor, bias: Tensor, added: Tensor | None, relu: bool, blocks: int) -> Tensor:
    """What the operator `bias_relu_` makes of channels-last maps, on the emulated GPU, in so many blocks."""
    kept: list[Guarded] = []
    target, per_chunk = Guarded(maps), 16 // maps.element_size()
    addresses = target.address, _address(bias, kept), _address(added, kept)
    chunks = maps.numel() // per_chunk, len(bias) // per_chunk
    call = _BiasRelu(*addresses, *chunks, ELEMENTS[maps.dtype], relu)
    library().run_bias_relu(ctypes.byref(call), ctypes.c_int64(blocks))
    return target.tensor()

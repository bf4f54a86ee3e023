"""The fastest way of a deformable convolution on a GPU, found by timing for every shape.

It is asked for as cuDNN's search among dense convolutions is: `torch.backends.cudnn.benchmark = True`. The
first call of a shape then tries every kernel and waits for the GPU; later ones use the fastest. Without it,
estimates choose (`csrc/cuda/deform_conv2d_plan.h`). Only for inference: a call that records gradients, is
compiled, or whose shape is new while a CUDA graph is captured, goes the usual way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from dcnzoo.ops.gpu_grad import column_pieces, weight_matrix
from dcnzoo.ops.types import Pair

KERNELS = (
    *("simt", "grouped", "mma_64x128", "mma_128x64", "mma_128x128", "mma_128x256"),
    *("wgmma_64x128", "wgmma_64x256", "wgmma_128x128", "wgmma_128x256"),
)
"""Of `csrc/cuda/kernels.h`, in its order."""

TWO_STEP = "two_step"
"""Samples in memory, then PyTorch's matrix product."""

SPLITS = (1, 2, 3, 4, 6, 8)
"""Parts of the reduction that are tried."""

UNTRIED = "wgmma"
"""Kernels whose names start so have not run on a GPU yet, and are used only where they are asked for."""

USE_UNTRIED = "DCNZOO_CUDA_WGMMA"
"""An environment variable: "1" lets the search, and without it the estimates, choose those, too."""

CALLS, ROUNDS = 10, 3
"""Calls that are timed together, and how often."""

HEAD_START = 6_000_000
"""Clock cycles, about three milliseconds, that the GPU waits first, so that the host is ahead with launches.

The way in two steps has the most: some ten calls of PyTorch, which take a tenth of a millisecond.
"""


class Call(NamedTuple):
    """A deformable convolution: arguments as of `dcnzoo.ops.deform_conv2d`.

    Attributes:
        tf32: whether float32 factors may be rounded to TensorFloat-32.
    """

    input: Tensor
    weight: Tensor
    offset: Tensor
    mask: Tensor | None
    bias: Tensor | None
    stride: Pair
    padding: Pair
    dilation: Pair
    mask_is_logits: bool
    relu: bool
    tf32: bool

    def shape(self) -> tuple[object, ...]:
        """What the time depends on: all but the numbers in the tensors."""
        tensors = tuple(
            None if t is None else (t.device, t.dtype, tuple(t.shape), t.stride()) for t in self[:5]
        )
        return (*tensors, *self[5:])


def applies(*tensors: Tensor | None) -> bool:
    """Whether a call on a GPU with these tensors goes through the tuner."""
    if torch.compiler.is_compiling() or not torch.backends.cudnn.benchmark:
        return False
    present = [tensor for tensor in tensors if tensor is not None]
    recorded = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in present)
    plain = all(type(tensor) in (Tensor, Parameter) for tensor in present)  # with numbers in them
    return plain and not recorded and not os.environ.get("DCNZOO_CUDA_KERNEL")


def deform_conv2d(call: Call) -> Tensor:
    """Computes in the fastest known way; channels-last."""
    if torch.cuda.is_current_stream_capturing():
        way = _TUNER.known(call)
    else:
        with torch.cuda.device(call.input.device):
            way = _TUNER.fastest(call)
    return compute(call, way)


def compute(call: Call, way: str | None) -> Tensor:
    """Computes in one way.

    Args:
        call: what.
        way: "kernel/splits", `TWO_STEP`, or None for what the estimates choose.

    Raises:
        RuntimeError: it cannot compute this.
    """
    if way == TWO_STEP:
        return two_step(call)
    operands, (mask_is_logits, relu, tf32) = call[:8], call[8:]
    if way is not None:
        output: Tensor = torch.ops.dcnzoo.deform_conv2d_by_kernel(*operands, mask_is_logits, relu, tf32, way)
        return output
    operator = torch.ops.dcnzoo.deform_conv2d_tf32 if tf32 else torch.ops.dcnzoo.deform_conv2d
    chosen: Tensor = operator(*operands, None, mask_is_logits, relu)
    return chosen


def two_step(call: Call) -> Tensor:
    """Lays out the samples of some output pixels at a time and multiplies them with the weight.

    Sums of float16 and bfloat16 are those of PyTorch's matrix product.
    """
    x, weight, offset, mask, bias, *geometry, mask_is_logits, relu, _ = call
    images, _, height, width = offset.shape
    matrix = weight_matrix(x, weight)  # (G, O/G, T·C/G)
    groups, group_columns, _ = matrix.shape
    pixels = images * height * width
    output = x.new_empty(pixels, groups, group_columns)
    for begin, end in column_pieces(pixels, matrix):
        columns = torch.ops.dcnzoo.deform_conv2d_columns(
            x, weight, offset, mask, *geometry, mask_is_logits, begin, end - begin
        )
        torch.bmm(columns, matrix.transpose(1, 2), out=output[begin:end].transpose(0, 1))
    if bias is not None:
        output += bias.view(groups, group_columns)
    output = output.view(images, height, width, -1).permute(0, 3, 1, 2)
    return output.relu_() if relu else output


def may_use_two_step(call: Call) -> bool:
    """Whether PyTorch's matrix product is as exact as what was asked for."""
    rounds = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return call.input.dtype != torch.float32 or call.tf32 or not rounds


def ways(call: Call) -> Iterator[str | None]:
    """What there is to try."""
    yield None
    if may_use_two_step(call):
        yield TWO_STEP
    untried = os.environ.get(USE_UNTRIED) == "1"
    for kernel in KERNELS:
        if untried or not kernel.startswith(UNTRIED):
            splits = SPLITS if "x" in kernel else SPLITS[:1]
            yield from (f"{kernel}/{count}" for count in splits)


class Planned(NamedTuple):
    """What the estimates say: a "kernel/splits", and clock cycles of a multiprocessor, or 0."""

    way: str
    cycles: float


def planned(call: Call, way: str | None) -> Planned:
    """What `compute` would run for a way other than `TWO_STEP`."""
    found: Tensor = torch.ops.dcnzoo.deform_conv2d_plan(
        call.input, call.weight, call.offset, *call[5:8], call.tf32, way or ""
    )
    kernel, splits, cycles = found.tolist()
    return Planned(f"{KERNELS[int(kernel)]}/{int(splits)}", cycles)


def time_on_gpu(computations: Sequence[Callable[[], object]]) -> list[float]:
    """Milliseconds of a call of each on the current GPU, in turn, the best of some rounds.

    What they take in a round before, while the clock of the GPU rises, does not count.
    """
    rounds = [[_time_once(computation) for computation in computations] for _ in range(1 + ROUNDS)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def _time_once(computation: Callable[[], object]) -> float:
    torch.cuda._sleep(HEAD_START)  # type: ignore[no-untyped-call]
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(CALLS):
        computation()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / CALLS


class KernelTuner:
    """Remembers the fastest way per shape.

    Args:
        compute: computes a call in one way; raises RuntimeError with "cannot compute" where it cannot.
        time: milliseconds that each of some computations takes.
    """

    def __init__(
        self,
        compute: Callable[[Call, str | None], object] = compute,
        time: Callable[[list[Callable[[], object]]], list[float]] = time_on_gpu,
    ) -> None:
        self._compute, self._time = compute, time
        self._fastest: dict[tuple[object, ...], str | None] = {}
        self._lock = threading.Lock()

    def known(self, call: Call) -> str | None:
        """The fastest way of a shape that was timed; None, which is what estimates choose, of any other."""
        return self._fastest.get(call.shape())

    def fastest(self, call: Call) -> str | None:
        """The fastest way, timed now if the shape is new."""
        shape = call.shape()
        with self._lock:  # two threads that time at once would time each other
            if shape not in self._fastest:
                self._fastest[shape] = min(self.timings(call, ways(call)))[2]
            return self._fastest[shape]

    def timings(self, call: Call, candidates: Iterable[str | None]) -> list[tuple[float, int, str | None]]:
        """Milliseconds, number and name of each of these ways that can compute a call."""
        able = [(rank, way) for rank, way in enumerate(candidates) if self._can_compute(call, way)]
        times = self._time([partial(self._compute, call, way) for _, way in able])
        return [(time, *pair) for time, pair in zip(times, able, strict=True)]

    def _can_compute(self, call: Call, way: str | None) -> bool:
        try:
            self._compute(call, way)
        except RuntimeError as error:
            if "cannot compute" not in str(error):
                raise
            return False
        return True


_TUNER = KernelTuner()

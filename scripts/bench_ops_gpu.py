"""Times the deformable convolution on a GPU against cuDNN's dense one of the same shape and torchvision's.

Each candidate is captured as a graph of several calls, so that Python and launches take no part, and replayed
in turn with the others; medians. Then what a search (`dcnzoo.ops.gpu_tuning`) finds fastest, and with --sweep
every way that can compute a layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch
from detector_layers import LAYERS, Layer
from torch import Tensor
from torch.nn import functional as F

from dcnzoo.ops import gpu_tuning, reference
from dcnzoo.ops.gpu import allows_tf32, gpu_problem
from dcnzoo.ops.gpu_tuning import KERNELS, SPLITS, TWO_STEP, UNTRIED, Call, KernelTuner

try:
    from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
except ImportError:  # compared without it
    torchvision_deform_conv2d = None

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
CALLS = 10
"""Per graph."""


@dataclass(frozen=True)
class Timing:
    """Medians in microseconds, and the largest error relative to the largest output.

    Attributes:
        layer: name.
        batch_size: images.
        precision: one of `DTYPES`.
        native_us: the compiled kernel.
        dense_us: cuDNN's dense convolution, the same precision, channels-last.
        torchvision_us: torchvision's operator in float32, NCHW; None where it was not run.
        extra_mib: memory that a call takes beside its output.
        error: against the readable reference in float64 for the first image.
        kernel: what was asked for, or found by a search; None for what the estimates choose.
    """

    layer: str
    batch_size: int
    precision: str
    native_us: float
    dense_us: float
    torchvision_us: float | None
    extra_mib: float
    error: float
    kernel: str | None = None


@dataclass(frozen=True)
class Operands:
    """Arguments of a layer's convolution, channels-last."""

    layer: Layer
    x: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def random(cls, layer: Layer, batch_size: int, dtype: torch.dtype) -> Operands:
        """Offsets have a standard deviation of a pixel."""
        generator = torch.Generator("cuda").manual_seed(0)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(*shape, generator=generator, device="cuda") * scale
            last = torch.channels_last if values.ndim == 4 else torch.contiguous_format
            return values.to(dtype).contiguous(memory_format=last)

        channels, size = layer.channels, (layer.height, layer.width)
        per_group = channels // layer.groups
        return cls(
            layer,
            random(batch_size, channels, *size),
            random(batch_size, 18, *size),
            random(channels, per_group, 3, 3, scale=(9 * per_group) ** -0.5),
            random(channels),
        )

    def to(self, dtype: torch.dtype, images: int | None = None) -> Operands:
        """The same in NCHW and another dtype, of the first images."""
        tensors = (t.to(dtype).contiguous() for t in (self.x[:images], self.offset[:images], self.weight))
        return Operands(self.layer, *tensors, self.bias.to(dtype))

    def native(self, way: str | None = None) -> Tensor:
        """The compiled kernels, in one of the ways of `gpu_tuning`."""
        return gpu_tuning.compute(self.call(), way)

    def call(self) -> Call:
        """The arguments of `gpu_tuning`."""
        rounded = self.x.dtype == torch.float32 and allows_tf32()
        tensors = (self.x, self.weight, self.offset, None, self.bias)
        return Call(*tensors, *[(1, 1)] * 3, mask_is_logits=False, relu=False, tf32=rounded)

    def dense(self) -> Tensor:
        """The dense convolution of cuDNN."""
        return F.conv2d(self.x, self.weight, self.bias, padding=1, groups=self.layer.groups)

    def torchvision(self) -> Tensor:
        """The operator of torchvision."""
        return torchvision_deform_conv2d(self.x, self.offset, self.weight, self.bias, padding=1)

    def exact(self) -> Tensor:
        """The readable reference."""
        geometry = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
        return reference.deform_conv2d(self.x, self.offset, self.weight, self.bias, **geometry)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """PyTorch's switches for convolutions and matrix products."""
    switches = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if allowed else "ieee"
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


def captured(computation: Callable[[], Tensor]) -> torch.cuda.CUDAGraph:
    """A graph of several calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            computation()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            computation()
    return graph


def medians(computations: dict[str, Callable[[], Tensor]], repeats: int) -> dict[str, float]:
    """Microseconds per call."""
    graphs = {name: captured(computation) for name, computation in computations.items()}
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(repeats):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times[name].append(1000 * begin.elapsed_time(end) / CALLS)
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def extra_memory(computation: Callable[[], Tensor]) -> float:
    """MiB that a call takes beside its output."""
    output = computation()
    del output
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = computation()
    return round((torch.cuda.max_memory_allocated() - before - output.nbytes) / 2**20, 2)


def measure(operands: Operands, precision: str, repeats: int, with_torchvision: bool) -> Timing:
    """Times one layer."""
    exact = operands.to(torch.float64, images=1).exact()
    error = (operands.native()[:1].double() - exact).abs().max() / exact.abs().max()
    single = operands.to(torch.float32)
    computations = {"native": operands.native, "dense": operands.dense}
    if with_torchvision:
        computations["torchvision"] = single.torchvision
    found = medians(computations, repeats)
    return Timing(
        operands.layer.name,
        len(operands.x),
        precision,
        found["native"],
        found["dense"],
        found.get("torchvision"),
        extra_memory(operands.native),
        float(f"{float(error):.1e}"),
    )


def searched(operands: Operands, usual: Timing, repeats: int) -> Timing:
    """Times what the search of `gpu_tuning` finds fastest."""
    way = KernelTuner().fastest(operands.call())
    time = medians({"native": partial(operands.native, way)}, repeats)["native"]
    return replace(usual, native_us=time, kernel=f"found: {way or 'the chosen one'}")


def sweep(operands: Operands, usual: Timing, repeats: int, wgmma: bool) -> Iterator[Timing]:
    """Times the ways to compute a layer, the fastest first: those with wgmma, or all others."""
    candidates = [] if wgmma else [TWO_STEP]
    if operands.layer.groups == 1:
        tiled = (kernel for kernel in KERNELS if "x" in kernel and kernel.startswith(UNTRIED) == wgmma)
        candidates += [f"{kernel}/{splits}" for kernel, splits in product(tiled, SPLITS)]
    elif not wgmma:
        candidates.append("grouped/1")
    tuner = KernelTuner(time=lambda computation: medians({"native": computation}, repeats)["native"])
    for time, _, way in sorted(tuner.timings(operands.call(), candidates)):
        yield replace(usual, native_us=time, kernel=way)


def table(timings: list[Timing]) -> list[str]:
    """Markdown."""
    lines = [
        "| layer | batch | precision | kernel | native µs | dense µs | × dense"
        " | torchvision fp32 µs | × faster | extra MiB | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for t in timings:
        slow = ("–", "–")
        if t.torchvision_us is not None:
            slow = (f"{t.torchvision_us:.0f}", f"{t.torchvision_us / t.native_us:.1f}")
        cells = (
            *(t.layer, t.batch_size, t.precision, t.kernel or "chosen", f"{t.native_us:.1f}"),
            *(f"{t.dense_us:.1f}", f"{t.native_us / t.dense_us:.2f}", *slow, t.extra_mib, f"{t.error:.0e}"),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--precision", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=15)
    sweeps = parser.add_mutually_exclusive_group()
    sweeps.add_argument("--sweep", action="store_true", help="Try every kernel but those with wgmma.")
    sweeps.add_argument("--sweep-wgmma", action="store_true", help="Try the kernels with wgmma.")
    parser.add_argument("--no-torchvision", action="store_true")
    parser.add_argument("--json", type=Path, help="Write the numbers here too.")
    return parser.parse_args()


def write(path: Path, timings: list[Timing]) -> None:
    """The numbers as JSON."""
    stamp = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    report = {"stamp": stamp, "timings": [asdict(timing) for timing in timings]}
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Runs the program."""
    options = parse()
    problem = gpu_problem()
    if problem is not None:
        raise SystemExit(problem)
    torch.backends.cudnn.benchmark = True
    with_torchvision = torchvision_deform_conv2d is not None and not options.no_torchvision
    timings = []
    with torch.inference_mode():
        for precision, batch_size, layer in product(options.precision, options.batch_size, LAYERS):
            with tf32(precision == "tf32"):
                operands = Operands.random(layer, batch_size, DTYPES[precision])
                usual = measure(operands, precision, options.repeats, with_torchvision)
                timings += [usual, searched(operands, usual, options.repeats)]
                if (options.sweep or options.sweep_wgmma) and precision != "fp32":
                    timings += sweep(operands, usual, options.repeats, options.sweep_wgmma)
                if options.json is not None:  # each time, for it may be stopped
                    write(options.json, timings)
    print("\n".join(table(timings)))


if __name__ == "__main__":
    sys.exit(main())

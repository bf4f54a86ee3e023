"""Times the deformable convolution on a GPU against cuDNN's dense one of the same shape and torchvision's.

Each candidate is captured as a graph of several calls and replayed in turn with the others, while the GPU
is still busy, so that Python and launches take no part; medians. Then what a search (`dcnzoo.ops.gpu_tuning`)
finds fastest, and with --sweep every way that can compute a layer. A layer that fails costs no other, unless
its error has spoiled the process, which then ends.
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
from typing import Any, NamedTuple

import torch
from detector_layers import LAYERS, STRIDED_LAYERS, Layer
from torch import Tensor
from torch.nn import functional as F

from dcnzoo.ops import gpu_tuning, reference
from dcnzoo.ops.gpu import allows_tf32, gpu_is_well, gpu_problem
from dcnzoo.ops.gpu_tuning import HEAD_START, KERNELS, SPLITS, TWO_STEP, UNTRIED, Call, KernelTuner

try:
    from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
except ImportError:  # compared without it
    torchvision_deform_conv2d = None

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
CALLS, SHORT_CALLS = 10, 50
"""Per graph, and of a single image, whose calls are short."""

WARM_MILLISECONDS = 100
"""Of matrix products, after which the clock of the GPU is what it is under load."""

EXTRA_LAYERS = LAYERS[:3]
"""R50's, at whose shapes the ordinary layers beside the deformable ones are timed, too."""


@dataclass(frozen=True)
class Timing:
    """Medians in microseconds, and the largest error relative to the largest output.

    Attributes:
        layer: name.
        batch_size: images.
        precision: one of `DTYPES`.
        native_us: the compiled kernel, bias included.
        dense_us: cuDNN's dense convolution, the same precision, channels-last, without a bias: the bar.
        dense_bias_us: PyTorch's with bias, which PyTorch adds in a pass of its own.
        dense_relu_us: cuDNN's with bias and ReLU in one call; None where it has none.
        torchvision_us: torchvision's operator in float32, NCHW; None where it was not run.
        extra_mib: memory that a call takes beside its output.
        error: against the readable reference in float64 for the first image.
        kernel: what was asked for, or found by a search; None for what the estimates choose.
        plan: which that is.
        cycles: of a multiprocessor that the estimates give it.
        ways: of a search, the microseconds and the estimate of every way that it has tried.
    """

    layer: str
    batch_size: int
    precision: str
    native_us: float
    dense_us: float
    dense_bias_us: float
    dense_relu_us: float | None
    torchvision_us: float | None
    extra_mib: float
    error: float
    kernel: str | None = None
    plan: str | None = None
    cycles: float | None = None
    ways: dict[str, tuple[float, float | None]] | None = None


@dataclass(frozen=True)
class Extra:
    """An ordinary layer as PyTorch computes it, and in a way that may be faster; microseconds."""

    what: str
    layer: str
    batch_size: int
    precision: str
    usual_us: float
    other_us: float | None


class Dense(NamedTuple):
    """Medians of what a layer is compared with."""

    plain: float
    bias: float
    relu: float | None


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
        output_size = tuple((side - 1) // layer.stride + 1 for side in size)
        per_group = channels // layer.groups
        return cls(
            layer,
            random(batch_size, channels, *size),
            random(batch_size, 18, *output_size),
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
        stride = (self.layer.stride,) * 2
        return Call(*tensors, stride, (1, 1), (1, 1), mask_is_logits=False, relu=False, tf32=rounded)

    def dense(self, bias: Tensor | None = None) -> Tensor:
        """The dense convolution of cuDNN."""
        stride, groups = self.layer.stride, self.layer.groups
        return F.conv2d(self.x, self.weight, bias, stride=stride, padding=1, groups=groups)

    def dense_relu(self) -> Tensor:
        """The same with bias and ReLU in one call."""
        stride, one, groups = (self.layer.stride,) * 2, (1, 1), self.layer.groups
        return torch.cudnn_convolution_relu(self.x, self.weight, self.bias, stride, one, one, groups)

    def torchvision(self) -> Tensor:
        """The operator of torchvision."""
        stride = self.layer.stride
        return torchvision_deform_conv2d(
            self.x, self.offset, self.weight, self.bias, stride=stride, padding=1
        )

    def exact(self) -> Tensor:
        """The readable reference."""
        geometry = {"stride": (self.layer.stride,) * 2, "padding": (1, 1), "dilation": (1, 1)}
        return reference.deform_conv2d(self.x, self.offset, self.weight, self.bias, **geometry)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """PyTorch's switches for convolutions and matrix products."""
    switches = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.fp32_precision = value


def captured(computation: Callable[[], Tensor], calls: int) -> torch.cuda.CUDAGraph:
    """A graph of several calls."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            computation()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            computation()
    return graph


def elapsed(work: Callable[[], object]) -> float:
    """Milliseconds of the GPU for what a function asks of it."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def warm_up() -> None:
    """Lets the clock of the GPU settle."""
    factor = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    spent = 0.0
    while spent < WARM_MILLISECONDS:
        spent += elapsed(lambda: [factor @ factor for _ in range(20)])


def clock_mhz() -> float:
    """The clock of the multiprocessors, by how long a number of its cycles takes."""
    cycles = 20_000_000
    return round(cycles / elapsed(lambda: torch.cuda._sleep(cycles)) / 1000, 1)


def medians(
    computations: dict[str, Callable[[], Tensor]], repeats: int, images: int, optional: tuple[str, ...] = ()
) -> dict[str, float]:
    """Microseconds per call, in turn.

    Args:
        computations: of a number of images.
        repeats: of each.
        images: in each call.
        optional: those that may fail, and then have no time.
    """
    calls = SHORT_CALLS if images == 1 else CALLS
    graphs = {}
    for name, computation in computations.items():
        try:
            graphs[name] = captured(computation, calls)
        except RuntimeError:
            if name not in optional or not gpu_is_well():
                raise
    times: dict[str, list[float]] = {name: [] for name in graphs}
    warm_up()
    for _ in range(repeats):
        for name, graph in graphs.items():
            torch.cuda._sleep(HEAD_START // 4)  # so that the graph is launched when its time begins
            times[name].append(1000 * elapsed(graph.replay) / calls)
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def extra_memory(computation: Callable[[], Tensor]) -> float:
    """MiB that a call takes beside its output."""
    output = computation()
    del output
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = computation()
    return round((torch.cuda.max_memory_allocated() - before - output.nbytes) / 2**20, 2)


def measure(operands: Operands, precision: str, repeats: int, slow: float | None) -> Timing:
    """Times one layer.

    Args:
        operands: in the precision.
        precision: its name.
        repeats: of each measurement.
        slow: torchvision's microseconds.
    """
    exact = operands.to(torch.float64, images=1).exact()
    error = (operands.native()[:1].double() - exact).abs().max() / exact.abs().max()
    computations = {
        "native": operands.native,
        "dense": operands.dense,
        "bias": partial(operands.dense, operands.bias),
        "relu": operands.dense_relu,
    }
    found = medians(computations, repeats, len(operands.x), optional=("relu",))
    plan, cycles = estimate(operands, None)
    return Timing(
        *(operands.layer.name, len(operands.x), precision),
        *(found["native"], found["dense"], found["bias"], found.get("relu"), slow),
        *(extra_memory(operands.native), float(f"{float(error):.1e}")),
        plan=plan,
        cycles=cycles,
    )


def estimate(operands: Operands, way: str | None) -> tuple[str | None, float | None]:
    """The kernel of a way and its estimated cycles, as far as the planner has to do with it."""
    if way == TWO_STEP:
        return None, None
    planned = gpu_tuning.planned(operands.call(), way)
    return planned.way, planned.cycles or None


def torchvision_time(layer: Layer, images: int, repeats: int) -> float | None:
    """Of torchvision's operator in float32, which has no other precision that were as exact."""
    if torchvision_deform_conv2d is None:
        return None
    operands = Operands.random(layer, images, torch.float32).to(torch.float32)
    with tf32(False):
        return medians({"torchvision": operands.torchvision}, repeats, images)["torchvision"]


def searched(operands: Operands, usual: Timing, repeats: int) -> Timing:
    """Times what the search of `gpu_tuning` finds fastest, and keeps all that it has found."""
    call = operands.call()
    timings = KernelTuner().timings(call, gpu_tuning.ways(call))
    ways = {
        way or "the chosen one": (round(1000 * time, 2), estimate(operands, way)[1])
        for time, _, way in timings
    }
    way = min(timings)[2]
    time = medians({"native": partial(operands.native, way)}, repeats, len(operands.x))["native"]
    plan, cycles = estimate(operands, way)
    found = f"found: {way or 'the chosen one'}"
    return replace(usual, native_us=time, kernel=found, plan=plan, cycles=cycles, ways=ways)


def extras(operands: Operands, precision: str, repeats: int) -> Iterator[Extra]:
    """Times ordinary layers at the shape of a deformable one, and what may be faster."""
    x, bias, one = operands.x, operands.bias, (1, 1)
    images, channels = x.shape[:2]
    wide = torch.randn(4 * channels, channels, 1, 1, device="cuda").to(x)
    wide_bias = torch.randn(4 * channels, device="cuda").to(x)
    wide = wide.contiguous(memory_format=torch.channels_last)
    residual = F.conv2d(x, wide)

    def padded(outputs: int) -> Callable[[], Tensor]:
        weight = operands.weight.new_zeros(outputs, channels, 3, 3).contiguous(
            memory_format=torch.channels_last
        )
        return partial(F.conv2d, x, weight, weight.new_zeros(outputs), padding=1)

    def one_pass(shift: Tensor, convolve: Callable[[], Tensor], added: Tensor | None = None) -> Tensor:
        output = convolve()
        torch.ops.dcnzoo.bias_relu_(output, shift, added, True)
        return output

    pairs: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "3×3, then bias and ReLU in one pass": (
            lambda: operands.dense(bias).relu_(),
            lambda: one_pass(bias, operands.dense),
        ),
        "1×1, then bias, sum and ReLU in one pass": (
            lambda: F.conv2d(x, wide, wide_bias).add_(residual).relu_(),
            lambda: one_pass(wide_bias, lambda: F.conv2d(x, wide), residual),
        ),
        "3×3, bias, ReLU in one call": (lambda: operands.dense(bias).relu_(), operands.dense_relu),
        "1×1, bias, sum, ReLU in one call": (
            lambda: F.conv2d(x, wide, wide_bias).add_(residual).relu_(),
            lambda: torch.cudnn_convolution_add_relu(x, wide, residual, 1.0, wide_bias, one, (0, 0), one, 1),
        ),
        "offsets: 18 channels as 24": (padded(18), padded(24)),
        "offsets and mask: 27 channels as 32": (padded(27), padded(32)),
    }
    for what, (usual, other) in pairs.items():
        found = medians({"usual": usual, "other": other}, repeats, images, optional=("other",))
        yield Extra(what, operands.layer.name, images, precision, found["usual"], found.get("other"))


def sweep(operands: Operands, usual: Timing, repeats: int, wgmma: bool) -> Iterator[Timing]:
    """Times the ways to compute a layer, the fastest first: those with wgmma, or all others."""
    candidates = [] if wgmma else [TWO_STEP]
    if operands.layer.groups == 1:
        tiled = (kernel for kernel in KERNELS if "x" in kernel and kernel.startswith(UNTRIED) == wgmma)
        candidates += [f"{kernel}/{splits}" for kernel, splits in product(tiled, SPLITS)]
    elif not wgmma:
        candidates.append("grouped/1")

    def time(computations: list[Callable[[], Any]]) -> list[float]:
        found = medians({str(n): c for n, c in enumerate(computations)}, repeats, len(operands.x))
        return list(found.values())

    for microseconds, _, way in sorted(KernelTuner(time=time).timings(operands.call(), candidates)):
        plan, cycles = estimate(operands, way)
        yield replace(usual, native_us=microseconds, kernel=way, plan=plan, cycles=cycles)


def tables(report: dict[str, Any]) -> list[str]:
    """Markdown of what `write` writes."""
    lines = [
        "Dense is without a bias; with it, and with bias and ReLU in one call, behind it. The clock was"
        f" {report['stamp']['clock_mhz']} MHz.",
        "",
        "| layer | batch | precision | kernel | plan | kilocycles | native µs | dense µs | × dense | bias µs"
        " | bias, ReLU µs | torchvision fp32 µs | × faster | extra MiB | error |",
        "|---" * 15 + "|",
    ]
    for t in (Timing(**timing) for timing in report["timings"]):
        slow = ("–", "–")
        if t.torchvision_us is not None:
            slow = (f"{t.torchvision_us:.0f}", f"{t.torchvision_us / t.native_us:.1f}")
        cells = (
            *(t.layer, t.batch_size, t.precision, t.kernel or "chosen", t.plan or "–"),
            *("–" if t.cycles is None else f"{t.cycles / 1000:.0f}", f"{t.native_us:.1f}"),
            *(f"{t.dense_us:.1f}", f"{t.native_us / t.dense_us:.2f}", f"{t.dense_bias_us:.1f}"),
            *("–" if t.dense_relu_us is None else f"{t.dense_relu_us:.1f}", *slow),
            *(t.extra_mib, f"{t.error:.0e}"),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    if report["extras"]:
        lines += ["", "| what | layer | batch | precision | usual µs | µs |", "|---" * 6 + "|"]
    for e in (Extra(**extra) for extra in report["extras"]):
        other = "–" if e.other_us is None else f"{e.other_us:.1f}"
        cells = (e.what, e.layer, e.batch_size, e.precision, f"{e.usual_us:.1f}", other)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines + [line for failure in report["failures"] for line in ("", f"**Failed**: {failure}")]


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--precision", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--repeats", type=int, default=15)
    sweeps = parser.add_mutually_exclusive_group()
    sweeps.add_argument("--sweep", action="store_true", help="Try every kernel but those with wgmma.")
    sweeps.add_argument("--sweep-wgmma", action="store_true", help="Try the kernels with wgmma.")
    parser.add_argument("--extras", action="store_true", help="Ordinary layers, too.")
    parser.add_argument("--no-torchvision", action="store_true")
    parser.add_argument("--once", action="store_true", help="Call each layer of R50 once, for a profiler.")
    parser.add_argument("--json", type=Path, help="Write the numbers here too.")
    return parser.parse_args()


class Report:
    """What was measured so far."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.stamp: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
        self.timings: list[Timing] = []
        self.extras: list[Extra] = []
        self.failures: list[str] = []

    def numbers(self) -> dict[str, Any]:
        """As of now, with the clock that the GPU has."""
        self.stamp["clock_mhz"] = clock_mhz() if gpu_is_well() else self.stamp.get("clock_mhz")
        kept = {name: [asdict(row) for row in getattr(self, name)] for name in ("timings", "extras")}
        return {"stamp": self.stamp, **kept, "failures": self.failures}

    def write(self) -> None:
        """Writes the numbers, each time, for the program may be stopped."""
        if self._path is not None:
            self._path.write_text(json.dumps(self.numbers(), indent=2) + "\n", encoding="utf-8")


def run(options: argparse.Namespace, report: Report) -> None:
    """Measures one layer after the other, until the GPU computes no more."""
    layers = (*LAYERS, *STRIDED_LAYERS)
    with_torchvision = not options.no_torchvision
    for batch_size, layer in product(options.batch_size, layers):
        slow = None
        for precision in ("torchvision", *options.precision):
            try:
                if precision != "torchvision":
                    run_layer(options, report, layer, batch_size, precision, slow)
                elif with_torchvision:
                    slow = torchvision_time(layer, batch_size, options.repeats)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                report.failures.append(f"{layer.name}, batch {batch_size}, {precision}: {reason}")
                print(report.failures[-1], flush=True)
            report.write()
            if not gpu_is_well():
                report.failures.append("the GPU computes no more: what follows was not measured")
                return report.write()
    return None


def run_layer(
    options: argparse.Namespace,
    report: Report,
    layer: Layer,
    batch_size: int,
    precision: str,
    slow: float | None,
) -> None:
    """Measures one layer in one precision."""
    with tf32(precision == "tf32"):
        operands = Operands.random(layer, batch_size, DTYPES[precision])
        usual = measure(operands, precision, options.repeats, slow)
        report.timings.append(usual)
        print(usual, flush=True)
        if not options.sweep_wgmma:
            report.timings.append(searched(operands, usual, options.repeats))
        if (options.sweep or options.sweep_wgmma) and precision != "fp32":
            report.timings += sweep(operands, usual, options.repeats, options.sweep_wgmma)
        if options.extras and layer in EXTRA_LAYERS and precision in ("fp16", "bf16"):
            report.extras += extras(operands, precision, options.repeats)


def call_once() -> None:
    """Calls the kernels of R50's layers, and nothing else of them."""
    for batch_size, layer in product((1, 8), LAYERS[:3]):
        Operands.random(layer, batch_size, torch.float16).native()
    torch.cuda.synchronize()


def main() -> int:
    """Runs the program."""
    options = parse()
    problem = gpu_problem()
    if problem is not None:
        raise SystemExit(problem)
    with torch.inference_mode():
        if options.once:
            call_once()
            return 0
        torch.backends.cudnn.benchmark = True
        warm_up()
        report = Report(options.json)
        run(options, report)
    print("\n".join(tables(report.numbers())))
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())

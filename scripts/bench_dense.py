"""Times the dense layers of a detector against PyTorch's own, at 800×1216 pixels.

One process; the candidates take turns, so that a slow minute of the machine hits them all; medians.
The allocator is told to keep its memory: otherwise the pages of each large output are taken from the
system and given back on every call, which on some machines costs more than the layer.
"""

from __future__ import annotations

import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from dcnzoo import ops
from dcnzoo.ops import dense
from dcnzoo.ops.backend import half_factor

Computations = dict[str, Callable[[], object]]


@dataclass
class Result:
    """Medians in milliseconds of the native kernel, PyTorch's function, and oneDNN with packed weights."""

    kind: str
    shape: tuple[int, ...]
    gflop: float
    ms: dict[str, float]
    best_ms: dict[str, float]
    error: float | None = None
    """Largest error of the native kernel, in standard deviations of the output."""


@dataclass
class Layer:
    """A layer to time: its arithmetic and its candidates."""

    kind: str
    shape: tuple[int, ...]
    gflop: float
    computations: Computations
    exact: Callable[[], Tensor] | None = None


CONV3X3 = (  # N, C, H, W with C outputs
    (1, 256, 200, 304),
    (1, 256, 100, 152),
    (1, 256, 50, 76),
    (1, 256, 25, 38),
    (1, 256, 13, 19),
    (1, 64, 200, 304),
    (1, 128, 100, 152),
    (1, 512, 25, 38),
)

SMALL_CONV3X3 = ((100, 256, 14, 14),)

STRIDED_CONV3X3 = (  # C, O, H, W: what predicts offsets
    (128, 18, 200, 304),
    (256, 18, 200, 304),
    (256, 18, 100, 152),
    (512, 18, 100, 152),
    (512, 18, 50, 76),
    (1024, 18, 50, 76),
)

GROUPED_CONV3X3 = ((128, 200, 304),)

CONV1X1 = (  # C, O, H, W, stride
    (64, 64, 200, 304, 1),
    (256, 64, 200, 304, 1),
    (256, 128, 200, 304, 1),
    (512, 128, 100, 152, 1),
    (512, 256, 100, 152, 1),
    (1024, 256, 50, 76, 1),
    (1024, 512, 50, 76, 1),
    (2048, 512, 25, 38, 1),
    (256, 256, 200, 304, 1),
    (2048, 256, 25, 38, 1),
    (256, 15, 200, 304, 1),
    (256, 512, 200, 304, 2),
    (512, 1024, 100, 152, 2),
    (1024, 2048, 50, 76, 2),
)

CONV1X1_ADD = ((64, 256, 200, 304), (128, 512, 100, 152), (256, 1024, 50, 76), (512, 2048, 25, 38))

CONV1X1_PAIRS = (  # C, O, P, H, W: to O channels, which are added, and from there to P
    (64, 256, 64, 200, 304),
    (64, 256, 128, 200, 304),
    (128, 512, 128, 100, 152),
    (128, 512, 256, 100, 152),
    (256, 1024, 256, 50, 76),
    (256, 1024, 512, 50, 76),
    (512, 2048, 512, 25, 38),
)

LINEAR = ((1000, 12544, 1024), (1000, 1024, 1024), (1000, 1024, 81), (1000, 1024, 320), (100, 12544, 1024))

CONV_TRANSPOSE2X2 = ((100, 256, 256, 14, 14),)


def maps(*shape: int) -> Tensor:
    """Random activations after a ReLU, channels-last."""
    return torch.randn(*shape).relu_().contiguous(memory_format=torch.channels_last)


def weights(*shape: int) -> Tensor:
    """Random weights that keep the scale of what they multiply."""
    values = torch.randn(*shape) / (torch.Size(shape[1:]).numel()) ** 0.5
    return values.contiguous(memory_format=torch.channels_last) if values.ndim == 4 else values


def onednn_weight(weight: Tensor, x: Tensor, padding: int, stride: int) -> Tensor:
    """The weight of a convolution as oneDNN likes it for this input."""
    reorder = torch._C._nn.mkldnn_reorder_conv2d_weight
    packed: Tensor = reorder(weight.to_mkldnn(), [padding] * 2, [stride] * 2, [1, 1], 1, list(x.shape))
    return packed


def conv3x3_layer(n: int, c: int, h: int, w: int, *, small: bool = False) -> Layer:
    """A 3×3 convolution with ReLU; of many small maps also as one of large maps."""
    onednn = torch.ops.mkldnn._convolution_pointwise
    x, weight, b = maps(n, c, h, w), weights(c, c, 3, 3), torch.randn(c)
    packed, theirs = dense.pack_conv3x3_weight(weight), onednn_weight(weight, x, 1, 1)
    native: Computations = {"native": lambda: dense.conv3x3(x, weight, b, relu=True, packed_weight=packed)}
    if small:
        packed_small = dense.pack_small_conv3x3_weight(weight)
        native = {
            "native": lambda: dense.small_conv3x3(x, weight, b, relu=True, packed_weight=packed_small),
            "as large": native["native"],
        }
    return Layer(
        "small_conv3x3" if small else "conv3x3",
        (n, c, h, w),
        2 * 9 * c * x.numel() / 1e9,
        native
        | {
            "pytorch": lambda: F.conv2d(x, weight, b, padding=1).relu_(),
            "onednn": lambda: onednn(x, theirs, b, [1, 1], [1, 1], [1, 1], 1, "relu", [], ""),
        },
        lambda: F.conv2d(x[:4].double(), weight.double(), b.double(), padding=1),
    )


def strided_conv3x3_layer(c: int, o: int, h: int, w: int) -> Layer:
    """A 3×3 convolution with stride 2, to few channels."""
    x, weight, b = maps(1, c, h, w), weights(o, c, 3, 3), torch.randn(o)
    packed = dense.pack_strided_conv3x3_weight(weight)
    computations: Computations = {
        "native": lambda: dense.strided_conv3x3(x, weight, b, packed_weight=packed),
        "pytorch": lambda: F.conv2d(x, weight, b, stride=2, padding=1),
    }
    if half_factor() is not None:
        low, packed_low = x.to(half_factor()), dense.pack_strided_conv3x3_weight(weight, half=True)
        computations["16 bits"] = lambda: dense.strided_conv3x3(low, weight, b, packed_weight=packed_low)
    return Layer("strided_conv3x3", (c, o, h, w), 2 * 9 * x.numel() / 4 * o / 1e9, computations)


def grouped_conv3x3_layer(c: int, h: int, w: int) -> Layer:
    """A 3×3 convolution with ReLU, in groups of four channels."""
    x, weight, b = maps(1, c, h, w), weights(c, 4, 3, 3), torch.randn(c)
    layer = partial(
        dense.grouped_conv3x3,
        weight=weight,
        bias=b,
        relu=True,
        packed_weight=dense.pack_grouped_conv3x3_weight(weight),
    )
    computations: Computations = {
        "native": lambda: layer(x),
        "pytorch": lambda: F.conv2d(x, weight, b, padding=1, groups=c // 4).relu_(),
    }
    if half_factor() is not None:
        low = x.to(half_factor())
        computations["16 bits"] = lambda: layer(low, half_output=True)
    return Layer(
        "grouped_conv3x3",
        (c, h, w),
        2 * 9 * 4 * x.numel() / 1e9,
        computations,
        lambda: F.conv2d(x.double(), weight.double(), b.double(), padding=1, groups=c // 4),
    )


def conv1x1_layer(c: int, o: int, h: int, w: int, stride: int) -> Layer:
    """A 1×1 convolution with ReLU."""
    onednn = torch.ops.mkldnn._convolution_pointwise
    x, weight, b = maps(1, c, h, w), weights(o, c, 1, 1), torch.randn(o)
    packed, theirs = dense.pack_linear_weight(weight), onednn_weight(weight, x, 0, stride)
    return Layer(
        "conv1x1",
        (c, o, h, w, stride),
        2 * x.numel() / stride**2 * o / 1e9,
        {
            "native": lambda: dense.conv1x1(x, weight, b, stride=stride, relu=True, packed_weight=packed),
            "pytorch": lambda: F.conv2d(x, weight, b, stride).relu_(),
            "onednn": lambda: onednn(x, theirs, b, [0, 0], [stride] * 2, [1, 1], 1, "relu", [], ""),
        },
        lambda: F.conv2d(x.double(), weight.double(), b.double(), stride),
    )


def conv1x1_add_layer(c: int, o: int, h: int, w: int) -> Layer:
    """A 1×1 convolution added to a shortcut, with ReLU."""
    onednn = torch.ops.mkldnn._convolution_pointwise_
    x, weight, b, y = maps(1, c, h, w), weights(o, c, 1, 1), torch.randn(o), maps(1, o, h, w)
    b -= 10  # the shortcut adds up over the runs: keep it finite
    packed, theirs = dense.pack_linear_weight(weight), onednn_weight(weight, x, 0, 1)
    binary = ("add", 1.0, "relu", [], "")
    return Layer(
        "conv1x1_add_",
        (c, o, h, w),
        2 * x.numel() * o / 1e9,
        {
            "native": lambda: dense.conv1x1_add_(y, x, weight, b, relu=True, packed_weight=packed),
            "pytorch": lambda: F.conv2d(x, weight, b).add_(y).relu_(),
            "onednn": lambda: onednn(y, x, theirs, b, [0, 0], [1, 1], [1, 1], 1, *binary),
        },
    )


def conv1x1_pair_layer(c: int, o: int, p: int, h: int, w: int) -> Layer:
    """The end of a residual block and the beginning of the next: together, and one after the other."""
    x, y, sum_bias = maps(1, c, h, w), maps(1, o, h, w), torch.randn(o) - 10  # as in conv1x1_add_layer
    first, second, b = weights(o, c, 1, 1), weights(p, o, 1, 1), torch.randn(p)
    packed, packed_second = dense.pack_linear_weight(first), dense.pack_linear_weight(second)
    if packed is None or packed_second is None:
        raise click.ClickException("the compiled kernels are missing; see dcnzoo doctor")

    def apart() -> Tensor:
        dense.conv1x1_add_(y, x, first, sum_bias, relu=True, packed_weight=packed)
        return dense.conv1x1(y, second, b, relu=True, packed_weight=packed_second)

    return Layer(
        "conv1x1_pair",
        (c, o, p, h, w),
        2 * h * w * o * (c + p) / 1e9,
        {
            "native": lambda: dense.conv1x1_add_conv1x1_(y, x, packed, sum_bias, packed_second, b, p),
            "apart": apart,
        },
    )


def linear_layer(r: int, c: int, o: int) -> Layer:
    """A fully connected layer with ReLU."""
    x, weight, b = torch.randn(r, c).relu_(), weights(o, c), torch.randn(o)
    packed, theirs = dense.pack_linear_weight(weight), torch.ops.mkldnn._reorder_linear_weight(weight, r)
    return Layer(
        "linear",
        (r, c, o),
        2 * r * c * o / 1e9,
        {
            "native": lambda: dense.linear(x, weight, b, relu=True, packed_weight=packed),
            "pytorch": lambda: F.linear(x, weight, b).relu_(),
            "onednn": lambda: torch.ops.mkldnn._linear_pointwise(x, theirs, b, "relu", [], ""),
        },
        lambda: F.linear(x.double(), weight.double(), b.double()),
    )


def conv_transpose2x2_layer(n: int, c: int, o: int, h: int, w: int) -> Layer:
    """A transposed convolution with ReLU."""
    x, weight, b = maps(n, c, h, w), weights(c, o, 2, 2), torch.randn(o)
    packed = dense.pack_conv_transpose2x2_weight(weight)
    return Layer(
        "conv_transpose2x2",
        (n, c, o, h, w),
        2 * 4 * x.numel() * o / 1e9,
        {
            "native": lambda: dense.conv_transpose2x2(x, weight, b, relu=True, packed_weight=packed),
            "pytorch": lambda: F.conv_transpose2d(x, weight, b, stride=2).relu_(),
        },
        lambda: F.conv_transpose2d(x.double(), weight.double(), b.double(), stride=2),
    )


KINDS: dict[str, tuple[Callable[..., Layer], tuple[tuple[int, ...], ...]]] = {
    "conv3x3": (conv3x3_layer, CONV3X3),
    "small_conv3x3": (partial(conv3x3_layer, small=True), SMALL_CONV3X3),
    "strided_conv3x3": (strided_conv3x3_layer, STRIDED_CONV3X3),
    "grouped_conv3x3": (grouped_conv3x3_layer, GROUPED_CONV3X3),
    "conv1x1": (conv1x1_layer, CONV1X1),
    "conv1x1_add_": (conv1x1_add_layer, CONV1X1_ADD),
    "conv1x1_pair": (conv1x1_pair_layer, CONV1X1_PAIRS),
    "conv_transpose2x2": (conv_transpose2x2_layer, CONV_TRANSPOSE2X2),
    "linear": (linear_layer, LINEAR),
}


def measure(layer: Layer, repeats: int) -> Result:
    """Times one layer, and compares the native result with float64."""
    times: dict[str, list[float]] = {name: [] for name in layer.computations}
    for computation in layer.computations.values():
        computation()
    for _ in range(repeats):
        for name, computation in layer.computations.items():
            start = time.perf_counter()
            computation()
            times[name].append(1000 * (time.perf_counter() - start))
    return Result(
        layer.kind,
        layer.shape,
        round(layer.gflop, 3),
        {name: round(statistics.median(values), 3) for name, values in times.items()},
        {name: round(min(values), 3) for name, values in times.items()},
        None if layer.exact is None else error(layer.computations["native"](), layer.exact()),
    )


def error(found: object, exact: Tensor) -> float:
    """Largest error where the ReLU lets it through, in standard deviations before the ReLU."""
    assert isinstance(found, Tensor)
    difference = (found[: len(exact)].double() - exact.relu()).abs().max() / exact.std()
    return float(f"{difference.item():.1e}")


def keep_memory() -> None:
    """Makes the C library's allocator keep what it has (glibc only)."""
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_max = -1, -4
        library.mallopt(m_mmap_max, 0)
        library.mallopt(m_trim_threshold, 2**31 - 1)


def stamp(threads: int) -> dict[str, str | int]:
    """What the numbers depend on."""
    backend, reason = ops.active_backend()
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), processor)
    return {
        "processor": processor,
        "threads": threads,
        "torch": torch.__version__,
        "backend": f"{backend}: {reason}",
    }


def print_row(result: Result) -> None:
    """Medians, the rate of the native kernel, and how many times as long the others take."""
    ms = result.ms
    cells = [result.kind.ljust(18), str(result.shape).ljust(24), f"{result.gflop:7.2f} GFLOP"]
    cells += [f"{name} {ms[name]:8.2f} ms" for name in ms]
    cells += [f"{name} × {ms[name] / ms['native']:.2f}" for name in ms if name != "native"]
    click.echo("  ".join(cells) + (f"  error {result.error:.0e}" if result.error is not None else ""))


@click.command(help=__doc__)
@click.option("--kind", "kinds", multiple=True, type=click.Choice(list(KINDS)), help="Default: all.")
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=15, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the numbers here too.")
def main(kinds: tuple[str, ...], threads: int, repeats: int, json_path: Path | None) -> None:
    """Runs the program."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    keep_memory()
    machine = stamp(threads)
    click.echo(", ".join(f"{key} {value}" for key, value in machine.items()), err=True)
    results = []
    with torch.inference_mode():
        for kind in kinds or KINDS:
            make, shapes = KINDS[kind]
            for shape in shapes:
                results.append(measure(make(*shape), repeats))
                print_row(results[-1])
    if json_path is not None:
        report = {"machine": machine, "layers": [asdict(r) for r in results]}
        json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

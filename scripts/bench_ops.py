"""Times the deformable convolution against a dense one of the same shape and against torchvision's.

In float32, in bfloat16, and, where the processor can, float32 whose factors have 16 bits; torchvision's in
float32 only. Then deformable RoI pooling against RoIAlign. One process; the candidates take turns, so that a
slow minute of the machine hits them all; medians.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
import torchvision
from detector_layers import LAYERS, Layer
from torch import Tensor
from torch.nn import functional as F

from dcnzoo import ops
from dcnzoo.memory import return_freed_memory
from dcnzoo.ops.backend import half_factor


@dataclass(frozen=True)
class Result:
    """Medians in milliseconds, and the fastest run of each; memory beyond input, output and weight."""

    layer: str
    numbers: str
    native_ms: float
    dense_ms: float
    torchvision_ms: float | None
    native_best_ms: float
    dense_best_ms: float
    extra_mib_per_thread: float | None


NUMBERS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "half products": torch.float32}
"""Kinds of numbers, and the type of their tensors."""

Computations = dict[str, Callable[[], Tensor]]


def candidates(layer: Layer, numbers: str, modulated: bool, with_torchvision: bool) -> Computations:
    """The computations to time, on the same random input."""
    torch.manual_seed(0)
    dtype = NUMBERS[numbers]
    size = (layer.height, layer.width)
    x = torch.randn(1, layer.channels, *size, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(layer.channels, layer.channels // layer.groups, 3, 3, dtype=dtype)
    dense_weight = weight.contiguous(memory_format=torch.channels_last)
    bias = torch.randn(layer.channels, dtype=dtype)
    offset = torch.randn(1, 18, *size).contiguous(memory_format=torch.channels_last)
    mask = torch.rand(1, 9, *size).contiguous(memory_format=torch.channels_last) if modulated else None
    packed = ops.pack_deform_conv2d_weight(weight, layer.groups, half=numbers == "half products")
    found = {
        "native": lambda: ops.deform_conv2d(
            x, offset, weight, bias, padding=(1, 1), mask=mask, packed_weight=packed
        ),
        "dense": lambda: F.conv2d(x, dense_weight, bias, padding=1, groups=layer.groups),
    }
    if with_torchvision and numbers == "float32":
        found["torchvision"] = lambda: torchvision.ops.deform_conv2d(
            x, offset, weight, bias, padding=1, mask=mask
        )
    return found


def time_in_turn(computations: Computations, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each."""
    times: dict[str, list[float]] = {}
    for computation in computations.values():
        computation()
    for _ in range(repeats):
        for name, computation in computations.items():
            start = time.perf_counter()
            computation()
            times.setdefault(name, []).append(1000 * (time.perf_counter() - start))
    return times


def measure(layer: Layer, numbers: str, modulated: bool, with_torchvision: bool, repeats: int) -> Result:
    """Times one layer."""
    computations = candidates(layer, numbers, modulated, with_torchvision)
    times = time_in_turn(computations, repeats)
    median = {name: round(statistics.median(values), 3) for name, values in times.items()}
    return Result(
        layer.name,
        numbers,
        median["native"],
        median["dense"],
        median.get("torchvision"),
        round(min(times["native"]), 3),
        round(min(times["dense"]), 3),
        extra_memory(computations["native"]),
    )


def measure_roi_pooling(repeats: int) -> dict[str, float]:
    """Median milliseconds of both: 1000 RoIs of 16 to 200 pixels to 7 × 7, of 256 channels at stride 4."""
    torch.manual_seed(0)
    maps = torch.randn(1, 256, 200, 304).contiguous(memory_format=torch.channels_last)
    corners, sizes = torch.rand(1000, 2) * torch.tensor([1000.0, 600.0]), 16 + 184 * torch.rand(1000, 2)
    rois = torch.cat([torch.zeros(1000, 1), corners, corners + sizes], dim=1)
    offset = torch.randn(1000, 2, 7, 7)
    computations: Computations = {
        "roi_align": lambda: ops.roi_align(maps, rois, output_size=(7, 7), spatial_scale=0.25),
        "deform_roi_pool": lambda: ops.deform_roi_pool(
            maps, rois, offset, output_size=(7, 7), spatial_scale=0.25
        ),
    }
    times = time_in_turn(computations, repeats)
    return {name: round(statistics.median(values), 3) for name, values in times.items()}


def extra_memory(computation: Callable[[], Tensor]) -> float | None:
    """Peak of the resident memory over what an output takes, in MiB per thread; Linux only."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        return None
    output = computation()
    return_freed_memory()  # what earlier runs freed must not hide what this one takes
    before = _kibibytes(status, "VmRSS")
    reset.write_text("5", encoding="ascii")  # the peak starts anew
    del output  # the next one takes its place
    computation()
    peak = _kibibytes(status, "VmHWM")
    return round(max(0, peak - before) / 1024 / torch.get_num_threads(), 2)


def _kibibytes(status: Path, field: str) -> int:
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def stamp(threads: int) -> dict[str, str | int]:
    """What the numbers depend on."""
    backend, reason = ops.active_backend()
    processor = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        processor = next(
            (x.split(":")[1].strip() for x in text.splitlines() if x.startswith("model name")), ""
        )
    return {
        "processor": processor,
        "threads": threads,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "backend": f"{backend}: {reason}",
    }


def print_table(results: list[Result]) -> None:
    """One line per layer: medians, then the ratio to the dense convolution and to torchvision."""
    head = (
        "layer",
        "numbers",
        "native ms",
        "dense ms",
        "torchvision ms",
        "× dense",
        "best × dense",
        "× faster",
        "MiB/thread",
    )
    rows = [head]
    for r in results:
        tv, faster = "-", "-"
        if r.torchvision_ms is not None:
            tv, faster = f"{r.torchvision_ms:.1f}", f"{r.torchvision_ms / r.native_ms:.1f}"
        ratios = f"{r.native_ms / r.dense_ms:.2f}", f"{r.native_best_ms / r.dense_best_ms:.2f}"
        memory = "-" if r.extra_mib_per_thread is None else f"{r.extra_mib_per_thread:.2f}"
        rows.append(
            (r.layer, r.numbers, f"{r.native_ms:.1f}", f"{r.dense_ms:.1f}", tv, *ratios, faster, memory)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    for row in rows:
        left = [c.ljust(w) for c, w in zip(row[:2], widths[:2], strict=True)]
        right = [c.rjust(w) for c, w in zip(row[2:], widths[2:], strict=True)]
        click.echo("  ".join([*left, *right]))


@click.command(help=__doc__)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=15, show_default=True)
@click.option("--modulated", is_flag=True, help="With a mask (DCNv2).")
@click.option("--torchvision/--no-torchvision", "with_torchvision", default=True, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the numbers here too.")
def main(threads: int, repeats: int, modulated: bool, with_torchvision: bool, json_path: Path | None) -> None:
    """Runs the program."""
    torch.set_num_threads(threads)
    machine = stamp(threads)
    click.echo(", ".join(f"{key} {value}" for key, value in machine.items()), err=True)
    with torch.inference_mode():
        results = [
            measure(layer, numbers, modulated, with_torchvision, repeats)
            for numbers in NUMBERS
            for layer in LAYERS
            if numbers != "half products" or (half_factor() is not None and layer.groups == 1)
        ]
        pooling = measure_roi_pooling(repeats)
    print_table(results)
    ratio = pooling["deform_roi_pool"] / pooling["roi_align"]
    both = ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in pooling.items())
    click.echo(f"1000 RoIs: {both}, {ratio:.2f} ×")
    if json_path is not None:
        report = {"machine": machine, "modulated": modulated, "layers": [asdict(r) for r in results]}
        report["roi_pooling_ms"] = pooling
        json_path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

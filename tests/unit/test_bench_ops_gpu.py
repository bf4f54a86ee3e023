"""The operator's benchmark on a GPU, as far as it goes without one: everything but the times."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dcnzoo.ops import gpu_tuning, reference

SCRIPTS = Path(__file__).parents[2] / "scripts"


class OnCpu(TorchFunctionMode):
    """Makes tensors for "cuda" on the CPU."""

    def __torch_function__(
        self, function: Any, _: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        options = options or {}
        if options.get("device") == "cuda":
            options = options | {"device": "cpu"}
        return function(*arguments, **options)


def compute(call: gpu_tuning.Call, way: str | None) -> Tensor:
    """By the reference, in the ways that the kernels have."""
    if way is not None and way.startswith("grouped"):
        raise RuntimeError("deform_conv2d: the kernel that was named cannot compute this")
    geometry = {"stride": call.stride, "padding": call.padding, "dilation": call.dilation}
    tensors = (t.float() for t in (call.input, call.offset, call.weight, call.bias) if t is not None)
    return reference.deform_conv2d(*tensors, **geometry).to(call.input.dtype)


class Gpu:
    """What becomes of a GPU: on a layer of this name it fails, and if the error sticks, for good."""

    def __init__(self) -> None:
        self.fails_on, self.sticks, self.well = "nothing", False, True


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several wait longer for each other than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, gpu: Gpu) -> ModuleType:
    """The script with small layers and a pretended GPU, on which every computation takes as long."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = import_module("bench_ops_gpu")
    layers = tuple(module.Layer(f"c{n}", 8, 5, 7) for n in (3, 4, 5))
    monkeypatch.setattr(module, "LAYERS", layers[:2])
    monkeypatch.setattr(module, "EXTRA_LAYERS", layers[:1])
    monkeypatch.setattr(module, "STRIDED_LAYERS", (module.Layer("c5 first", 8, 6, 7, stride=2),))

    def medians(
        computations: dict[str, Callable[[], Tensor]], _: int, __: int, optional: tuple[str, ...] = ()
    ) -> dict[str, float]:
        times = {}
        for name, computation in computations.items():
            try:
                computation()
                times[name] = 10.0
            except (RuntimeError, AttributeError, NotImplementedError):  # cuDNN's are not there
                if name not in optional:
                    raise
        return times

    def measured(operands: Any) -> float:
        if operands.layer.name == gpu.fails_on:
            gpu.well = not gpu.sticks
            raise RuntimeError("an illegal memory access was encountered\nand more")
        return 0.0

    for name, value in {
        "medians": medians,
        "extra_memory": lambda computation: computation().numel() * 0.0,
        "warm_up": lambda: None,
        "clock_mhz": lambda: 1980.0,
        "gpu_is_well": lambda: gpu.well,
        "gpu_problem": lambda: None,
    }.items():
        monkeypatch.setattr(module, name, value)
    usual = module.Operands.native
    monkeypatch.setattr(
        module.Operands, "native", lambda operands, way=None: measured(operands) or usual(operands, way)
    )
    monkeypatch.setattr(gpu_tuning, "compute", compute)
    monkeypatch.setattr(
        module, "KernelTuner", lambda time=None: gpu_tuning.KernelTuner(compute, time or time_all)
    )
    monkeypatch.setattr(gpu_tuning, "planned", lambda _, way: gpu_tuning.Planned(way or "simt/1", 7000.0))
    monkeypatch.setattr(torch, "Generator", lambda _: torch._C.Generator("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return module


def time_all(computations: list[Callable[[], object]]) -> list[float]:
    for computation in computations:
        computation()
    return [1.0 - 0.001 * n for n in range(len(computations))]


def run(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, path: Path, *options: str) -> tuple[int, Any]:
    monkeypatch.setattr(sys, "argv", ["bench_ops_gpu.py", "--json", str(path), "--batch-size", "1", *options])
    with OnCpu():
        code = bench.main()
    return code, json.loads(path.read_text())


def test_everything_is_measured(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--precision", "bf16", "tf32", "--extras")
    code, report = run(bench, monkeypatch, tmp_path / "numbers.json", *options)
    assert (code, report["failures"]) == (0, [])
    rows = [(t["layer"], t["precision"], t["kernel"]) for t in report["timings"]]
    last = "found: mma_128x256/8"
    assert rows == [
        (layer, precision, kernel)
        for layer in ("c3", "c4", "c5 first")
        for precision in ("bf16", "tf32")
        for kernel in (None, last)
    ]
    first, found = report["timings"][:2]
    assert (first["plan"], first["cycles"], found["plan"]) == ("simt/1", 7000.0, "mma_128x256/8")
    assert first["error"] < 0.02
    assert found["ways"]["two_step"] == [999.0, None]
    assert found["ways"]["mma_64x128/2"][1] == 7000.0
    assert len({extra["what"] for extra in report["extras"]}) == 6
    assert {extra["precision"] for extra in report["extras"]} == {"bf16"}
    assert len(bench.tables(report)) > 20


def test_wgmma_is_swept(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    options = ("--precision", "fp16", "--sweep-wgmma", "--no-torchvision")
    _, report = run(bench, monkeypatch, tmp_path / "numbers.json", *options)
    kernels = {t["kernel"] for t in report["timings"]}
    tiles = product((64, 128), (128, 256), gpu_tuning.SPLITS)
    assert kernels == {None, *(f"wgmma_{pixels}x{columns}/{splits}" for pixels, columns, splits in tiles)}
    assert all(t["torchvision_us"] is None for t in report["timings"])


@pytest.mark.parametrize("sticks", [False, True])
def test_a_layer_that_fails_costs_others_only_with_the_gpu(
    bench: ModuleType, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sticks: bool
) -> None:
    gpu.fails_on, gpu.sticks = "c4", sticks
    code, report = run(bench, monkeypatch, tmp_path / "numbers.json", "--precision", "fp16")
    assert code == 1
    assert report["failures"][0] == "c4, batch 1, fp16: an illegal memory access was encountered"
    assert ("c5 first" in {t["layer"] for t in report["timings"]}) != sticks
    assert ("the GPU computes no more" in report["failures"][-1]) == sticks

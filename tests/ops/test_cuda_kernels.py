"""The CUDA kernels without a GPU: their own source on an emulated one, and the decisions before it runs."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dcnzoo.ops import gpu_grad
from dcnzoo.ops.gpu_tuning import KERNELS
from tests.ops import cuda_grad_cases, cuda_region_cases, emulated_gpu
from tests.ops.cuda_deform_conv2d_cases import RUNS, VIEWS, WGMMA
from tests.ops.emulated_gpu import H100, RTX_3090, Choice, Plan, Run, Shape


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled emulator."""
    if shutil.which(os.environ.get("CXX", "c++")) is None and not os.environ.get("CI"):
        pytest.skip("no C++ compiler")
    return emulated_gpu.build(tmp_path_factory.mktemp("emulator") / "emulator.so")


def run_program(name: str, emulator: Path) -> tuple[dict[str, Any], str]:
    """Results of a program by name, and what it said before it ended."""
    run = subprocess.run(
        [sys.executable, "-m", f"tests.ops.{name}"],
        env=os.environ | {"DCNZOO_EMULATOR": str(emulator)},
        capture_output=True,
        text=True,
        check=False,
    )
    reports = [json.loads(line) for line in run.stdout.splitlines()]
    return {report["name"]: report for report in reports}, f"exit code {run.returncode}: {run.stderr}"


@pytest.fixture(scope="session")
def deform_conv2d_reports(emulator: Path) -> tuple[dict[str, Any], str]:
    return run_program("cuda_deform_conv2d_cases", emulator)


@pytest.mark.parametrize("name", [*RUNS, *VIEWS])
def test_deform_conv2d_agrees_with_the_reference(
    name: str, deform_conv2d_reports: tuple[dict[str, Any], str]
) -> None:
    reports, ending = deform_conv2d_reports
    assert name in reports, ending
    assert reports[name]["error"] <= 1
    forced = (RUNS[name][2] if name in RUNS else VIEWS[name]).forced
    if forced is not None:
        assert (reports[name]["kernel"], reports[name]["splits"]) == (KERNELS[forced.kernel], forced.splits)


PIPELINE_FAULTS = {
    "none": "exit code 0, wrong 0:",
    "unpublished": "not published to them",
    "published late": "not published to them",
    "full not awaited": "before it is written|what another wrote",
    "empty not awaited": "overwrites what|write the same word|what another wrote",
    "released early": "overwrites what",
    "released by one": "not published to them|overwrites what|write the same word|what another wrote",
    "no arrival": "others never reach",
    "not fenced": "before wgmma.fence",
    "not awaited": "ends without waiting for products",
    "sums used early": f"exit code 0, wrong {64 * 128}:",
    "sums changed": "sums are changed during a product",
    "not swizzled": "exit code 0, wrong [1-9]",
    "barrier overwritten": "a barrier is used as memory",
}
"""Faults in the order of pipeline.cpp, and what the emulated GPU says of them."""


@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("name", PIPELINE_FAULTS)
def test_the_emulated_gpu_finds_faults_of_a_pipeline(name: str, seed: int, emulator: Path) -> None:
    fault = list(PIPELINE_FAULTS).index(name)
    program = f"import ctypes; print(ctypes.CDLL({str(emulator)!r}).run_pipeline({fault}, {seed}))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    found = f"exit code {run.returncode}, wrong {run.stdout.strip()}: {run.stderr}"
    assert re.search(PIPELINE_FAULTS[name], found), found


@pytest.fixture(scope="session")
def grad_reports(emulator: Path) -> tuple[dict[str, Any], str]:
    return run_program("cuda_grad_cases", emulator)


@pytest.mark.parametrize("name", [*cuda_grad_cases.RUNS, *cuda_grad_cases.TWO_STEPS])
def test_gradients_and_the_two_step_way_agree_with_the_reference(
    name: str, grad_reports: tuple[dict[str, Any], str]
) -> None:
    reports, ending = grad_reports
    assert name in reports, ending
    assert reports[name]["error"] <= 1


def test_gradients_heed_a_wish_for_determinism(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with pytest.raises(RuntimeError, match="no deterministic implementation"):
        gpu_grad.refuse_if_deterministic("deform_conv2d")
    monkeypatch.setattr(torch, "is_deterministic_algorithms_warn_only_enabled", lambda: True)
    with pytest.warns(UserWarning, match="no deterministic implementation"):
        gpu_grad.refuse_if_deterministic("deform_conv2d")


@pytest.fixture(scope="session")
def region_reports(emulator: Path) -> tuple[dict[str, Any], str]:
    return run_program("cuda_region_cases", emulator)


@pytest.mark.parametrize("name", cuda_region_cases.RUNS)
def test_kernels_for_regions_agree_with_the_reference(
    name: str, region_reports: tuple[dict[str, Any], str]
) -> None:
    reports, ending = region_reports
    assert name in reports, ending
    assert reports[name]["error"] <= (
        0 if name.startswith(("bias", "suppression", "equal", "far", "impossible")) else 1
    )


def layer(
    channels: int, height: int, width: int, groups: int = 1, images: int = 1, deform_groups: int = 1
) -> Shape:
    """A 3×3 layer of a backbone."""
    sizes = (channels, height, width, channels, height, width)
    return Shape(images, *sizes, 3, 3, 1, 1, 1, 1, 1, 1, groups, deform_groups)


OTHER_GPU = emulated_gpu.Gpu(148, 232448, wgmma=False)
"""As large as a Hopper, without its instructions."""

LAYERS = {
    "c3": layer(128, 100, 168),
    "c4": layer(256, 50, 84),
    "c5": layer(512, 25, 42),
    "c5-batch": layer(512, 25, 42, images=8),
    "c4-deform-groups": layer(256, 50, 84, deform_groups=4),
    "x101-c3": layer(256, 100, 168, groups=32),
    "x101-c5": layer(1024, 25, 42, groups=32),
    "beyond-32-bits": layer(64, 30000, 40000, images=4),
}


@pytest.fixture
def plans(emulator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCNZOO_EMULATOR", str(emulator))


def check_plan(shape: Shape, plan: Plan, shared_bytes: int) -> None:
    """A plan covers the output once, and its blocks fit."""
    pixels = shape.images * shape.out_height * shape.out_width
    name = KERNELS[plan.kernel]
    tile = {"simt": "128x64", "grouped": "64x0"}.get(name, name.rpartition("_")[2])
    tile_pixels, tile_columns = map(int, tile.split("x"))
    assert plan.pixel_tiles == -(-pixels // tile_pixels)
    if tile_columns:
        assert plan.column_tiles == -(-(shape.out_channels // shape.groups) // tile_columns)
        assert plan.blocks == plan.pixel_tiles * plan.column_tiles * plan.splits * shape.groups
    assert 0 < plan.shared_bytes <= shared_bytes
    assert plan.table_capacity >= max(1, plan.window_taps)


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize("gpu", [H100, RTX_3090], ids=["h100", "rtx-3090"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_plans_cover_the_output(name: str, dtype: torch.dtype, gpu: emulated_gpu.Gpu) -> None:
    plan = emulated_gpu.plan(LAYERS[name], dtype, Run(gpu))
    check_plan(LAYERS[name], plan, gpu.shared_bytes)
    assert KERNELS[plan.kernel] != "simt"
    assert (KERNELS[plan.kernel] == "grouped") == name.startswith("x101")
    assert plan.tf32 == (dtype == torch.float32)


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("kernel", WGMMA)
@pytest.mark.parametrize("name", LAYERS)
def test_plans_with_wgmma_where_it_is_asked_for(name: str, kernel: str, splits: int) -> None:
    run = Run(forced=Choice(KERNELS.index(kernel), splits))
    plan = emulated_gpu.plan(LAYERS[name], torch.bfloat16, run)
    check_plan(LAYERS[name], plan, H100.shared_bytes)
    assert (KERNELS[plan.kernel], plan.splits) == (kernel, splits)
    assert plan.window_taps > 0


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize("name", LAYERS)
def test_wgmma_is_not_chosen_before_it_has_run_on_a_gpu(name: str) -> None:
    assert KERNELS[emulated_gpu.plan(LAYERS[name], torch.float16, Run()).kernel] not in WGMMA


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize("name", ["c3", "c4", "c5", "c5-batch"])
def test_wgmma_is_chosen_where_it_may_be_tried(name: str) -> None:
    trying = emulated_gpu.Gpu(132, 232448, wgmma=True, try_wgmma=True)
    usual, tried = (emulated_gpu.plan(LAYERS[name], torch.float16, Run(gpu)) for gpu in (H100, trying))
    assert KERNELS[tried.kernel] in WGMMA
    assert 0 < tried.cycles < usual.cycles
    without = emulated_gpu.Gpu(132, 232448, wgmma=False, try_wgmma=True)
    assert emulated_gpu.plan(LAYERS[name], torch.float16, Run(without)).kernel == usual.kernel


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize(
    ("gpu", "dtype"), [(H100, torch.float32), (OTHER_GPU, torch.float16)], ids=["float32", "other gpu"]
)
def test_wgmma_is_not_planned_where_it_is_not(gpu: emulated_gpu.Gpu, dtype: torch.dtype) -> None:
    run = Run(gpu, forced=Choice(KERNELS.index("wgmma_128x128"), 1))
    assert KERNELS[emulated_gpu.plan(LAYERS["c4"], dtype, run).kernel] == "simt"


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize("name", ["c3", "c4", "c5"])
def test_small_layers_keep_most_of_the_gpu_busy(name: str) -> None:
    assert emulated_gpu.plan(LAYERS[name], torch.float16, Run()).blocks >= 0.8 * H100.multiprocessors


@pytest.mark.usefixtures("plans")
def test_small_maps_get_small_blocks() -> None:
    trying = emulated_gpu.Gpu(132, 232448, wgmma=True, try_wgmma=True)
    one, eight = (
        emulated_gpu.plan(layer(256, 50, 84, images=images), torch.float16, Run(trying)) for images in (1, 8)
    )
    assert (KERNELS[one.kernel], one.splits, one.blocks) == ("wgmma_64x128", 1, 132)
    assert (KERNELS[eight.kernel], eight.splits) == ("wgmma_128x256", 1)


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize(("width", "kernel"), [(65535, "mma"), (65536, "simt")])
def test_rows_beyond_what_the_loads_of_samples_reach(width: int, kernel: str) -> None:
    plan = emulated_gpu.plan(layer(65536, 3, width), torch.float16, Run())
    assert KERNELS[plan.kernel].startswith(kernel)


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize(
    ("dtype", "allow_tf32", "channels"),
    [(torch.float32, False, 128), (torch.float64, True, 128), (torch.float16, True, 100)],
    ids=["exact float32", "float64", "odd channels"],
)
def test_without_tensor_cores(dtype: torch.dtype, allow_tf32: bool, channels: int) -> None:
    plan = emulated_gpu.plan(layer(channels, 20, 30), dtype, Run(allow_tf32=allow_tf32))
    assert (KERNELS[plan.kernel], plan.tf32) == ("simt", False)


@pytest.mark.usefixtures("plans")
def test_what_cannot_be_forced_is_computed_otherwise() -> None:
    wanted = Choice(KERNELS.index("mma_128x256"), 1)
    small = emulated_gpu.plan(layer(128, 9, 9, deform_groups=2), torch.float16, Run(RTX_3090, forced=wanted))
    assert KERNELS[small.kernel] == "simt"  # its stages leave no room for the samples of a tap


def sample(
    shape: Shape, image: int, y: float, x: float, stride: int
) -> tuple[list[float], int, tuple[bool, bool]]:
    """Weights of a point's corners, address of the first, and whether others lie below and beside it."""
    weights, address = (ctypes.c_float * 4)(), ctypes.c_int64()
    point = emulated_gpu.library().sample_point
    point.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_float, ctypes.c_int64] + [
        ctypes.c_void_p
    ] * 2
    point(ctypes.byref(shape), image, y, x, stride, weights, ctypes.byref(address))
    return list(weights), address.value & ~3, (bool(address.value & 2), bool(address.value & 1))


NAN = float("nan")


@pytest.mark.usefixtures("plans")
@pytest.mark.parametrize(
    ("y", "x", "weights", "pixel", "steps"),
    [
        (1, 2, [1, 0, 0, 0], 6, (True, True)),
        (0.5, 0.25, [0.375, 0.125, 0.375, 0.125], 0, (True, True)),
        (-0.5, 1, [0, 0, 0.5, 0], 1, (False, True)),
        (-0.25, -0.75, [0, 0, 0, 0.1875], 0, (False, False)),
        (2.5, 3, [0.5, 0, 0, 0], 11, (False, False)),
        (1, 3.75, [0.25, 0, 0, 0], 7, (True, False)),
        (-1, 0, [0, 0, 0, 0], None, None),
        (3, 0, [0, 0, 0, 0], None, None),
        (NAN, 0, [0, 0, 0, 0], None, None),
        (1e30, -1e30, [0, 0, 0, 0], None, None),
    ],
)
def test_samples(
    y: float, x: float, weights: list[float], pixel: int | None, steps: tuple[bool, bool] | None
) -> None:
    found, address, found_steps = sample(layer(8, 3, 4), 0, y, x, 16)
    assert found == weights
    if pixel is None:
        assert 0 <= address < 12 * 16  # read, with no weight
    else:
        assert (address, found_steps) == (16 * pixel, steps)


@pytest.mark.usefixtures("plans")
def test_addresses_beyond_32_bits() -> None:
    shape = LAYERS["beyond-32-bits"]
    _, address, _ = sample(shape, 3, 29999, 39999, 128)
    assert address == (4 * 30000 * 40000 - 1) * 128
    pixel = (ctypes.c_int64 * 3)()
    find = emulated_gpu.library().find_pixel
    find.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_void_p]
    find(ctypes.byref(shape), 4 * 30000 * 40000 - 100, 99, pixel)
    assert list(pixel) == [3, 29999, 39999]

"""Deformable convolution on a GPU: the compiled kernels against the readable reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import gpu, gpu_tuning
from dcnzoo.ops.gpu_tuning import KERNELS
from tests.ops import cuda_grad_cases
from tests.ops.cuda_deform_conv2d_cases import (
    RUNS,
    SINGLE_TOLERANCE,
    TOLERANCE,
    WGMMA,
    expected,
    forced,
    has_kernel,
)
from tests.ops.deform_conv2d_cases import CASES, Case
from tests.ops.emulated_gpu import Run

pytestmark = pytest.mark.cuda

HALF, SINGLE, DOUBLE = torch.float16, torch.float32, torch.float64
SMALL = Case(2, 64, 48, (13, 17), mask=True, bias=True, relu=True)


@pytest.fixture(autouse=True)
def kernels_are_there() -> None:
    """A GPU without the kernels would compare torchvision with the reference."""
    assert gpu.gpu_problem() is None


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.conv.fp32_precision = before


def on_gpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cuda() for name, value in tensors.items()}


def error(case: Case, tensors: dict[str, Tensor], found: Tensor) -> float:
    """Largest deviation from the reference in float64, relative to the largest output."""
    return deviation(found, expected(case, tensors))


def deviation(found: Tensor, wanted: Tensor) -> float:
    return float((found.double().cpu() - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3))


def run(case: Case, dtype: torch.dtype) -> float:
    tensors = case.tensors(dtype)
    found = ops.deform_conv2d(**on_gpu(tensors), **case.options())
    assert found.dtype == dtype
    assert found.device.type == "cuda"
    return error(case, tensors, found)


def skip_without_kernel(settings: Run) -> None:
    if not has_kernel(settings):
        pytest.skip("the GPU has no wgmma")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name: str, dtype: torch.dtype) -> None:
    assert run(CASES[name], dtype) <= TOLERANCE[dtype]


@pytest.mark.parametrize("name", CASES)
def test_float32_is_exact_unless_allowed_otherwise(name: str) -> None:
    assert run(CASES[name], SINGLE) <= SINGLE_TOLERANCE[False]


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("name", CASES)
def test_float32_by_tensorfloat(name: str) -> None:
    assert run(CASES[name], SINGLE) <= SINGLE_TOLERANCE[True]


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run[2].forced is not None])
def test_every_kernel_agrees_with_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, dtype, settings = RUNS[name]
    assert settings.forced is not None
    skip_without_kernel(settings)
    monkeypatch.setenv("DCNZOO_CUDA_KERNEL", f"{KERNELS[settings.forced.kernel]}/{settings.forced.splits}")
    assert run(case, dtype) <= (SINGLE_TOLERANCE[True] if dtype == SINGLE else TOLERANCE[dtype])


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> gpu_tuning.KernelTuner:
    """A tuner that knows nothing yet, switched on."""
    tuner = gpu_tuning.KernelTuner()
    monkeypatch.setattr(gpu_tuning, "_TUNER", tuner)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    return tuner


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16, SINGLE, DOUBLE], ids=str)
def test_whatever_is_found_fastest_agrees_with_the_reference(
    dtype: torch.dtype, search: gpu_tuning.KernelTuner
) -> None:
    assert run(SMALL, dtype) <= (TOLERANCE | {SINGLE: SINGLE_TOLERANCE[False]})[dtype]
    assert len(search._fastest) == 1


@pytest.mark.parametrize("name", ["dense", "resnext_8", "odd_everything"])
def test_every_way_that_is_tried_agrees_with_the_reference(name: str) -> None:
    case, computed = CASES[name], 0
    tensors = case.tensors(HALF)
    call = cuda_grad_cases.two_step_call(case, on_gpu(tensors))
    for way in gpu_tuning.ways(call):
        try:
            found = gpu_tuning.compute(call, way)
        except RuntimeError as problem:
            assert "cannot compute" in str(problem)  # noqa: PT017
            continue
        computed += 1
        assert error(case, tensors, found) <= TOLERANCE[HALF], way
    assert computed >= 2


@pytest.mark.parametrize("way", [None, "mma_64x128/1", "mma_64x128/2"])
def test_estimates_can_be_read(way: str | None) -> None:
    planned = gpu_tuning.planned(cuda_grad_cases.two_step_call(SMALL, on_gpu(SMALL.tensors(HALF))), way)
    assert planned.cycles > 0
    assert planned.way.startswith(way or "mma_")


def test_a_graph_captures_what_was_found_fastest(search: gpu_tuning.KernelTuner) -> None:
    tensors = on_gpu(SMALL.tensors(HALF))
    wanted = ops.deform_conv2d(**tensors, **SMALL.options())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.deform_conv2d(**tensors, **SMALL.options())
        ops.deform_conv2d(**tensors, **(SMALL.options() | {"relu": False}))  # new: not timed meanwhile
    graph.replay()
    assert captured.equal(wanted)
    assert len(search._fastest) == 1


LARGE = Case(2, 128, 128, (100, 168), mask=True, bias=True, relu=True)


@cache
def large_map() -> tuple[dict[str, Tensor], Tensor]:
    """Arguments, and what the reference, which takes seconds, makes of them."""
    tensors = LARGE.tensors(HALF)
    return tensors, expected(LARGE, tensors)


def test_large_maps() -> None:
    tensors, wanted = large_map()
    assert deviation(ops.deform_conv2d(**on_gpu(tensors), **LARGE.options()), wanted) <= TOLERANCE[HALF]


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("kernel", WGMMA)
def test_wgmma_on_large_maps_repeats(kernel: str, splits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_without_kernel(Run(forced=forced(kernel)))
    monkeypatch.setenv("DCNZOO_CUDA_KERNEL", f"{kernel}/{splits}")
    arguments, wanted = large_map()
    tensors = on_gpu(arguments)
    first = ops.deform_conv2d(**tensors, **LARGE.options())
    assert deviation(first, wanted) <= TOLERANCE[HALF]
    assert all(ops.deform_conv2d(**tensors, **LARGE.options()).equal(first) for _ in range(50))


@pytest.mark.parametrize("kernel", WGMMA)
def test_wgmma_is_refused_where_it_is_not(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCNZOO_CUDA_KERNEL", kernel)
    dtype = SINGLE if has_kernel(Run(forced=forced(kernel))) else HALF
    with pytest.raises(RuntimeError, match="cannot compute this"):
        run(SMALL, dtype)


def test_every_output_is_written() -> None:
    case, tensors = SMALL, on_gpu(SMALL.tensors(HALF))
    for _ in range(3):  # what the allocator gives back for the next output is full of not-a-number
        poison = torch.full((2, 48, 13, 17), torch.nan, dtype=HALF, device="cuda")
        del poison
        assert ops.deform_conv2d(**tensors, **case.options()).isfinite().all()


@pytest.mark.parametrize("dtype", [HALF, SINGLE], ids=str)
def test_results_repeat(dtype: torch.dtype) -> None:
    tensors = on_gpu(SMALL.tensors(dtype))
    first = ops.deform_conv2d(**tensors, **SMALL.options())
    assert all(ops.deform_conv2d(**tensors, **SMALL.options()).equal(first) for _ in range(20))


def test_tensors_may_be_views() -> None:
    tensors, options = on_gpu(SMALL.tensors(HALF)), SMALL.options()
    wanted = ops.deform_conv2d(**tensors, **options)
    both = torch.cat([tensors["offset"], tensors["mask"]], dim=1)
    tensors["offset"], tensors["mask"] = both.split([18, 9], dim=1)
    padded = torch.zeros(2, 65, 13, 17, dtype=HALF, device="cuda").to(memory_format=torch.channels_last)
    padded[:, 1:] = tensors["input"]
    tensors["input"] = padded[:, 1:]  # neither dense nor aligned
    tensors["weight"] = tensors["weight"].contiguous()
    tensors["bias"] = tensors["bias"].repeat_interleave(2)[::2]
    assert ops.deform_conv2d(**tensors, **options).equal(wanted)


def test_positions_keep_float32_beside_short_maps() -> None:
    case = replace(SMALL, mask=False)
    tensors = case.tensors(HALF)
    tensors["offset"] = tensors["offset"].float() + 1e-4
    assert error(case, tensors, ops.deform_conv2d(**on_gpu(tensors), **case.options())) <= TOLERANCE[HALF]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_result_has_the_layout_of_the_input(layout: torch.memory_format) -> None:
    tensors = on_gpu(SMALL.tensors(HALF))
    tensors["input"] = tensors["input"].contiguous(memory_format=layout)
    assert ops.deform_conv2d(**tensors, **SMALL.options()).is_contiguous(memory_format=layout)


def test_no_images_give_no_outputs() -> None:
    tensors = on_gpu({name: value[:0] for name, value in Case().tensors(HALF).items() if name != "weight"})
    weight = torch.randn(16, 16, 3, 3, dtype=HALF, device="cuda")
    assert ops.deform_conv2d(**tensors, weight=weight, padding=(1, 1)).shape == (0, 16, 9, 11)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, -3e38])
def test_positions_that_are_none(value: float) -> None:
    image = torch.ones(1, 16, 9, 11, dtype=HALF, device="cuda")
    offset = torch.full((1, 2, 9, 11), value, device="cuda")
    weight = torch.ones(16, 16, 1, 1, dtype=HALF, device="cuda")
    assert ops.deform_conv2d(image, offset, weight).abs().max() == 0


def test_computes_on_the_current_stream() -> None:
    tensors = on_gpu(SMALL.tensors(HALF))
    wanted = ops.deform_conv2d(**tensors, **SMALL.options())
    stream = torch.cuda.Stream()
    late = {name: torch.zeros_like(value) for name, value in tensors.items()}
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what follows must wait for this, and on no other stream
        for name, value in tensors.items():
            late[name].copy_(value)
        found = ops.deform_conv2d(**late, **SMALL.options())
    stream.synchronize()
    assert found.equal(wanted)


def test_can_be_captured_as_a_graph() -> None:
    tensors = on_gpu(SMALL.tensors(HALF))
    ops.deform_conv2d(**tensors, **SMALL.options())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.deform_conv2d(**tensors, **SMALL.options())
    tensors["input"].normal_()
    graph.replay()
    assert captured.equal(ops.deform_conv2d(**tensors, **SMALL.options()))


def test_takes_nothing_but_its_output_and_the_sums() -> None:
    tensors = on_gpu(SMALL.tensors(HALF))
    output = ops.deform_conv2d(**tensors, **SMALL.options())
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ops.deform_conv2d(**tensors, **SMALL.options())
    most_splits, sums = 8, 4 * output.numel()
    assert torch.cuda.max_memory_allocated() - before <= output.nbytes + most_splits * sums + 4096


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_computes_where_its_tensors_are() -> None:
    tensors = SMALL.tensors(HALF)
    found = ops.deform_conv2d(**{k: v.to("cuda:1") for k, v in tensors.items()}, **SMALL.options())
    assert found.device.index == 1
    assert error(SMALL, tensors, found) <= TOLERANCE[HALF]


def test_more_elements_than_32_bits_count() -> None:
    """Input and output of 2.2·10⁹ elements; the last rows against the same rows alone."""
    images, channels, height, width = 3, 64, 3000, 3900
    if torch.cuda.mem_get_info()[0] < 16 * 2**30:
        pytest.skip("needs 16 GiB of free memory")
    size = (images, channels, height, width)
    image = torch.empty(size, dtype=HALF, device="cuda", memory_format=torch.channels_last)
    assert image.numel() > 2**31
    image.normal_()
    # sixteenths, for which positions are exact in the last rows, too
    offset = torch.randint(16, (images, 2, height, width), device="cuda").to(HALF) / 16
    weight = torch.randn(channels, channels, 1, 1, dtype=HALF, device="cuda")
    found = ops.deform_conv2d(image, offset, weight)[-1:, :, -9:-1]
    wanted = ops.deform_conv2d(image[-1:, :, -9:].contiguous(memory_format=torch.channels_last),
                               offset[-1:, :, -9:].contiguous(), weight)[:, :, :-1]  # fmt: skip
    assert found.equal(wanted)


def test_tensors_of_different_devices_are_refused() -> None:
    tensors = SMALL.tensors(HALF)
    arguments = tensors["input"].cuda(), tensors["weight"].cuda(), tensors["offset"], None, None
    with pytest.raises(RuntimeError, match="must be on the GPU of the input"):
        torch.ops.dcnzoo.deform_conv2d(*arguments, [1, 1], [1, 1], [1, 1])


def test_operator_refuses_what_would_read_outside() -> None:
    tensors, geometry = on_gpu(SMALL.tensors(HALF)), ([1, 1], [1, 1], [1, 1])
    image, weight, offset = (tensors[name] for name in ("input", "weight", "offset"))
    wrong = [
        (image, weight, offset[..., 1:], None, None, *geometry),
        (image, weight, offset, offset, None, *geometry),
        (image, weight, offset, None, torch.zeros(5, dtype=HALF, device="cuda"), *geometry),
        (image, weight, offset, None, None, *geometry, weight),
        (image, weight, offset, None, None, [0, 1], *geometry[1:]),
        (image.float(), weight, offset, None, None, *geometry),
    ]
    for arguments in wrong:
        with pytest.raises(RuntimeError, match="deform_conv2d"):
            torch.ops.dcnzoo.deform_conv2d(*arguments)


@pytest.mark.parametrize("name", ["deform_conv2d", "deform_conv2d_tf32"])
def test_operator_obeys_the_rules_of_pytorch(name: str) -> None:
    tensors, geometry = on_gpu(SMALL.tensors(SINGLE)), ([1, 1], [1, 1], [1, 1])
    head = [tensors[key] for key in ("input", "weight", "offset", "mask", "bias")]
    torch.library.opcheck(getattr(torch.ops.dcnzoo, name).default, (*head, *geometry, None, True, True))


@pytest.mark.parametrize("name", cuda_grad_cases.RUNS)
def test_gradients_agree_with_those_of_the_reference(name: str) -> None:
    assert cuda_grad_cases.error_on_gpu(name) <= 1


def test_gradients_of_bias_and_relu() -> None:
    leaves = {key: value.requires_grad_() for key, value in on_gpu(SMALL.tensors(DOUBLE)).items()}
    ops.deform_conv2d(**leaves, **SMALL.options()).square().sum().backward()
    exact = {key: value.requires_grad_() for key, value in SMALL.tensors(DOUBLE).items()}
    expected(SMALL, exact).square().sum().backward()
    for key, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad.cpu(), exact[key].grad)  # type: ignore[union-attr]


def test_gradients_of_points_and_weight_are_the_same_again() -> None:
    leaves = {key: value.requires_grad_() for key, value in on_gpu(SMALL.tensors(HALF)).items()}
    fixed = [value for key, value in leaves.items() if key != "input"]
    once, again = (
        torch.autograd.grad(ops.deform_conv2d(**leaves, **SMALL.options()).sum(), fixed) for _ in range(2)
    )
    assert all(a.equal(b) for a, b in zip(once, again, strict=True))


@pytest.mark.usefixtures("tf32")
def test_training_with_tf32_has_gradients() -> None:
    leaves = {key: value.requires_grad_() for key, value in on_gpu(SMALL.tensors(SINGLE)).items()}
    ops.deform_conv2d(**leaves, **SMALL.options()).sum().backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves.values())


def test_operators_for_gradients_refuse_what_would_write_outside() -> None:
    tensors, geometry = on_gpu(SMALL.tensors(HALF)), ([1, 1], [1, 1], [1, 1], True)
    call = [tensors[key] for key in ("input", "weight", "offset", "mask")]
    pixels = tensors["offset"][:, 0].numel()
    with pytest.raises(RuntimeError, match="no such pixels"):
        torch.ops.dcnzoo.deform_conv2d_columns(*call, *geometry, 1, pixels)
    columns = torch.ops.dcnzoo.deform_conv2d_columns(*call, *geometry, 0, pixels)
    right = [torch.zeros_like(tensors["input"], dtype=SINGLE)]
    right += [torch.zeros_like(tensors[key]).contiguous() for key in ("offset", "mask")]
    wrong = [
        ([right[0].half(), *right[1:]], columns, 0),
        ([right[0].contiguous(), *right[1:]], columns, 0),
        ([right[0], right[1][:, 1:], right[2]], columns, 0),
        ([right[0], right[1], None], columns, 0),
        (right, columns[..., 1:], 0),
        (right, columns.float(), 0),
        (right, columns, 1),
    ]
    for grads, given, first in wrong:
        with pytest.raises(RuntimeError, match="deform_conv2d"):
            torch.ops.dcnzoo.deform_conv2d_scatter_(*grads, given, *call, *geometry, first)


def test_autocast_computes_in_half() -> None:
    tensors = on_gpu(SMALL.tensors(SINGLE))
    with torch.autocast("cuda", dtype=HALF):
        found = ops.deform_conv2d(**tensors, **SMALL.options())
    assert found.dtype == HALF

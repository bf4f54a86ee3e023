"""The search for the fastest kernel on a GPU, with pretended times; the kernels are tested elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from dcnzoo.ops import gpu_tuning
from dcnzoo.ops.gpu_tuning import TWO_STEP, Call, KernelTuner


def call(
    channels: int = 64, *, images: int = 1, dtype: torch.dtype = torch.float16, tf32: bool = False
) -> Call:
    """A 3×3 layer; only shapes count here."""
    x, weight = torch.empty(images, channels, 5, 6, dtype=dtype), torch.empty(8, channels, 3, 3, dtype=dtype)
    offset = torch.empty(images, 18, 5, 6)
    return Call(x, weight, offset, None, None, (1, 1), (1, 1), (1, 1), False, False, tf32)


@dataclass
class PretendedGpu:
    """Computes nothing, in times of one's choice; `computed` are the ways that ran."""

    times: dict[str | None, float] = field(default_factory=dict)
    impossible: tuple[str, ...] = ()
    computed: list[str | None] = field(default_factory=list)

    def compute(self, _: Call, way: str | None) -> None:
        if way is not None and way.startswith(self.impossible or "nothing"):
            raise RuntimeError("deform_conv2d: the kernel that was named cannot compute this")
        self.computed.append(way)

    def time(self, computations: list[Callable[[], object]]) -> list[float]:
        return [self.time_one(computation) for computation in computations]

    def time_one(self, computation: Callable[[], object]) -> float:
        computation()
        return self.times.get(self.computed[-1], 10.0)

    def tuner(self) -> KernelTuner:
        return KernelTuner(self.compute, self.time)


def test_the_fastest_way_is_found_once_per_shape() -> None:
    gpu = PretendedGpu({None: 3.0, "mma_128x128/4": 1.0, TWO_STEP: 2.0})
    tuner = gpu.tuner()
    assert tuner.known(call()) is None
    assert tuner.fastest(call()) == "mma_128x128/4"
    tried = len(gpu.computed)
    assert tuner.fastest(call()) == tuner.known(call()) == "mma_128x128/4"
    assert len(gpu.computed) == tried
    gpu.times = {TWO_STEP: 0.5}
    assert tuner.fastest(call(images=2)) == TWO_STEP
    assert tuner.known(call(dtype=torch.bfloat16)) is None
    assert tuner.fastest(call()) == "mma_128x128/4"


def test_every_kernel_and_split_is_tried_but_those_that_never_ran() -> None:
    gpu = PretendedGpu()
    gpu.tuner().fastest(call())
    assert 2 * len(set(gpu.computed)) == len(gpu.computed)  # once to see whether it can
    assert {None, TWO_STEP, "simt/1", "grouped/1", "mma_64x128/8", "mma_128x256/1"} <= set(gpu.computed)
    assert not any(way is not None and way.startswith("wgmma") for way in gpu.computed)


def test_those_that_never_ran_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCNZOO_CUDA_WGMMA", "1")
    assert PretendedGpu({"wgmma_128x256/2": 0.1}).tuner().fastest(call()) == "wgmma_128x256/2"


def test_without_a_difference_the_estimates_choose() -> None:
    assert PretendedGpu().tuner().fastest(call()) is None


def test_kernels_that_cannot_compute_a_shape_are_passed_over() -> None:
    gpu = PretendedGpu({"mma_128x256/1": 0.1, "mma_64x128/2": 0.2}, impossible=("mma_128x256", "grouped"))
    assert gpu.tuner().fastest(call()) == "mma_64x128/2"


def test_other_failures_are_not_hidden() -> None:
    def fail(_: Call, way: str | None) -> None:
        raise RuntimeError(f"an illegal memory access was encountered in {way}")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        KernelTuner(fail, PretendedGpu().time).fastest(call())


def test_threads_do_not_time_each_other() -> None:
    gpu, running, most = PretendedGpu(), [0], [0]

    def time(computations: list[Callable[[], object]]) -> list[float]:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threading.Event().wait(0.001)
        running[0] -= 1
        return gpu.time(computations)

    tuner = KernelTuner(gpu.compute, time)
    threads = [threading.Thread(target=partial(tuner.fastest, call(images=n % 2 + 1))) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert len(gpu.computed) == 2 * 2 * len(list(gpu_tuning.ways(call())))


def test_the_host_is_ahead_when_time_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[str] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            launched.append("event")

        def synchronize(self) -> None:
            launched.append("waited")

        def elapsed_time(self, _: Event) -> float:
            return 5.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: launched.append("sleep"))  # fails where there is none
    computations = [partial(launched.append, name) for name in ("one", "other")]
    assert gpu_tuning.time_on_gpu(computations) == [5.0 / gpu_tuning.CALLS] * 2
    one, other = (
        ["sleep", "event", *[name] * gpu_tuning.CALLS, "event", "waited"] for name in ("one", "other")
    )
    assert launched == [*one, *other] * (1 + gpu_tuning.ROUNDS)


@pytest.mark.parametrize(
    ("dtype", "tf32", "matmul", "allowed"),
    [
        (torch.float16, False, "tf32", True),
        (torch.float32, False, "ieee", True),
        (torch.float32, True, "tf32", True),
        (torch.float32, False, "tf32", False),
    ],
)
def test_a_matrix_product_is_no_less_exact_than_what_was_asked_for(
    dtype: torch.dtype, tf32: bool, matmul: str, allowed: bool
) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = matmul
    try:
        assert (TWO_STEP in gpu_tuning.ways(call(dtype=dtype, tf32=tf32))) == allowed
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_only_inference_with_the_switch_of_pytorch_is_tuned(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    assert not gpu_tuning.applies(x, None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    assert gpu_tuning.applies(x, None)
    assert not gpu_tuning.applies(x, x.clone().requires_grad_())
    with torch.no_grad():
        assert gpu_tuning.applies(x, x.clone().requires_grad_())
    monkeypatch.setenv("DCNZOO_CUDA_KERNEL", "simt")
    assert not gpu_tuning.applies(x)

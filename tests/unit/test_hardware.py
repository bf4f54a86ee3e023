"""Facts about the machine."""

from __future__ import annotations

import json
import platform
import sys

import numpy as np
import pytest
import torch

from dcnzoo import __version__, hardware, ops
from dcnzoo.fresh_process import run_apart
from dcnzoo.hardware import PeakMemory, hardware_stamp, peak_memory, peak_resident
from dcnzoo.ops import gpu


def test_stamp() -> None:
    stamp = hardware_stamp(torch.device("cpu"))
    assert json.loads(json.dumps(stamp)) == stamp
    assert stamp["versions"]["dcnzoo"] == __version__
    assert stamp["versions"]["numpy"] == np.__version__
    assert stamp["cpu"]["threads"] == torch.get_num_threads()
    assert stamp["operators"]["backend"] == ops.active_backend()[0]
    assert stamp["platform"] == platform.platform()
    assert stamp["gpu"] is None


def test_stamp_of_a_gpu_says_who_computes_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "describe_gpu", lambda _: "a GPU")
    monkeypatch.setattr(gpu, "active_backend", lambda: ("native", "compiled kernels, avx2"))
    for problem, backend in ((None, "native"), ("cannot be loaded", "torchvision")):
        monkeypatch.setattr(gpu, "gpu_problem", lambda _, problem=problem: problem)
        reason = problem or "compiled kernels for GPUs"
        stamp = hardware_stamp(torch.device("cuda"))
        assert stamp["operators"] == {"backend": backend, "because": reason}


def test_stamp_without_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    versions = hardware_stamp(torch.device("cpu"))["versions"]
    assert versions["pycocotools"].startswith("missing (")
    assert versions["numpy"] == np.__version__


def peaks_around_a_large_object() -> tuple[int, int, PeakMemory]:
    before = peak_resident()
    held = b"x" * before
    del held
    return before, peak_resident(), peak_memory(torch.device("cpu"))


def test_peak_memory_grows_and_stays() -> None:
    before, after, memory = run_apart(peaks_around_a_large_object)
    assert 1.2 * before < after < 2.2 * before
    assert memory == PeakMemory(pytest.approx(after / 2**30, rel=0.01), None)


@pytest.mark.parametrize(
    ("memory", "text"),
    [(PeakMemory(1.234, None), "1.23 GiB"), (PeakMemory(1, 2.5), "1.00 GiB, on the GPU 2.50 GiB")],
)
def test_peak_memory_says(memory: PeakMemory, text: str) -> None:
    assert str(memory) == text

"""Tests of a detector that only a simulated GPU can make: what the host waits for, and what if it did not.

They run inside of `tests/ops/test_simulated_gpu.py`, in a process of their own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dcnzoo
from dcnzoo.image import PreparedImage
from tests.pictures import noise, save
from tests.random_detector import ARCH, write_random_checkpoint
from tests.training_room import ARCH as TINY_ARCH
from tests.training_room import furnish

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif("SIMULATOR_PTX" not in os.environ, reason="asks a simulated GPU what has happened"),
]

WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")
WAITS_BY_THE_WAY = ("copy to pageable memory", "cudaMalloc", "cudaFree", "cudaHostAlloc", "cudaFreeHost")
"""Copies to memory that is not pinned wait, and so may whatever takes or gives memory back."""

PICTURES = 3
ORDER = os.environ.get("SIMULATOR_ORDER", "late")


def happened(*names: str) -> dict[str, int]:
    """How often each of these functions of the runtime was called."""
    count = ctypes.CDLL(None).simulator_count
    count.restype = ctypes.c_uint64
    return {name: count(name.encode()) for name in names}


@pytest.fixture(scope="module", params=[False, True], ids=["eager", "graphs"])
def predictor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dcnzoo.Predictor:
    path = write_random_checkpoint(tmp_path_factory.mktemp("weights") / "random.pth")
    sides = {"short_side": 32, "long_side": 48}
    found = dcnzoo.load(weights=path, arch=ARCH, device="cuda", cuda_graphs=request.param, **sides)
    found.model.rpn_head.num_proposals = 50  # pooling takes most of the time
    for _ in range(3):  # memory is taken, and a graph captured
        found.predict_prepared([found.prepare(noise(60, 80))])
    return found


@pytest.fixture(scope="module")
def batches(predictor: dcnzoo.Predictor) -> list[list[PreparedImage]]:
    """Different pictures of one shape."""
    return [[predictor.prepare(np.roll(noise(60, 80), 7 * n, axis=1))] for n in range(PICTURES)]


@pytest.fixture(scope="module")
def wanted(predictor: dcnzoo.Predictor, batches: list[list[PreparedImage]]) -> list[Any]:
    """Scores that each batch has when it is alone."""
    return [predictor.predict_prepared(batch)[0].scores for batch in batches]


def test_the_host_waits_once_for_a_batch(
    predictor: dcnzoo.Predictor, batches: list[list[PreparedImage]]
) -> None:
    before = happened(*WAITS, *WAITS_BY_THE_WAY)
    finish = predictor.begin_prepared(batches[0])
    assert happened(*before) == before
    finish()
    assert happened(*before) == before | {"cudaEventSynchronize": before["cudaEventSynchronize"] + 1}


def found_at_once(predictor: dcnzoo.Predictor, batches: list[list[PreparedImage]]) -> list[Any]:
    """Scores of batches that are all under way before the first is asked for."""
    finishes = [predictor.begin_prepared(batch) for batch in batches]
    return [finish()[0].scores for finish in finishes]


def same(found: list[Any], wanted: list[Any]) -> bool:
    return all(
        a.shape == b.shape and np.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True)
    )


def test_batches_under_way_do_not_meet(
    predictor: dcnzoo.Predictor, batches: list[list[PreparedImage]], wanted: list[Any]
) -> None:
    assert same(found_at_once(predictor, batches), wanted)


@pytest.mark.parametrize(
    ("owner", "name", "order"),
    [
        (torch.cuda.Stream, "wait_stream", "late"),  # the model begins before the pixels are there
        (torch.cuda.Event, "synchronize", "late"),  # the host takes what the model has not found yet
        (torch.Tensor, "record_stream", "ahead"),  # the next pixels overwrite those that the model reads
    ],
)
def test_a_wait_that_is_missing_is_noticed(
    owner: type,
    name: str,
    order: str,
    predictor: dcnzoo.Predictor,
    batches: list[list[PreparedImage]],
    wanted: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if order != ORDER:
        pytest.skip(f"shows if work runs {order}")
    monkeypatch.setattr(owner, name, lambda *_: None)
    # in another order: what an earlier test has left in memory is wrong
    found = found_at_once(predictor, batches[1:] + batches[:1])
    monkeypatch.undo()
    torch.cuda.synchronize()
    assert not same(found, wanted[1:] + wanted[:1])


def dcnzoo_program(*arguments: object, memory: int = 1024) -> subprocess.CompletedProcess[str]:
    """Runs it on a GPU with so many MiB."""
    command = [sys.executable, "-m", "dcnzoo", *map(str, arguments)]
    environment = os.environ | {"SIMULATOR_MEMORY": str(memory)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(ORDER != "late", reason="once is enough")
def test_trains_on_a_gpu_that_is_named_without_its_number(tmp_path: Path) -> None:
    furnish(tmp_path, images=2)
    data = ("--train", tmp_path / "train.json", "--images", tmp_path / "images", "--out", tmp_path / "out")
    short = ("--epochs", 1, "--short-side", 32, "--long-side", 48, "--roi-samples", 16, "--workers", 0)
    run = dcnzoo_program("train", "--arch", TINY_ARCH, "--from-scratch", "--device", "cuda", *data, *short)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "out" / "last.pth").exists()


@pytest.mark.skipif(ORDER != "late", reason="once is enough")
def test_a_model_that_does_not_fit_is_told(tmp_path: Path) -> None:
    path = write_random_checkpoint(tmp_path / "random.pth")
    save(tmp_path / "a.png", noise(60, 80))
    inputs = ("--weights", path, "--arch", ARCH, "--out", tmp_path / "out")
    run = dcnzoo_program("predict", tmp_path, *inputs, "--device", "cuda", memory=150)
    assert run.returncode == 1
    assert "error: the model does not fit into the memory of cuda:0" in run.stderr

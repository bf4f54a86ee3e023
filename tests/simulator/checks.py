"""Tests of a detector that only a simulated GPU can make: what the host waits for, and what if it did not.

They run inside of `tests/ops/test_simulated_gpu.py`, in a process of their own.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import numpy as np
import pytest
import torch

import dcnzoo
from dcnzoo.image import PreparedImage
from tests.pictures import noise
from tests.random_detector import ARCH, write_random_checkpoint

pytestmark = pytest.mark.cuda

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

"""Training that is killed, stopped, or shared by two processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.life import ENVIRONMENT, Life, Server, serving
from tests.training_room import MASK_ARCH, furnish, options
from tests.waiting import wait_until

pytestmark = pytest.mark.e2e

LONG = ["--epochs", "2", "--save-every", "1", "--log-every", "1", "--ema", "0.9", "--workers", "1"]
STEPS = 4
PATIENCE = 300
"""Seconds; a busy machine makes everything slow."""


class Room:
    """A folder to train in, and what starts processes there."""

    def __init__(self, path: Path, server: Server) -> None:
        self.path, self.server = path, server

    def start(self, out: str, *more: str) -> Life:
        arguments = [*options(self.path, MASK_ARCH), *LONG, "--out", out, *more]
        return self.server.start(arguments)

    def run(self, out: str, *more: str) -> int:
        with self.start(out, *more) as life:
            return life.end()

    def saved(self, out: str) -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.path / out / "last.pth", weights_only=True)
        return content

    def steps(self, out: str) -> int:
        """Steps that the checkpoint has."""
        exists = (self.path / out / "last.pth").exists()
        return int(self.saved(out)["progress"]["step"]) if exists else 0


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    path = furnish(tmp_path_factory.mktemp("room"), images=4)
    with serving(path) as server:
        yield Room(path, server)


@pytest.fixture(scope="module")
def whole(room: Room) -> dict[str, Any]:
    """What a run without any trouble leaves."""
    assert room.run("whole") == 0
    return room.saved("whole")


def assert_same(found: object, expected: object, where: str = "") -> None:
    """Everything is equal, bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert isinstance(found, dict)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if key != "seconds":
                assert_same(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same(one, other, f"{where}.{number}")
    else:
        assert found == expected, where


def test_killed_and_resumed_equals_uninterrupted(room: Room, whole: dict[str, Any]) -> None:
    """Killed in the first and the second epoch: weights, average, momentum and history are the same."""
    for steps in (1, 3):
        with room.start("killed", "--resume") as life:
            wait_until(lambda steps=steps: room.steps("killed") >= steps, PATIENCE)
            life.send(signal.SIGKILL)
            assert life.end() == -signal.SIGKILL
    assert room.run("killed", "--resume") == 0
    found = room.saved("killed")
    assert found["progress"]["step"] == STEPS
    assert_same(found, whole)
    best, wanted = (
        torch.load(room.path / out / "best.pth", weights_only=True) for out in ("killed", "whole")
    )
    assert_same(best, wanted)


def test_another_seed_gives_other_weights(room: Room, whole: dict[str, Any]) -> None:
    assert room.run("other", "--seed", "1", "--epochs", "1") == 0
    name = "roi_head.bbox_head.fc_cls.weight"
    assert not torch.equal(room.saved("other")["weights"][name], whole["weights"][name])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(room: Room, whole: dict[str, Any], signum: signal.Signals, code: int) -> None:
    """The step in hand is finished and saved."""
    out = f"stopped-{signum.name}"
    with room.start(out, "--save-every", "100") as life:
        table = room.path / out / "metrics.csv"
        wait_until(table.exists, PATIENCE)
        life.send(signum)
        assert life.end() == code
    assert 0 < room.steps(out) < STEPS
    if signum == signal.SIGTERM:
        assert room.run(out, "--resume") == 0
        assert_same(room.saved(out), whole)


def test_two_processes(room: Room) -> None:
    """Both learn from their own images, and end with the same weights, which one of them saves."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [*options(room.path, MASK_ARCH), "--epochs", "2", "--batch-size", "1", "--out", "two"]
    done = subprocess.run(
        [*command, "-m", "dcnzoo", *arguments],
        cwd=room.path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 per epoch, 4 in 2 epochs, 2 images each (2 processes x 1 batches x 1)" in done.stderr
    assert done.stdout.count("last weights") == 1
    progress = room.saved("two")["progress"]
    assert progress["step"] == 4
    assert progress["history"][-1]["bbox_AP"] >= 0

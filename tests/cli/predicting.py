"""What the tests of `dcnzoo predict` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import dcnzoo.predictor
from tests.cli.conftest import Outcome, Program
from tests.random_detector import ARCH, write_random_checkpoint

Predict = Callable[..., Outcome]

SIDES = ("--short-side", 32, "--long-side", 64)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint file of random weights with the classes cat, dog, bird."""
    return write_random_checkpoint(tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.fixture(scope="session")
def load_once() -> Callable[..., dcnzoo.predictor.Predictor]:
    """The real `load`, which gives the same predictor for the same arguments."""
    return cache(dcnzoo.predictor.load)


@pytest.fixture
def predict(
    dcnzoo: Program,
    checkpoint: Path,
    load_once: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Predict:
    """Runs `dcnzoo predict ARGUMENTS…` with that checkpoint on the CPU, in an empty working directory.

    Without worker processes unless they are asked for, since each takes a while to start.
    """
    monkeypatch.setattr("dcnzoo.predictor.load", load_once)
    monkeypatch.chdir(tmp_path)

    def program(*arguments: object) -> Outcome:
        return dcnzoo(
            "predict", "--weights", checkpoint, "--arch", ARCH, "--device", "cpu", *SIDES,
            "--workers", 0, *arguments,
        )  # fmt: skip

    return program


def lines(path: Path) -> list[dict[str, Any]]:
    """Records of a JSON lines file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> list[str]:
    """Relative paths of all files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

"""The program, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dcnzoo.cli.main import run


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Program = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own for every test."""
    monkeypatch.setenv("DCNZOO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def dcnzoo(capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs `dcnzoo ARGUMENTS…`; gives exit code, standard output and standard error."""

    def program(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return program


@pytest.fixture
def own_manifest(tmp_path: Path) -> Path:
    """A manifest with one record, whose file lies beside it."""
    path = tmp_path / "own.yaml"
    path.write_text(
        "checkpoints:\n"
        "  - name: cells\n"
        "    urls: [cells.pth]\n"
        "    architecture: {detector: faster_rcnn, backbone: resnet50, conv: dconv}\n"
        "    classes: [RBC, WBC]\n"
    )
    (tmp_path / "cells.pth").write_bytes(b"weights")
    return path

"""Runs that several parity tests look at."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

import pytest

from dcnzoo.cli.main import run

ARCHITECTURE = "faster_rcnn_r50_fpn_dconv_c3-c5"


class CellRun(NamedTuple):
    """`dcnzoo eval` on the blood cells: its output folder, and what it printed."""

    out: Path
    printed: str


@pytest.fixture(scope="session")
def bccd(shared: Path) -> Path:
    """Photos of blood cells, annotations, and a checkpoint that the reference trained on them."""
    return shared / "data" / "bccd"


@pytest.fixture(scope="session")
def weights(bccd: Path) -> Path:
    """The checkpoint."""
    return bccd / f"{ARCHITECTURE}_bccd.pth"


@pytest.fixture(scope="session")
def cell_run(bccd: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> CellRun:
    """The validation set through the whole program, once: it takes a minute."""
    out = tmp_path_factory.mktemp("bccd") / "out"
    command = (
        f"eval --weights {weights} --arch {ARCHITECTURE} --short-side 240 --long-side 320 --per-class"
        f" --annotations {bccd}/val.json --images {bccd}/images --batch-size 4 --out {out} --quiet"
    )
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert run(command.split()) == 0
    return CellRun(out, printed.getvalue())

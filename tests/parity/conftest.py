"""A run that several parity tests look at, and the sum at the end of how close the outputs came."""

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


class Comparison(NamedTuple):
    """One model and picture against its recording."""

    worst_error: float
    num_expected: int
    num_matched: int
    num_masks: int
    num_masks_below_bar: int


COMPARISONS = pytest.StashKey[list[Comparison]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[COMPARISONS] = []


@pytest.fixture
def comparisons(request: pytest.FixtureRequest) -> list[Comparison]:
    return request.config.stash[COMPARISONS]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    done = config.stash[COMPARISONS]
    if not done:
        return
    expected, matched = sum(c.num_expected for c in done), sum(c.num_matched for c in done)
    masks, below = sum(c.num_masks for c in done), sum(c.num_masks_below_bar for c in done)
    terminalreporter.section("against the recorded reference")
    terminalreporter.line(f"{len(done)} comparisons of a model and a picture")
    terminalreporter.line(
        f"largest error of a stage: {max(c.worst_error for c in done):.1e} standard deviations"
    )
    terminalreporter.line(f"detections matched: {matched} of {expected}")
    terminalreporter.line(f"masks that differ in one or two pixels and miss IoU 0.97: {below} of {masks}")

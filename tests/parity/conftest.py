"""Sums up at the end of a run how close the outputs came to the reference's."""

from __future__ import annotations

from typing import NamedTuple

import pytest


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
    terminalreporter.line(f"masks that differ in one pixel and miss IoU 0.97: {below} of {masks}")

"""For pytest on a simulated GPU: time enough, and without what is too much for it.

    python -m tests.simulator.runtime python -m pytest -m cuda -p tests.simulator.plugin tests/ops

DCNZOO_SIMULATE_ALL=1 leaves nothing out.
"""

from __future__ import annotations

import os
import sys

import pytest

SECONDS = 3600
"""For a test; a GPU has less before it is taken to hang."""

TOO_MUCH = (
    "test_large_maps",
    "test_wgmma_on_large_maps_repeats",
    "test_whatever_is_found_fastest_agrees_with_the_reference",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sys.modules["tests.conftest"].CUDA_SECONDS = SECONDS  # type: ignore[attr-defined]
    if os.environ.get("DCNZOO_SIMULATE_ALL") == "1":
        return
    chosen = [item for item in items if not item.name.startswith(TOO_MUCH)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen

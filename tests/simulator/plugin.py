"""For pytest on a simulated GPU: time enough, and without what is too much for it.

    python -m tests.simulator.runtime python -m pytest -m cuda -p tests.simulator.plugin tests/ops

Of tests with many parameters it takes a few, DCNZOO_SIMULATE_ALL=1 all of them.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from dcnzoo.ops import gpu_tuning

SECONDS = 3600
"""For a test; a GPU has less before it is taken to hang."""

TOO_MUCH = ("test_large_maps", "test_wgmma_on_large_maps_repeats")
FEW = 2


def pytest_configure() -> None:
    gpu_tuning.CALLS = gpu_tuning.ROUNDS = 1  # nobody believes these times


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sys.modules["tests.conftest"].CUDA_SECONDS = SECONDS  # type: ignore[attr-defined]
    by_test = defaultdict(list)
    for item in items:
        if not item.name.startswith(TOO_MUCH):
            by_test[item.nodeid.partition("[")[0]].append(item)
    chosen = [item for group in by_test.values() for item in few(group)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]  # in their order, which fixtures follow


def few(items: list[pytest.Item]) -> list[pytest.Item]:
    """Some that are spread over all."""
    if os.environ.get("DCNZOO_SIMULATE_ALL") == "1" or items[0].path.parent == Path(__file__).parent:
        return items
    return items[:: -(-len(items) // FEW)]

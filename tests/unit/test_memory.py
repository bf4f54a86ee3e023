"""The setting of the C library's allocator, seen from outside: pages that a process takes from the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Takes and frees 64 MiB ten times, and counts the pages that had to be mapped after the first time.
PROGRAM = """
import resource, torch
from dcnzoo.memory import keep_freed_memory
made = keep_freed_memory()
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(int(made), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
@pytest.mark.parametrize(("keep", "made", "reuses"), [("1", 1, True), ("0", 0, False)])
def test_freed_memory_is_used_again(keep: str, made: int, reuses: bool) -> None:
    environment = {**os.environ, "DCNZOO_KEEP_MEMORY": keep}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    result, pages = map(int, run.stdout.split())
    assert result == made
    assert (pages < 1000) == reuses

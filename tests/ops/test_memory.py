"""Memory of the compiled operators' results: taken again when it is free, never while it is in use."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch

from dcnzoo.ops import dense
from dcnzoo.ops.backend import NATIVE_PROBLEM

pytestmark = [
    pytest.mark.skipif(NATIVE_PROBLEM is not None, reason=f"not built: {NATIVE_PROBLEM}"),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts pages as Linux does"),
]

# Counts the pages that results of 64 MB take from the system, after the first of them.
PROGRAM = """
import resource, sys, torch
from dcnzoo.ops import dense
if sys.argv[1] == "limited":
    resource.setrlimit(resource.RLIMIT_AS, (2**45, resource.getrlimit(resource.RLIMIT_AS)[1]))
x = torch.ones(1, 256, 128, 128).contiguous(memory_format=torch.channels_last)
first = dense.upsample2x(x)
assert (first == 1).all()
del first
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    dense.upsample2x(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_of(case: str) -> int:
    command = [sys.executable, "-c", PROGRAM, case]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout)


def test_freed_memory_is_taken_again() -> None:
    assert pages_of("unlimited") < 1000


def test_limited_addresses_are_left_to_pytorch() -> None:
    assert pages_of("limited") > 1000


def test_results_in_use_are_never_overwritten() -> None:
    """Results of many sizes, dropped in any order; those that live keep their values."""
    chosen = random.Random(0)
    alive: list[tuple[float, torch.Tensor]] = []
    for step in range(300):
        size = (1, 64, chosen.randint(1, 40), chosen.randint(1, 40))
        values = torch.full(size, float(step)).contiguous(memory_format=torch.channels_last)
        alive.append((float(step), dense.upsample2x(values)))
        if len(alive) > 12:
            value, tensor = alive.pop(chosen.randrange(len(alive)))
            assert torch.equal(tensor, torch.full_like(tensor, value))
    for value, tensor in alive:
        assert torch.equal(tensor, torch.full_like(tensor, value))


def test_a_view_keeps_its_memory() -> None:
    x = torch.rand(1, 256, 32, 32).contiguous(memory_format=torch.channels_last)
    view = dense.upsample2x(x)[:, :, ::2, ::2]
    dense.upsample2x(torch.zeros_like(x))
    assert torch.equal(view, x)

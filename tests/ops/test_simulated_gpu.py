"""What is marked `cuda`, on a simulated GPU: the binding, streams, graphs, memory.

See `tests/simulator/runtime.py`. Each run is a pytest of its own, two at a time. They take a few of the
parameters of each test; DCNZOO_SIMULATE_ALL=1 makes it all of them, which takes minutes more.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.simulator import runtime

ROOT = Path(__file__).parents[2]
CONVOLUTION, REGIONS = "tests/ops/test_gpu_deform_conv2d.py", "tests/ops/test_gpu_regions.py"
CHECKS = "tests/simulator/checks.py"
EXACT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""Each tensor has memory of its own, beyond which no kernel may read."""


@dataclass(frozen=True)
class Run:
    """Tests on a GPU, and how it behaves."""

    arguments: tuple[str, ...]
    passed: int
    """At least."""

    environment: dict[str, str] = field(default_factory=dict)


RUNS = {
    "convolution": Run((CONVOLUTION,), 36),
    "dense layers": Run(("tests/ops/test_gpu_dense.py",), 8),
    "pooling and suppression": Run((REGIONS,), 12),
    "no memory to spare": Run(
        (CONVOLUTION, REGIONS, "-k", "agree and not way"),
        15,
        EXACT,
    ),
    "streams that run late": Run((CHECKS,), 10),
    "streams that run ahead": Run((CHECKS,), 6, {"SIMULATOR_ORDER": "ahead"}),
    "predictor": Run(("tests/unit/test_predictor.py", "tests/cli/test_doctor.py"), 4),
}


def run(arguments: tuple[str, ...], environment: dict[str, str]) -> str:
    """What pytest says."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "tests.simulator.plugin", "-q", *arguments]
    required = {"DCNZOO_REQUIRE_CUDA": "1", "OMP_NUM_THREADS": "1"}
    environment = os.environ | required | environment
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[str]]]:
    """What each run says, as soon as it is over."""
    problem = runtime.obstacle()
    if problem is not None:
        pytest.skip(problem)
    folder = Path(os.environ.get("DCNZOO_SIMULATOR") or tmp_path_factory.mktemp("simulator"))
    built = runtime.built(folder)
    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, one.arguments, built | one.environment) for name, one in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_passes_on_a_simulated_gpu(name: str, outputs: dict[str, Future[str]]) -> None:
    output = outputs[name].result()
    summary = re.search(r"^(\d+) passed(?!.*(failed|error)).* in ", output, re.MULTILINE)
    assert summary is not None, output
    assert int(summary[1]) >= RUNS[name].passed, output

"""All operators: in every variant of the compiled kernels that this processor has, and in every backend."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.ops.test_deform_conv2d import needs_native


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param({"DCNZOO_CPU_CAPABILITY": "default"}, marks=needs_native),
        pytest.param({"DCNZOO_CPU_CAPABILITY": "avx2"}, marks=needs_native),
        pytest.param({"DCNZOO_CPU_CAPABILITY": "avx512"}, marks=needs_native),
        pytest.param({"DCNZOO_CPU_CAPABILITY": "avx512_bf16"}, marks=needs_native),
        pytest.param({"DCNZOO_CPU_CAPABILITY": "avx512_fp16"}, marks=needs_native),
        {"DCNZOO_OPS": "torchvision"},
        {"DCNZOO_OPS": "reference"},
    ],
    ids=lambda setting: next(iter(setting.values())),
)
def test_agrees_with_the_definitions(setting: dict[str, str]) -> None:
    program = [sys.executable, "-m", "tests.ops.variants"]
    run = subprocess.run(program, env=os.environ | setting, capture_output=True, text=True, check=False)
    if "this processor lacks it" in run.stderr:
        pytest.skip(f"this processor has no {setting['DCNZOO_CPU_CAPABILITY']}")
    assert run.returncode == 0, run.stderr
    assert next(iter(setting.values())) in run.stdout

"""The choice between the implementations, each time in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from dcnzoo.errors import OpsUnavailableError
if "{missing}":
    sys.modules["dcnzoo._C"] = None  # as if it had not been built
from dcnzoo.ops import active_backend
try:
    print(*active_backend())
except OpsUnavailableError as error:
    print("refused:", error)
"""


def answer(missing: bool = False, **environment: str) -> str:
    program = PROGRAM.replace("{missing}", "yes" if missing else "")
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("DCNZOO_")}
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env=cleared | environment, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("name", ["torchvision", "reference"])
def test_a_name_forces_a_backend(name: str) -> None:
    assert answer(DCNZOO_OPS=name) == f"{name} DCNZOO_OPS={name}\n"


def test_without_compiled_operators_torchvision_computes() -> None:
    assert answer(missing=True).startswith("torchvision the compiled operators cannot be loaded")


def test_compiled_operators_can_be_demanded() -> None:
    assert answer(missing=True, DCNZOO_OPS="native").startswith("refused: DCNZOO_OPS=native: the compiled")


def test_unknown_names_are_refused() -> None:
    assert answer(DCNZOO_OPS="fast").startswith("refused: DCNZOO_OPS=fast is unknown")


def test_unknown_capabilities_are_refused() -> None:
    if answer().startswith("torchvision"):
        pytest.skip("the compiled operators are not built")
    assert answer(DCNZOO_CPU_CAPABILITY="mmx").startswith("refused: DCNZOO_CPU_CAPABILITY=mmx is unknown")

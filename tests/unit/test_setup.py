"""What the build decides by what it finds."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import setuptools

ROOT = Path(__file__).parents[2]
Runtime = Callable[[list[str]], list[str]]


@pytest.fixture
def cuda_runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DCNZOO_BUILD_OPS", "0")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return runpy.run_path("setup.py")["cuda_runtime"]


@pytest.mark.parametrize(
    ("files", "libraries"),
    [
        (["libcudart.so", "libcudart_static.a"], ["cudart"]),
        (["libcudart.so.13", "libcudart_static.a"], ["cudart_static", "rt", "dl"]),
        ([], ["cudart"]),
    ],
)
def test_cuda_runtime(cuda_runtime: Runtime, tmp_path: Path, files: list[str], libraries: list[str]) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert cuda_runtime(["/nowhere", str(tmp_path)]) == libraries

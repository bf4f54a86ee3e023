"""`dcnzoo doctor`: reports, and survives whatever is broken."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dcnzoo.ops as dcnzoo_ops
from dcnzoo import __version__
from dcnzoo.hardware import cpu_model
from tests.cli.conftest import Program


def report_of(dcnzoo: Program, *arguments: object) -> tuple[int, dict[str, Any]]:
    code, out, _ = dcnzoo("doctor", "--json", *arguments)
    return code, json.loads(out)


def test_healthy(dcnzoo: Program, home: Path) -> None:
    code, report = report_of(dcnzoo)
    assert (code, report["problems"]) == (0, [])
    versions = report["versions"]
    assert versions["dcnzoo"].startswith(__version__)
    assert versions["python"].startswith(platform.python_version())
    assert versions["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert versions["numpy"] == np.__version__
    assert set(versions) >= {"torchvision", "pillow", "pycocotools"}
    assert report["cpu"]["threads"] == torch.get_num_threads()
    assert report["cpu"]["model"]
    assert report["operators"]["backend"], report["operators"]["because"]
    assert report["cache"] == {"home": str(home), "files": 0, "megabytes": 0.0}
    assert report["manifest"] == {"own": None, "checkpoints": 18, "downloaded": 0}


def test_keys_are_in_snake_case(dcnzoo: Program) -> None:
    def keys(part: object) -> Iterator[str]:
        for key, value in part.items() if isinstance(part, dict) else ():
            yield key
            yield from keys(value)

    assert [key for key in keys(report_of(dcnzoo)[1]) if not re.fullmatch(r"[a-z][a-z0-9_]*", key)] == []


def test_text_has_the_same(dcnzoo: Program) -> None:
    code, out, _ = dcnzoo("doctor")
    assert code == 0
    assert f"  dcnzoo: {__version__}" in out
    assert "operators:\n  backend: " in out
    assert f"CPU:\n  model: {cpu_model()}\n" in out
    assert "  vector instructions: " in out
    assert "  checkpoints: 18\n" in out
    assert out.endswith("problems: none\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_says_why_there_is_no_gpu(dcnzoo: Program) -> None:
    code, report = report_of(dcnzoo)
    assert (code, report["cuda"]["devices"]) == (0, [])
    assert report["cuda"]["because"]
    if torch.version.cuda:
        assert report["cuda"]["operators"].startswith(
            ("compiled kernels: loaded, unused", "torchvision's: the CUDA kernels")
        )


@pytest.mark.cuda
def test_names_the_gpus(dcnzoo: Program) -> None:
    _, report = report_of(dcnzoo)
    assert len(report["cuda"]["devices"]) == torch.cuda.device_count()
    assert torch.cuda.get_device_name(0) in report["cuda"]["devices"][0]
    assert "GiB" in report["cuda"]["devices"][0]
    assert report["cuda"]["operators"]


def test_counts_what_is_cached(dcnzoo: Program, home: Path) -> None:
    (home / "checkpoints").mkdir(parents=True)
    (home / "checkpoints" / "a.pth").write_bytes(bytes(2_000_000))
    assert report_of(dcnzoo)[1]["cache"] == {"home": str(home), "files": 1, "megabytes": 2.0}


def test_own_manifest(dcnzoo: Program, own_manifest: Path) -> None:
    _, report = report_of(dcnzoo, "--manifest", own_manifest)
    assert report["manifest"] == {"own": str(own_manifest), "checkpoints": 19, "downloaded": 1}


def test_broken_manifest(dcnzoo: Program, own_manifest: Path) -> None:
    own_manifest.write_text("checkpoints: [")
    code, report = report_of(dcnzoo, "--manifest", own_manifest)
    assert code == 1
    assert report["manifest"] == "broken, see problems"
    assert len(report["problems"]) == 1
    assert str(own_manifest) in report["problems"][0]


def test_cache_that_is_a_file(dcnzoo: Program, home: Path) -> None:
    home.touch()
    code, report = report_of(dcnzoo)
    assert code == 1
    assert report["problems"] == [
        f"cache: NotADirectoryError: {home} is not a writable folder; set DCNZOO_HOME to one"
    ]


def test_broken_operators(dcnzoo: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> tuple[str, str]:
        raise RuntimeError("undefined symbol")

    monkeypatch.setattr(dcnzoo_ops, "active_backend", fail)
    code, out, _ = dcnzoo("doctor")
    assert code == 1
    assert "operators: broken, see problems" in out
    assert out.endswith("problems:\n  0: operators: RuntimeError: undefined symbol\n")


def test_broken_package(dcnzoo: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    code, report = report_of(dcnzoo)
    assert code == 1
    assert report["versions"]["pycocotools"] == "broken, see problems"
    assert report["problems"][0].startswith("pycocotools: ModuleNotFoundError: ")


@pytest.mark.parametrize("name", ["DCNZOO_RETRIES", "DCNZOO_TIMEOUT"])
def test_settings_of_downloads(dcnzoo: Program, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "abc")
    code, report = report_of(dcnzoo)
    assert (code, report["downloads"]) == (1, "broken, see problems")
    assert name in report["problems"][0]

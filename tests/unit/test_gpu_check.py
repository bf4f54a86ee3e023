"""The program that checks everything on a GPU, as far as it goes without one."""

from __future__ import annotations

import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("gpu_check")


def soon() -> float:
    return time.monotonic() + 60


def test_a_step_that_passes(check: ModuleType) -> None:
    step = check.Step("one", check.python("-c", "print(1)"), 60)
    step.run(soon())
    assert (step.result, step.output) == ("passed", "")


def test_a_step_that_fails_keeps_what_it_said(check: ModuleType) -> None:
    step = check.Step("one", check.python("-c", "raise SystemExit('why')"), 60)
    step.run(soon())
    assert step.result == "**failed**"
    assert "why" in step.output


@pytest.mark.parametrize(
    ("command", "needs", "seconds", "reason"),
    [
        (["python"], ("json", "no_such_module", "nor_this"), 60, "needs no_such_module, nor_this"),
        (["no-such-program"], (), 60, "needs no-such-program"),
        ([sys.executable], (), 5, "no time was left"),
    ],
)
def test_a_step_that_cannot_run_says_why(
    check: ModuleType, command: list[str], needs: tuple[str, ...], seconds: int, reason: str
) -> None:
    step = check.Step("one", command, 60, needs=needs)
    step.run(time.monotonic() + seconds)
    assert step.result == f"**not run**: {reason}"
    assert not step.passed


def test_a_step_is_stopped_at_its_limit(check: ModuleType) -> None:
    step = check.Step("one", check.python("-c", "import time; time.sleep(60)"), 1)
    step.run(soon())
    assert step.result == "**failed**"
    assert "stopped after 1 s" in step.output


def test_tests_are_counted(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip('')\n"
    )
    runner = check.Runner(False, tmp_path, soon())
    step = runner.tests("some tests", ["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")], 60)
    assert step.tests == {"passed": 1, "failed": 1, "skipped": 1}
    assert step.result == "**failed**: 1 passed, 1 failed, 1 skipped"
    report = check.markdown({"gpu": "a GPU"}, runner.steps)
    assert "| some tests | **failed**: 1 passed, 1 failed, 1 skipped |" in report
    assert "## Failed: some tests" in report


def test_table_of_detectors(check: ModuleType) -> None:
    stages = {"total": 50, "decode": 20, "transfer": 1, "backbone": 6, "neck": 1, "rpn": 1, "roi": 1}
    case = {
        "model": "m",
        "precision": "fp16",
        "batch_size": 2,
        "milliseconds_per_batch": {name: {"p50": float(value)} for name, value in stages.items()},
        "images_per_second": 40.0,
        "peak_gpu_memory_gib": 0.789,
    }
    row = check.detector_table({"results": [case]}).splitlines()[-1]
    assert row == "| m | fp16 | 2 | 50.0 | 40.0 | 10.0 | 200.0 | 0.79 |"


def test_without_a_build_nothing_is_tested(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = check.Runner(False, Path(), soon())
    monkeypatch.setattr(check.Step, "_run", lambda step, _: setattr(step, "code", 1))
    runner.run_all()
    assert [step.name for step in runner.steps] == ["build"]


@pytest.mark.parametrize("full", [False, True])
def test_steps_in_order(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: bool
) -> None:
    monkeypatch.setattr(check.Step, "_run", lambda step, _: setattr(step, "code", 0))
    monkeypatch.setattr(check, "find_sanitizer", lambda: sys.executable)
    monkeypatch.setattr(check, "TESTING", ("no_such_module",))
    runner = check.Runner(full, tmp_path, soon())
    runner.run_all()
    assert [step.name for step in runner.steps] == [
        *("build", "tests on the GPU", "comparison of the operators", "parity", "deformable convolution"),
        *("detectors, no cuda graphs", "detectors, cuda graphs", "compute-sanitizer memcheck"),
        *(["compute-sanitizer racecheck"] if full else []),
    ]
    missing = [step.name for step in runner.steps if step.missing]
    assert missing == ["tests on the GPU", "parity"]

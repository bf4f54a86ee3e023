"""The program that checks everything on a GPU, as far as it goes without one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
ABSENT = ("pycocotools", "platformdirs", "trustme")
"""Packages that may be missing where there is a GPU."""


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("gpu_check")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "steps.log"


def soon() -> float:
    return time.monotonic() + 60


def runner_in(check: ModuleType, folder: Path, full: bool = False) -> Any:
    return check.Runner(full, folder, soon(), folder / "report", {"gpu": "a GPU"})


def test_a_step_that_passes(check: ModuleType, log: Path) -> None:
    step = check.Step("one", check.python("-c", "print('said')"), 60)
    step.run(soon(), log)
    assert (step.result, step.output) == ("passed", "")
    assert "=== one: " in log.read_text()
    assert "\nsaid\n" in log.read_text()


def test_a_step_that_fails_keeps_what_it_said(
    check: ModuleType, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "TAIL", 100)
    step = check.Step("one", check.python("-c", "raise SystemExit('x' * 1000 + 'why')"), 60)
    step.run(soon(), log)
    assert step.result == "**failed**"
    assert "why\n\n=== ended with exit code 1 after" in step.output
    assert len(step.output) == 100
    assert "x" * 1000 in log.read_text()


@pytest.mark.parametrize(
    ("command", "needs", "seconds", "reason"),
    [
        (["python"], ("json", "no_such_module", "nor_this"), 60, "needs no_such_module, nor_this"),
        (["no-such-program"], (), 60, "needs no-such-program"),
        ([sys.executable], (), 5, "no time was left"),
    ],
)
def test_a_step_that_cannot_run_says_why(
    check: ModuleType, log: Path, command: list[str], needs: tuple[str, ...], seconds: int, reason: str
) -> None:
    step = check.Step("one", command, 60, needs=needs)
    step.run(time.monotonic() + seconds, log)
    assert step.result == f"**not run**: {reason}"
    assert not step.passed


FAMILY = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep({seconds})
"""
"""Prints the number of a process that outlives it."""


def has_ended(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("seconds", "stopped"), [(600, True), (0, False)], ids=["stopped", "ended"])
def test_what_a_step_has_started_ends_with_it(
    check: ModuleType, log: Path, seconds: int, stopped: bool
) -> None:
    step = check.Step("one", check.python("-c", FAMILY.format(seconds=seconds)), 3)
    step.run(soon(), log)
    assert step.passed != stopped
    assert ("=== stopped after 3." in step.output) == stopped
    grandchild = next(int(line) for line in log.read_text().splitlines() if line.isdecimal())
    wait_until(lambda: has_ended(grandchild))


PROGRAM = """
import signal, time
from pathlib import Path
from gpu_check import Step, end, python
signal.signal(signal.SIGTERM, end)
Step("one", python("-c", {family!r}), 600).run(time.monotonic() + 600, Path({log!r}))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_whoever_ends_the_program_ends_its_step(log: Path) -> None:
    source = PROGRAM.format(family=FAMILY.format(seconds=600), log=str(log))
    with subprocess.Popen([sys.executable, "-c", source], cwd=SCRIPTS) as program:
        wait_until(lambda: log.exists() and log.read_text().splitlines()[-1:][0].isdecimal())
        program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 1
    wait_until(lambda: has_ended(int(log.read_text().splitlines()[-1])))


def test_tests_are_counted(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip('')\n"
    )
    runner = runner_in(check, tmp_path)
    step = runner.tests("some tests", ["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")], 60)
    assert step.tests == {"passed": 1, "failed": 1, "skipped": 1}
    assert step.result == "**failed**: 1 passed, 1 failed, 1 skipped"
    report = (tmp_path / "report.md").read_text()
    assert "| some tests | **failed**: 1 passed, 1 failed, 1 skipped |" in report
    assert "## Failed: some tests" in report


def test_warnings_and_plugins_of_another_machine_fail_no_test(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CI turns warnings into errors, by the same settings."""
    (tmp_path / "test_it.py").write_text("import warnings\ndef test_a(): warnings.warn('new')\n")
    (tmp_path / "broken_plugin.py").write_text("raise ImportError('of another framework')\n")
    info = tmp_path / "broken_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pytest11]\nbroken = broken_plugin\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    selection = ["-c", str(ROOT / "pyproject.toml"), str(tmp_path / "test_it.py")]
    step = runner_in(check, tmp_path).tests("some tests", selection, 60)
    assert step.tests == {"passed": 1, "failed": 0, "skipped": 0}, step.output
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)
    for option, code, complaint in (("no:broken", 1, "UserWarning: new"), ("no:others", 3, "of another")):
        usual = subprocess.run(
            check.python("-m", "pytest", "-p", option, *selection),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert usual.returncode == code
        assert complaint in usual.stdout


@pytest.mark.parametrize("content", ["", "{", "{}"])
def test_numbers_that_cannot_be_read_end_nothing(check: ModuleType, tmp_path: Path, content: str) -> None:
    source = f"import sys; open(sys.argv[-1], 'w').write({content!r})"
    runner = runner_in(check, tmp_path)
    runner.numbers(check.Step("one", check.python("-c", source), 60), check.detector_table)
    assert runner.steps[0].result == "**failed**"
    assert "the numbers cannot be read" in (tmp_path / "report.md").read_text()


def test_counts_that_cannot_be_read_end_nothing(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some-tests.xml").write_text("<")
    monkeypatch.setattr(check.Step, "_run", lambda step, *_: setattr(step, "code", 0))
    step = runner_in(check, tmp_path).tests("some tests", [], 60)
    assert step.result == "**failed**"
    assert "the counts cannot be read" in step.output


def test_the_report_is_there_after_every_step(check: ModuleType, tmp_path: Path) -> None:
    runner = runner_in(check, tmp_path)
    for count in (1, 2):
        runner.run(check.Step(f"step {count}", check.python("-c", ""), 60))
        assert len(json.loads((tmp_path / "report.json").read_text())["steps"]) == count
        assert f"| step {count} | passed |" in (tmp_path / "report.md").read_text()


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


def test_without_a_build_nothing_is_tested(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner = runner_in(check, tmp_path)
    monkeypatch.setattr(check.Step, "_run", lambda step, *_: setattr(step, "code", 1))
    runner.run_all()
    assert [step.name for step in runner.steps] == ["build"]


@pytest.fixture
def pretended(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that pass without doing anything, and a machine with a GPU."""
    monkeypatch.setattr(check.Step, "_run", lambda step, *_: setattr(step, "code", 0))
    monkeypatch.setattr(check, "find_sanitizer", lambda: sys.executable)
    monkeypatch.setattr(check, "machine", lambda: {"gpu": "a GPU", "operators": "built"})


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("full", [False, True])
def test_steps_in_order(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, full: bool
) -> None:
    monkeypatch.setattr(check, "TESTING", ("no_such_module",))
    runner = runner_in(check, tmp_path, full)
    runner.run_all()
    names = [
        *("build", "tests on the GPU", "comparisons for tests on the GPU", "deformable convolution"),
        *("detectors, no cuda graphs", "detectors, cuda graphs", "parity"),
        *("compute-sanitizer memcheck", "compute-sanitizer racecheck"),
        *("tests of wgmma", "comparisons for tests of wgmma"),
        *("compute-sanitizer memcheck, wgmma", "compute-sanitizer racecheck, wgmma"),
        "deformable convolution, wgmma",
    ]
    only_full = (*(name for name in names if "racecheck" in name), names[-1])
    assert [step.name for step in runner.steps] == [n for n in names if full or n not in only_full]
    missing = [step.name for step in runner.steps if step.missing]
    assert missing == ["tests on the GPU", "parity", "tests of wgmma"]
    assert json.loads((tmp_path / "report.json").read_text())["stamp"]["operators"] == "built"


@pytest.mark.usefixtures("pretended")
def test_a_stamp_that_cannot_be_taken_ends_nothing(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> dict[str, str]:
        raise SystemExit("the GPU does not answer")

    monkeypatch.setattr(check, "machine", fail)
    runner = runner_in(check, tmp_path)
    runner.run_all()
    assert len(runner.steps) > 5
    stamp = json.loads((tmp_path / "report.json").read_text())["stamp"]
    assert stamp == {"gpu": "a GPU", "incomplete": "the GPU does not answer"}


@pytest.mark.usefixtures("pretended")
def test_nothing_runs_wgmma_before_the_last_steps(check: ModuleType, tmp_path: Path) -> None:
    runner = runner_in(check, tmp_path)
    runner.run_all()
    commands = {step.name: " ".join(step.command) for step in runner.steps}
    limits = {step.name: step.limit for step in runner.steps}
    assert " -k not wgmma tests/cli/test_doctor.py tests/ops/" in commands["tests on the GPU"]
    assert " -k wgmma tests/cli/test_doctor.py tests/ops/" in commands["tests of wgmma"]
    assert commands["compute-sanitizer memcheck"].endswith("sanitize_gpu_ops.py --wgmma without")
    assert commands["compute-sanitizer memcheck, wgmma"].endswith("sanitize_gpu_ops.py --wgmma only")
    assert all(" --report-api-errors no " in commands[name] for name in commands if "sanitizer" in name)
    assert limits["tests on the GPU"] == 180
    others = {name: limit for name, limit in limits.items() if name != "build"}
    assert max(others.values()) <= 180  # none eats the time of all that follow
    assert limits["tests of wgmma"] == limits["compute-sanitizer memcheck, wgmma"] == 60


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


@pytest.mark.usefixtures("hopper")
def test_comparisons_with_and_without_wgmma() -> None:
    comparisons = import_module("compare_gpu_ops").comparisons
    every, others, only = ([name for name, _ in comparisons(w)] for w in ("with", "without", "only"))
    assert set(every) == {*others, *only}
    assert len(every) == len(others) + len(only)
    assert only
    assert all("wgmma" in name for name in only)
    assert not any("wgmma" in name for name in others)
    assert "suppression 64" in others


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("wgmma", ["with", "without", "only"])
def test_the_sanitizer_watches_with_and_without_wgmma(monkeypatch: pytest.MonkeyPatch, wgmma: str) -> None:
    script = import_module("sanitize_gpu_ops")
    ran: list[str] = []
    monkeypatch.setattr(script, "gpu_problem", lambda: None)
    monkeypatch.setattr(script, "regions", lambda: ran.append("regions"))
    monkeypatch.setattr(
        script, "convolve", lambda *_, **__: ran.append(os.environ.get("DCNZOO_CUDA_KERNEL", ""))
    )
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(sys, "argv", ["sanitize_gpu_ops.py", "--wgmma", wgmma])
    before = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    script.main()
    torch.backends.cudnn.conv.fp32_precision = before  # type: ignore[attr-defined]
    assert any(kernel.startswith("wgmma") for kernel in ran) == (wgmma != "without")
    assert ("regions" in ran) == any(kernel.startswith("mma") for kernel in ran) == (wgmma != "only")


BLOCK = f"""
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in {ABSENT!r} else self.finder.find_spec(name, *rest)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


@pytest.fixture
def bare_machine(tmp_path: Path) -> dict[str, str]:
    """Environment of programs that find none of the packages in `ABSENT`."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(BLOCK)
    return os.environ | {"PYTHONPATH": f"{folder}:{ROOT}:{SCRIPTS}", "PYTHONNOUSERSITE": "1"}


def run_bare(bare_machine: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=bare_machine, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", [*ABSENT, "pycocotools.mask"])
def test_a_bare_machine_has_none_of_these_packages(bare_machine: dict[str, str], module: str) -> None:
    assert "ModuleNotFoundError: No module named" in run_bare(bare_machine, "-c", f"import {module}").stderr


@pytest.mark.parametrize("name", ["compare_gpu_ops", "bench_ops_gpu", "sanitize_gpu_ops", "gpu_check"])
def test_scripts_do_without_packages_that_may_be_missing(bare_machine: dict[str, str], name: str) -> None:
    done = run_bare(bare_machine, "-c", f"import {name}")
    assert done.returncode == 0, done.stderr


def test_tests_on_a_gpu_do_without_them(check: ModuleType, bare_machine: dict[str, str]) -> None:
    files = [*check.cuda_tests(), "tests/parity/test_reference_outputs.py"]
    assert "tests/ops/test_gpu_deform_conv2d.py" in files
    done = run_bare(bare_machine, "-m", "pytest", "--collect-only", "-q", "-m", "cuda", *files)
    assert done.returncode == 0, done.stdout


def test_a_benchmark_does_without_them(bare_machine: dict[str, str], tmp_path: Path) -> None:
    del bare_machine["PYTEST_CURRENT_TEST"]
    numbers = tmp_path / "numbers.json"
    options = (
        "-m dcnzoo bench --weights random --arch mask_rcnn_r18w16_fpn16_fc32_dconv_c3-c5 --device cpu"
        f" --image-size 64x64 --short-side 64 --warmup 0 --repeats 1 --json {numbers}"
    )
    done = run_bare(bare_machine, *options.split())
    assert done.returncode == 0, done.stderr
    versions = json.loads(numbers.read_text())["stamp"]["versions"]
    assert versions["pycocotools"] == "missing (No module named 'pycocotools')"


def test_without_a_gpu_nothing_begins(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit, match="no GPU was found"):
        check.machine()


@pytest.mark.parametrize("options", [[], ["--quick"], ["--full"]])
def test_forms(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str]
) -> None:
    monkeypatch.setattr(check, "machine", lambda: {"gpu": "NVIDIA X1, 9 GiB"})
    monkeypatch.setattr(check.Runner, "run_all", lambda runner: runner.write())
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--out", str(tmp_path / "out"), *options])
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert check.main() == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    (path,) = (tmp_path / "out").glob("nvidia-x1-*.json")
    assert json.loads(path.read_text())["full"] == ("--full" in options)

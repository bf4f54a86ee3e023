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
        try:
            wait_until(lambda: log.exists() and any(map(str.isdecimal, log.read_text().splitlines())))
        finally:
            program.send_signal(signal.SIGTERM)
        assert program.wait(30) == 1
    wait_until(lambda: has_ended(int(log.read_text().splitlines()[-1])))


def test_tests_are_counted(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import pytest\n@pytest.mark.parametrize('x', ['one two'])\ndef test_a(x): pass\n"
        "def test_b(): assert 0\ndef test_c(): pytest.skip('')\n"
    )
    runner = runner_in(check, tmp_path)
    step = runner.tests("some tests", ["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")], 60)
    assert len(runner.steps) == 1
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
    monkeypatch.setattr(check, "ROOT", tmp_path)  # where pytest runs, and whence it names the tests
    selection = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path), str(tmp_path / "test_it.py")]
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


CRASHES = """
import os
def test_a(): pass
def test_b(): os._exit(1)
def test_c(): pass
def test_d(): assert 0
def test_e(): os.abort()
def test_f(): pass
"""


def test_tests_that_a_crash_has_kept_from_running_run_next(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text(CRASHES)
    monkeypatch.setattr(check, "ROOT", tmp_path)  # where pytest runs, and whence it names the tests
    runner = runner_in(check, tmp_path)
    step = runner.tests("some tests", ["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")], 60)
    assert [step.name for step in runner.steps] == [
        *("some tests", "some tests, process 2", "some tests, process 3")
    ]
    assert [(step.tests["passed"], step.tests["failed"]) for step in runner.steps] == [(1, 1), (1, 2), (1, 0)]
    assert step.result == "**failed**: 1 passed, 1 failed, 0 skipped"
    assert [step.passed for step in runner.steps] == [False, False, True]


def test_nothing_runs_after_a_crash_of_the_last_test(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_it.py").write_text("import os\ndef test_a(): pass\ndef test_b(): os.abort()\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    runner = runner_in(check, tmp_path)
    step = runner.tests("some tests", ["--rootdir", str(tmp_path), str(tmp_path / "test_it.py")], 60)
    assert runner.steps == [step]
    assert step.result == "**failed**: 1 passed, 1 failed, 0 skipped"
    assert "process 2" not in (tmp_path / "report.md").read_text()


def test_what_pytest_printed_is_read(check: ModuleType) -> None:
    printed = """
tests/a/test_x.py::test_one PASSED                                       [ 10%]
tests/a/test_x.py::test_one ERROR                                        [ 10%]
tests/a/test_x.py::test_two[all classes] SKIPPED (no wgmma)              [ 20%]
tests/a/test_x.py::test_three[mma_64x128/2] FAILED                       [ 30%]
tests/a/test_x.py::TestIt::test_four Fatal Python error: Aborted
tests/a/test_x.py:12: AssertionError
"""
    results = check.results_of(printed)
    assert list(results.values()) == ["ERROR", "SKIPPED", "FAILED", "ended"]
    assert check.counts_of(results) == {"passed": 0, "failed": 3, "skipped": 1}
    assert list(results)[1::2] == [
        *("tests/a/test_x.py::test_two[all classes]", "tests/a/test_x.py::TestIt::test_four")
    ]


def run_as_on_a_gpu(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Runs two tests of a GPU that is there as far as PyTorch says."""
    source = f"""
import pytest, torch, tests.conftest
torch.cuda.is_available = lambda: True
torch.cuda.synchronize = lambda *_: None
pytestmark = getattr(pytest.mark, "cuda")
def test_a():
{body}
def test_b(): pass
"""
    (tmp_path / "test_it.py").write_text(source)
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    command = [sys.executable, "-m", "pytest", "-v", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
    )


def test_an_error_of_the_gpu_ends_the_process(check: ModuleType, tmp_path: Path) -> None:
    body = """
    def fail(*_): raise RuntimeError("an illegal memory access was encountered")
    torch.cuda.synchronize = fail"""
    done = run_as_on_a_gpu(tmp_path, body)
    assert done.returncode == 3
    assert "has left the GPU with an error: an illegal memory access" in done.stdout
    assert list(check.results_of(done.stdout).values()) == ["PASSED"]


def test_a_test_of_the_gpu_that_hangs_ends_the_process(check: ModuleType, tmp_path: Path) -> None:
    body = """
    import faulthandler, sys, time
    faulthandler.dump_traceback_later(1, exit=True, file=sys.__stderr__)  # sooner than in earnest
    time.sleep(90)"""
    done = run_as_on_a_gpu(tmp_path, body)
    assert done.returncode == 1
    assert list(check.results_of(done.stdout).values()) == ["ended"]


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


def test_serialised_products_are_told_and_tested(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = "print('ptxas info: wgmma.mma_async instructions are serialized due to ...')"
    run = check.Step._run

    def compile_or_pass(step: Any, *arguments: Any) -> None:
        if step.name == "build":
            step.command = check.python("-c", source)
            run(step, *arguments)
        else:
            step.code = 0

    monkeypatch.setattr(check.Step, "_run", compile_or_pass)
    monkeypatch.setattr(check, "machine", lambda: {"gpu": "a GPU"})
    runner = runner_in(check, tmp_path)
    runner.run_all()
    assert runner.steps[0].result == "**failed**"
    assert "nvcc has serialized wgmma" in runner.steps[0].output
    assert len(runner.steps) > 5


@pytest.fixture
def pretended(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that pass without doing anything, and a machine with a GPU."""
    monkeypatch.setattr(check.Step, "_run", lambda step, *_: setattr(step, "code", 0))
    monkeypatch.setattr(check, "find_tool", lambda _: sys.executable)
    monkeypatch.setattr(check, "machine", lambda: {"gpu": "a GPU", "operators": "built"})


FILES = ("doctor", "gpu_dense", "gpu_regions", "benchmark", "gpu_detector", "predictor")
STEPS = {
    "build": ["build"],
    "tests": [
        *("tests of convolution", "tests of gradients of the convolution"),
        *(f"tests of {name}" for name in FILES),
    ],
    "wgmma-tests": ["tests of wgmma"],
    "operators": ["deformable convolution"],
    "wgmma": ["deformable convolution, wgmma"],
    "detectors": ["detectors, stages", "detectors on the GPU", "detectors on the GPU, wgmma"],
    "profile": ["profile", "profile, wgmma"],
    "parity": ["parity"],
    "memcheck": ["compute-sanitizer memcheck", "compute-sanitizer memcheck, wgmma"],
    "racecheck": ["compute-sanitizer racecheck", "compute-sanitizer racecheck, wgmma"],
}


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("full", [False, True])
def test_steps_in_order(check: ModuleType, tmp_path: Path, full: bool) -> None:
    assert tuple(STEPS) == check.PARTS
    runner = runner_in(check, tmp_path, full)
    runner.run_all()
    names = [name for part, names in STEPS.items() if full or part != "racecheck" for name in names]
    assert [step.name for step in runner.steps] == names
    assert [step.name for step in runner.steps if step.missing] == []
    assert json.loads((tmp_path / "report.json").read_text())["stamp"]["operators"] == "built"


@pytest.mark.usefixtures("pretended")
def test_comparisons_take_the_place_of_tests(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(check, "find_spec", lambda name: None if name == "pytest" else name)
    runner = runner_in(check, tmp_path)
    runner.run_all()
    assert [step.name for step in runner.steps[1:8]] == [
        *("tests of convolution", "comparisons, convolution", "comparisons, gradients"),
        *("comparisons, pooling", "comparisons, suppression"),
        *("tests of wgmma", "comparisons, convolution by wgmma"),
    ]
    assert [step.name for step in runner.steps if step.missing] == [
        *("tests of convolution", "tests of wgmma", "parity")
    ]


@pytest.mark.usefixtures("pretended")
def test_a_second_call_goes_on(check: ModuleType, tmp_path: Path) -> None:
    runner = runner_in(check, tmp_path)
    runner.parts = ("parity", "racecheck")
    runner.run_all()
    assert [step.name for step in runner.steps] == STEPS["parity"] + STEPS["racecheck"]


@pytest.mark.usefixtures("pretended")
def test_what_had_no_time_is_named(check: ModuleType, tmp_path: Path) -> None:
    runner = runner_in(check, tmp_path)
    runner.parts = ("memcheck", "parity")
    runner.deadline = time.monotonic()
    runner.run_all()
    assert "`scripts/gpu_check.sh --only parity memcheck`" in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("pretended")
def test_nothing_is_measured_of_wgmma_that_is_wrong(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        check.Step, "_run", lambda step, *_: setattr(step, "code", int(step.name == "tests of wgmma"))
    )
    runner = runner_in(check, tmp_path)
    runner.run_all()
    assert [step.name for step in runner.steps if step.missing == "the tests of wgmma did not pass"] == [
        *("deformable convolution, wgmma", "detectors on the GPU, wgmma", "profile, wgmma")
    ]


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
def test_wgmma_runs_in_processes_of_its_own(check: ModuleType, tmp_path: Path) -> None:
    runner = runner_in(check, tmp_path)
    runner.run_all()
    commands = {step.name: " ".join(step.command) for step in runner.steps}
    file = "tests/ops/test_gpu_deform_conv2d.py"
    assert commands["tests of convolution"].endswith(f" -k not wgmma and not gradients {file}")
    assert commands["tests of gradients of the convolution"].endswith(f" -k not wgmma and gradients {file}")
    assert commands["tests of wgmma"].endswith(f" -k wgmma {file}")
    assert commands["compute-sanitizer memcheck"].endswith("sanitize_gpu_ops.py --wgmma without")
    assert commands["compute-sanitizer memcheck, wgmma"].endswith("sanitize_gpu_ops.py --wgmma only")
    assert all(" --report-api-errors no " in commands[name] for name in commands if "sanitizer" in name)
    assert (
        " --sweep-wgmma --precision fp16 bf16 --no-torchvision --repeats 5 "
        in (commands["deformable convolution, wgmma"])
    )
    using = [step.name for step in runner.steps if "DCNZOO_CUDA_WGMMA" in step.environment]
    assert using == ["detectors on the GPU, wgmma", "profile, wgmma"]


@pytest.mark.usefixtures("pretended")
def test_what_matters_most_has_time_whatever_hangs(check: ModuleType, tmp_path: Path) -> None:
    runner = runner_in(check, tmp_path)
    runner.run_all()
    build, first = 120, ("tests of convolution", "tests of wgmma", "operators", "wgmma")
    needed = sum(step.limit for step in runner.steps if step.name in first or step.part in first)
    assert build + needed <= check.QUICK_SECONDS
    assert max(step.limit for step in runner.steps if step.name != "build") <= 120


def test_tables_of_the_benchmarks(check: ModuleType) -> None:
    timing = {"layer": "c3", "batch_size": 1, "precision": "fp16", "native_us": 30.0, "dense_us": 20.0}
    timing |= {"dense_bias_us": 25.0, "dense_relu_us": None, "torchvision_us": 300.0, "extra_mib": 1.5}
    timing |= {"error": 1e-4, "plan": "mma_64x128/2", "cycles": 54321.0, "ways": {"two_step": [9.0, None]}}
    extra = {"what": "w", "layer": "c3", "batch_size": 1, "precision": "fp16", "usual_us": 3.0}
    report = {
        "stamp": {"clock_mhz": 1980.0},
        "timings": [timing],
        "extras": [extra | {"other_us": None}],
        "failures": ["c5: wrong"],
    }
    lines = check.operator_table(report).splitlines()
    assert "1980.0 MHz" in lines[0]
    assert lines[4].startswith(
        "| c3 | 1 | fp16 | chosen | mma_64x128/2 | 54 | 30.0 | 20.0 | 1.50 | 25.0 | – |"
    )
    assert lines[8] == "| w | c3 | 1 | fp16 | 3.0 | – |"
    assert lines[-1] == "**Failed**: c5: wrong"


def test_detectors_in_flight_are_timed(check: ModuleType, tmp_path: Path) -> None:
    numbers = tmp_path / "numbers.json"
    command = check.python("scripts/bench_detector_gpu.py", "--device", "cpu", "--precision", "fp32")
    command += ["--model", "faster_rcnn_r18w16_fpn16_fc32_dconv_c3-c5", "--batch-size", "1"]
    command += ["--short-side", "64", "--warmup", "0", "--repeats", "1", "--json", str(numbers)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = check.gpu_detector_table(json.loads(numbers.read_text())).splitlines()[4:]
    assert [row.split(" | ")[2] for row in rows] == ["eager", "graphs", "eager, search", "graphs, search"]


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
    monkeypatch.setattr(script, "dense_layers", lambda: None)
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


@pytest.mark.parametrize(
    "name", ["compare_gpu_ops", "bench_ops_gpu", "bench_detector_gpu", "sanitize_gpu_ops", "gpu_check"]
)
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

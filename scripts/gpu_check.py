"""What `gpu_check.sh` runs: build, tests, benchmarks and sanitizer on a GPU, and the report on them.

A step that lacks a package, a program or time is left out, and the report says why. The kernels with `wgmma`,
which have never run, come last and by themselves, so that one that hangs or crashes costs no other result.
The report is written anew after every step, and `steps.log` beside it has all that the steps print.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
TAIL = 4000
"""Characters of a failed step's output that the report keeps."""

QUICK_SECONDS = 465
"""Of the quick form, all steps together."""

RUNTIME = (
    "torchvision",
    "numpy",
    "PIL",
    "click",
    "yaml",
    "requests",
    "filelock",
    "safetensors",
)
TESTING = ("pytest", "hypothesis")

QUICK_MODELS = (
    "faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco",
    "faster_rcnn_x101_32x4d_fpn_dconv_c3-c5_1x_coco",
    "mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco",
)


@dataclass
class Step:
    """What is run, and what came of it.

    Attributes:
        name: in the report.
        command: program and arguments.
        limit: seconds after which it is stopped.
        environment: variables beside the usual ones.
        needs: modules without which it cannot run.
        missing: why it was not run, if it was not.
        code: its exit code; None if it was stopped, never ran, or left a file that cannot be read.
        seconds: that it took.
        output: the end of what it printed, if it failed; all of it is in `steps.log`.
        tests: how many passed, failed and were skipped.
        table: Markdown of its own.
        data: numbers of its own.
    """

    name: str
    command: list[str]
    limit: int
    environment: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    missing: str = ""
    code: int | None = None
    seconds: float = 0.0
    output: str = ""
    tests: dict[str, int] = field(default_factory=dict)
    table: str = ""
    data: Any = None

    @property
    def passed(self) -> bool:
        """Whether it ended well, and its tests ran."""
        return self.code == 0 and (not self.tests or self.tests["passed"] > 0)

    @property
    def result(self) -> str:
        """In words."""
        if self.missing:
            return f"**not run**: {self.missing}"
        counts = ", ".join(f"{count} {what}" for what, count in self.tests.items())
        return ("passed" if self.passed else "**failed**") + (f": {counts}" if counts else "")

    def run(self, deadline: float, log: Path) -> None:
        """Runs it; a step that fails ends no other.

        Args:
            deadline: on the monotonic clock; it is stopped then, or at its limit.
            log: gets all that it prints, at the end.
        """
        left = int(deadline - time.monotonic())
        lacking = [module for module in self.needs if find_spec(module) is None]
        program = self.command[0]
        if lacking:
            self.missing = f"needs {', '.join(lacking)}"
        elif shutil.which(program) is None:
            self.missing = f"needs {program}"
        elif left < 10:
            self.missing = "no time was left"
        else:
            print(f"{self.name}: {' '.join(self.command)}", file=sys.stderr)
            self._run(min(self.limit, left), log)
        print(f"{self.name}: {self.result} after {self.seconds} s", file=sys.stderr)

    def fail(self, reason: str) -> None:
        """Notes what else went wrong."""
        self.code, self.output = None, f"{self.output}\n{reason}"[-TAIL:]

    def _run(self, limit: int, log: Path) -> None:
        start = time.monotonic()
        with log.open("ab") as file:
            file.write(f"\n=== {self.name}: {' '.join(self.command)}\n".encode())
            file.flush()
            begin = file.tell()
            self.code = run_group(self.command, os.environ | self.environment, file, limit)
            self.seconds = round(time.monotonic() - start, 1)
            how = "stopped" if self.code is None else f"ended with exit code {self.code}"
            file.write(f"\n=== {how} after {self.seconds} s\n".encode())
        if self.code != 0:
            self.output = log.read_bytes()[begin:].decode(errors="replace")[-TAIL:]


def run_group(command: list[str], environment: dict[str, str], output: IO[bytes], limit: int) -> int | None:
    """Runs a program in a session of its own, and ends all that it has started with it.

    Args:
        command: program and arguments.
        environment: its variables.
        output: gets what it prints.
        limit: seconds after which it is stopped.

    Returns:
        Its exit code; None if it was stopped.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also when this program is told to end
        with suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # what a GPU holds back may take its time
            process.wait(10)


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]


@dataclass
class Runner:
    """Runs the steps.

    Attributes:
        full: all models, every kernel.
        folder: for what the steps write.
        deadline: on the monotonic clock.
        path: of the report, without a suffix.
        stamp: of the machine; taken again when there are operators to load.
        steps: that were run.
    """

    full: bool
    folder: Path
    deadline: float
    path: Path
    stamp: dict[str, Any]
    steps: list[Step] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """Gets all that the steps print."""
        return self.path.with_name("steps.log")

    def write(self) -> None:
        """Writes the report on the steps so far."""
        report = {"stamp": self.stamp, "full": self.full, "steps": [asdict(step) for step in self.steps]}
        self.path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        self.path.with_suffix(".md").write_text(markdown(self.stamp, self.steps), encoding="utf-8")

    def run_all(self) -> None:
        """Runs the steps one after the other; without a build there is nothing to test."""
        build = Step("build", python("setup.py", "build_ext", "--inplace"), 900, {"DCNZOO_CUDA": "1"})
        build.needs = ("setuptools",)
        if not self.run(build).passed:
            return
        try:
            self.stamp = machine()
        except SystemExit as error:  # the steps will say more
            self.stamp["incomplete"] = str(error)
        tools = ("memcheck", "racecheck") if self.full else ("memcheck",)
        self.compare("tests on the GPU", "without", 900 if self.full else 180)
        self.benchmarks()
        self.parity()
        for tool in tools:
            self.run(sanitizer_step(tool, "without", 600 if self.full else 100))
        self.compare("tests of wgmma", "only", 900 if self.full else 60)
        for tool in tools:
            self.run(sanitizer_step(tool, "only", 600 if self.full else 60))
        if self.full:
            sweep = Step(
                "deformable convolution, wgmma",
                python("scripts/bench_ops_gpu.py", "--sweep-wgmma", "--no-torchvision"),
                1800,
            )
            self.numbers(sweep, operator_table)

    def run(self, step: Step) -> Step:
        """Runs a step and keeps it."""
        step.run(self.deadline, self.log)
        self.steps.append(step)
        self.write()
        return step

    def compare(self, name: str, wgmma: str, limit: int) -> None:
        """The operators: their tests, or without pytest the comparisons; with or without wgmma alone."""
        keyword = {"only": "wgmma", "without": "not wgmma"}[wgmma]
        tests = self.tests(name, ["-m", "cuda", "-k", keyword, *cuda_tests()], limit)
        if tests.missing:
            command = python("scripts/compare_gpu_ops.py", "--wgmma", wgmma)
            self.numbers(Step(f"comparisons for {name}", command, limit), lambda _: "")

    def parity(self) -> None:
        """The detectors against the recordings."""
        models = [] if self.full else ["-k", " or ".join(QUICK_MODELS[:2])]
        selection = ["-m", "parity and cuda", "tests/parity/test_reference_outputs.py", *models]
        self.tests("parity", selection, 3600 if self.full else 150, ("pycocotools",) if self.full else ())

    def benchmarks(self) -> None:
        """The operator and the detectors."""
        options = ["--sweep"] if self.full else ["--precision", "fp16", "tf32", "--repeats", "9"]
        command, limit = python("scripts/bench_ops_gpu.py", *options), 3600 if self.full else 120
        self.numbers(Step("deformable convolution", command, limit), operator_table)
        models = "*" if self.full else QUICK_MODELS[0]
        for graphs in ("--no-cuda-graphs", "--cuda-graphs"):
            command = python("-m", "dcnzoo", "bench", "--weights", "random", "--device", "cuda")
            command += ["--model", models, "--precision", "fp16", "--batch-size", "1,8", graphs]
            if self.full and graphs == "--no-cuda-graphs":
                command[command.index("fp16")] = "fp32,tf32,fp16,bf16"
            name, limit = f"detectors, {graphs[2:].replace('-', ' ')}", 7200 if self.full else 90
            self.numbers(Step(name, command, limit, needs=RUNTIME), detector_table)

    def tests(self, name: str, selection: list[str], limit: int, needs: tuple[str, ...] = ()) -> Step:
        """Runs tests; their counts are read from JUnit's XML.

        A warning of a version that CI has not seen is no failure here, and plugins that happen to be
        installed are none of the tests' business.
        """
        xml = self.folder / f"{re.sub(r'[^a-z]+', '-', name.lower())}.xml"
        command = python("-m", "pytest", "-v", "-W", "default", "--junit-xml", str(xml), *selection)
        step = Step(name, command, limit, {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
        step.needs = TESTING + RUNTIME + needs
        self.run(step)
        if xml.exists():
            try:
                step.tests = counts_of(xml)
            except Exception as error:
                step.fail(f"the counts cannot be read: {error!r}")
            self.write()
        return step

    def numbers(self, step: Step, table: Callable[[Any], str]) -> None:
        """Runs a step that writes numbers as JSON; `table` makes Markdown of them."""
        path = self.folder / "numbers.json"
        path.unlink(missing_ok=True)
        step.command += ["--json", str(path)]
        self.run(step)
        if path.exists():
            try:
                step.data = json.loads(path.read_text(encoding="utf-8"))
                step.table = table(step.data)
            except Exception as error:
                step.fail(f"the numbers cannot be read: {error!r}")
            self.write()


def cuda_tests() -> list[str]:
    """Files with tests for a GPU, for others may need packages that these do without."""
    files = (path for part in ("ops", "unit", "cli") for path in (ROOT / "tests" / part).glob("test_*.py"))
    named = [path for path in files if "mark.cuda" in path.read_text(encoding="utf-8")]
    return sorted(str(path.relative_to(ROOT)) for path in named)


def counts_of(xml: Path) -> dict[str, int]:
    """How many tests passed, failed and were skipped."""
    suite = next(ElementTree.parse(xml).getroot().iter("testsuite"))
    total, bad, skipped = (
        sum(int(suite.attrib[key]) for key in keys)
        for keys in (("tests",), ("failures", "errors"), ("skipped",))
    )
    return {"passed": total - bad - skipped, "failed": bad, "skipped": skipped}


def sanitizer_step(tool: str, wgmma: str, limit: int) -> Step:
    """The kernels under compute-sanitizer; each tensor has memory of its own: no overrun is missed.

    Errors of CUDA's own functions are not reported: PyTorch asks for what may not be there, and goes on.
    """
    command = [find_sanitizer(), "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "1"]
    command += python("scripts/sanitize_gpu_ops.py", "--wgmma", wgmma)
    name = f"compute-sanitizer {tool}" + (", wgmma" if wgmma == "only" else "")
    return Step(name, command, limit, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def find_sanitizer() -> str:
    """Program on the PATH, or beside nvcc."""
    name, nvcc = "compute-sanitizer", shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent / name if nvcc else None
    return str(beside) if shutil.which(name) is None and beside and beside.exists() else name


def operator_table(data: dict[str, Any]) -> str:
    """Markdown of the operator's benchmark."""
    from bench_ops_gpu import Timing, table

    return "\n".join(table([Timing(**timing) for timing in data["timings"]]))


def detector_table(data: dict[str, Any]) -> str:
    """Markdown of the detectors' benchmark."""
    lines = [
        "| model | precision | batch | ms per batch | images/s | ms of it on the GPU | images/s of the GPU"
        " | GPU GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in data["results"]:
        times = {stage: spread["p50"] for stage, spread in case["milliseconds_per_batch"].items()}
        model = sum(times.get(stage, 0.0) for stage in ("transfer", "backbone", "neck", "rpn", "roi"))
        cells = (
            *(case["model"], case["precision"], case["batch_size"]),
            *(f"{times['total']:.1f}", f"{case['images_per_second']:.1f}"),
            *(f"{model:.1f}", f"{1000 * case['batch_size'] / model:.1f}"),
            f"{case['peak_gpu_memory_gib']:.2f}",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def markdown(stamp: dict[str, Any], steps: list[Step]) -> str:
    """The report for people."""
    lines = [f"# {stamp['gpu']}", "", "```json", json.dumps(stamp, indent=2), "```", ""]
    lines += ["| step | result | seconds |", "|---|---|---|"]
    lines += [f"| {step.name} | {step.result} | {step.seconds} |" for step in steps]
    for step in steps:
        if step.table:
            lines += ["", f"## {step.name.capitalize()}", "", step.table]
    for step in steps:
        if step.output:
            lines += ["", f"## Failed: {step.name}", "", "```", step.output.strip(), "```"]
    return "\n".join(lines) + "\n"


STAMP = """
import json, torch
if not torch.cuda.is_available():
    raise SystemExit("no GPU was found")
stamp = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
try:
    from dcnzoo.hardware import hardware_stamp
    stamp = hardware_stamp(torch.device("cuda"))
except Exception as error:  # a package that does not work is no reason to test nothing
    stamp["incomplete"] = repr(error)
print(json.dumps(stamp))
"""
"""Run apart: it takes memory of the GPU, and what was not built yet cannot be loaded later."""


def machine() -> dict[str, Any]:
    """What the numbers depend on, as it is now.

    Raises:
        SystemExit: there is no GPU, it does not answer, or there is no PyTorch.
    """
    command = python("-c", STAMP)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=90)
    except subprocess.TimeoutExpired as error:
        raise SystemExit("the GPU does not answer") from error
    if done.returncode != 0:
        raise SystemExit(done.stderr.strip().rpartition("\n")[2])
    stamp: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    missing = [module for module in RUNTIME + TESTING if find_spec(module) is None]
    return stamp | ({"missing": missing} if missing else {})


def end(*_: object) -> None:
    """Ends the program, and what it runs, when it is told to."""
    sys.exit(1)


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="In 8 minutes at most; the usual form.")
    form.add_argument("--full", action="store_true", help="All models, every kernel.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--seconds", type=int, help="For all steps.")
    options = parser.parse_args()
    start = time.monotonic()
    signal.signal(signal.SIGTERM, end)
    stamp = machine()
    seconds = options.seconds or (10**6 if options.full else QUICK_SECONDS)
    options.out.mkdir(parents=True, exist_ok=True)
    gpu = re.sub(r"[^a-z0-9]+", "-", stamp["gpu"].partition(",")[0].lower()).strip("-")
    path = options.out / f"{gpu}-{datetime.now(timezone.utc):%Y-%m-%d}"
    with TemporaryDirectory() as folder:
        runner = Runner(options.full, Path(folder), start + seconds, path, stamp)
        runner.log.unlink(missing_ok=True)
        runner.run_all()
    print(markdown(runner.stamp, runner.steps))
    print(f"wrote {path}.json and .md, and {runner.log}", file=sys.stderr)
    return 0 if all(step.passed for step in runner.steps) else 1


if __name__ == "__main__":
    sys.exit(main())

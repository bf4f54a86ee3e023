"""What `gpu_check.sh` runs: build, tests, benchmarks and sanitizer on a GPU, and the report on them.

A step that lacks a package, a program or time is left out, and the report says why. Each step is a process of
its own, for an error of a kernel spoils a process for all others: tests that such an error or a hang has kept
from running run in the next process. The report is written anew after every step, and the log beside it has
all that the steps print. What a first call had no time for, a second one makes up with `--only`: the build
stays.
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

ROOT = Path(__file__).resolve().parents[1]
TAIL = 4000
"""Characters of a failed step's output that the report keeps."""

QUICK_SECONDS = 465
"""Of the quick form, all steps together; with what lies between them it takes 8 minutes at most."""

PARTS = (
    *("build", "tests", "wgmma-tests", "operators", "wgmma", "detectors", "profile", "parity"),
    *("memcheck", "racecheck"),
)
"""What there is to do, in order: what is right, then what to tune, then the rest."""

ONLY_FULL = ("racecheck",)
NO_TIME = "no time was left"

CONVOLUTION_TESTS = "tests/ops/test_gpu_deform_conv2d.py"
MOST_PROCESSES = 3
"""For the tests of a step, of which each new one takes up those that the last has not come to."""

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
        tests: how many passed, failed and were skipped; one that ended its process has failed.
        table: Markdown of its own.
        data: numbers of its own.
        part: of `PARTS`.
        begin: where in the log its output begins.
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
    part: str = ""
    begin: int = 0

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
        if self.missing:
            pass  # the caller knows why
        elif lacking:
            self.missing = f"needs {', '.join(lacking)}"
        elif shutil.which(program) is None:
            self.missing = f"needs {program}"
        elif left < 10:
            self.missing = NO_TIME
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
            self.begin = file.tell()
            self.code = run_group(self.command, os.environ | self.environment, file, limit)
            self.seconds = round(time.monotonic() - start, 1)
            how = "stopped" if self.code is None else f"ended with exit code {self.code}"
            file.write(f"\n=== {how} after {self.seconds} s\n".encode())
        if self.code != 0:
            self.output = self.said(log)[-TAIL:]

    def said(self, log: Path) -> str:
        """What it printed, before another step has run."""
        return log.read_bytes()[self.begin :].decode(errors="replace") if log.exists() else ""


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
        parts: of `PARTS`, which are run.
        steps: that were run.
    """

    full: bool
    folder: Path
    deadline: float
    path: Path
    stamp: dict[str, Any]
    parts: tuple[str, ...] = PARTS
    steps: list[Step] = field(default_factory=list)
    _part: str = ""

    @property
    def log(self) -> Path:
        """Gets all that the steps print."""
        return self.path.with_suffix(".log")

    def write(self) -> None:
        """Writes the report on the steps so far."""
        report = {"stamp": self.stamp, "full": self.full, "steps": [asdict(step) for step in self.steps]}
        self.path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        self.path.with_suffix(".md").write_text(markdown(self.stamp, self.steps), encoding="utf-8")

    def run_all(self) -> None:
        """Runs the parts one after the other; without a build there is nothing to test."""
        run: dict[str, Callable[[], object]] = {
            "tests": self.tests_of_kernels,
            "wgmma-tests": self.tests_of_wgmma,
            "operators": self.operators,
            "wgmma": self.wgmma,
            "detectors": self.detectors,
            "profile": self.profile,
            "parity": self.parity,
            "memcheck": lambda: self.sanitize("memcheck"),
            "racecheck": lambda: self.sanitize("racecheck"),
        }
        for part in PARTS:
            if part not in self.parts or (part in ONLY_FULL and self.parts == PARTS and not self.full):
                continue
            self._part = part
            if part != "build":
                run[part]()
            elif not self.build():
                return

    def run(self, step: Step) -> Step:
        """Runs a step and keeps it."""
        step.part = self._part
        step.run(self.deadline, self.log)
        self.steps.append(step)
        self.write()
        return step

    def limit(self, quick: int, full: int) -> int:
        """Seconds of a step."""
        return full if self.full else quick

    def build(self) -> bool:
        """Compiles; products that wait for each other are said to be a failure, but can be run."""
        step = Step("build", python("setup.py", "build_ext", "--inplace"), 900, {"DCNZOO_CUDA": "1"})
        step.needs = ("setuptools",)
        built = self.run(step).passed
        if "serialized" in step.said(self.log):  # no warning to ptxas
            step.fail("nvcc has serialized wgmma: see the log")
        if built:
            try:
                self.stamp = machine()
            except SystemExit as error:  # the steps will say more
                self.stamp["incomplete"] = str(error)
        self.write()
        return built

    def tests_of_kernels(self) -> None:
        """Each file by itself, and of the convolution the gradients; without pytest, comparisons."""
        others = [file for file in cuda_tests() if file != CONVOLUTION_TESTS]
        for name, keyword, file, limit in (
            ("convolution", "not wgmma and not gradients", CONVOLUTION_TESTS, 75),
            ("gradients of the convolution", "not wgmma and gradients", CONVOLUTION_TESTS, 45),
            *((Path(file).stem.removeprefix("test_"), "not wgmma", file, 45) for file in others),
        ):
            selection = ["-m", "cuda", "-k", keyword, file]
            step = self.tests(f"tests of {name}", selection, self.limit(limit, 900))
            if step.missing.startswith("needs pytest"):
                return self.comparisons("without", ("convolution", "gradients", "pooling", "suppression"))
        return None

    def tests_of_wgmma(self) -> None:
        """Likewise, of the kernels that estimates do not choose."""
        selection = ["-m", "cuda", "-k", "wgmma", CONVOLUTION_TESTS]
        if self.tests("tests of wgmma", selection, self.limit(45, 900)).missing.startswith("needs pytest"):
            self.comparisons("only", ("convolution",))

    def comparisons(self, wgmma: str, subjects: tuple[str, ...]) -> None:
        """What the tests compare, without pytest."""
        for subject in subjects:
            command = python("scripts/compare_gpu_ops.py", "--wgmma", wgmma, "--subject", subject)
            name = f"comparisons, {subject}" + (" by wgmma" if wgmma == "only" else "")
            self.numbers(Step(name, command, self.limit(45, 900)), lambda _: "")

    @property
    def wgmma_is_wrong(self) -> bool:
        """Whether its tests have run and not passed."""
        steps = [step for step in self.steps if step.part == "wgmma-tests" and not step.missing]
        return not all(step.passed for step in steps)

    def run_if_wgmma_is_right(self, step: Step, table: Callable[[Any], str]) -> None:
        """Runs a step that uses kernels with wgmma."""
        if self.wgmma_is_wrong:
            step.missing = "the tests of wgmma did not pass"
        self.numbers(step, table)

    def operators(self) -> None:
        """The deformable convolution and what is beside it in a detector, timed."""
        quick = ["--precision", "fp16", "bf16", "tf32", "--repeats", "9", "--extras"]
        command = python("scripts/bench_ops_gpu.py", *(["--sweep", "--extras"] if self.full else quick))
        self.numbers(Step("deformable convolution", command, self.limit(120, 3600)), operator_table)

    def wgmma(self) -> None:
        """The same of the kernels with wgmma, by which the planner's estimates would compute most layers."""
        command = python("scripts/bench_ops_gpu.py", "--sweep-wgmma", "--precision", "fp16", "bf16")
        command += ["--no-torchvision", "--repeats", "15" if self.full else "5"]
        step = Step("deformable convolution, wgmma", command, self.limit(60, 1800))
        self.run_if_wgmma_is_right(step, operator_table)

    def detectors(self) -> None:
        """Whole detectors: stages, then the GPU's share with graphs, search and two batches in flight."""
        models = "*" if self.full else QUICK_MODELS[0]
        precisions = "fp32,tf32,fp16,bf16" if self.full else "fp16"
        command = python("-m", "dcnzoo", "bench", "--weights", "random", "--device", "cuda", "--warmup", "4")
        command += ["--model", models, "--precision", precisions, "--batch-size", "1,8", "--no-cuda-graphs"]
        step = Step("detectors, stages", command, self.limit(60, 7200), needs=RUNTIME)
        self.numbers(step, detector_table)
        command = python("scripts/bench_detector_gpu.py", "--precision", "fp16", "bf16")
        step = Step("detectors on the GPU", command, self.limit(75, 600), needs=RUNTIME)
        self.numbers(step, gpu_detector_table)
        step = Step("detectors on the GPU, wgmma", command[:-1], self.limit(45, 600), USE_WGMMA, RUNTIME)
        self.run_if_wgmma_is_right(step, gpu_detector_table)

    def profile(self) -> None:
        """What keeps the convolution from being faster, where the profiler is."""
        command = [find_tool("ncu"), "--clock-control", "none", "-k", "regex:mma_kernel", "-c", "6"]
        for section in ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats"):
            command += ["--section", section]
        command += python("scripts/bench_ops_gpu.py", "--once")
        for name, environment in (("profile", {}), ("profile, wgmma", USE_WGMMA)):
            step = Step(name, command, self.limit(45, 300), environment)
            if environment and self.wgmma_is_wrong:
                step.missing = "the tests of wgmma did not pass"
            self.run(step)
            if step.passed:
                step.table = f"```\n{step.said(self.log).strip()}\n```"
            self.write()

    def parity(self) -> None:
        """The detectors against the recordings."""
        models = [] if self.full else ["-k", " or ".join(QUICK_MODELS[:2])]
        selection = ["-m", "parity and cuda", "tests/parity/test_reference_outputs.py", *models]
        self.tests("parity", selection, self.limit(100, 3600), ("pycocotools",) if self.full else ())

    def sanitize(self, tool: str) -> None:
        """The kernels under compute-sanitizer, those with wgmma by themselves."""
        self.run(sanitizer_step(tool, "without", self.limit(75, 600)))
        self.run(sanitizer_step(tool, "only", self.limit(45, 600)))

    def tests(self, name: str, selection: list[str], limit: int, needs: tuple[str, ...] = ()) -> Step:
        """Runs tests; what became of each is read from what pytest prints, which a crash does not take back.

        A warning of a version that CI has not seen is no failure here, and plugins that happen to be
        installed are none of the tests' business.

        Returns:
            The first step; there are more where it has not come to all tests.
        """
        command = python("-m", "pytest", "--verbosity=1", "--color=no", "-W", "default", *selection)
        results: dict[str, str] = {}
        steps: list[Step] = []
        for process in range(1, MOST_PROCESSES + 1):
            seen = [f"--deselect={test}" for test in results]
            step = Step(name + (f", process {process}" if seen else ""), [*command, *seen], limit)
            step.environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
            step.needs = TESTING + RUNTIME + needs
            steps.append(self.run(step))
            if process > 1 and step.code == NO_TESTS:  # what has ended the process before was the last test
                self.steps.remove(step)
                self.write()
                break
            found = results_of(step.said(self.log))
            step.tests = counts_of(found) if found else {}
            self.write()
            results |= found
            if step.missing or step.code in (0, NO_TESTS) or not found or has_ended(step, found):
                break
        return steps[0]

    def numbers(self, step: Step, table: Callable[[Any], str]) -> None:
        """Runs a step that writes numbers as JSON; `table` makes Markdown of them."""
        path = self.folder / "numbers.json"
        path.unlink(missing_ok=True)
        step.command = [*step.command, "--json", str(path)]
        self.run(step)
        if path.exists():
            try:
                step.data = json.loads(path.read_text(encoding="utf-8"))
                step.table = table(step.data)
            except Exception as error:
                step.fail(f"the numbers cannot be read: {error!r}")
            self.write()


USE_WGMMA = {"DCNZOO_CUDA_WGMMA": "1"}

NO_TESTS = 5
"""Pytest's exit code where every test was deselected."""

ENDED = "ended"
"""Result of a test that has taken its process with it."""


def cuda_tests() -> list[str]:
    """Files with tests for a GPU, for others may need packages that these do without."""
    files = (path for part in ("ops", "unit", "cli") for path in (ROOT / "tests" / part).glob("test_*.py"))
    named = [path for path in files if "mark.cuda" in path.read_text(encoding="utf-8")]
    return sorted(str(path.relative_to(ROOT)) for path in named)


def results_of(printed: str) -> dict[str, str]:
    """What became of each test, by what `pytest -v` has printed."""
    test = r"\S+\.py::[^\s\[]+(?:\[.*?\](?=\s|$))?"  # a crash may say more in the same line
    result = r"(?: (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b)?"
    results: dict[str, str] = {}
    for name, became in re.findall(f"^({test}){result}", printed, re.MULTILINE):
        if not became:  # or its warnings are listed
            results.setdefault(name, ENDED)
        elif results.get(name) not in ("FAILED", "ERROR"):  # of a test and its fixtures the worst
            results[name] = became
    return results


def counts_of(results: dict[str, str]) -> dict[str, int]:
    """How many tests passed, failed and were skipped."""
    names = {"PASSED": "passed", "SKIPPED": "skipped", "XFAIL": "skipped"}
    kinds = [names.get(result, "failed") for result in results.values()]
    return {kind: kinds.count(kind) for kind in ("passed", "failed", "skipped")}


def has_ended(step: Step, results: dict[str, str]) -> bool:
    """Whether a process has come to all of its tests, some of which failed."""
    return step.code == 1 and ENDED not in results.values()


def sanitizer_step(tool: str, wgmma: str, limit: int) -> Step:
    """The kernels under compute-sanitizer; each tensor has memory of its own: no overrun is missed.

    Errors of CUDA's own functions are not reported: PyTorch asks for what may not be there, and goes on.
    """
    command = [
        find_tool("compute-sanitizer"),
        "--tool",
        tool,
        "--report-api-errors",
        "no",
        "--error-exitcode",
        "1",
    ]
    command += python("scripts/sanitize_gpu_ops.py", "--wgmma", wgmma)
    name = f"compute-sanitizer {tool}" + (", wgmma" if wgmma == "only" else "")
    return Step(name, command, limit, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def find_tool(name: str) -> str:
    """Program on the PATH, or beside nvcc."""
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent / name if nvcc else None
    return str(beside) if shutil.which(name) is None and beside and beside.exists() else name


def operator_table(data: dict[str, Any]) -> str:
    """Markdown of the operator's benchmark."""
    from bench_ops_gpu import tables

    return "\n".join(tables(data))


def gpu_detector_table(data: dict[str, Any]) -> str:
    """Markdown of the detectors' time on the GPU."""
    from bench_detector_gpu import table

    return "\n".join(table(data))


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
    late = sorted({step.part for step in steps if step.missing == NO_TIME}, key=PARTS.index)
    if late:
        lines += ["", f"For what had no time: `scripts/gpu_check.sh --only {' '.join(late)}`"]
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
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="After a build: go on with these."
    )
    options = parser.parse_args()
    start = time.monotonic()
    signal.signal(signal.SIGTERM, end)
    stamp = machine()
    seconds = options.seconds or (10**6 if options.full else QUICK_SECONDS)
    options.out.mkdir(parents=True, exist_ok=True)
    gpu = re.sub(r"[^a-z0-9]+", "-", stamp["gpu"].partition(",")[0].lower()).strip("-")
    path = options.out / f"{gpu}-{datetime.now(timezone.utc):%Y-%m-%d-%H%M%S}"
    with TemporaryDirectory() as folder:
        runner = Runner(options.full, Path(folder), start + seconds, path, stamp, tuple(options.only))
        runner.run_all()
    print(markdown(runner.stamp, runner.steps))
    print(f"wrote {path}.json and .md, and {runner.log}", file=sys.stderr)
    return 0 if all(step.passed for step in runner.steps) else 1


if __name__ == "__main__":
    sys.exit(main())

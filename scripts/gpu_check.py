"""What `gpu_check.sh` runs: build, tests, benchmarks and sanitizer on a GPU, and the report on them.

A step that lacks a package, a program or time is left out, and the report says why.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
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
    "pycocotools",
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
        code: its exit code; None if it was stopped or never ran.
        seconds: that it took.
        output: the end of what it printed, if it failed.
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

    def run(self, deadline: float) -> None:
        """Runs it; a step that fails ends no other."""
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
            self._run(min(self.limit, left))
        print(f"  {self.result} after {self.seconds} s", file=sys.stderr)

    def _run(self, limit: int) -> None:
        start = time.monotonic()
        try:
            done = subprocess.run(
                self.command,
                cwd=ROOT,
                env=os.environ | self.environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=limit,
            )
            self.code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"").decode(errors="replace") + f"\nstopped after {limit} s"
        self.seconds = round(time.monotonic() - start, 1)
        self.output = output[-TAIL:] if self.code != 0 else ""


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
        steps: that were run.
    """

    full: bool
    folder: Path
    deadline: float
    steps: list[Step] = field(default_factory=list)

    def run_all(self) -> None:
        """Runs the steps one after the other; without a build there is nothing to test."""
        build = Step("build", python("setup.py", "build_ext", "--inplace"), 900, {"DCNZOO_CUDA": "1"})
        build.needs = ("setuptools",)
        if not self.run(build).passed:
            return
        self.compare()
        self.parity()
        self.benchmarks()
        for tool in ("memcheck", "racecheck") if self.full else ("memcheck",):
            self.run(sanitizer_step(tool))

    def run(self, step: Step) -> Step:
        """Runs a step and keeps it."""
        step.run(self.deadline)
        self.steps.append(step)
        return step

    def compare(self) -> None:
        """The operators: all tests, or without pytest the comparisons."""
        cuda_tests = ["-m", "cuda", "tests/ops", "tests/unit", "tests/cli"]
        tests = self.tests("tests on the GPU", cuda_tests, 900)
        if tests.missing:
            name, script = "comparison of the operators", "scripts/compare_gpu_ops.py"
            self.numbers(Step(name, python(script), 900), lambda _: "")

    def parity(self) -> None:
        """The detectors against the recordings."""
        models = [] if self.full else ["-k", " or ".join(QUICK_MODELS[:2])]
        self.tests("parity", ["-m", "parity and cuda", "tests/parity", *models], 3600 if self.full else 150)

    def benchmarks(self) -> None:
        """The operator and the detectors."""
        options = ["--sweep"] if self.full else ["--precision", "fp16", "tf32", "--repeats", "9"]
        operators = Step("deformable convolution", python("scripts/bench_ops_gpu.py", *options), 3600)
        self.numbers(operators, operator_table)
        models = "*" if self.full else QUICK_MODELS[0]
        for graphs in ("--no-cuda-graphs", "--cuda-graphs"):
            command = python("-m", "dcnzoo", "bench", "--weights", "random", "--device", "cuda", "--quiet")
            command += ["--model", models, "--precision", "fp16", "--batch-size", "1,8", graphs]
            if self.full and graphs == "--no-cuda-graphs":
                command[command.index("fp16")] = "fp32,tf32,fp16,bf16"
            step = Step(f"detectors, {graphs[2:].replace('-', ' ')}", command, 7200, needs=RUNTIME)
            self.numbers(step, detector_table)

    def tests(self, name: str, selection: list[str], limit: int) -> Step:
        """Runs tests; their counts are read from JUnit's XML."""
        xml = self.folder / f"{re.sub(r'[^a-z]+', '-', name.lower())}.xml"
        command = python("-m", "pytest", "-q", "--junit-xml", str(xml), *selection)
        step = self.run(Step(name, command, limit, needs=TESTING + RUNTIME))
        if xml.exists():
            suite = next(ElementTree.parse(xml).getroot().iter("testsuite"))
            total, bad, skipped = (
                sum(int(suite.attrib[key]) for key in keys)
                for keys in (("tests",), ("failures", "errors"), ("skipped",))
            )
            step.tests = {"passed": total - bad - skipped, "failed": bad, "skipped": skipped}
        return step

    def numbers(self, step: Step, table: Callable[[Any], str]) -> None:
        """Runs a step that writes numbers as JSON; `table` makes Markdown of them."""
        path = self.folder / "numbers.json"
        path.unlink(missing_ok=True)
        step.command += ["--json", str(path)]
        self.run(step)
        if path.exists():
            step.data = json.loads(path.read_text(encoding="utf-8"))
            step.table = table(step.data)


def sanitizer_step(tool: str) -> Step:
    """The kernels under compute-sanitizer; each tensor has memory of its own: no overrun is missed."""
    program = find_sanitizer()
    command = [program, "--tool", tool, "--error-exitcode", "1", *python("scripts/sanitize_gpu_ops.py")]
    return Step(f"compute-sanitizer {tool}", command, 600, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


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


def machine() -> dict[str, Any]:
    """What the numbers depend on.

    Raises:
        SystemExit: there is no GPU, or no PyTorch.
    """
    try:
        import torch
    except ImportError as error:
        raise SystemExit(f"{error}; install what pyproject.toml lists") from error
    if not torch.cuda.is_available():
        raise SystemExit("no GPU was found")
    missing = [module for module in RUNTIME + TESTING if find_spec(module) is None]
    try:
        from dcnzoo.hardware import hardware_stamp

        stamp = hardware_stamp(torch.device("cuda"))
    except Exception as error:  # a package that does not work is no reason to test nothing
        stamp = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "incomplete": str(error)}
    return stamp | ({"missing": missing} if missing else {})


def main() -> int:
    """Runs the program."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="All models, every kernel.")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--seconds", type=int, help="For all steps.")
    options = parser.parse_args()
    stamp = machine()
    seconds = options.seconds or (10**6 if options.full else QUICK_SECONDS)
    with TemporaryDirectory() as folder:
        runner = Runner(options.full, Path(folder), time.monotonic() + seconds)
        runner.run_all()
    options.out.mkdir(parents=True, exist_ok=True)
    gpu = re.sub(r"[^a-z0-9]+", "-", stamp["gpu"].partition(",")[0].lower()).strip("-")
    path = options.out / f"{gpu}-{datetime.now(timezone.utc):%Y-%m-%d}"
    report = {"stamp": stamp, "full": options.full, "steps": [asdict(step) for step in runner.steps]}
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(stamp, runner.steps), encoding="utf-8")
    print(markdown(stamp, runner.steps))
    print(f"wrote {path}.json and .md", file=sys.stderr)
    return 0 if all(step.passed for step in runner.steps) else 1


if __name__ == "__main__":
    sys.exit(main())

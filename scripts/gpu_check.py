"""What `gpu_check.sh` runs: build, tests, sanitizer and benchmarks on a GPU, and the report on them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import click

ROOT = Path(__file__).resolve().parents[1]
TAIL = 4000
"""Characters of a failed step's output that the report keeps."""

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

    def run(self) -> None:
        """Runs it; a step that fails ends no other."""
        click.echo(f"{self.name}: {' '.join(self.command)}", err=True)
        start = time.monotonic()
        environment = os.environ | self.environment
        try:
            done = subprocess.run(
                self.command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=self.limit,
            )
            self.code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b"").decode(errors="replace") + f"\nstopped after {self.limit} s"
        except FileNotFoundError as error:
            output = str(error)
        self.seconds = round(time.monotonic() - start, 1)
        self.output = output[-TAIL:] if self.code else ""
        click.echo(f"  {'ok' if self.code == 0 else 'FAILED'} after {self.seconds} s", err=True)


def python(*arguments: str) -> list[str]:
    """A command of this interpreter."""
    return [sys.executable, *arguments]


def pytest_step(name: str, selection: list[str], limit: int, folder: Path) -> Step:
    """A step that runs tests; its counts are read from JUnit's XML."""
    xml = folder / f"{re.sub(r'[^a-z]+', '-', name)}.xml"
    step = Step(name, python("-m", "pytest", "-q", "--junit-xml", str(xml), *selection), limit)
    step.run()
    if xml.exists():
        suite = next(ElementTree.parse(xml).getroot().iter("testsuite"))
        total, bad, skipped = (
            sum(int(suite.attrib[key]) for key in keys)
            for keys in (("tests",), ("failures", "errors"), ("skipped",))
        )
        step.tests = {"passed": total - bad - skipped, "failed": bad, "skipped": skipped}
    return step


def benchmark_step(name: str, command: list[str], limit: int, folder: Path) -> Step:
    """A step that writes numbers as JSON, and prints a table."""
    path = folder / "numbers.json"
    path.unlink(missing_ok=True)
    step = Step(name, [*command, "--json", str(path)], limit)
    step.run()
    if path.exists():
        step.data = json.loads(path.read_text(encoding="utf-8"))
    return step


def run_all(full: bool, folder: Path) -> list[Step]:
    """Runs the steps one after the other; without a build there is nothing to test."""
    build = Step("build", python("setup.py", "build_ext", "--inplace"), 600, {"DCNZOO_CUDA": "1"})
    build.run()
    if build.code:
        return [build]
    steps = [
        build,
        pytest_step("tests of the operators", ["-m", "cuda", "tests/ops", "tests/cli"], 900, folder),
    ]
    models = [] if full else ["-k", " or ".join(f"{name}-cuda" for name in QUICK_MODELS)]
    steps.append(pytest_step("parity", ["-m", "parity and cuda", "tests/parity", *models], 3600, folder))
    for tool in ("memcheck", "racecheck") if full else ("memcheck",):
        steps.append(sanitizer_step(tool))
    operators = python("scripts/bench_ops_gpu.py", *(["--sweep"] if full else []))
    steps.append(benchmark_step("deformable convolution", operators, 3600 if full else 120, folder))
    steps[-1].table = operator_table(steps[-1].data)
    detectors = python("-m", "dcnzoo", "bench", "--weights", "random", "--device", "cuda", "--quiet")
    names = ["*"] if full else QUICK_MODELS
    detectors += ["--model", ",".join(names), "--precision", "fp32,fp16", "--batch-size", "1,8"]
    steps.append(benchmark_step("detectors", detectors, 7200 if full else 240, folder))
    steps[-1].table = detector_table(steps[-1].data)
    return steps


def sanitizer_step(tool: str) -> Step:
    """The kernels under compute-sanitizer; each tensor has memory of its own: no overrun is missed."""
    program = shutil.which("compute-sanitizer") or "compute-sanitizer"
    command = [program, "--tool", tool, "--error-exitcode", "1", *python("scripts/sanitize_gpu_ops.py")]
    step = Step(f"compute-sanitizer {tool}", command, 600, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    step.run()
    return step


def operator_table(data: dict[str, Any] | None) -> str:
    """Markdown of the operator's benchmark."""
    if data is None:
        return ""
    from bench_ops_gpu import Timing, table

    return "\n".join(table([Timing(**timing) for timing in data["timings"]]))


def detector_table(data: dict[str, Any] | None) -> str:
    """Markdown of the detectors' benchmark."""
    if data is None:
        return ""
    lines = ["| model | precision | batch | ms per batch | images/s | GPU GiB |", "|---|---|---|---|---|---|"]
    for case in data["results"]:
        cells = (
            *(case["model"], case["precision"], case["batch_size"]),
            f"{case['milliseconds_per_batch']['total']['p50']:.1f}",
            *(f"{case['images_per_second']:.1f}", f"{case['peak_gpu_memory_gib']:.2f}"),
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def markdown(stamp: dict[str, Any], steps: list[Step]) -> str:
    """The report for people."""
    lines = [f"# {stamp['gpu']}", "", "```json", json.dumps(stamp, indent=2), "```", ""]
    lines += ["| step | result | seconds |", "|---|---|---|"]
    for step in steps:
        result = "passed" if step.passed else "**failed**"
        if step.tests:
            result += ": " + ", ".join(f"{count} {what}" for what, count in step.tests.items())
        lines.append(f"| {step.name} | {result} | {step.seconds} |")
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
        click.ClickException: there is no GPU, or a package is missing.
    """
    try:
        import torch

        from dcnzoo.hardware import hardware_stamp
    except ImportError as error:
        raise click.ClickException(f"{error}; install what pyproject.toml lists") from error
    if not torch.cuda.is_available():
        raise click.ClickException("no GPU was found")
    try:
        return hardware_stamp(torch.device("cuda"))
    except Exception as error:  # a package that does not work is no reason to test nothing
        return {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "incomplete": str(error)}


@click.command(help=__doc__)
@click.option("--full", is_flag=True, help="All models, every kernel.")
@click.option("--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "benchmarks")
def main(full: bool, out: Path) -> None:
    """Runs the program."""
    stamp = machine()
    with TemporaryDirectory() as folder:
        steps = run_all(full, Path(folder))
    out.mkdir(parents=True, exist_ok=True)
    gpu = re.sub(r"[^a-z0-9]+", "-", stamp["gpu"].partition(",")[0].lower()).strip("-")
    path = out / f"{gpu}-{datetime.now(timezone.utc):%Y-%m-%d}"
    report = {"stamp": stamp, "full": full, "steps": [asdict(step) for step in steps]}
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(markdown(stamp, steps), encoding="utf-8")
    click.echo(markdown(stamp, steps))
    click.echo(f"wrote {path}.json and .md", err=True)
    if not all(step.passed for step in steps):
        raise SystemExit(1)


if __name__ == "__main__":
    main()

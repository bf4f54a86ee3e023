"""Compiles the CUDA kernels for every target, warnings as errors, and reports what they take.

Needs nvcc, no GPU. A kernel that spills more than a few registers to memory is an error too.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from tempfile import TemporaryDirectory

import click

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
MOST_SPILLS = 256
"""Bytes: what a few invariants of a loop take; more means that the accumulators do not fit."""


@dataclass(frozen=True)
class Kernel:
    """What a kernel takes, in registers per thread and bytes."""

    name: str
    target: str
    registers: int
    stack: int
    spills: int


def targets() -> list[str]:
    """Compute capabilities that the kernels are compiled for, without the dots."""
    return (SOURCES / "targets.txt").read_text(encoding="ascii").split()


def compile_source(nvcc: str, source: Path, target: str, folder: Path) -> list[Kernel]:
    """Compiles a file for one target.

    Raises:
        click.ClickException: nvcc fails or warns, or must wait for each wgmma before the next.
    """
    command = [nvcc, "-std=c++17", "-O3", f"-gencode=arch=compute_{target},code=sm_{target}"]
    command += ["--Werror=all-warnings", "-Xcompiler=-Wall,-Wextra,-Werror", "-Xptxas=-v", "-c"]
    run = subprocess.run(
        [*command, str(source), "-o", str(folder / f"{source.stem}.{target}.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode:
        raise click.ClickException(f"{source.name} for sm_{target}:\n{run.stdout}{run.stderr}")
    if "serialized" in run.stderr:  # no warning to ptxas
        raise click.ClickException(f"{source.name} for sm_{target}: wgmma serialized\n{run.stderr}")
    return list(parse(run.stderr, target))


def parse(log: str, target: str) -> Iterator[Kernel]:
    """Reads what ptxas says of each kernel."""
    for part in log.split("Compiling entry function ")[1:]:
        stack, stores = (int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores)", part)[:2])
        registers = int(re.findall(r"Used (\d+) registers", part)[0])
        yield Kernel(readable(part.split("'")[1]), target, registers, stack, stores)


def readable(symbol: str) -> str:
    """A kernel's name without the namespaces that every one of them has."""
    if shutil.which("c++filt"):
        run = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True)
        name = run.stdout.strip().removeprefix("void ").partition("(dcnzoo")[0]
        return re.sub(r"dcnzoo::cuda::|\(anonymous namespace\)::", "", name)
    return symbol


@click.command(help=__doc__)
@click.option("--target", "chosen", multiple=True, help="Only these, such as 80 or 90a.")
def main(chosen: tuple[str, ...]) -> None:
    """Runs the program."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise click.ClickException("there is no nvcc")
    sources = sorted(SOURCES.glob("*.cu"), key=lambda source: source.stat().st_size, reverse=True)
    with TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        pairs = product(sources, chosen or targets())  # the largest first: none waits for it at the end
        compiled = list(pool.map(lambda pair: compile_source(nvcc, *pair, Path(folder)), pairs))
    kernels = sorted(chain(*compiled), key=lambda kernel: int(kernel.target.rstrip("a")))
    for kernel in kernels:
        click.echo(
            f"sm_{kernel.target:4} {kernel.registers:3} registers {kernel.stack:4} B stack"
            f" {kernel.spills:4} B spilled  {kernel.name}"
        )
    spilled = [kernel for kernel in kernels if kernel.spills > MOST_SPILLS]
    if spilled:
        raise click.ClickException(f"spilled more than {MOST_SPILLS} B: {spilled}")


if __name__ == "__main__":
    sys.exit(main())

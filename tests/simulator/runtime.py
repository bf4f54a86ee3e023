"""Lets PyTorch believe that there is a GPU: what a process needs for that, and how it is built.

    python -m tests.simulator.runtime dcnzoo predict --device cuda …

runs a command with such a GPU. Libraries that take the place of the CUDA runtime and the driver are loaded
before PyTorch is (runtime.cpp, driver.cpp); its own kernels are replaced by its operators for CPUs
(operators.cpp), and the project's kernels run as PTX (machine.h). DCNZOO_SIMULATOR names a folder that keeps
what is built; runtime.cpp says what else the environment sets.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from tests.simulator import machine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TARGETS = {"h100": "90a", "a100": "80"}
LIBRARIES = {"runtime": "libcudart.so.13", "driver": "libcuda.so.1", "operators": "liboperators.so"}
WARNINGS = ("-Xcompiler=-fPIC,-Wall,-Wextra,-Werror",)
SHARED = ("-shared", "-cudart", "none")
UNUSED = """\
#include <cstdio>
#include <cstdlib>
#define UNUSED(name) \\
  extern "C" void name() { std::fprintf(stderr, "simulated GPU: there is no %s\\n", #name), std::abort(); }
"""
"""Functions that PyTorch is linked to and nothing calls."""


def obstacle() -> str | None:
    """Why there can be no simulated GPU here; None if there can."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if not (torch_folder() / "lib" / "libtorch_cuda.so").exists():
        return "PyTorch has its parts for CUDA elsewhere"
    for program in ("nvcc", "g++", "nm"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    if torch.version.cuda.partition(".")[0] not in _run("nvcc", "--version").partition("release ")[2][:3]:
        return "nvcc and PyTorch are of different versions of CUDA"
    if not list((ROOT / "dcnzoo").glob("_C_cuda*.so")):
        return "the CUDA kernels are not compiled"
    return None


def torch_folder() -> Path:
    return Path(torch.__file__).parent


def built(folder: Path, gpu: str = "h100") -> dict[str, str]:
    """Builds what is not in the folder yet.

    Returns:
        Environment of a process that shall have such a GPU, out of `TARGETS`.
    """
    ptx = folder / gpu
    steps: list[Callable[[], object]] = []
    if not (folder / LIBRARIES["runtime"]).exists():
        folder.mkdir(parents=True, exist_ok=True)
        steps += [partial(_operators, folder), partial(_runtime, folder), partial(_driver, folder)]
    if not ptx.exists():
        ptx.mkdir(parents=True)
        for source in machine.KERNEL_SOURCES:
            steps.append(partial(machine.compile_ptx, source, TARGETS[gpu], ptx))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(step) for step in steps]:
            done.result()
    preloaded = [str(folder / LIBRARIES[name]) for name in ("runtime", "driver")]
    return {
        "LD_PRELOAD": ":".join(filter(None, [*preloaded, os.environ.get("LD_PRELOAD")])),
        "SIMULATOR_GPU": gpu,
        "SIMULATOR_OPERATORS": str(folder / LIBRARIES["operators"]),
        "SIMULATOR_PTX": str(ptx),
    }


def _run(*command: object) -> str:
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{run.stdout}{run.stderr}")
    return run.stdout


def _runtime(folder: Path) -> None:
    compiled, executor = folder / "runtime.o", folder / "libmachine.so"
    machine.build(executor)
    _run("nvcc", "-std=c++17", "-O2", *WARNINGS, f"-I{HERE}", "-c", HERE / "runtime.cpp", "-o", compiled)
    wanted = _imported("lib*torch*.so", of="libcudart") | _imported("libc10_cuda.so", of="libcudart")
    shown = _run("nm", "--defined-only", compiled)
    unused = wanted - {line.split()[-1] for line in shown.splitlines()}
    stubs = _stubs(unused, folder / "unused_runtime.cpp")
    names = f"-Xlinker=-soname,{LIBRARIES['runtime']},--version-script={HERE / 'runtime.map'},-rpath,{folder}"
    linked = [f"-L{folder}", "-lmachine", "-o", folder / LIBRARIES["runtime"]]
    _run("nvcc", *SHARED, *WARNINGS, names, compiled, stubs, *linked)


def _driver(folder: Path) -> None:
    target, linked = folder / LIBRARIES["driver"], f"-Xlinker=-soname,{LIBRARIES['driver']}"
    wanted = {name for name in _imported("libcaffe2_nvrtc.so") if re.match("cu[A-Z]", name)}
    stubs = _stubs(wanted - {"cuDevicePrimaryCtxGetState"}, folder / "unused_driver.cpp")
    _run("nvcc", "-std=c++17", *SHARED, *WARNINGS, linked, HERE / "driver.cpp", stubs, "-o", target)


def _operators(folder: Path) -> None:
    torch = torch_folder()
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-lc10_cuda", "-ltorch_cuda"]
    includes = ["-isystem", torch / "include", "-isystem", torch / "include/torch/csrc/api/include"]
    source, target = HERE / "operators.cpp", folder / LIBRARIES["operators"]
    _run("nvcc", "-std=c++20", "-O1", *SHARED, *WARNINGS, *includes, source, *libraries, "-o", target)


def _imported(libraries: str, of: str = "") -> set[str]:
    """Functions that libraries of PyTorch take from others, or from one other."""
    paths = sorted((torch_folder() / "lib").glob(libraries))
    found = [line.split() for line in _run("nm", "-D", "--undefined-only", *paths).splitlines()]
    names = [parts[-1].partition("@") for parts in found if len(parts) == 2]
    return {name for name, _, version in names if of in version}


def _stubs(names: Iterable[str], path: Path) -> Path:
    path.write_text(UNUSED + "".join(f"UNUSED({name})\n" for name in sorted(names)), encoding="ascii")
    return path


def main(command: Sequence[str]) -> int:
    problem = obstacle()
    if problem is not None:
        raise SystemExit(problem)
    with TemporaryDirectory() as folder:
        kept = Path(os.environ.get("DCNZOO_SIMULATOR", folder))
        environment = built(kept, os.environ.get("SIMULATOR_GPU", "h100"))
        return subprocess.run(command, env=os.environ | environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

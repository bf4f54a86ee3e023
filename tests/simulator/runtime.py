"""Lets PyTorch believe that there is a GPU: what a process needs for that, and how it is built.

    python -m tests.simulator.runtime dcnzoo predict --device cuda …

runs a command with such a GPU. Libraries that take the place of the CUDA runtime and the driver are loaded before
PyTorch is (runtime.cpp, driver.cpp); its own kernels are replaced by its operators for CPUs (operators.cpp), and
the project's kernels run as PTX (machine.h). DCNZOO_SIMULATOR names a folder that keeps what is built.
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

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
KERNELS = ROOT / "csrc" / "cuda"
TARGETS = {"h100": "90a", "a100": "80"}
NAMES = {"runtime": "libcudart.so.13", "driver": "libcuda.so.1", "operators": "liboperators.so"}
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
    for program in ("nvcc", "c++", "nm"):
        if shutil.which(program) is None:
            return f"there is no {program}"
    if not list((ROOT / "dcnzoo").glob("_C_cuda*.so")):
        return "the CUDA kernels are not compiled"
    return None


def torch_folder() -> Path:
    return Path(torch.__file__).parent


def built(folder: Path) -> dict[str, str]:
    """Builds everything that is not in the folder yet; the environment of a process that shall have a GPU."""
    steps: list[Callable[[], object]] = []
    made = folder / "made"
    if not made.exists():
        (folder / "ptx").mkdir(parents=True, exist_ok=True)
        steps += [partial(_operators, folder), partial(_runtime, folder), partial(_driver, folder)]
        for source in sorted(KERNELS.glob("*.cu"), key=lambda path: -path.stat().st_size):
            steps += [partial(_ptx, source, target, folder / "ptx") for target in TARGETS.values()]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done in [pool.submit(step) for step in steps]:
                done.result()
        made.touch()
    preloaded = [str(folder / NAMES[name]) for name in ("runtime", "driver")]
    return {
        "LD_PRELOAD": ":".join(filter(None, [*preloaded, os.environ.get("LD_PRELOAD")])),
        "SIMULATOR_OPERATORS": str(folder / NAMES["operators"]),
        "SIMULATOR_PTX": str(folder / "ptx"),
    }


def _run(*command: object) -> str:
    run = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{run.stdout}{run.stderr}")
    return run.stdout


def _ptx(source: Path, target: str, folder: Path) -> None:
    compiled = folder / f"{source.stem}.{target}.ptx"
    _run("nvcc", "-std=c++17", "-O3", "-ptx", f"-arch=compute_{target}", source, "-o", compiled)


def _runtime(folder: Path) -> None:
    sources = [path for path in HERE.glob("*.cpp") if path.stem not in ("driver", "operators")]
    objects = [folder / f"{source.stem}.o" for source in sources]
    for source, compiled in zip(sources, objects, strict=True):
        _run("nvcc", "-std=c++17", "-O3", *WARNINGS, f"-I{HERE}", "-c", source, "-o", compiled)
    wanted = _imported("lib*torch*.so", of="libcudart") | _imported("libc10_cuda.so", of="libcudart")
    shown = _run("nm", "--defined-only", folder / "runtime.o")
    unused = _unused(wanted - {line.split()[-1] for line in shown.splitlines()}, folder / "unused_runtime.cpp")
    linked = f"-Xlinker=-soname,{NAMES['runtime']},--version-script={HERE / 'runtime.map'}"
    _run("nvcc", *SHARED, *WARNINGS, linked, *objects, unused, "-o", folder / NAMES["runtime"])


def _driver(folder: Path) -> None:
    target, linked = folder / NAMES["driver"], f"-Xlinker=-soname,{NAMES['driver']}"
    wanted = {name for name in _imported("libcaffe2_nvrtc.so") if re.match("cu[A-Z]", name)}
    unused = _unused(wanted - {"cuDevicePrimaryCtxGetState"}, folder / "unused_driver.cpp")
    _run("nvcc", "-std=c++17", *SHARED, *WARNINGS, linked, HERE / "driver.cpp", unused, "-o", target)


def _operators(folder: Path) -> None:
    torch = torch_folder()
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", "-lc10_cuda", "-ltorch_cuda"]
    includes = ["-isystem", torch / "include", "-isystem", torch / "include/torch/csrc/api/include"]
    source, target = HERE / "operators.cpp", folder / NAMES["operators"]
    _run("nvcc", "-std=c++20", "-O1", *SHARED, *WARNINGS, *includes, source, *libraries, "-o", target)


def _imported(libraries: str, of: str = "") -> set[str]:
    """Functions that libraries of PyTorch take from others, or from one other."""
    paths = sorted((torch_folder() / "lib").glob(libraries))
    found = [line.split() for line in _run("nm", "-D", "--undefined-only", *paths).splitlines()]
    names = [parts[-1].partition("@") for parts in found if len(parts) == 2]
    return {name for name, _, version in names if of in version}


def _unused(names: Iterable[str], path: Path) -> Path:
    path.write_text(UNUSED + "".join(f"UNUSED({name})\n" for name in sorted(names)), encoding="ascii")
    return path


def main(command: Sequence[str]) -> int:
    problem = obstacle()
    if problem is not None:
        raise SystemExit(problem)
    with TemporaryDirectory() as folder:
        environment = built(Path(os.environ.get("DCNZOO_SIMULATOR", folder)))
        return subprocess.run(command, env=os.environ | environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Build steps that pyproject.toml cannot express: the native extension and the manifest's copy."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:  # no PyTorch while building: the package runs on torchvision's operators
    BuildExtension = None

STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # torch 2.11
ROUNDING = ["-ffp-contract=off"]  # results that do not depend on what the processor can fuse
COMPILE = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra"]
# For scripts/sanitize.sh: `address,undefined` builds with these checks, which end the process on a finding.
SANITIZERS = os.environ.get("DCNZOO_SANITIZE")
if SANITIZERS:
    COMPILE += [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
    # Under -fwrapv, which Python's flags have, no overflow is an error. Registers are given out by function
    # (GCC only): by regions, as usual, a set of kernels takes ten times as long to compile.
    COMPILE += ["-fno-omit-frame-pointer", "-O1", "-g1", "-fno-wrapv", "-fira-region=one"]
LINK = [f"-fsanitize={SANITIZERS}"] if SANITIZERS else []

# Kernels of one instruction set each, compiled with its flags and without PyTorch's headers, so that
# no inline function shared with the rest of the program is ever built for a newer processor.
KERNEL_FLAGS = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    KERNEL_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    KERNEL_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]
    KERNEL_FLAGS["avx512bf16"] = [*KERNEL_FLAGS["avx512"], "-mavx512bf16"]
    KERNEL_FLAGS["avx512fp16"] = [*KERNEL_FLAGS["avx512bf16"], "-mavx512fp16"]
YOUNG_FLAGS = {"avx512fp16": "-mavx512fp16"}
"""Of kernels that are left out where the compiler does not know them (GCC before 12, Clang before 14)."""

CPU_SOURCES = [
    "csrc/library.cpp",
    "csrc/cpu/capability.cpp",
    "csrc/cpu/deform_conv2d.cpp",
    "csrc/cpu/deform_conv2d_grad.cpp",
    "csrc/cpu/dense.cpp",
    "csrc/cpu/masks.cpp",
    "csrc/cpu/memory.cpp",
    "csrc/cpu/nms.cpp",
    "csrc/cpu/roi_pool.cpp",
]
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))

# The GPU's part is a module of its own: it needs PyTorch's CUDA libraries, which not everybody has.
CUDA_KERNELS = sorted(str(path) for path in Path("csrc/cuda").glob("*.cu"))
CUDA_SOURCES = sorted(str(path) for path in Path("csrc/cuda").glob("*.cpp"))
CUDA_TARGETS = Path("csrc/cuda/targets.txt")
"""Compute capabilities that DCNZOO_CUDA_ARCHS=all compiles for, PTX of the lowest beside them."""

CUDA_RUNTIMES = ("libcudart.so", "libcudart_static.a")


class BuildPy(build_py):
    """Ships the top-level manifest inside the package."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("weights.yaml", str(Path(self.build_lib, "dcnzoo", "weights.yaml")))


class StableWheel(bdist_wheel):
    """Tags the wheel for every Python that the extension loads in."""

    def finalize_options(self) -> None:
        self.py_limited_api = "cp310" if self.distribution.has_ext_modules() else False
        super().finalize_options()


def native_wanted() -> bool:
    """DCNZOO_BUILD_OPS=1 demands the extension, 0 leaves it out; otherwise the tools at hand decide."""
    setting = os.environ.get("DCNZOO_BUILD_OPS")
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, names)), None)
    if setting == "0":
        return False
    if BuildExtension is None or compiler is None:
        missing = "PyTorch" if BuildExtension is None else "C++ compiler"
        if setting == "1":
            raise SystemExit(f"DCNZOO_BUILD_OPS=1, but there is no {missing}")
        print(f"warning: no {missing}: building without native operators", file=sys.stderr)
        return False
    return True


def find_nvcc() -> Path | None:
    """The CUDA compiler, of CUDA_HOME or on the PATH."""
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=str(Path(home, "bin")) if home else None)
    return Path(found).resolve() if found else None


def cuda_library_dirs(nvcc: Path) -> list[str]:
    """Where the CUDA runtime lies: nvcc, which may be a script, says where its toolkit is."""
    shown = subprocess.run(
        [nvcc, "--dryrun", "-c", CUDA_KERNELS[0]], capture_output=True, text=True, check=True
    )
    top = re.search(r"^#\$ TOP=(.*)$", shown.stderr, re.MULTILINE)
    root = Path(top[1]) if top else nvcc.parents[1]
    return [str(root / name) for name in ("lib64", "lib") if (root / name).is_dir()]


def cuda_runtime(folders: list[str]) -> list[str]:
    """Libraries of the CUDA runtime: the shared one, or the static one where the link to that is missing."""
    has = {name: any(Path(folder, name).exists() for folder in folders) for name in CUDA_RUNTIMES}
    static = has["libcudart_static.a"] and not has["libcudart.so"]
    return ["cudart_static", "rt", "dl"] if static else ["cudart"]


def cuda_obstacle(nvcc: Path | None) -> str | None:
    """Why CUDA kernels cannot be built; None if they can."""
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    if nvcc is None:
        return "there is no nvcc"
    shown = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)", shown)
    if release is None or release[1] != torch.version.cuda.partition(".")[0]:
        return f"nvcc is of CUDA {release[1] if release else '?'}, PyTorch of {torch.version.cuda}"
    return None


def cuda_wanted(nvcc: Path | None) -> bool:
    """DCNZOO_CUDA=1 demands the CUDA kernels, 0 leaves them out; otherwise the tools at hand decide."""
    setting = os.environ.get("DCNZOO_CUDA")
    if setting == "0":
        return False
    obstacle = cuda_obstacle(nvcc)
    if obstacle and setting == "1":
        raise SystemExit(f"DCNZOO_CUDA=1, but {obstacle}")
    return obstacle is None


def cuda_targets() -> list[str]:
    """Options of nvcc for the GPUs to compile for: DCNZOO_CUDA_ARCHS, or those here, or any from sm_80 on."""
    setting = os.environ.get("DCNZOO_CUDA_ARCHS", "")
    if setting == "all":
        archs = CUDA_TARGETS.read_text(encoding="ascii").split()
    elif setting:
        archs = re.split(r"[;, ]+", setting.replace(".", ""))
    else:
        here = [torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())]
        archs = sorted({f"{major}{minor}" for major, minor in here if major >= 8}) or ["80"]
    # every GPU of compute capability 9.0 runs the code for 90a, which alone has wgmma
    archs = list(dict.fromkeys("90a" if arch == "90" else arch for arch in archs))
    machine_code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    lowest = min(archs, key=lambda arch: int(re.sub(r"\D", "", arch)))
    portable = re.sub(r"\D", "", lowest)
    return [*machine_code, f"-gencode=arch=compute_{portable},code=compute_{portable}"]


def cuda_objects(nvcc: Path, folder: Path) -> list[str]:
    """Compiles the CUDA kernels, unless they are newer than all that they are made of."""
    folder.mkdir(parents=True, exist_ok=True)
    newest_header = max(header.stat().st_mtime for header in Path("csrc/cuda").glob("*.h"))
    options = ["-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]
    command = [str(nvcc), *options, *cuda_targets()]
    objects = []
    for source in CUDA_KERNELS:
        target, note = folder / f"{Path(source).stem}.o", folder / f"{Path(source).stem}.command"
        objects.append(str(target))
        made = target.stat().st_mtime if target.exists() else 0
        known = note.read_text(encoding="utf-8") if note.exists() else ""
        if known == str(command) and made > max(newest_header, Path(source).stat().st_mtime):
            continue
        print(f"nvcc {source}", file=sys.stderr)
        subprocess.run([*command, "-c", source, "-o", str(target)], check=True)
        note.write_text(str(command), encoding="utf-8")
    return objects


def cuda_extension(nvcc: Path) -> Any:
    """The extension `dcnzoo._C_cuda`."""
    folders = cuda_library_dirs(nvcc)
    return CppExtension(
        "dcnzoo._C_cuda",
        CUDA_SOURCES,
        extra_compile_args=[*COMPILE, *STABLE_ABI, "-DUSE_CUDA"],
        libraries=["torch_cuda", "c10_cuda", *cuda_runtime(folders)],
        library_dirs=folders,
        depends=HEADERS,
        py_limited_api=True,
    )


def native_build() -> dict[str, Any]:
    """The extensions `dcnzoo._C` and `dcnzoo._C_cuda`, and the command that builds their kernels first."""
    nvcc = find_nvcc()
    with_cuda = cuda_wanted(nvcc)

    class BuildOps(BuildExtension):
        def build_extension(self, extension: Any) -> None:
            if extension.name == "dcnzoo._C":
                self.add_cpu_kernels(extension)
            else:
                extension.extra_objects += cuda_objects(nvcc, Path(self.build_temp, "cuda"))
            made = Path(self.get_ext_fullpath(extension.name))
            objects = [Path(each).stat().st_mtime for each in extension.extra_objects]
            # setuptools knows nothing of the kernels
            self.force = bool(self.force) or (made.exists() and max(objects) > made.stat().st_mtime)
            super().build_extension(extension)

        def add_cpu_kernels(self, extension: Any) -> None:
            names = []
            for name in KERNEL_FLAGS:
                if name in YOUNG_FLAGS:
                    if not self.knows(YOUNG_FLAGS[name]):
                        print(f"warning: {YOUNG_FLAGS[name]} is unknown to the compiler", file=sys.stderr)
                        continue
                    extension.define_macros.append((f"DCNZOO_HAS_{name.upper()}", None))
                names.append(name)
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for objects in pool.map(self.compile_kernels, names):
                    extension.extra_objects += objects

        def compile_kernels(self, name: str) -> list[str]:
            objects: list[str] = self.compiler.compile(
                [f"csrc/cpu/kernels_{name}.cpp"],
                output_dir=self.build_temp,
                extra_postargs=[*COMPILE, "-fPIC", *KERNEL_FLAGS[name]],
                depends=HEADERS,
            )
            return objects

        def knows(self, flag: str) -> bool:
            source = Path(self.build_temp, "empty.cpp")
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text("", encoding="ascii")
            try:
                self.compiler.compile([str(source)], output_dir=self.build_temp, extra_postargs=[flag])
            except CompileError:
                return False
            return True

    extension = CppExtension(
        "dcnzoo._C",
        CPU_SOURCES,
        extra_compile_args=[*COMPILE, *STABLE_ABI, *ROUNDING],
        extra_link_args=LINK,
        depends=HEADERS,
        py_limited_api=True,
    )
    extensions = [extension, cuda_extension(nvcc)] if with_cuda else [extension]
    return {"ext_modules": extensions, "cmdclass": {"build_ext": BuildOps.with_options(use_ninja=False)}}


native = native_build() if native_wanted() else {}
setup(
    ext_modules=native.get("ext_modules", []),
    cmdclass={"build_py": BuildPy, "bdist_wheel": StableWheel, **native.get("cmdclass", {})},
)

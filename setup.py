"""Build steps that pyproject.toml cannot express: the native extension and the manifest's copy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:  # no PyTorch while building: the package runs on torchvision's operators
    BuildExtension = None

STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020b000000000000"]  # torch 2.11
COMPILE = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-Wall", "-Wextra"]
# For scripts/sanitize.sh: `address,undefined` builds with these checks, which end the process on a finding.
SANITIZERS = os.environ.get("DCNZOO_SANITIZE")
if SANITIZERS:
    COMPILE += [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
    COMPILE += ["-fno-omit-frame-pointer", "-O1", "-g1"]
LINK = [f"-fsanitize={SANITIZERS}"] if SANITIZERS else []

# Kernels of one instruction set each, compiled with its flags and without PyTorch's headers, so that
# no inline function shared with the rest of the program is ever built for a newer processor.
KERNEL_FLAGS = {"default": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    KERNEL_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    KERNEL_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"]

CPU_SOURCES = [
    "csrc/library.cpp",
    "csrc/cpu/capability.cpp",
    "csrc/cpu/deform_conv2d.cpp",
    "csrc/cpu/dense.cpp",
    "csrc/cpu/memory.cpp",
    "csrc/cpu/roi_pool.cpp",
]
HEADERS = sorted(str(path) for path in Path("csrc").rglob("*.h"))


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


def native_build() -> dict[str, Any]:
    """The extension `dcnzoo._C` and the command that builds its kernels first."""

    class BuildOps(BuildExtension):
        def build_extension(self, extension: Any) -> None:
            for name, flags in KERNEL_FLAGS.items():
                extension.extra_objects += self.compiler.compile(
                    [f"csrc/cpu/kernels_{name}.cpp"],
                    output_dir=self.build_temp,
                    extra_postargs=[*COMPILE, "-fPIC", *flags],
                    depends=HEADERS,
                )
            super().build_extension(extension)

    extension = CppExtension(
        "dcnzoo._C",
        CPU_SOURCES,
        extra_compile_args=[*COMPILE, *STABLE_ABI],
        extra_link_args=LINK,
        depends=HEADERS,
        py_limited_api=True,
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildOps.with_options(use_ninja=False)}}


native = native_build() if native_wanted() else {}
setup(
    ext_modules=native.get("ext_modules", []),
    cmdclass={"build_py": BuildPy, "bdist_wheel": StableWheel, **native.get("cmdclass", {})},
)

#!/usr/bin/env bash
# Runs the tests of the CPU operators on kernels that check every access to memory and every operation with undefined
# behaviour (AddressSanitizer and UndefinedBehaviorSanitizer of GCC). A finding ends the process, and so the script.
#
#     scripts/sanitize.sh [PYTHON] [PYTEST ARGUMENTS…]
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "${1:-.venv/bin/python}")
shift || true

# A copy of its own, for the compiled library lies beside the package.
copy=build/sanitized
mkdir -p $copy
rm -rf $copy/{csrc,dcnzoo,tests}
cp -r --preserve=timestamps csrc dcnzoo tests setup.py pyproject.toml weights.yaml README.md LICENSE NOTICE $copy
cd $copy
export DCNZOO_SANITIZE=address,undefined DCNZOO_BUILD_OPS=1 DCNZOO_CUDA=0
"$python" setup.py --quiet build_ext --inplace >build.log 2>&1 || { tail -50 build.log; exit 1; }

# The sanitizer's library has to be there before anything else, and C++'s before it looks for it.
LD_PRELOAD="$(${CXX:-g++} -print-file-name=libasan.so) $(${CXX:-g++} -print-file-name=libstdc++.so)"
export LD_PRELOAD
# Python never frees some of its memory, and PyTorch's kernels are none of our business here.
export ASAN_OPTIONS=detect_leaks=0:detect_odr_violation=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
export DCNZOO_OPS=native PYTHONPATH=$PWD
"$python" -c "import dcnzoo, torch; assert dcnzoo.__file__.startswith('$PWD'); torch.ops.dcnzoo.cpu_capability()" \
  2>/dev/null || "$python" -c "import dcnzoo.ops.backend as b; raise SystemExit(b.NATIVE_PROBLEM)"
files=(tests/ops/test_{variants,deform_conv2d,roi_ops,dense,nms,masks,hostile}.py)
"$python" -m pytest -q -p no:cacheprovider "${files[@]}" -k "not torchvision and not (variants and reference)" "$@"

#!/usr/bin/env bash
# Everything that needs a GPU, in one command: builds the CUDA kernels for the GPU at hand, runs the tests, the
# sanitizer and the benchmarks, and writes one JSON and one Markdown report. Needs nvcc, PyTorch and numpy, and for
# all of it pytest, hypothesis and what dcnzoo depends on, less pycocotools and platformdirs; downloads nothing.
#
#   scripts/gpu_check.sh                  8 minutes at most (the same as --quick)
#   scripts/gpu_check.sh --only parity    later: what had no time, with what is built; its report says what that is
#   scripts/gpu_check.sh --full           all models, every kernel, for hours if need be
#   PYTHON=python3 scripts/gpu_check.sh   an environment other than .venv
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 DCNZOO_REQUIRE_CUDA=1
"$PYTHON" scripts/gpu_check.py "$@"

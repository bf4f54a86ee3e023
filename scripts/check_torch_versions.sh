#!/usr/bin/env bash
# Builds the wheel against the PyTorch of the environment, and runs its operators on other ones: one wheel serves all.
#
#     scripts/check_torch_versions.sh [VERSION…]       2.11.0 and 2.13.0 without arguments
#
# PYTHON names the interpreter that builds, OTHER_PYTHON another one to run with. In an empty environment per version,
# with the wheel but without torchvision, every operator and every gradient is compared with its definition, and checked
# by torch.library.opcheck, torch.compile and torch.export.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$checkout/.venv/bin/python}
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT
(($#)) || set -- 2.11.0 2.13.0

DCNZOO_CUDA=0 DCNZOO_BUILD_OPS=1 "$python" -m build --wheel --no-isolation --outdir "$room/dist" "$checkout" >"$room/build.log" 2>&1 ||
  { cat "$room/build.log"; exit 1; }
cp -r "$checkout/tests" "$checkout/pyproject.toml" "$room"
cd "$room"
unset PYTHONPATH
files=(tests/ops/test_{deform_conv2d,roi_ops,dense}.py)
for version in "$@"; do
  "${OTHER_PYTHON:-$python}" -m venv --clear "$room/venv"
  "$room/venv/bin/pip" install --quiet "torch==$version" numpy pycocotools pytest hypothesis
  "$room/venv/bin/pip" install --quiet --no-deps "$room"/dist/dcnzoo-*.whl
  "$room/venv/bin/python" -c 'import sys, torch; print("Python", sys.version.split()[0], "PyTorch", torch.__version__)'
  DCNZOO_OPS=native "$room/venv/bin/python" -m tests.ops.variants
  DCNZOO_OPS=native "$room/venv/bin/python" -m pytest -q -p no:cacheprovider "${files[@]}" -k "not torchvision"
done

#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment, and uses it from a directory outside the checkout.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
python=$checkout/.venv/bin/python
room=$(mktemp -d)
trap 'rm -rf "$room"' EXIT

DCNZOO_CUDA=0 "$python" -m build --wheel --no-isolation --outdir "$room/dist" "$checkout" >"$room/build.log" 2>&1 || { cat "$room/build.log"; exit 1; }
"$python" -m venv "$room/venv"
"$room/venv/bin/pip" install --quiet "$room"/dist/dcnzoo-*.whl
"$python" "$checkout/scripts/make_standin.py" faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco "$room/standin.pth"

cd "$room"
export PATH="$room/venv/bin:$PATH" DCNZOO_HOME="$room/home"
unset PYTHONPATH
dcnzoo --version
dcnzoo list | tail -n 3
dcnzoo info faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco >/dev/null
dcnzoo doctor
dcnzoo predict "$checkout/examples/photos/cat.jpg" --model faster_rcnn_r50_fpn_dconv_c3-c5_1x_coco \
  --weights standin.pth --short-side 200 --out out --save-images
test -s out/detections.jsonl
DCNZOO_OFFLINE=1 dcnzoo predict "$checkout/examples/shapes/images" \
  --model cascade_mask_rcnn_r18w16_fpn48_fc192_mdconv_c3-c5_shapes --out shapes
test -s shapes/detections.jsonl
echo "wheel: works outside the checkout"

"""What `make demo` runs: the model inside the package on the bundled pictures; no network is needed."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
PHOTOS = CHECKOUT / "examples" / "photos"
PICTURES = CHECKOUT / "examples" / "shapes" / "images"
OUT = CHECKOUT / "demo"
MODEL = "cascade_mask_rcnn_r18w16_fpn48_fc192_mdconv_c3-c5_shapes"
PUBLISHED = "mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco"
SCORE = 0.5
PROGRAM = Path(sys.executable).with_name("dcnzoo")  # it lies in .venv, which a user's shell does not search
NEXT = f"""
On photos, with published weights, which are downloaded once:
  {shlex.quote(str(PROGRAM))} predict {shlex.quote(str(PHOTOS))} --model {PUBLISHED} --save-images
"""


def main() -> int:
    """Predicts, and says what was found and where it lies."""
    command = [
        sys.executable,
        "-m",
        "dcnzoo",
        "predict",
        str(PICTURES),
        "--model",
        MODEL,
        "--batch-size",
        "4",
    ]
    command += ["--workers", "0", "--save-images", "--overwrite", "--out", str(OUT)]
    status = subprocess.run(command, check=False).returncode
    if status:
        return status
    lines = (OUT / "detections.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["detections"] for line in lines]
    names = Counter(each["class"] for picture in found for each in picture if each["score"] > SCORE)
    counts = ", ".join(f"{count} × {name}" for name, count in names.most_common())
    print(f"\n{len(found)} pictures, {names.total()} objects with a score above {SCORE}: {counts}")
    print(f"Pictures with their detections: {OUT / 'images'}\nThe numbers: {OUT / 'detections.jsonl'}{NEXT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

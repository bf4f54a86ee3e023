"""What `make demo` runs: the main job on the bundled pictures.

Uses a published checkpoint, downloaded on the first run. Where that cannot be downloaded, seeded
random weights of the same layout take its place, so that the whole path still runs; this is said aloud.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import dcnzoo
from dcnzoo.download import fetch
from dcnzoo.errors import DownloadError

MODEL = "mask_rcnn_r50_fpn_mdconv_c3-c5_1x_coco"
CHECKOUT = Path(__file__).resolve().parents[1]
OUT = CHECKOUT / "demo"
UNTRAINED = f"""
The published weights could not be downloaded:
  {{error}}
The demo goes on with RANDOM weights of the same layout: everything runs as it would, but the boxes
and labels mean nothing. Run `make demo` again with a connection, or put the file in place by hand
(`dcnzoo info {MODEL}` says where).
"""


def main() -> int:
    """Predicts on the bundled pictures and says where the result lies."""
    command = [sys.executable, "-m", "dcnzoo", "predict", str(CHECKOUT / "examples"), "--model", MODEL]
    command += ["--save-images", "--overwrite", "--out", str(OUT)]
    with tempfile.TemporaryDirectory() as folder:
        try:
            fetch(dcnzoo.load_manifest().find(MODEL))
        except DownloadError as error:
            print(UNTRAINED.format(error=error))
            weights = Path(folder, "random.pth")
            write = [sys.executable, str(CHECKOUT / "scripts" / "make_standin.py"), MODEL, str(weights)]
            subprocess.run(write, check=True)
            command += ["--weights", str(weights), "--max-detections", "10"]
        status = subprocess.run(command, check=False).returncode
    if status == 0:
        print(f"\nPictures with their detections: {OUT / 'images'}\nThe numbers: {OUT / 'detections.jsonl'}")
    return status


if __name__ == "__main__":
    sys.exit(main())

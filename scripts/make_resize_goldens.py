#!/usr/bin/env python3
"""Records what OpenCV's bilinear resize gives, for tests/unit/test_image.py.

    python -m venv .venv-opencv && .venv-opencv/bin/pip install opencv-python-headless
    .venv-opencv/bin/python scripts/make_resize_goldens.py

OpenCV is no dependency of the package or of its tests; only this script needs it.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

OUTPUT = Path(__file__).parents[1] / "tests/unit/data/opencv_resize.npz"

# (height, width) before and after
SIZES = {
    "up": ((24, 32), (40, 53)),
    "down": ((61, 83), (37, 50)),
    "far down": ((90, 120), (11, 15)),
    "up and down": ((20, 60), (45, 31)),
    "exactly half": ((40, 52), (20, 26)),
    "half in height only": ((40, 52), (20, 27)),
    "half in width only": ((40, 52), (21, 26)),
    "almost half, odd sides": ((41, 53), (20, 26)),
    "exactly a third": ((45, 60), (15, 20)),
    "exactly double": ((17, 23), (34, 46)),
    "unchanged": ((13, 19), (13, 19)),
    "one pixel up": ((1, 1), (32, 32)),
    "one row": ((1, 500), (1, 133)),
    "one column up": ((50, 1), (133, 3)),
    "to one pixel": ((2, 3), (1, 1)),
    "2x2 to one pixel": ((2, 2), (1, 1)),
}


def main() -> None:
    """Writes the goldens."""
    random = np.random.default_rng(0)
    arrays = {}
    for name, (old, new) in SIZES.items():
        image = random.integers(0, 256, (*old, 3), dtype=np.uint8)
        arrays[f"{name}.input"] = image
        arrays[f"{name}.output"] = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    np.savez_compressed(OUTPUT, **arrays)
    print(f"OpenCV {cv2.__version__}: {len(SIZES)} cases, {OUTPUT.stat().st_size} bytes")


if __name__ == "__main__":
    main()

"""The contents of each box as a picture of its own."""

from __future__ import annotations

import math
import re
from pathlib import Path

from dcnzoo.writers.base import FolderWriter, ImageResult, shorten
from dcnzoo.writers.images import encode_jpeg


class CropWriter(FolderWriter):
    """One JPEG per detection, in a folder per class; the number in its name is the detection's rank."""

    product = "crops"
    suffix = ".jpg"
    needs_pixels = True

    def write(self, result: ImageResult) -> None:
        """Cuts out and saves the detections of one image."""
        from PIL import Image

        if result.pixels is None or result.stem is None:
            raise ValueError("expected the pixels and the stem of the image, got None")
        height, width = result.drawn.image_size
        for rank, (class_name, box) in enumerate(
            zip(result.drawn.names, result.drawn.boxes.tolist(), strict=True)
        ):
            left, right = _pixel_range(box[0], box[2], width)
            top, bottom = _pixel_range(box[1], box[3], height)
            crop = Image.fromarray(result.pixels[top:bottom, left:right])
            self.save(f"{folder_name(class_name)}/{result.stem}-{rank:03d}.jpg", encode_jpeg(crop))

    @classmethod
    def owner(cls, path: Path) -> str | None:
        """Returns the stem of the image that a crop was cut out of, None for a file that is no crop."""
        match = re.fullmatch(r"[^/]+/(.+)-\d{3,}\.jpg", path.as_posix(), re.DOTALL)
        return match[1] if match else None


def folder_name(class_name: str) -> str:
    """Returns a class name that is safe as a folder's: it comes from a checkpoint, so it may be anything."""
    return shorten(re.sub(r"[^\w +-]", "_", class_name), 100).strip() or "_"


def _pixel_range(low: float, high: float, size: int) -> tuple[int, int]:
    """Rounds a side of a box outwards to whole pixels of the image, at least one."""
    start = min(max(math.floor(low), 0), size - 1)
    return start, max(start + 1, min(math.ceil(high), size))

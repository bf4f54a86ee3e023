"""YOLO text files: one per image, boxes relative to the image's size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dcnzoo.text import one_line
from dcnzoo.writers.base import FolderWriter, ImageResult
from dcnzoo.writers.whole import write_whole

CLASS_LIST = "classes.txt"


class YoloWriter(FolderWriter):
    """One line per detection: label, centre x, centre y, width, height, score.

    The four lengths are fractions of the image's width or height; the label is the line number, from 0,
    of the class in `classes.txt` beside the folder. An image without detections has an empty file.
    """

    product = "labels"
    suffix = ".txt"

    def __init__(self, out: Path, sizes: Mapping[str, int] | None = None) -> None:
        super().__init__(out, sizes)
        self.path.mkdir(exist_ok=True)
        self._class_list: Path | None = out / CLASS_LIST

    def write(self, result: ImageResult) -> None:
        """Writes the file of one image."""
        detections = result.detections
        if result.stem is None:
            raise ValueError("expected the stem of the image, got None")
        if self._class_list:  # the classes are known with the first image only
            write_whole(self._class_list, "".join(f"{one_line(name)}\n" for name in detections.class_names))
            self._class_list = None
        height, width = detections.image_size
        lines = []
        for label, (x1, y1, x2, y2), score in zip(
            detections.labels, detections.boxes.tolist(), detections.scores, strict=True
        ):
            box = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(f"{label} {' '.join(f'{value:.6f}' for value in box)} {score:.6f}\n")
        self.save(f"{result.stem}.txt", "".join(lines).encode("ascii"))

"""CSV: one row per detection, without masks."""

from __future__ import annotations

import csv
from pathlib import Path

from dcnzoo.writers.base import ImageResult, Writer
from dcnzoo.writers.jsonl import detection_records

COLUMNS = ("image", "width", "height", "class", "label", "category_id", "score", "x1", "y1", "x2", "y2")


class CsvWriter(Writer):
    """A table with a header; an image without detections has no row."""

    product = "detections.csv"

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        # A path that is no valid UTF-8 comes through as the bytes that it has.
        self._file = self.path.open("x", encoding="utf-8", errors="surrogateescape", newline="", buffering=1)
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(self, result: ImageResult) -> None:
        """Writes the rows of one image."""
        height, width = result.detections.image_size
        for record in detection_records(result.detections):
            values = [record[column] for column in COLUMNS[3:7]]
            self._rows.writerow([result.source.location, width, height, *values, *record["box"]])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

"""CSV: one row per detection, without masks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from dcnzoo.writers.base import GrowingFile, ImageResult, Writer
from dcnzoo.writers.jsonl import detection_records

COLUMNS = ("image", "width", "height", "class", "label", "category_id", "score", "x1", "y1", "x2", "y2")


class CsvWriter(Writer):
    """A table with a header; an image without detections has no row."""

    product = "detections.csv"

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self._file = GrowingFile(self.path, _rows([COLUMNS]))

    def write(self, result: ImageResult) -> None:
        """Writes the rows of one image."""
        height, width = result.detections.image_size
        rows = []
        for record in detection_records(result.detections):
            values = [record[column] for column in COLUMNS[3:7]]
            rows.append([result.source.location, width, height, *values, *record["box"]])
        self._file.append(_rows(rows))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _rows(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()

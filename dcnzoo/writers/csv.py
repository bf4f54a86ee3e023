"""CSV: one row per detection, without masks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from dcnzoo.writers.base import ImageResult, Writer
from dcnzoo.writers.growing import Layout
from dcnzoo.writers.jsonl import detection_records

COLUMNS = ("image", "width", "height", "class", "label", "category_id", "score", "x1", "y1", "x2", "y2")


class CsvWriter(Writer):
    """A table with a header; an image without detections has no row."""

    product = "detections.csv"
    layouts = (Layout(product, head=",".join(COLUMNS) + "\n"),)

    def write(self, result: ImageResult) -> None:
        """Writes the rows of one image."""
        height, width = result.detections.image_size
        rows = []
        for record in detection_records(result.detections):
            values = [record[column] for column in COLUMNS[3:7]]
            rows.append([result.source.shown, width, height, *values, *record["box"]])
        self.files[0].append(_rows(rows))


def _rows(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()

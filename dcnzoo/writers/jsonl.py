"""JSON lines: one line per image."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from dcnzoo.writers.base import ImageResult, Writer
from dcnzoo.writers.growing import Layout

if TYPE_CHECKING:
    from dcnzoo.results import Detections

BOX_DECIMALS = 3
SCORE_DECIMALS = 6


class JsonlWriter(Writer):
    """One JSON object per image, with all its detections."""

    product = "detections.jsonl"
    layouts = (Layout(product),)

    def write(self, result: ImageResult) -> None:
        """Writes the line of one image, also when nothing was found in it."""
        height, width = result.detections.image_size
        line = {
            "image": result.source.shown,
            "width": width,
            "height": height,
            "detections": detection_records(result.detections),
        }
        self.files[0].append(json.dumps(line) + "\n")


def detection_records(detections: Detections) -> list[dict[str, Any]]:
    """Returns one flat, JSON-ready dict per detection.

    Boxes are xyxy pixels of the original image, rounded to 1/1000; a mask is COCO run lengths.
    """
    records: list[dict[str, Any]] = [
        {
            "class": name,
            "label": int(label),
            "category_id": detections.category_ids[label],
            "score": round(float(score), SCORE_DECIMALS),
            "box": [round(float(side), BOX_DECIMALS) for side in box],
        }
        for name, label, score, box in zip(
            detections.names, detections.labels, detections.scores, detections.boxes, strict=True
        )
    ]
    for record, rle in zip(records, detections.rles or (), strict=detections.rles is not None):
        record["mask"] = dict(rle)
    return records

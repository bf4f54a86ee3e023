"""Precision-recall curves: as a table and as a picture.

Shapes: T IoU thresholds, R recall thresholds, K categories (see `coco_metrics`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dcnzoo.chart import Chart, Curve, Point, draw_charts
from dcnzoo.evaluation.coco_metrics import IOU_THRESHOLDS, RECALL_THRESHOLDS, CocoMetrics
from dcnzoo.fonts import drawable
from dcnzoo.text import one_line

ALL_CLASSES = "(mean over classes)"

LEGEND_ROWS = 10
"""Most curves of a panel."""


def write_curves(path: Path, metrics: CocoMetrics) -> None:
    """Writes the curves as CSV: per class and recall, the precision at each IoU.

    The last column is the `--score-threshold` that reaches the recall at IoU 0.50, empty where none does.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(
            ["class", "recall", *(f"precision_iou_{iou:.2f}" for iou in IOU_THRESHOLDS), "score_threshold"]
        )
        for name, precision, scores in _by_class(metrics):
            for r, recall in enumerate(RECALL_THRESHOLDS):
                score = f"{threshold_below(scores[r]):.4f}" if scores[r] > 0 else ""
                table.writerow([name, f"{recall:.2f}", *(f"{value:.4f}" for value in precision[:, r]), score])


def threshold_below(score: float) -> float:
    """Returns the largest threshold of four digits that a score is above, as detections have to be."""
    steps = round(score * 1e4)
    return max(0, steps - (steps / 1e4 >= score)) / 1e4


def draw_curves(metrics: CocoMetrics) -> Image.Image:
    """Draws two panels: the mean over classes at each IoU, and classes at IoU 0.50.

    Returns:
        A picture; of many classes, those with most objects are drawn.
    """
    what = {"bbox": "boxes", "segm": "masks"}[metrics.kind]
    curves = {
        f"{what}: mean over classes, by IoU": _curves_by_iou(metrics),
        f"{what}: classes, at IoU 0.50": _curves_by_class(metrics),
    }
    return draw_charts([Chart(title, each, "recall", "precision", top=1.0) for title, each in curves.items()])


def _by_class(metrics: CocoMetrics) -> Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
    """Yields name, (T, R) precision and (R,) scores at IoU 0.50: the mean, then classes with objects."""
    precision = mean_precision(metrics)
    yield ALL_CLASSES, precision, np.zeros(precision.shape[1])
    for k, one in enumerate(metrics.classes):
        if one.objects:
            yield one.name, metrics.precision[:, :, k], metrics.scores[0, :, k]


def mean_precision(metrics: CocoMetrics) -> NDArray[np.float64]:
    """Returns the (T, R) precision, mean over the classes that have objects; zero if none has."""
    with_objects = [k for k, one in enumerate(metrics.classes) if one.objects]
    if not with_objects:
        return np.zeros(metrics.precision.shape[:2])
    mean: NDArray[np.float64] = metrics.precision[:, :, with_objects].mean(axis=2)
    return mean


def _curves_by_iou(metrics: CocoMetrics) -> list[Curve]:
    """One curve per IoU threshold, from blue (0.50) to orange (0.95)."""
    curves = []
    for t, precision in enumerate(mean_precision(metrics)):
        share = t / (len(IOU_THRESHOLDS) - 1)
        first, last = (0, 90, 181), (230, 120, 0)
        red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, last, strict=True))
        title = f"{IOU_THRESHOLDS[t]:.2f}   AP {precision.mean():.3f}"
        curves.append(Curve(title, _points(precision), (red, green, blue)))
    return curves


def _curves_by_class(metrics: CocoMetrics) -> list[Curve]:
    frequent = sorted(range(len(metrics.classes)), key=lambda k: -metrics.classes[k].objects)[:LEGEND_ROWS]
    return [
        Curve(
            f"{drawable(one_line(metrics.classes[k].name), metrics.classes[k].category_id)}"
            f"   AP {metrics.classes[k].ap50:.3f}",
            _points(metrics.precision[0, :, k]),
        )
        for k in frequent
        if metrics.classes[k].objects
    ]


def _points(precision: NDArray[np.float64]) -> list[Point]:
    return list(zip(RECALL_THRESHOLDS, precision.tolist(), strict=True))

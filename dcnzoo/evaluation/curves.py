"""Precision-recall curves: as a table and as a picture.

Shapes: T IoU thresholds, R recall thresholds, K categories (see `coco_metrics`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from dcnzoo.annotate import BLACK, WHITE, Colour, class_colour
from dcnzoo.evaluation.coco_metrics import IOU_THRESHOLDS, RECALL_THRESHOLDS, CocoMetrics
from dcnzoo.fonts import drawable, font_for

ALL_CLASSES = "(mean over classes)"

GREY: Colour = (225, 225, 225)
PANEL = 480
MARGIN = 64
LEGEND = 240
TEXT = 15
OVERSAMPLING = 3
LEGEND_ROWS = 10
"""Most curves of a panel."""


class Curve(NamedTuple):
    """A line of a panel.

    Attributes:
        title: its line in the legend.
        colour: its colour.
        precision: (R,) precision at each recall.
    """

    title: str
    colour: Colour
    precision: NDArray[np.float64]


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
    size = (2 * (MARGIN + PANEL + LEGEND), PANEL + 2 * MARGIN)
    large = Image.new("RGB", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), WHITE)
    canvas = ImageDraw.Draw(large)
    what = {"bbox": "boxes", "segm": "masks"}[metrics.kind]
    _draw_panel(canvas, MARGIN, f"{what}: mean over classes, by IoU", _curves_by_iou(metrics))
    right = 2 * MARGIN + PANEL + LEGEND
    _draw_panel(canvas, right, f"{what}: classes, at IoU 0.50", _curves_by_class(metrics))
    return large.resize(size, Image.Resampling.LANCZOS)


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
        curves.append(Curve(title, (red, green, blue), precision))
    return curves


def _curves_by_class(metrics: CocoMetrics) -> list[Curve]:
    frequent = sorted(range(len(metrics.classes)), key=lambda k: -metrics.classes[k].objects)[:LEGEND_ROWS]
    return [
        Curve(
            f"{drawable(metrics.classes[k].name, metrics.classes[k].category_id)}"
            f"   AP {metrics.classes[k].ap50:.3f}",
            class_colour(row),
            metrics.precision[0, :, k],
        )
        for row, k in enumerate(frequent)
        if metrics.classes[k].objects
    ]


def _draw_panel(canvas: ImageDraw.ImageDraw, left: int, title: str, curves: Sequence[Curve]) -> None:
    """Draws axes, curves and legend; all sizes are in pixels of the finished picture."""
    unit = OVERSAMPLING
    font = font_for(title, TEXT * unit)

    def at(recall: float, precision: float) -> tuple[float, float]:
        return (left + recall * PANEL) * unit, (MARGIN + (1 - precision) * PANEL) * unit

    for tenth in range(0, 11, 2):
        value = tenth / 10
        canvas.line([at(value, 0), at(value, 1)], GREY, unit)
        canvas.line([at(0, value), at(1, value)], GREY, unit)
        x, y = at(value, 0)
        canvas.text((x, y + 6 * unit), f"{value:.1f}", BLACK, font, anchor="ma")
        x, y = at(0, value)
        canvas.text((x - 6 * unit, y), f"{value:.1f}", BLACK, font, anchor="rm")
    canvas.rectangle([at(0, 1), at(1, 0)], outline=BLACK, width=unit)
    x, y = at(0.5, 0)
    canvas.text((x, y + 30 * unit), "recall", BLACK, font, anchor="ma")
    x, y = at(0, 1)
    canvas.text((x, y - 10 * unit), "precision", BLACK, font, anchor="ms")
    x, y = at(0.5, 1)
    canvas.text((x, y - 10 * unit), title, BLACK, font, anchor="ms")
    for row, curve in enumerate(curves):
        points = [at(r, p) for r, p in zip(RECALL_THRESHOLDS, curve.precision, strict=True)]
        canvas.line(points, curve.colour, 2 * unit, joint="curve")
        x, y = (left + PANEL + 14) * unit, (MARGIN + 10 + row * 24) * unit
        canvas.line([(x, y), (x + 22 * unit, y)], curve.colour, 4 * unit)
        canvas.text((x + 30 * unit, y), curve.title, BLACK, font_for(curve.title, TEXT * unit), anchor="lm")

"""Precision-recall curves: what the table says, and where the picture has ink."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcnzoo.annotate import class_colour
from dcnzoo.chart import MARGIN, PANEL
from dcnzoo.evaluation.coco_metrics import CocoMetrics, coco_metrics
from dcnzoo.evaluation.curves import (
    ALL_CLASSES,
    draw_curves,
    mean_precision,
    threshold_below,
    write_curves,
)
from tests.unit.annotating import Dicts, annotations_of, found, random_scene, truth

DOG, CAT = 3, 7
BOX, FAR = [0.0, 0.0, 40.0, 40.0], [60.0, 60.0, 30.0, 30.0]


def metrics_of(folder: Path, objects: Dicts, detections: Dicts) -> CocoMetrics:
    return coco_metrics(annotations_of(folder, objects, images=6), detections, "bbox")


@pytest.fixture
def metrics(tmp_path: Path) -> CocoMetrics:
    """Of two cats the first is found right away, the second after a mistake; the dog is not found."""
    objects = [truth(1, CAT, BOX), truth(2, CAT, BOX), truth(3, DOG, BOX)]
    detections = [found(1, CAT, BOX, 0.9), found(1, CAT, FAR, 0.8), found(2, CAT, BOX, 0.7)]
    return metrics_of(tmp_path, objects, detections)


def rows(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="") as file:
        return {(row["class"], row["recall"]): row for row in csv.DictReader(file)}


def test_table(metrics: CocoMetrics, tmp_path: Path) -> None:
    write_curves(tmp_path / "c.csv", metrics)
    table = rows(tmp_path / "c.csv")
    assert len(table) == 3 * 101
    assert {name for name, _ in table} == {ALL_CLASSES, "cat", "dog"}
    points = [("0.00", "1.0000", "0.8999"), ("0.50", "1.0000", "0.8999"), ("0.51", "0.6667", "0.6999")]
    for recall, precision, score in points:
        row = table["cat", recall]
        assert (row["precision_iou_0.50"], row["precision_iou_0.95"], row["score_threshold"]) == (
            precision,
            precision,
            score,
        )
        assert table[ALL_CLASSES, recall]["precision_iou_0.50"] == f"{float(precision) / 2:.4f}"
    assert table["dog", "0.00"]["precision_iou_0.50"] == "0.0000"
    assert table["dog", "0.00"]["score_threshold"] == ""


@pytest.mark.parametrize("score", [1.0, 0.9, 0.0051, 0.56789, 0.12341, 0.1 + 0.2, 1e-4, 3e-5])
def test_a_threshold_keeps_its_score(score: float) -> None:
    threshold = threshold_below(score)
    assert 0 <= threshold < score
    assert f"{threshold:.4f}" == str(threshold).ljust(6, "0")
    assert threshold + 1.01e-4 > score


def test_the_area_under_the_mean_is_ap(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, *random_scene(0))
    assert mean_precision(metrics).mean() == pytest.approx(metrics.stats["AP"], abs=1e-12)
    assert mean_precision(metrics)[0].mean() == pytest.approx(metrics.stats["AP50"], abs=1e-12)


def has_ink(picture: Image.Image, colour: tuple[int, int, int], x: float, y: float) -> bool:
    """Whether a colour is near a point."""
    pixels = np.asarray(picture, np.int64)[round(y) - 2 : round(y) + 3, round(x) - 2 : round(x) + 3]
    return bool((np.abs(pixels - colour).max(axis=2) < 40).any())


def test_picture(metrics: CocoMetrics) -> None:
    picture = draw_curves(metrics)
    left = picture.width // 2 + MARGIN
    cat = class_colour(0)
    assert has_ink(picture, cat, left + 0.25 * PANEL, MARGIN)
    assert has_ink(picture, cat, left + 0.75 * PANEL, MARGIN + PANEL / 3)
    assert not has_ink(picture, cat, left + 0.25 * PANEL, MARGIN + PANEL / 3)
    assert has_ink(picture, class_colour(1), left + 0.5 * PANEL, MARGIN + PANEL)


@pytest.mark.parametrize("objects", [[], [truth(1, CAT, BOX)]])
def test_little_to_draw(tmp_path: Path, objects: Dicts) -> None:
    metrics = metrics_of(tmp_path, objects, [])
    draw_curves(metrics)
    write_curves(tmp_path / "c.csv", metrics)
    assert rows(tmp_path / "c.csv")[ALL_CLASSES, "0.00"]["precision_iou_0.50"] == "0.0000"

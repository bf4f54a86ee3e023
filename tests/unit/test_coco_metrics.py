"""COCO's metrics: whatever pycocotools says, from either evaluator."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dcnzoo.evaluation import EVALUATORS, Kind
from dcnzoo.evaluation.annotations import Annotations, read_annotations
from dcnzoo.evaluation.coco_metrics import METRICS, CocoMetrics, coco_metrics, find_evaluator
from dcnzoo.evaluation.results import CocoResults
from dcnzoo.evaluation.segmentation import to_rle
from tests.unit.annotating import (
    CATEGORIES,
    annotation_content,
    annotations_of,
    found,
    random_scene,
    rectangle,
    truth,
    write,
)

BOX = [10.0, 20.0, 30.0, 40.0]


def judge(annotations: Path, results: Path, kind: Kind, category: int | None = None) -> COCOeval:
    """Plain pycocotools, from files."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(annotations)
        evaluation = COCOeval(coco, coco.loadRes(str(results)), kind)
        if category is not None:
            evaluation.params.catIds = [category]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def with_masks(results: CocoResults) -> CocoResults:
    """Results whose masks are their boxes, without the boxes."""
    masked = []
    for result in results:
        rle = to_rle([rectangle(result["bbox"])], (100, 100))
        fields = {key: value for key, value in result.items() if key != "bbox"}
        masked.append({**fields, "segmentation": {**rle, "counts": rle["counts"].decode()}})
    return masked


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_the_numbers_are_pycocotools_own(tmp_path: Path, evaluator: str, seed: int, kind: Kind) -> None:
    objects, detections = random_scene(seed)
    annotations = write(tmp_path / "a.json", annotation_content(objects, images=6))
    results = detections if kind == "bbox" else with_masks(detections)
    expected = judge(annotations, write(tmp_path / "r.json", results), kind)
    metrics = coco_metrics(read_annotations(annotations), results, kind, find_evaluator(evaluator))
    assert list(metrics.stats) == list(METRICS)
    np.testing.assert_allclose(list(metrics.stats.values()), expected.stats, rtol=0, atol=1e-12)
    assert metrics.stats["AP"] > 0.05
    np.testing.assert_allclose(metrics.precision, expected.eval["precision"][..., 0, 2], rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics.scores, expected.eval["scores"][..., 0, 2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_each_class_is_scored_as_if_alone(tmp_path: Path, evaluator: str) -> None:
    objects, detections = random_scene(seed=0)
    annotations = write(tmp_path / "a.json", annotation_content(objects, images=6))
    results = write(tmp_path / "r.json", detections)
    metrics = coco_metrics(read_annotations(annotations), detections, "bbox", find_evaluator(evaluator))
    assert [(one.category_id, one.name) for one in metrics.classes] == list(CATEGORIES.items())
    for one in metrics.classes:
        alone = dict(zip(METRICS, judge(annotations, results, "bbox", one.category_id).stats, strict=True))
        figures = (one.ap, one.ap50, one.ap75, one.ar)
        assert figures == pytest.approx([alone[name] for name in ("AP", "AP50", "AP75", "AR_100")])
        plain = [item for item in objects if item["category_id"] == one.category_id and not item["iscrowd"]]
        assert one.objects == len(plain)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_ids_may_be_negative(tmp_path: Path, evaluator: str, kind: Kind) -> None:
    """But 0 is pycocotools' mark of an object that is not found."""
    objects, detections = random_scene(seed=1)
    content = annotation_content(objects, images=6)
    for item in content["images"]:
        item["id"] -= 4
    for item in content["annotations"]:
        item["id"], item["image_id"] = item["id"] - 20, item["image_id"] - 4
    moved = [{**item, "image_id": item["image_id"] - 4} for item in detections]
    results = moved if kind == "bbox" else with_masks(moved)
    annotations = write(tmp_path / "a.json", content)
    expected = judge(annotations, write(tmp_path / "r.json", results), kind)
    metrics = coco_metrics(read_annotations(annotations), results, kind, find_evaluator(evaluator))
    np.testing.assert_allclose(list(metrics.stats.values()), expected.stats, rtol=0, atol=1e-12)


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return annotations_of(tmp_path, [truth(1, 7, BOX), truth(2, 3, BOX)])


def stats(metrics: CocoMetrics, *names: str) -> list[float]:
    return [metrics.stats[name] for name in names]


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_nothing_found_scores_zero(annotations: Annotations, evaluator: str) -> None:
    metrics = coco_metrics(annotations, [], "bbox", find_evaluator(evaluator))
    assert stats(metrics, "AP", "AP50", "AR_100", "AP_medium") == [0, 0, 0, 0]
    assert metrics.stats["AP_small"] == -1


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_a_class_without_objects_does_not_count(annotations: Annotations, evaluator: str) -> None:
    detections = [found(1, 7, BOX, 0.9), found(2, 90, BOX, 0.8)]
    metrics = coco_metrics(annotations, detections, "bbox", find_evaluator(evaluator))
    assert stats(metrics, "AP") == pytest.approx([0.5])
    assert [one.ap for one in metrics.classes] == pytest.approx([0, 1, -1])
    assert [one.objects for one in metrics.classes] == [1, 1, 0]


@pytest.mark.parametrize("evaluator", EVALUATORS)
def test_no_objects_at_all(tmp_path: Path, evaluator: str) -> None:
    annotations = annotations_of(tmp_path, [])
    metrics = coco_metrics(annotations, [found(1, 7, BOX, 0.9)], "bbox", find_evaluator(evaluator))
    assert set(metrics.stats.values()) == {-1}


def test_masks_are_sorted_by_their_own_area(tmp_path: Path) -> None:
    """A thin diagonal mask is small although its box is not."""
    thin = [[0, 0, 2, 0, 90, 90, 88, 90]]
    area = 180
    item = {**truth(1, 7, [0, 0, 90, 90]), "segmentation": thin, "area": area}
    annotations = annotations_of(tmp_path, [item])
    result = {**found(1, 7, [0, 0, 90, 90], 0.9), "segmentation": to_rle(thin, (100, 100))}
    metrics = coco_metrics(annotations, [result], "segm")
    assert stats(metrics, "AP", "AP_small", "AP_medium", "AP_large") == pytest.approx([1, 1, -1, -1])


def test_inputs_are_left_as_they_were(annotations: Annotations) -> None:
    detections = [found(1, 7, BOX, 0.9)]
    before = [dict(item) for item in annotations.objects]
    coco_metrics(annotations, detections, "bbox")
    assert detections == [found(1, 7, BOX, 0.9)]
    assert list(annotations.objects) == before


def test_unknown_evaluator() -> None:
    with pytest.raises(ValueError, match="expected one of pycocotools, faster-coco-eval, got 'x'"):
        find_evaluator("x")

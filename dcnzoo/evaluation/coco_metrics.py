"""COCO's metrics, computed by pycocotools, or by faster-coco-eval, which gives the same numbers sooner.

Shapes: T IoU thresholds (0.50, 0.55 … 0.95), R recall thresholds (0.00, 0.01 … 1.00), K categories.
A figure is -1 where there is no object to find, as pycocotools has it.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcnzoo.evaluation import EVALUATORS, Kind
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.results import CocoResults, split_results

METRICS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
"""The 12 numbers, in pycocotools' order."""

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALL_THRESHOLDS = tuple(step / 100 for step in range(101))

_ALL_AREAS = 0
_MOST_DETECTIONS = -1


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one category; any size of object, at most 100 detections per image.

    Attributes:
        category_id: its id.
        name: its name.
        objects: how many there are to find, without crowds.
        ap: AP, mean over the IoU thresholds.
        ap50: AP at IoU 0.50.
        ap75: AP at IoU 0.75.
        ar: AR, mean over the IoU thresholds.
    """

    category_id: int
    name: str
    objects: int
    ap: float
    ap50: float
    ap75: float
    ar: float


@dataclass(frozen=True)
class CocoMetrics:
    """What an evaluator says about boxes or masks.

    Attributes:
        kind: boxes or masks.
        stats: the 12 numbers by name, see `METRICS`.
        classes: metrics of each category, by ascending id.
        precision: (T, R, K) precision at each recall; any size of object, at most 100 detections per image.
        scores: (T, R, K) score of the detection that reaches the recall, 0 where none does.
    """

    kind: Kind
    stats: dict[str, float]
    classes: tuple[ClassMetrics, ...]
    precision: NDArray[np.float64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Evaluator:
    """A package that computes COCO's metrics through pycocotools' interface.

    Attributes:
        package: name and version.
        coco: its `COCO` class.
        cocoeval: its `COCOeval` class.
    """

    package: str
    coco: Any
    cocoeval: Any


def find_evaluator(name: str = "pycocotools") -> Evaluator:
    """Imports an evaluator.

    Args:
        name: one of `dcnzoo.evaluation.EVALUATORS`.

    Raises:
        ImportError: it is not installed.
        ValueError: there is none of that name.
    """
    if name not in EVALUATORS:
        raise ValueError(f"expected one of {', '.join(EVALUATORS)}, got {name!r}")
    if name == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as COCOeval
    return Evaluator(f"{name} {version(name)}", COCO, COCOeval)


def coco_metrics(
    annotations: Annotations, results: CocoResults, kind: Kind, evaluator: Evaluator | None = None
) -> CocoMetrics:
    """Scores results against annotations.

    Args:
        annotations: of the images to score; with masks that were checked, for masks.
        results: for these images and no others; may be empty.
        kind: what to score.
        evaluator: who computes; pycocotools by default.
    """
    evaluator = evaluator or find_evaluator()
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found annotation id 0")  # as reading them has done
        evaluation = _evaluate(evaluator, annotations, results, kind)
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, _ALL_AREAS, _MOST_DETECTIONS]
    recall = np.asarray(evaluation.eval["recall"])[:, :, _ALL_AREAS, _MOST_DETECTIONS]
    scores = np.asarray(evaluation.eval["scores"])[:, :, :, _ALL_AREAS, _MOST_DETECTIONS]
    return CocoMetrics(
        kind=kind,
        stats=dict(zip(METRICS, map(float, evaluation.stats), strict=True)),
        classes=_class_metrics(annotations, precision, recall),
        precision=precision,
        scores=scores,
    )


def _evaluate(evaluator: Evaluator, annotations: Annotations, results: CocoResults, kind: Kind) -> Any:
    """Evaluates with images and objects numbered anew, since faster-coco-eval fails on negative ids.

    The order of the images stays, and so does the id 0, which takes an object for one that is not found.
    """
    rank = {image_id: number for number, image_id in enumerate(sorted(annotations.image_sizes))}
    objects = [
        {**item, "id": number if item["id"] else 0, "image_id": rank[item["image_id"]]}
        for number, item in enumerate(annotations.objects, 1)
    ]
    truth = evaluator.coco()
    truth.dataset = _dataset(annotations, rank, objects)
    truth.createIndex()
    if results:
        ranked = [{**item, "image_id": rank[item["image_id"]]} for item in split_results(results, kind)]
        found = truth.loadRes(ranked)
    else:  # loadRes looks at the first result
        found = evaluator.coco()
        found.dataset = _dataset(annotations, rank, [])
        found.createIndex()
    evaluation = evaluator.cocoeval(truth, found, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation


def _dataset(annotations: Annotations, rank: dict[int, int], objects: CocoResults) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    for image in annotations.images:
        height, width = image.image_size or (None, None)
        images.append({"id": rank[image.image_id], "height": height, "width": width})
    categories = [{"id": category, "name": name} for category, name in annotations.category_names.items()]
    return {"images": images, "categories": categories, "annotations": objects}


def _class_metrics(
    annotations: Annotations, precision: NDArray[np.float64], recall: NDArray[np.float64]
) -> tuple[ClassMetrics, ...]:
    objects = Counter(item["category_id"] for item in annotations.objects if not item["iscrowd"])
    at_50, at_75 = IOU_THRESHOLDS.index(0.5), IOU_THRESHOLDS.index(0.75)
    return tuple(
        ClassMetrics(
            category_id=category,
            name=name,
            objects=objects[category],
            ap=float(precision[:, :, k].mean()),
            ap50=float(precision[at_50, :, k].mean()),
            ap75=float(precision[at_75, :, k].mean()),
            ar=float(recall[:, k].mean()),
        )
        for k, (category, name) in enumerate(annotations.category_names.items())
    )

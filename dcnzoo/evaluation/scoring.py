"""Everything that is computed from results and annotations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcnzoo.evaluation import CONFUSION_SCORE, Kind
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.coco_metrics import CocoMetrics, Evaluator, coco_metrics
from dcnzoo.evaluation.confusion import confusion_matrix
from dcnzoo.evaluation.error_types import ErrorBreakdown, error_breakdown
from dcnzoo.evaluation.overlaps import image_overlaps
from dcnzoo.evaluation.results import CocoResults


@dataclass(frozen=True)
class Evaluation:
    """What is known about boxes or masks.

    Attributes:
        metrics: COCO's metrics.
        confusion: (K + 1, K + 1) counts, rows are true and columns found classes, background last.
        errors: what each type of error costs.
    """

    metrics: CocoMetrics
    confusion: NDArray[np.int64]
    errors: ErrorBreakdown


def evaluate(
    annotations: Annotations,
    results: CocoResults,
    kind: Kind,
    evaluator: Evaluator | None = None,
    confusion_score: float = CONFUSION_SCORE,
) -> Evaluation:
    """Scores results against annotations, in every way.

    Args:
        annotations: of the images to score.
        results: results of any images; those of other images do not count.
        kind: what to score.
        evaluator: who computes COCO's metrics; pycocotools by default.
        confusion_score: least score of a detection in the confusion matrix.

    Raises:
        EvaluationError: masks are to be scored, and an object has none or a damaged one.
    """
    if kind == "segm":
        annotations.check_masks()
    sizes = annotations.image_sizes
    results = [result for result in results if result["image_id"] in sizes]
    num_classes = len(annotations.category_names)
    overlaps = image_overlaps(annotations, results, kind)
    return Evaluation(
        metrics=coco_metrics(annotations, results, kind, evaluator),
        confusion=confusion_matrix(overlaps, num_classes, confusion_score),
        errors=error_breakdown(overlaps, num_classes),
    )

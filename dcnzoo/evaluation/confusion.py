"""Which classes are taken for which.

Shapes: K categories, D detections and G objects of one image.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dcnzoo.evaluation.overlaps import ImageOverlaps

IOU_THRESHOLD = 0.5


def confusion_matrix(
    images: Iterable[ImageOverlaps], num_classes: int, score_threshold: float
) -> NDArray[np.int64]:
    """Counts what the objects of each class were taken for.

    In each image, the detection and the object that overlap most are paired, whatever their classes, then
    of the rest those that overlap most, and so on. Unpaired detections inside a crowd of their class do
    not count.

    Args:
        images: overlaps of every image.
        num_classes: K.
        score_threshold: least score of a detection that counts.

    Returns:
        (K + 1, K + 1) counts; rows are true classes, columns found ones. The last row holds detections of
        nothing, the last column objects that were not found.
    """
    background = num_classes
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image in images:
        counted = image.scores >= score_threshold
        found, in_crowd = image.found[counted], image.in_crowd[counted]
        pairs = _pairs(image.ious[counted])
        np.add.at(matrix, (image.true[pairs[:, 1]], found[pairs[:, 0]]), 1)
        missed = np.delete(image.true, pairs[:, 1])
        np.add.at(matrix, (missed, background), 1)
        unpaired = np.ones(len(found), bool)
        unpaired[pairs[:, 0]] = False
        np.add.at(matrix, (background, found[unpaired & ~in_crowd]), 1)
    return matrix


def _pairs(ious: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pairs detections with objects, (P, 2) indices, the best overlaps first."""
    detections, objects = np.nonzero(ious >= IOU_THRESHOLD)
    order = np.argsort(-ious[detections, objects], kind="stable")
    used_detections, used_objects = set(), set()
    pairs = []
    for detection, target in zip(detections[order].tolist(), objects[order].tolist(), strict=True):
        if detection not in used_detections and target not in used_objects:
            used_detections.add(detection)
            used_objects.add(target)
            pairs.append((detection, target))
    return np.array(pairs, np.int64).reshape(-1, 2)

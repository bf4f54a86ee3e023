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
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for image in images:
        np.add.at(matrix, _outcomes(image, score_threshold, num_classes), 1)
    return matrix


def _outcomes(
    image: ImageOverlaps, score_threshold: float, background: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns true and found class of every pair, every missed object and every detection of nothing."""
    counted = image.scores >= score_threshold
    found, in_crowd = image.found[counted], image.in_crowd[counted]
    paired, targets = _pairs(image.ious[counted])
    missed = np.delete(image.true, targets)
    unfounded = np.delete(found, paired)[~np.delete(in_crowd, paired)]
    rows = [image.true[targets], missed, np.full(len(unfounded), background)]
    columns = [found[paired], np.full(len(missed), background), unfounded]
    return np.concatenate(rows), np.concatenate(columns)


def _pairs(ious: NDArray[np.float64]) -> tuple[list[int], list[int]]:
    """Pairs detections with objects, the best overlaps first; returns the indices of both."""
    detections, objects = np.nonzero(ious >= IOU_THRESHOLD)
    order = np.argsort(-ious[detections, objects], kind="stable")
    pairs: dict[int, int] = {}
    for detection, target in zip(detections[order].tolist(), objects[order].tolist(), strict=True):
        if detection not in pairs and target not in pairs.values():
            pairs[detection] = target
    return list(pairs), list(pairs.values())

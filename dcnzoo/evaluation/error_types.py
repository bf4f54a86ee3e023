"""How much AP each type of error costs.

After Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors"
(ECCV 2020): every wrong detection and every missed object gets one type, one type at a time is put right,
and AP at IoU 0.50 is computed again. The gains are not additive.

Shapes: D detections, G objects, of one image or of all; K categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from dcnzoo.evaluation.overlaps import ImageOverlaps

FOREGROUND_IOU = 0.5
"""Least IoU at which a detection has found an object: t_f of the paper."""

BACKGROUND_IOU = 0.1
"""Greatest IoU at which a detection has nothing to do with an object: t_b of the paper."""

_RECALLS = np.linspace(0, 1, 101)
_NO_OBJECT = -1


class ErrorType(IntEnum):
    """What is wrong with a detection, or that an object is missed. Values are the order of the tables.

    Attributes:
        CLASSIFICATION: well placed on an object of another class.
        LOCALISATION: of the right class, but placed badly (IoU 0.1 to 0.5).
        BOTH: of the wrong class and placed badly.
        DUPLICATE: right, but a detection with a higher score has found the object before.
        BACKGROUND: on no object (IoU at most 0.1).
        MISSED: an object that no detection has found, not even with a wrong class or place.
    """

    CLASSIFICATION = 0
    LOCALISATION = 1
    BOTH = 2
    DUPLICATE = 3
    BACKGROUND = 4
    MISSED = 5


_CORRECT = -1


@dataclass(frozen=True)
class ErrorBreakdown:
    """What each type of error costs.

    Attributes:
        ap50: AP at IoU 0.50 as it is; the mean over the categories that have objects.
        gains: by how much it would rise if there were no errors of the type.
        counts: how many errors there are.
    """

    ap50: float
    gains: dict[ErrorType, float]
    counts: dict[ErrorType, int]


@dataclass(frozen=True)
class _Judged:
    """Detections with a verdict, and objects; those in crowds of their class are left out.

    Attributes:
        found: (D,) class.
        scores: (D,) score.
        verdicts: (D,) an `ErrorType`, or `_CORRECT`.
        repaired_class: (D,) class of the object that the detection would find if it were put right; -1 if
            it would find none that is still to be found, or another wrong detection with a higher score
            would find the same.
        true: (G,) class of each object.
        missed: (G,) whether it is a `MISSED` error.
    """

    found: NDArray[np.int64]
    scores: NDArray[np.float64]
    verdicts: NDArray[np.int64]
    repaired_class: NDArray[np.int64]
    true: NDArray[np.int64]
    missed: NDArray[np.bool_]

    @classmethod
    def join(cls, images: Sequence[_Judged]) -> _Judged:
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(image, name) for image in images]) for name in names))


def error_breakdown(images: Iterable[ImageOverlaps], num_classes: int) -> ErrorBreakdown:
    """Finds the errors and what they cost.

    Args:
        images: overlaps of every image, at least one.
        num_classes: K.
    """
    judged = _Judged.join([_judge(image) for image in images])
    positives = np.bincount(judged.true, minlength=num_classes)
    scored = positives > 0
    ap50 = _mean_ap(judged.found, judged.scores, judged.verdicts == _CORRECT, positives, scored)
    counts = {kind: int((judged.verdicts == kind).sum()) for kind in ErrorType}
    counts[ErrorType.MISSED] = int(judged.missed.sum())
    # Repairing can lower the AP a little where recall steps are coarse; that is no cost of the error.
    gains = {kind: max(0.0, _repaired_ap(judged, kind, positives, scored) - ap50) for kind in ErrorType}
    return ErrorBreakdown(ap50, gains, counts)


def _judge(image: ImageOverlaps) -> _Judged:
    """Gives every detection of an image its verdict."""
    same_class = image.found[:, None] == image.true
    same, other = np.where(same_class, image.ious, 0.0), np.where(same_class, 0.0, image.ious)
    matched = _match(same)
    verdicts = _verdicts(matched != _NO_OBJECT, _most(same), _most(other))
    kept = (verdicts == _CORRECT) | ~image.in_crowd
    targets = np.full(len(verdicts), _NO_OBJECT)
    for kind, ious in ((ErrorType.LOCALISATION, same), (ErrorType.CLASSIFICATION, other)):
        wrong = np.flatnonzero(kept & (verdicts == kind))
        if len(wrong):
            targets[wrong] = ious[wrong].argmax(axis=1)
    targets[np.isin(targets, matched)] = _NO_OBJECT
    repairs = _first_of_each(targets)
    repaired_class = np.full(len(verdicts), _NO_OBJECT)
    repaired_class[repairs] = image.true[targets[repairs]]
    missed = ~np.isin(np.arange(len(image.true)), [matched, targets])
    return _Judged(
        image.found[kept], image.scores[kept], verdicts[kept], repaired_class[kept], image.true, missed
    )


def _verdicts(
    correct: NDArray[np.bool_], best_same: NDArray[np.float64], best_other: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Tells what is wrong with detections.

    Args:
        correct: (D,) whether the detection has found an object.
        best_same: (D,) greatest IoU with an object of its class.
        best_other: (D,) greatest IoU with an object of another class.

    Returns:
        (D,) an `ErrorType`, or `_CORRECT`; of several that fit, the first below, as the paper's code has it.
    """
    tests = {
        _CORRECT: correct,
        ErrorType.LOCALISATION: (best_same >= BACKGROUND_IOU) & (best_same <= FOREGROUND_IOU),
        ErrorType.CLASSIFICATION: best_other >= FOREGROUND_IOU,
        ErrorType.DUPLICATE: best_same >= FOREGROUND_IOU,
        ErrorType.BACKGROUND: best_other <= BACKGROUND_IOU,
    }
    return np.select(list(tests.values()), list(map(int, tests)), int(ErrorType.BOTH))


def _match(same: NDArray[np.float64]) -> NDArray[np.int64]:
    """Gives each detection, best score first, the object of its class that it overlaps most.

    Of several the last one, as in pycocotools.

    Args:
        same: (D, G) IoUs, zero where the classes differ.

    Returns:
        (D,) index of the object, -1 where no free one overlaps enough.
    """
    matched = np.full(len(same), _NO_OBJECT)
    free = same.copy()
    for detection in np.flatnonzero(_most(same) >= FOREGROUND_IOU):
        target = free.shape[1] - 1 - free[detection, ::-1].argmax()
        if free[detection, target] >= FOREGROUND_IOU:
            matched[detection] = target
            free[:, target] = 0
    return matched


def _repaired_ap(
    judged: _Judged, kind: ErrorType, positives: NDArray[np.int64], scored: NDArray[np.bool_]
) -> float:
    """Returns AP50 with errors of a type put right: detections repaired or removed, objects given up."""
    correct = judged.verdicts == _CORRECT
    if kind is ErrorType.MISSED:
        positives = positives - np.bincount(judged.true[judged.missed], minlength=len(positives))
        return _mean_ap(judged.found, judged.scores, correct, positives, scored)
    wrong = judged.verdicts == kind
    repaired = wrong & (judged.repaired_class != _NO_OBJECT)
    kept = ~wrong | repaired
    found = np.where(repaired, judged.repaired_class, judged.found)
    return _mean_ap(found[kept], judged.scores[kept], (correct | repaired)[kept], positives, scored)


def _mean_ap(
    found: NDArray[np.int64],
    scores: NDArray[np.float64],
    correct: NDArray[np.bool_],
    positives: NDArray[np.int64],
    scored: NDArray[np.bool_],
) -> float:
    """Returns AP, the mean over categories; one with neither objects nor detections left does not count."""
    aps = []
    for k in np.flatnonzero(scored):
        of_class = found == k
        if positives[k] or of_class.any():
            aps.append(_average_precision(scores[of_class], correct[of_class], int(positives[k])))
    return float(np.mean(aps)) if aps else 0.0


def _average_precision(scores: NDArray[np.float64], correct: NDArray[np.bool_], positives: int) -> float:
    """Returns the mean of the precision at 101 recalls, as COCO defines it."""
    if not positives or not len(scores):
        return 0.0
    hits = np.cumsum(correct[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(hits / positives, _RECALLS, side="left")
    return float(np.append(best_from_here, 0.0)[reached].mean())


def _most(ious: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the (D,) greatest IoU of each detection, 0 where there are no objects."""
    most: NDArray[np.float64] = ious.max(axis=1, initial=0.0)
    return most


def _first_of_each(targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the index of the first detection, the one with the best score, of each object."""
    objects, first = np.unique(targets, return_index=True)
    indices: NDArray[np.int64] = first[objects != _NO_OBJECT]
    return indices

"""Types of errors and what they cost, on scenes in which each is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from dcnzoo.evaluation.coco_metrics import coco_metrics
from dcnzoo.evaluation.error_types import ErrorBreakdown, ErrorType, error_breakdown
from dcnzoo.evaluation.overlaps import image_overlaps
from tests.unit.annotating import Dicts, annotations_of, found, random_scene, truth

DOG, CAT = 3, 7
BOX = [0.0, 0.0, 40.0, 40.0]
FAR = [60.0, 60.0, 30.0, 30.0]
IOU_03 = [0.0, 0.0, 40.0, 12.0]
IOU_05 = [0.0, 0.0, 40.0, 20.0]
IOU_01 = [0.0, 0.0, 40.0, 4.0]
IOU_BELOW_01 = [0.0, 0.0, 40.0, 3.9]

ONE = [truth(1, CAT, BOX)]
TWO = [truth(1, CAT, BOX), truth(2, CAT, BOX)]
CAT_AND_DOG = [truth(1, CAT, BOX), truth(2, DOG, BOX)]

WRONG_THEN_RIGHT = (51 * 1 + 50 * 2 / 3) / 101
"""AP of a right, a wrong and a right detection of two objects: precision 1 up to recall 0.5, then 2/3."""


def breakdown(folder: Path, objects: Dicts, detections: Dicts) -> ErrorBreakdown:
    return error_breakdown(image_overlaps(annotations_of(folder, objects, 6), detections, "bbox"), 3)


def errors(result: ErrorBreakdown) -> dict[ErrorType, int]:
    """Types that occur."""
    return {kind: count for kind, count in result.counts.items() if count}


@pytest.mark.parametrize(
    ("objects", "detections", "kind", "ap50", "gain"),
    [
        pytest.param(ONE, [found(1, DOG, BOX, 0.9)], ErrorType.CLASSIFICATION, 0, 1, id="class"),
        pytest.param(ONE, [found(1, CAT, IOU_03, 0.9)], ErrorType.LOCALISATION, 0, 1, id="place"),
        pytest.param(ONE, [found(1, CAT, IOU_01, 0.9)], ErrorType.LOCALISATION, 0, 1, id="place, IoU 0.1"),
        pytest.param(
            CAT_AND_DOG,
            [found(1, CAT, BOX, 0.9), found(1, DOG, IOU_03, 0.9), found(2, DOG, BOX, 0.8)],
            ErrorType.BOTH,
            0.75,
            0.25,
            id="both: the dogs' AP is 1/2",
        ),
        pytest.param(
            TWO,
            [found(1, CAT, BOX, 0.9), found(1, CAT, BOX, 0.8), found(2, CAT, BOX, 0.7)],
            ErrorType.DUPLICATE,
            WRONG_THEN_RIGHT,
            1 - WRONG_THEN_RIGHT,
            id="duplicate",
        ),
        pytest.param(
            TWO,
            [found(1, CAT, BOX, 0.9), found(1, CAT, FAR, 0.8), found(2, CAT, BOX, 0.7)],
            ErrorType.BACKGROUND,
            WRONG_THEN_RIGHT,
            1 - WRONG_THEN_RIGHT,
            id="background",
        ),
        pytest.param(
            TWO,
            [
                found(1, CAT, BOX, 0.9),
                found(1, CAT, BOX, 0.8),
                found(2, CAT, BOX, 0.7),
                found(3, CAT, BOX, 0.1),
            ],
            ErrorType.DUPLICATE,
            WRONG_THEN_RIGHT,
            1 - WRONG_THEN_RIGHT,
            id="duplicate, and background where there is no object, which costs nothing",
        ),
        pytest.param(TWO, [found(1, CAT, BOX, 0.9)], ErrorType.MISSED, 51 / 101, 50 / 101, id="missed"),
    ],
)
def test_each_type(
    tmp_path: Path, objects: Dicts, detections: Dicts, kind: ErrorType, ap50: float, gain: float
) -> None:
    result = breakdown(tmp_path, objects, detections)
    assert errors(result) == {kind: 1} | ({ErrorType.BACKGROUND: 1} if len(detections) == 4 else {})
    assert result.ap50 == pytest.approx(ap50)
    expected = dict.fromkeys(ErrorType, 0.0) | {kind: gain}
    assert result.gains == pytest.approx(expected)


def test_no_errors(tmp_path: Path) -> None:
    result = breakdown(tmp_path, TWO, [found(1, CAT, BOX, 0.2), found(2, CAT, IOU_05, 0.1)])
    assert (result.ap50, errors(result)) == (pytest.approx(1), {})
    assert set(result.gains.values()) == {0}


def test_the_object_of_a_wrong_class_or_place_is_not_missed(tmp_path: Path) -> None:
    result = breakdown(tmp_path, TWO, [found(1, DOG, BOX, 0.9), found(2, CAT, IOU_03, 0.8)])
    assert errors(result) == {ErrorType.CLASSIFICATION: 1, ErrorType.LOCALISATION: 1}


def test_below_the_background_threshold_an_object_is_missed(tmp_path: Path) -> None:
    result = breakdown(tmp_path, ONE, [found(1, CAT, IOU_BELOW_01, 0.9)])
    assert errors(result) == {ErrorType.BACKGROUND: 1, ErrorType.MISSED: 1}


def test_of_two_errors_on_one_object_the_better_score_is_repaired(tmp_path: Path) -> None:
    """The other is removed: repaired as well, it would be a duplicate."""
    detections = [found(1, CAT, IOU_03, 0.6), found(1, CAT, IOU_03, 0.9)]
    result = breakdown(tmp_path, ONE, detections)
    assert errors(result) == {ErrorType.LOCALISATION: 2}
    assert result.gains[ErrorType.LOCALISATION] == pytest.approx(1)


def test_an_error_on_an_object_that_is_found_is_removed(tmp_path: Path) -> None:
    detections = [found(1, CAT, IOU_03, 0.9), found(1, CAT, BOX, 0.5)]
    result = breakdown(tmp_path, ONE, detections)
    assert errors(result) == {ErrorType.LOCALISATION: 1}
    assert (result.ap50, result.gains[ErrorType.LOCALISATION]) == (pytest.approx(0.5), pytest.approx(0.5))


def test_a_wrong_place_goes_before_a_wrong_class(tmp_path: Path) -> None:
    """As in the paper's code: the own class is looked at first."""
    objects = [truth(1, DOG, IOU_03), truth(1, CAT, BOX)]
    result = breakdown(tmp_path, objects, [found(1, DOG, BOX, 0.9)])
    assert errors(result) == {ErrorType.LOCALISATION: 1, ErrorType.MISSED: 1}


def test_in_a_crowd_of_its_class_nothing_is_wrong(tmp_path: Path) -> None:
    objects = [truth(1, CAT, BOX), truth(1, CAT, FAR, crowd=1)]
    detections = [found(1, CAT, [65, 65, 9, 9], 0.9), found(1, CAT, BOX, 0.8)]
    result = breakdown(tmp_path, objects, detections)
    assert (result.ap50, errors(result)) == (pytest.approx(1), {})


def test_of_equal_overlaps_the_last_object_is_found(tmp_path: Path) -> None:
    """As in pycocotools; the first one is left for the other detection."""
    objects = [truth(1, CAT, [0, 0, 10, 10]), truth(1, CAT, [4, 0, 10, 10])]
    detections = [found(1, CAT, [2, 0, 10, 10], 0.9), found(1, CAT, [0, 0, 10, 10], 0.8)]
    metrics = coco_metrics(annotations_of(tmp_path, objects), detections, "bbox")
    result = breakdown(tmp_path, objects, detections)
    assert (result.ap50, errors(result)) == (pytest.approx(metrics.stats["AP50"]), {})


def test_no_objects(tmp_path: Path) -> None:
    result = breakdown(tmp_path, [], [found(1, CAT, BOX, 0.9)])
    assert (result.ap50, errors(result)) == (0, {ErrorType.BACKGROUND: 1})
    assert set(result.gains.values()) == {0}


@pytest.mark.parametrize("seed", range(8))
def test_ap50_is_pycocotools_own(tmp_path: Path, seed: int) -> None:
    objects, detections = random_scene(seed)
    annotations = annotations_of(tmp_path, objects, images=6)
    result = error_breakdown(image_overlaps(annotations, detections, "bbox"), 3)
    assert result.ap50 == pytest.approx(
        coco_metrics(annotations, detections, "bbox").stats["AP50"], abs=1e-12
    )
    assert all(0 <= gain <= 1 - result.ap50 + 1e-12 for gain in result.gains.values())
    assert sum(result.counts.values()) > 5

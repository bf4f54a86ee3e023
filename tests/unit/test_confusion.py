"""The confusion matrix, on scenes that can be checked with a pencil. Classes: 0 dog, 1 cat, 2 bird."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dcnzoo.evaluation.confusion import confusion_matrix
from dcnzoo.evaluation.overlaps import image_overlaps
from tests.unit.annotating import Dicts, annotations_of, found, random_scene, truth

DOG, CAT, BIRD = 3, 7, 90
BACKGROUND = 3
LEFT, RIGHT = [0.0, 0.0, 40.0, 40.0], [60.0, 0.0, 40.0, 40.0]
NEAR_LEFT = [4.0, 0.0, 40.0, 40.0]


def confusion(folder: Path, objects: Dicts, detections: Dicts, score: float = 0.3) -> np.ndarray:
    return confusion_matrix(image_overlaps(annotations_of(folder, objects), detections, "bbox"), 3, score)


@pytest.mark.parametrize(
    ("objects", "detections", "expected"),
    [
        pytest.param([truth(1, CAT, LEFT)], [found(1, CAT, LEFT, 0.9)], {(1, 1): 1}, id="right"),
        pytest.param([truth(1, CAT, LEFT)], [found(1, DOG, LEFT, 0.9)], {(1, 0): 1}, id="another class"),
        pytest.param([truth(1, CAT, LEFT)], [], {(1, BACKGROUND): 1}, id="missed"),
        pytest.param([], [found(1, BIRD, LEFT, 0.9)], {(BACKGROUND, 2): 1}, id="nothing there"),
        pytest.param(
            [truth(1, CAT, LEFT)],
            [found(1, CAT, RIGHT, 0.9)],
            {(1, BACKGROUND): 1, (BACKGROUND, 1): 1},
            id="elsewhere",
        ),
        pytest.param(
            [truth(1, CAT, LEFT)], [found(2, CAT, LEFT, 0.9)], {(1, 3): 1, (3, 1): 1}, id="in another image"
        ),
        pytest.param(
            [truth(1, CAT, LEFT)], [found(1, CAT, LEFT, 0.29)], {(1, BACKGROUND): 1}, id="score too low"
        ),
        pytest.param([truth(1, CAT, LEFT)], [found(1, CAT, LEFT, 0.3)], {(1, 1): 1}, id="score just enough"),
        pytest.param(
            [truth(1, CAT, LEFT)],
            [found(1, DOG, NEAR_LEFT, 0.9), found(1, CAT, LEFT, 0.5)],
            {(1, 1): 1, (BACKGROUND, 0): 1},
            id="the better overlap wins, whatever the scores",
        ),
        pytest.param(
            [truth(1, CAT, LEFT), truth(1, DOG, NEAR_LEFT)],
            [found(1, CAT, LEFT, 0.5), found(1, DOG, NEAR_LEFT, 0.9)],
            {(1, 1): 1, (0, 0): 1},
            id="two objects that overlap",
        ),
        pytest.param(
            [truth(1, CAT, LEFT, crowd=1)],
            [found(1, CAT, [5, 5, 9, 9], 0.9)],
            {},
            id="in a crowd of its class",
        ),
        pytest.param(
            [truth(1, CAT, LEFT, crowd=1)],
            [found(1, DOG, [5, 5, 9, 9], 0.9)],
            {(BACKGROUND, 0): 1},
            id="in a crowd of another class",
        ),
        pytest.param(
            [truth(1, CAT, LEFT)], [found(1, CAT, [0, 0, 40, 20], 0.9)], {(1, 1): 1}, id="IoU just enough"
        ),
    ],
)
def test_counts(
    tmp_path: Path, objects: Dicts, detections: Dicts, expected: dict[tuple[int, int], int]
) -> None:
    matrix = np.zeros((4, 4), int)
    for cell, count in expected.items():
        matrix[cell] = count
    np.testing.assert_array_equal(confusion(tmp_path, objects, detections), matrix)


@pytest.mark.parametrize("seed", range(5))
def test_every_object_counts_once(tmp_path: Path, seed: int) -> None:
    objects, detections = random_scene(seed)
    annotations = annotations_of(tmp_path, objects, images=6)
    matrix = confusion_matrix(image_overlaps(annotations, detections, "bbox"), 3, 0.3)
    plain = [item["category_id"] for item in objects if not item["iscrowd"]]
    assert matrix[:3].sum(axis=1).tolist() == [plain.count(category) for category in (DOG, CAT, BIRD)]
    assert matrix.sum() - matrix[:3, 3].sum() <= sum(item["score"] >= 0.3 for item in detections)
    assert matrix[3, 3] == 0

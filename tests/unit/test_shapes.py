"""The drawn pictures: their masks are exact, their numbers repeat, and COCO's tools read them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from dcnzoo.evaluation.annotations import read_annotations
from dcnzoo.shapes import CLASSES, LEAST_VISIBLE, MAX_OBJECTS, draw_picture, fill_polygon, outline, write_set


def area_of(points: np.ndarray) -> float:
    """The signed area inside a contour that does not cross itself."""
    x, y = points.T
    return float(0.5 * np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)))


@pytest.mark.parametrize("label", range(len(CLASSES)), ids=CLASSES)
def test_contour_does_not_cross_itself(label: int) -> None:
    random = np.random.default_rng(0)
    outer, hole = outline(random, label)
    area = abs(area_of(outer)) * 40**2
    coverage, painted = fill_polygon(outer * 40, np.array([50.0, 50.0]), (100, 100), 40)
    assert painted == pytest.approx(area, rel=0.03)
    assert coverage.sum() == pytest.approx(painted)
    assert np.linalg.norm(outer, axis=1).max() < 1.1
    assert (hole is not None) == (CLASSES[label] == "ring")


def test_pixels_are_covered_as_far_as_the_contour_reaches() -> None:
    square = np.array([(-10, -10), (10, -10), (10, 10), (-10, 10)], dtype=float)
    coverage, area = fill_polygon(square, np.array([20.5, 8.0]), (32, 40), 15)
    assert area == pytest.approx(400, rel=0.03)
    assert coverage.shape == (32, 40)
    assert np.all(coverage[:17, 11:30] == 1)  # the part above row 0 is outside the picture
    assert np.all(coverage[19:] == 0)
    assert np.all(coverage[:, :10] == 0)
    assert coverage[5, 10] == pytest.approx(0.5, abs=0.26)


@pytest.mark.parametrize("number", range(1, 9))
def test_picture_has_visible_objects_that_do_not_overlap(number: int) -> None:
    picture = draw_picture(7, number, (120, 160))
    assert (picture.pixels.shape, picture.pixels.dtype) == ((120, 160, 3), np.uint8)
    assert 1 <= len(picture.labels) == len(picture.masks) <= MAX_OBJECTS
    assert set(picture.labels) <= set(range(len(CLASSES)))
    assert picture.masks.sum(axis=0).max() == 1
    smallest = LEAST_VISIBLE * 0.25 * (22 * 120 / 192) ** 2  # of a thin ring or star
    assert picture.masks.sum(axis=(1, 2)).min() > smallest
    assert picture.pixels.std() > 5


def test_pictures_repeat_and_differ() -> None:
    first, again, other, next_one = (draw_picture(*key) for key in ((7, 1), (7, 1), (8, 1), (7, 2)))
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.pixels, other.pixels)
    assert not np.array_equal(first.pixels, next_one.pixels)


def test_every_class_is_drawn() -> None:
    labels = np.concatenate([draw_picture(3, number, (64, 64)).labels for number in range(40)])
    assert np.bincount(labels, minlength=len(CLASSES)).min() >= 5


def test_set_is_read_as_coco_annotations(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set", 3, seed=5, size=(96, 128))
    annotations = read_annotations(path)
    annotations.check_masks()
    files = annotations.find_files(tmp_path / "set" / "images")
    document = json.loads(path.read_text(encoding="utf-8"))
    assert [category["name"] for category in document["categories"]] == list(CLASSES)
    assert len(files) == 3
    for image in document["images"]:
        picture = draw_picture(5, image["id"], (96, 128))
        stored = np.asarray(Image.open(tmp_path / "set" / "images" / image["file_name"])).astype(float)
        assert np.abs(stored - picture.pixels).mean() < 15  # JPEG halves the resolution of colour noise
        own = [each for each in document["annotations"] if each["image_id"] == image["id"]]
        assert [each["category_id"] - 1 for each in own] == picture.labels.tolist()
        for each, mask in zip(own, picture.masks, strict=True):
            assert np.array_equal(coco_mask.decode(each["segmentation"]), mask)
            rows, columns = np.nonzero(mask)
            left, top, width, height = each["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            assert each["area"] == mask.sum()

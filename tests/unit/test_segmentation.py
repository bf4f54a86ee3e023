"""Masks in COCO files: read as pycocotools reads them, and refused where pycocotools would come to harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from dcnzoo.evaluation.segmentation import check_rle, check_segmentation, run_lengths, to_rle

MASKS = arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths in string form."""
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def runs_of(mask: np.ndarray) -> list[int]:
    """Run lengths of a mask by their definition: down the columns, background first."""
    pixels = mask.ravel(order="F")
    runs, value = [], 0
    position = 0
    while position < len(pixels):
        length = 0
        while position < len(pixels) and pixels[position] == value:
            position, length = position + 1, length + 1
        runs.append(length)
        value = 1 - value
    return runs


@given(MASKS)
@example(np.zeros((1, 1), np.uint8))
@example(np.ones((300, 200), np.uint8))
@example(np.tile(np.array([[0, 1]], np.uint8), (1, 9)))
def test_run_lengths(mask: np.ndarray) -> None:
    rle = encode(mask)
    assert run_lengths(rle["counts"]).tolist() == runs_of(mask)
    check_rle(rle, mask.shape)
    check_rle({"size": list(mask.shape), "counts": runs_of(mask)}, mask.shape)


@given(MASKS)
def test_either_form_is_the_same_mask(mask: np.ndarray) -> None:
    plain = to_rle({"size": list(mask.shape), "counts": runs_of(mask)}, mask.shape)
    np.testing.assert_array_equal(coco_mask.decode(plain), mask)
    assert to_rle(encode(mask), mask.shape) == encode(mask)


def test_polygons_are_merged() -> None:
    polygons = [[2, 2, 6, 2, 6, 6, 2, 6], [4, 4, 9, 4, 9, 9, 4, 9]]
    check_segmentation(polygons, (12, 12))
    assert coco_mask.area(to_rle(polygons, (12, 12))) == 16 + 25 - 4


@given(mask=MASKS, data=st.data())
def test_whatever_passes_is_safe(mask: np.ndarray, data: st.DataObject) -> None:
    """Damaged strings are refused, or are other masks of the same image."""
    counts = list(encode(mask)["counts"])
    for _ in range(data.draw(st.integers(1, 3))):
        counts[data.draw(st.integers(0, len(counts) - 1))] = chr(data.draw(st.integers(32, 127)))
    rle = {"size": list(mask.shape), "counts": "".join(counts)}
    try:
        check_rle(rle, mask.shape)
    except ValueError:
        return
    assert coco_mask.decode(rle).shape == mask.shape
    assert coco_mask.area(rle) == run_lengths(rle["counts"])[1::2].sum()


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        (7, "is no run lengths"),
        ({"size": [4, 5]}, "is no run lengths"),
        ({"counts": [20]}, "is of size None, the image is [4, 5]"),
        ({"size": 4, "counts": [20]}, "is of size 4"),
        ({"size": [5, 4], "counts": [20]}, "is of size [5, 4], the image is [4, 5] (height, width)"),
        ({"size": [4, 5], "counts": [10, 9]}, "do not add up to the 20 pixels"),
        ({"size": [4, 5], "counts": [30, -10]}, "neither a string nor integers"),
        ({"size": [4, 5], "counts": [20.0]}, "neither a string nor integers"),
        ({"size": [4, 5], "counts": None}, "neither a string nor integers"),
        ({"size": [4, 5], "counts": ""}, "do not add up"),
        ({"size": [4, 5], "counts": "zzzzzzzz"}, "damaged or cut short"),
        ({"size": [4, 5], "counts": "PPPPPPPPPPPPPPPPP0"}, "damaged or cut short"),
        ({"size": [4, 5], "counts": "d"}, "damaged or cut short"),
        ({"size": [4, 5], "counts": "d0é"}, "damaged or cut short"),
        ({"size": [4, 5], "counts": "O"}, "do not add up"),
    ],
)
def test_damaged_run_lengths(rle: object, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        check_rle(rle, (4, 5))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "is neither a list of polygons nor run lengths"),
        ([], "is neither a list of polygons nor run lengths"),
        ([[1, 2, 3, 4]], "no list of at least three points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "no list of at least three points"),
        ([[1, 2, 3, 4, 5, "6"]], "something else than numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "far outside of the image"),
        ([[1, 2, 3, 4, 5, 1e30]], "far outside of the image"),
        ([[1, 2, 3, 4, 5, 10**400]], "far outside of the image"),
        ([[0, 0, 30, 20] * 40], "outline is longer than any"),
        ([1, 2, 3, 4, 5, 6], "no list of at least three points"),
    ],
)
def test_damaged_segmentations(segmentation: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_segmentation(segmentation, (20, 30))

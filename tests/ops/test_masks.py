"""Mask pasting against the readable definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from dcnzoo import ops
from dcnzoo.ops import reference


@pytest.mark.parametrize(
    "box",
    [
        (3.2, 4.7, 30.1, 22.9),
        (0.0, 0.0, 50.0, 40.0),
        (-10.0, -7.0, 20.5, 15.5),
        (40.0, 30.0, 90.0, 70.0),
        (10.0, 10.0, 11.0, 10.6),
        (10.0, 10.0, 10.2, 30.0),
    ],
    ids=["inside", "whole image", "over the corner", "beyond the edge", "a pixel", "a sliver"],
)
def test_pasting_equals_the_definition(box: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    probs, boxes = torch.rand(1, 28, 28), torch.tensor([box])
    (rle,) = ops.paste_masks(probs, boxes, (40, 50))
    assert rle["size"] == [40, 50]
    expected = reference.paste_mask(probs[0].double(), boxes[0].double(), (40, 50)).numpy()
    assert (
        coco_mask.decode(rle).astype(bool) != expected
    ).sum() <= 1  # a sample may lie within rounding of ½


@pytest.mark.parametrize(
    "box", [(5.0, 5, 5, 9), (5, 5, 4, 4), (float("nan"), 0, 9, 9), (60, 50, 70, 60)], ids=str
)
def test_boxes_without_pixels_give_empty_masks(box: tuple[float, ...]) -> None:
    (rle,) = ops.paste_masks(torch.ones(1, 28, 28), torch.tensor([box]), (40, 50))
    assert coco_mask.area(rle) == 0


def test_order_and_number_of_masks() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 8, 8]])
    rles = ops.paste_masks(torch.ones(2, 28, 28), boxes, (10, 10))
    assert [int(area) for area in coco_mask.area(rles)] == [16, 64]
    assert ops.paste_masks(torch.ones(0, 28, 28), torch.zeros(0, 4), (10, 10)) == []
    assert isinstance(rles[0]["counts"], str)
    assert np.isfortran(coco_mask.decode(rles))

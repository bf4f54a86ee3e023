"""Mask pasting against the readable definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from dcnzoo import ops
from dcnzoo.ops import backend, reference
from tests.ops.test_roi_ops import NATIVE_ONLY

pytestmark = pytest.mark.usefixtures("backend_in_use")


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
    "box",
    [
        (5.0, 5, 5, 9),
        (5, 5, 4, 4),
        (60, 50, 70, 60),
        (-9, -9, -1, -1),
        (float("nan"), 0, 9, 9),
        (0, 0, 9, float("nan")),
        (0, 0, float("inf"), 9),
    ],
    ids=str,
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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_maps_that_are_not_finite_give_empty_masks(value: float) -> None:
    probs = torch.ones(1, 28, 28)
    probs[0, 3, 4] = value
    (rle,) = ops.paste_masks(probs, torch.tensor([[0.0, 0, 9, 9]]), (10, 10))
    assert coco_mask.area(rle) == 0


def random_boxes(count: int, height: int, width: int) -> torch.Tensor:
    """Boxes of all sizes down to a tenth of a pixel, some of them wholly or partly outside."""
    centre = torch.rand(count, 2) * torch.tensor([width, height]) * 1.4 - 0.2 * min(width, height)
    size = 10 ** (torch.rand(count, 2) * 4 - 1)
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


@pytest.mark.parametrize("image_size", [(40, 50), (1, 300), (300, 1), (427, 640), (1200, 1600)], ids=str)
@pytest.mark.parametrize("smooth", [False, True], ids=["noise", "blobs"])
def test_both_implementations_give_the_same_masks(
    image_size: tuple[int, int], smooth: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(sum(image_size))
    probs, boxes = torch.rand(60, 28, 28), random_boxes(60, *image_size)
    if smooth:
        probs = torch.nn.functional.interpolate(probs[:, None, :5, :5], size=(28, 28), mode="bicubic")[:, 0]
    found = ops.paste_masks(probs, boxes, image_size)
    monkeypatch.setattr(backend, "_chosen", ("torchvision", "the one in Python"))
    expected = ops.paste_masks(probs, boxes, image_size)
    differing = (coco_mask.decode(found) != coco_mask.decode(expected)).sum()
    assert differing <= 1  # a sample may lie within rounding of ½


@pytest.mark.parametrize("image_size", [(1, 1), (7, 9), (500, 3), (3000, 4000)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_runs_are_written_as_coco_writes_them(share: float, image_size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    probs, boxes = (torch.rand(2, 28, 28) < share).float(), torch.tensor([[0.0, 0, *image_size[::-1]]] * 2)
    rles = ops.paste_masks(probs, boxes, image_size)
    expected = coco_mask.encode(coco_mask.decode(rles))
    assert [rle["counts"] for rle in rles] == [rle["counts"].decode("ascii") for rle in expected]


@NATIVE_ONLY
def test_the_compiled_operator_passes_opcheck() -> None:
    arguments = (torch.rand(3, 28, 28), random_boxes(3, 40, 50), [40, 50])
    torch.library.opcheck(torch.ops.dcnzoo.paste_masks.default, arguments)


@NATIVE_ONLY
@pytest.mark.parametrize(
    ("probs", "boxes", "image_size", "message"),
    [
        (torch.ones(1, 28), torch.ones(1, 4), (9, 9), "3 dimensions"),
        (torch.ones(1, 1, 28), torch.ones(1, 4), (9, 9), "more than one cell"),
        (torch.ones(2, 28, 28), torch.ones(1, 4), (9, 9), "one for each map"),
        (torch.ones(1, 28, 28), torch.ones(1, 5), (9, 9), "boxes must be"),
        (torch.ones(1, 28, 28).double(), torch.ones(1, 4), (9, 9), "must be float32"),
        (torch.ones(1, 28, 28), torch.ones(1, 4), (9, 0), "must be positive"),
    ],
)
def test_the_compiled_operator_refuses_misfits(
    probs: torch.Tensor, boxes: torch.Tensor, image_size: tuple[int, int], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dcnzoo.paste_masks(probs, boxes, image_size)

"""Non-maximum suppression against the readable definition and torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms as torchvision_nms

from dcnzoo import ops
from dcnzoo.ops import reference
from tests.ops.test_roi_ops import NATIVE_ONLY, random_rois

pytestmark = pytest.mark.usefixtures("backend_in_use")


@pytest.mark.parametrize("count", [0, 1, 200])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_equals_the_definition(count: int, threshold: float) -> None:
    torch.manual_seed(count)
    boxes, scores = random_rois(count, 1, 100, 100)[:, 1:], torch.rand(count)
    expected = reference.nms(boxes, scores, threshold)
    assert ops.nms(boxes, scores, threshold).tolist() == expected.tolist()


@pytest.mark.parametrize("count", [0, 300, 3000])
def test_batched_nms_treats_groups_alone(count: int) -> None:
    torch.manual_seed(0)
    boxes, scores = random_rois(count, 1, 100, 100)[:, 1:], torch.rand(count)
    groups = torch.randint(5, (count,))
    keep = ops.batched_nms(boxes, scores, groups, 0.5)
    assert (scores[keep].diff() <= 0).all()
    for group in range(5):
        members = (groups == group).nonzero()[:, 0]
        expected = members[ops.nms(boxes[members], scores[members], 0.5)]
        assert keep[groups[keep] == group].tolist() == expected.tolist()


@NATIVE_ONLY
@pytest.mark.parametrize("num_groups", [1, 7, 400])
@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 0.7, 1.0])
@pytest.mark.parametrize("integer", [False, True], ids=["real", "integer"])
def test_batched_nms_keeps_what_torchvision_keeps(integer: bool, threshold: float, num_groups: int) -> None:
    """With integers, overlaps meet the threshold exactly and scores tie."""
    torch.manual_seed(1)
    boxes, scores = random_rois(1500, 1, 60, 60)[:, 1:], torch.rand(1500)
    if integer:
        boxes, scores = boxes.round(), (scores * 20).round()
    groups = torch.randint(-num_groups, num_groups, (1500,)) * 10**12
    keep = ops.batched_nms(boxes, scores, groups, threshold)
    assert keep.tolist() == one_group_after_another(boxes, scores, groups, threshold)


@pytest.mark.parametrize("backend_in_use", ["reference"], indirect=True)
@pytest.mark.parametrize("count", [0, 100])
def test_the_readable_definition_suppresses_the_same(count: int) -> None:
    torch.manual_seed(3)
    boxes, scores = random_rois(count, 1, 60, 60)[:, 1:], torch.rand(count)
    groups = torch.randint(3, (count,))
    keep = ops.batched_nms(boxes, scores, groups, 0.5)
    assert keep.tolist() == (one_group_after_another(boxes, scores, groups, 0.5) if count else [])
    assert ops.nms(boxes, scores, 0.5).tolist() == torchvision_nms(boxes, scores, 0.5).tolist()


@NATIVE_ONLY
def test_batched_nms_treats_not_a_number_as_torchvision_does() -> None:
    torch.manual_seed(2)
    boxes, scores = random_rois(1500, 1, 30, 30)[:, 1:], torch.rand(1500).round(decimals=2)
    boxes[torch.rand(1500, 4) < 0.05] = float("nan")
    boxes[torch.rand(1500, 4) < 0.05] = float("inf")
    scores[torch.rand(1500) < 0.05] = float("nan")
    groups = torch.randint(4, (1500,))
    keep = ops.batched_nms(boxes, scores, groups, 0.5)
    assert keep.tolist() == one_group_after_another(boxes, scores, groups, 0.5)


def one_group_after_another(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> list[int]:
    """Indices that torchvision's suppression leaves of each group, by descending score, ties in order."""
    members = [(groups == group).nonzero()[:, 0] for group in groups.unique()]
    kept = [index[torchvision_nms(boxes[index], scores[index], threshold)] for index in members]
    order = torch.cat(kept).sort().values
    return order[scores[order].sort(descending=True, stable=True).indices].tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", [(0, 1), (0, 2**40)])
def test_groups_beyond_zero_never_interact(dtype: torch.dtype, groups: tuple[int, int]) -> None:
    boxes = torch.tensor([[-100, -100, -1, -1]] * 2, dtype=dtype)
    scores = torch.tensor([0.9, 0.8], dtype=dtype)
    assert ops.batched_nms(boxes, scores, torch.tensor(groups), 0.5).tolist() == [0, 1]


def test_batched_nms_of_float64() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]], dtype=torch.float64)
    scores, groups = torch.tensor([0.5, 0.75, 0.25]).double(), torch.zeros(3, dtype=torch.int64)
    assert ops.batched_nms(boxes, scores, groups, 0.5).tolist() == [1, 2]


@NATIVE_ONLY
def test_the_compiled_operator_passes_opcheck() -> None:
    arguments = (random_rois(50, 1, 20, 20)[:, 1:], torch.rand(50), torch.randint(3, (50,)), 0.5)
    torch.library.opcheck(torch.ops.dcnzoo.batched_nms.default, arguments)


@NATIVE_ONLY
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": torch.zeros(3, 5)}, "boxes must be"),
        ({"boxes": torch.zeros(3, 4, dtype=torch.float64)}, "must be float32"),
        ({"scores": torch.zeros(2)}, "one for each box"),
        ({"groups": torch.zeros(4, dtype=torch.int64)}, "one for each box"),
        ({"groups": torch.zeros(3)}, "groups must be int64"),
    ],
)
def test_the_compiled_operator_refuses_misfits(change: dict[str, Tensor], message: str) -> None:
    right = {
        "boxes": torch.zeros(3, 4),
        "scores": torch.zeros(3),
        "groups": torch.zeros(3, dtype=torch.int64),
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dcnzoo.batched_nms(**right | change, iou_threshold=0.5)


def test_sorted_sets_are_suppressed_one_by_one() -> None:
    torch.manual_seed(0)
    corners = 100 * torch.rand(3, 50, 2, 2)
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    found = ops.nms_sorted(boxes, torch.tensor([50, 20, 0]), 0.3)
    for kept, single, count in zip(found, boxes, (50, 20, 0), strict=True):
        scores = torch.arange(count, 0, -1, dtype=torch.float32)
        wanted = reference.nms(single[:count], scores, 0.3)
        assert kept.nonzero()[:, 0].tolist() == wanted.sort().values.tolist()

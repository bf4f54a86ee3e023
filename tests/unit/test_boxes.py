"""Box arithmetic against cases that can be checked with a pencil."""

from __future__ import annotations

import math

import pytest
import torch

from dcnzoo.models.anchors import cell_anchors, grid_anchors
from dcnzoo.models.boxes import (
    boxes_to_rois,
    clip_boxes,
    decode_boxes,
    select_detections,
    to_original_frame,
)
from dcnzoo.models.roi_features import assign_levels

CPU = torch.device("cpu")


def test_cell_anchors_keep_their_area() -> None:
    anchors = cell_anchors(4, CPU)
    size = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(size.prod(1), torch.full((3,), 32.0**2))
    torch.testing.assert_close(size[:, 1] / size[:, 0], torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(anchors[1], torch.tensor([-16.0, -16.0, 16.0, 16.0]))


def test_cell_anchors_on_a_gpu_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "full", lambda size, value, **_: torch.tensor(value).expand(size))
    for stride in (4, 8, 64):
        assert cell_anchors(stride, torch.device("cuda")).equal(cell_anchors(stride, CPU))


def test_grid_anchors_run_row_column_anchor_without_half_pixel() -> None:
    anchors = grid_anchors((2, 3), 8, CPU)
    assert anchors.shape == (18, 4)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert centres[::3].tolist() == [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8]]


@pytest.mark.parametrize(
    ("deltas", "stds", "expected"),
    [
        ((0, 0, 0, 0), (1, 1, 1, 1), (10, 20, 30, 60)),
        ((0.5, 0, 0, 0), (1, 1, 1, 1), (20, 20, 40, 60)),
        ((5, 0, 0, 0), (0.1, 0.1, 0.2, 0.2), (20, 20, 40, 60)),
        ((0, 0, math.log(2), 0), (1, 1, 1, 1), (0, 20, 40, 60)),
        ((0, 0, 0, 100), (1, 1, 1, 1), (10, 40 - 20 * 62.5, 30, 40 + 20 * 62.5)),
    ],
    ids=["identity", "shift", "units", "double width", "clamped growth"],
)
def test_decode_boxes(
    deltas: tuple[float, ...], stds: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    units = torch.tensor([deltas], dtype=torch.float32)
    boxes = decode_boxes(torch.tensor([[10.0, 20, 30, 60]]), units, stds)
    torch.testing.assert_close(boxes, torch.tensor([[expected]], dtype=torch.float32))


def test_decode_boxes_per_class() -> None:
    deltas = torch.tensor([[0.0, 0, 0, 0, 1, 0, 0, 0]])
    boxes = decode_boxes(torch.tensor([[0.0, 0, 10, 10]]), deltas)
    assert boxes.tolist() == [[[0, 0, 10, 10], [10, 0, 20, 10]]]


def test_clip_boxes_uses_height_and_width() -> None:
    boxes = clip_boxes(torch.tensor([[-5.0, -5, 500, 500], [1, 2, 3, 4]]), (100, 200))
    assert boxes.tolist() == [[0, 0, 200, 100], [1, 2, 3, 4]]


def test_to_original_frame_scales_each_axis() -> None:
    boxes = to_original_frame(
        torch.tensor([[10.0, 20, 30, 40]]), image_size=(200, 100), original_size=(100, 100)
    )
    assert boxes.tolist() == [[10, 10, 30, 20]]


def test_boxes_to_rois_numbers_the_images() -> None:
    rois = boxes_to_rois([torch.ones(2, 4), torch.zeros(0, 4), torch.full((1, 4), 3.0)])
    assert rois.tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [2, 3, 3, 3, 3]]


def test_select_detections_suppresses_within_a_class_only() -> None:
    box = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.7], [0.05, 0.6]])
    boxes, confidences, labels = select_detections(box[:, None], scores, 0.05, 0.5, 100)
    torch.testing.assert_close(confidences, torch.tensor([0.9, 0.7, 0.6]))
    assert labels.tolist() == [0, 1, 1]
    assert boxes.tolist() == [[0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]]


def test_select_detections_takes_the_best() -> None:
    boxes = torch.arange(5.0)[:, None, None].expand(5, 1, 4) * 100 + torch.tensor([0.0, 0, 10, 10])
    _, confidences, _ = select_detections(boxes, torch.linspace(0.1, 0.5, 5)[:, None], 0.05, 0.5, 2)
    torch.testing.assert_close(confidences, torch.tensor([0.5, 0.4]))


@pytest.mark.parametrize("wanted", [[], [0], [1], [0, 2], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("shared", [False, True], ids=["a box per class", "a shared box"])
def test_select_detections_of_some_classes(shared: bool, wanted: list[int]) -> None:
    torch.manual_seed(0)
    corners = torch.rand(200, 1 if shared else 3, 2) * 100
    boxes, scores = torch.cat([corners, corners + 20], dim=-1), torch.rand(200, 3)
    every = select_detections(boxes, scores, 0.05, 0.5, 1000)
    chosen = torch.isin(every[2], torch.tensor(wanted, dtype=torch.int64))
    found = select_detections(boxes, scores, 0.05, 0.5, 7, torch.tensor(wanted, dtype=torch.int64))
    for part, whole in zip(found, every, strict=True):
        assert part.tolist() == whole[chosen][:7].tolist()


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (5000, 3), (0, 0)]
)
def test_assign_levels(side: float, level: int) -> None:
    assert assign_levels(torch.tensor([[0, 7.0, 9, 7 + side, 9 + side]])).tolist() == [level]

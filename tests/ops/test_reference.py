"""The readable definitions against answers that can be worked out with a pencil, or by plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dcnzoo.ops import reference

RAMP = torch.arange(12.0).reshape(1, 1, 3, 4)
"""Value 4·row + column: bilinear sampling inside reproduces it at any position."""


@pytest.mark.parametrize(
    ("y", "x", "zero", "border"),
    [
        (1.0, 2.0, 6.0, 6.0),
        (0.5, 0.25, 2.25, 2.25),
        (-0.5, 1.0, 0.5, 1.0),
        (2.5, 3.0, 5.5, 11.0),
        (1.0, 3.75, 1.75, 7.0),
        (-1.0, 0.0, 0.0, 0.0),
        (3.0, 0.0, 0.0, 8.0),
        (-1.01, 0.0, 0.0, 0.0),
        (3.01, 0.0, 0.0, 0.0),
        (1.0, 4.0, 0.0, 7.0),
        (float("nan"), 1.0, 0.0, 0.0),
        (1e30, 1.0, 0.0, 0.0),
    ],
)
def test_bilinear_rules(y: float, x: float, zero: float, border: float) -> None:
    position = torch.tensor([y]), torch.tensor([x])
    assert reference.bilinear_zero(RAMP[0], *position).item() == zero
    assert reference.bilinear_border(RAMP[0], *position).item() == border


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [((1, 1), (0, 0), (1, 1)), ((2, 1), (3, 1), (1, 2))]
)
def test_zero_offsets_are_a_plain_convolution(
    groups: int, stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    image, weight, bias = torch.randn(2, 4, 7, 9), torch.randn(6, 4 // groups, 3, 2), torch.randn(6)
    expected = F.conv2d(image, weight, bias, stride, padding, dilation, groups)
    offset = torch.zeros(2, 2 * 6, *expected.shape[2:])
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    torch.testing.assert_close(reference.deform_conv2d(image, offset, weight, bias, **options), expected)
    half = torch.full((2, 6, *expected.shape[2:]), 0.5)
    found = reference.deform_conv2d(image, offset, weight, bias, mask=half, **options)
    torch.testing.assert_close(found, (expected - bias[:, None, None]) / 2 + bias[:, None, None])


def test_offsets_are_y_then_x_per_tap_and_deformable_group() -> None:
    image = torch.cat([RAMP, 100 * RAMP], dim=1)
    weight = torch.tensor([[1.0, 0], [0, 1]]).reshape(2, 2, 1, 1)
    offset = torch.zeros(1, 4, 3, 4)
    offset[:, 0], offset[:, 3] = 1, 1  # group 0 looks one row down, group 1 one column right
    output = reference.deform_conv2d(image, offset, weight)
    assert output[0, 0].tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [0, 0, 0, 0]]
    assert output[0, 1].tolist() == [[100, 200, 300, 0], [500, 600, 700, 0], [900, 1000, 1100, 0]]


def test_roi_pool_of_a_ramp_is_the_value_at_the_bin_centre() -> None:
    rois = torch.tensor([[0, 0.5, 0.5, 2.5, 2.5]])
    pooled = reference.deform_roi_pool(RAMP, rois, output_size=(1, 1))
    assert pooled.item() == 4 * 1.0 + 1.0
    shift = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)  # x first, in tenths of the RoI's width
    moved = reference.deform_roi_pool(RAMP, rois, shift, output_size=(1, 1))
    torch.testing.assert_close(moved.item(), 5 + 0.1 * 2)


def test_nms_keeps_the_better_and_the_distant() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 10, 5], [20, 20, 30, 30]])
    scores = torch.tensor([0.5, 0.9, 0.8, 0.1])
    assert reference.nms(boxes, scores, 0.5).tolist() == [1, 2, 3]  # IoU 9/11 suppressed, 4.5/10.5 kept


def test_paste_mask_fills_its_box() -> None:
    pasted = reference.paste_mask(torch.ones(28, 28), torch.tensor([2.0, 1, 6, 4]), (5, 8))
    assert pasted.nonzero().amin(0).tolist() == [1, 2]
    assert pasted.nonzero().amax(0).tolist() == [3, 5]
    assert pasted.sum() == 12

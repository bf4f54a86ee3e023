"""RoI operators against the readable definitions."""

from __future__ import annotations

import pytest
import torch

from dcnzoo import ops
from dcnzoo.ops import reference

pytestmark = pytest.mark.usefixtures("backend_in_use")


def random_rois(num_rois: int, num_images: int, height: int, width: int) -> torch.Tensor:
    corners = torch.rand(num_rois, 2, 2) * torch.tensor([width, height]) * 1.2 - 0.1 * min(height, width)
    low, high = corners.amin(1), corners.amax(1)
    image = torch.randint(num_images, (num_rois, 1)).float()
    return torch.cat([image, low, high], dim=1)


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("output_size", [(7, 7), (3, 5)])
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
@pytest.mark.parametrize("deformed", [False, True])
def test_roi_pooling_equals_the_definition(
    deformed: bool, memory_format: torch.memory_format, output_size: tuple[int, int], scale: float
) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 6, 19, 23).contiguous(memory_format=memory_format)
    rois = random_rois(30, 2, int(19 / scale), int(23 / scale))
    offset = torch.randn(30, 2, *output_size) if deformed else None
    options = {"output_size": output_size, "spatial_scale": scale}
    found = ops.deform_roi_pool(features, rois, offset, **options)
    expected = reference.deform_roi_pool(
        features.double(), rois.double(), None if offset is None else offset.double(), **options
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [7, 14, 28, 70])
def test_bins_of_whole_pixels_take_whole_numbers_of_samples(side: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 80, 80)
    rois = torch.tensor([[0.0, 3, 2, 3 + side, 2 + side], [0, 5.3, 4.7, 5.3 + side, 4.7 + side]])
    offset = torch.randn(2, 2, 7, 7)
    found = ops.deform_roi_pool(features, rois, offset, output_size=(7, 7))
    expected = reference.deform_roi_pool(features, rois, offset, output_size=(7, 7))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("deformed", [False, True])
def test_no_rois(deformed: bool) -> None:
    offset = torch.zeros(0, 2, 7, 7) if deformed else None
    pooled = ops.deform_roi_pool(torch.ones(1, 4, 5, 5), torch.zeros(0, 5), offset, output_size=(7, 7))
    assert pooled.shape == (0, 4, 7, 7)


def test_offset_of_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"offset must be \(1, 2, 7, 7\), got \(1, 98\)"):
        ops.deform_roi_pool(torch.ones(1, 4, 5, 5), torch.zeros(1, 5), torch.zeros(1, 98), output_size=(7, 7))


@pytest.mark.parametrize("channels", [1, 7, 64, 83])
def test_any_number_of_channels(channels: int) -> None:
    torch.manual_seed(0)
    features, rois, offset = (
        torch.randn(1, channels, 9, 11),
        random_rois(5, 1, 9, 11),
        torch.randn(5, 2, 2, 3),
    )
    found = ops.deform_roi_pool(features, rois, offset, output_size=(2, 3))
    expected = reference.deform_roi_pool(features, rois, offset, output_size=(2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_offsets_far_outside_give_zero(backend_in_use: str) -> None:
    features, rois = torch.ones(1, 8, 9, 11), torch.tensor([[0.0, 1, 1, 8, 8]])
    values = [1e30, -1e30] + [float("nan")] * (backend_in_use == "native")
    for value in values:
        offset = torch.full((1, 2, 1, 1), value)
        assert ops.deform_roi_pool(features, rois, offset, output_size=(1, 1)).abs().max() == 0


NATIVE_ONLY = pytest.mark.parametrize("backend_in_use", ["native"], indirect=True)


@NATIVE_ONLY
@pytest.mark.parametrize("deformed", [False, True])
def test_the_compiled_operator_passes_opcheck(deformed: bool) -> None:
    rois, offset = random_rois(4, 2, 9, 11), torch.randn(4, 2, 3, 3) if deformed else None
    arguments = (torch.randn(2, 8, 9, 11), rois, offset, [3, 3], 1.0, 0.1)
    torch.library.opcheck(torch.ops.dcnzoo.roi_pool, arguments)


@NATIVE_ONLY
@pytest.mark.parametrize(
    ("roi", "message"),
    [
        ((5, 0, 0, 1, 1), "image index"),
        ((0, 0, 0, 1e30, 1), "too large"),
        ((0, 0, 0, float("nan"), 1), "number"),
    ],
)
def test_the_compiled_operator_refuses_impossible_rois(roi: tuple[float, ...], message: str) -> None:
    rois = torch.tensor([roi], dtype=torch.float32)
    with pytest.raises(RuntimeError, match=message):
        ops.roi_align(torch.ones(1, 8, 9, 11), rois, output_size=(2, 2), spatial_scale=1.0)

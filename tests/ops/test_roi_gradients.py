"""Derivatives of the RoI operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import reference

pytestmark = pytest.mark.usefixtures("backend_in_use")

OPTIONS = {"output_size": (3, 2), "spatial_scale": 0.5}


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Two images, and RoIs inside, across the border, outside, without an area."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 9, 11, generator=generator, dtype=dtype)
    inside, across = [0, 2.3, 1.1, 15.2, 17.9], [1, -5.7, -3.1, 9.4, 8.2]
    beyond, empty = [1, 15, 12, 30, 22], [0, 4, 4, 4, 4]
    rois = torch.tensor([inside, across, beyond, empty, [1, 40, 40, 60, 60]], dtype=dtype)
    offset = torch.randn(5, 2, 3, 2, generator=generator, dtype=dtype)
    return features, rois, offset


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"]
)
def test_derivatives_of_deformable_pooling_equal_those_of_the_definition(
    dtype: torch.dtype, tolerance: float, memory_format: torch.memory_format
) -> None:
    features, rois, offset = (tensor.to(dtype) for tensor in case(torch.float64))
    features = features.contiguous(memory_format=memory_format)
    features.requires_grad_(), offset.requires_grad_()
    pooled = ops.deform_roi_pool(
        features, rois.float() if dtype == torch.bfloat16 else rois, offset, **OPTIONS
    )
    wide = [tensor.detach().double() for tensor in (features, rois, offset)]
    wide[0].requires_grad_(), wide[2].requires_grad_()
    expected = reference.deform_roi_pool(*wide, **OPTIONS)
    assert pooled.dtype == dtype
    torch.testing.assert_close(pooled.double(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (pooled * weights.to(dtype)).sum().backward()
    (expected * weights).sum().backward()
    scale = wide[0].grad.abs().max()
    assert (features.grad.double() - wide[0].grad).abs().max() <= tolerance * scale
    scale = wide[2].grad.abs().max()
    assert (offset.grad.double() - wide[2].grad).abs().max() <= tolerance * scale


def test_deformable_pooling_with_derivatives_gives_what_it_gives_without() -> None:
    features, rois, offset = case(torch.float32)
    plain = ops.deform_roi_pool(features, rois, offset, **OPTIONS)
    found = ops.deform_roi_pool(features, rois, offset.requires_grad_(), **OPTIONS)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)


def test_no_rois_have_derivatives_too() -> None:
    features = torch.ones(1, 4, 5, 5, requires_grad=True)
    offset = torch.zeros(0, 2, 7, 7, requires_grad=True)
    ops.deform_roi_pool(features, torch.zeros(0, 5), offset, output_size=(7, 7)).sum().backward()
    assert not features.grad.any()
    assert offset.grad.shape == (0, 2, 7, 7)

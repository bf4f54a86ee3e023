"""RoI pooling and suppression on a GPU, against the readable reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dcnzoo import ops
from dcnzoo.ops import gpu, reference
from tests.ops.cuda_region_cases import GRAD_TOLERANCE, TOLERANCE, random_rois

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def kernels_are_there() -> None:
    """A GPU without the kernels would compare torchvision with the reference."""
    assert gpu.gpu_problem() is None


def double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double().cpu()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("channels", [1, 7, 64, 256, 300])
@pytest.mark.parametrize("deformed", [False, True])
def test_pooling_agrees_with_the_reference(deformed: bool, channels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, channels, 19, 23, device="cuda").to(dtype)
    rois = random_rois(40, 2, 76, 92).cuda()
    offset = torch.randn(40, 2, 7, 7, device="cuda").to(dtype) if deformed else None
    options = {"output_size": (7, 7), "spatial_scale": 0.25}
    found = ops.deform_roi_pool(maps, rois, offset, **options)
    assert found.dtype == dtype
    wanted = reference.deform_roi_pool(double(maps), double(rois), double(offset), **options)
    assert (found.double().cpu() - wanted).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", GRAD_TOLERANCE, ids=str)
@pytest.mark.parametrize("deformed", [False, True])
def test_gradients_agree_with_those_of_the_reference(deformed: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    maps, rois = torch.randn(2, 40, 19, 23).to(dtype), random_rois(40, 2, 76, 92)
    inputs = [maps, torch.randn(40, 2, 7, 7).to(dtype)] if deformed else [maps]
    grad = torch.randn(40, 40, 7, 7).to(dtype)
    leaves = [tensor.cuda().requires_grad_() for tensor in inputs]
    options = {"output_size": (7, 7), "spatial_scale": 0.25}
    pooled = ops.deform_roi_pool(leaves[0], rois.cuda(), leaves[1] if deformed else None, **options)
    found = torch.autograd.grad(pooled, leaves, grad.cuda())
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    pooled = reference.deform_roi_pool(exact[0], rois.double(), exact[1] if deformed else None, **options)
    for one, other in zip(found, torch.autograd.grad(pooled, exact, grad.double()), strict=True):
        assert one.dtype == dtype
        assert (one.double().cpu() - other).abs().max() <= 2 * GRAD_TOLERANCE[dtype] * other.abs().max()


def test_a_pyramid_can_be_trained_on() -> None:
    maps = [torch.randn(1, 8, 20 >> i, 24 >> i, device="cuda", requires_grad=True) for i in range(3)]
    rois, levels = random_rois(30, 1, 80, 96).cuda(), torch.randint(3, (30,), device="cuda")
    scales = [1 / (4 << i) for i in range(3)]
    ops.roi_align_pyramid(maps, rois, levels, output_size=(7, 7), spatial_scales=scales).sum().backward()
    assert all(features.grad is not None and features.grad.abs().sum() > 0 for features in maps)


def test_pyramid_agrees_with_single_levels() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 256, 40 >> i, 48 >> i, device="cuda", dtype=torch.float16) for i in range(4)]
    rois, levels = random_rois(200, 2, 160, 192).cuda(), torch.randint(4, (200,), device="cuda")
    scales = [1 / (4 << i) for i in range(4)]
    found = ops.roi_align_pyramid(maps, rois, levels, output_size=(7, 7), spatial_scales=scales)
    for level, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        chosen = levels == level
        wanted = ops.roi_align(features, rois[chosen], output_size=(7, 7), spatial_scale=scale)
        assert found[chosen].equal(wanted)


def test_rois_of_no_image_pool_to_zero() -> None:
    rois = torch.tensor([[-1.0, 0, 0, 8, 8], [0, 0, 0, 8, 8]], device="cuda")
    pooled = ops.roi_align(torch.ones(1, 8, 9, 9, device="cuda"), rois, output_size=(2, 2), spatial_scale=1.0)
    assert pooled.flatten(1).amax(1).tolist() == [0, 1]


def test_no_rois() -> None:
    maps = torch.ones(1, 8, 5, 5, device="cuda")
    pooled = ops.roi_align(maps, torch.zeros(0, 5, device="cuda"), output_size=(7, 7), spatial_scale=1.0)
    assert pooled.shape == (0, 8, 7, 7)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("boxes_per_set", [1, 64, 300, 1000, 5000])
def test_suppression_agrees_with_the_definition(boxes_per_set: int, threshold: float) -> None:
    torch.manual_seed(0)
    counts = torch.tensor([boxes_per_set, boxes_per_set // 2, 0])
    boxes = random_rois(3 * boxes_per_set, 1, 300, 300)[:, 1:].reshape(3, boxes_per_set, 4)
    found = ops.nms_sorted(boxes.cuda(), counts.cuda(), threshold)
    assert found.cpu().equal(ops.nms_sorted(boxes, counts, threshold))


def test_suppression_and_pooling_can_be_captured_as_a_graph() -> None:
    torch.manual_seed(0)
    boxes = random_rois(600, 1, 300, 300)[:, 1:].reshape(2, 300, 4).cuda()
    counts = torch.tensor([300, 200], device="cuda")
    maps = torch.randn(1, 64, 40, 50, device="cuda", dtype=torch.float16)

    def work() -> tuple[Tensor, Tensor]:
        rois = torch.nn.functional.pad(boxes[0], (1, 0))
        return ops.nms_sorted(boxes, counts, 0.5), ops.roi_align(
            maps, rois, output_size=(7, 7), spatial_scale=0.125
        )

    work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = work()
    boxes.copy_(boxes.flip(1))
    graph.replay()
    assert all(found.equal(wanted) for found, wanted in zip(captured, work(), strict=True))


@pytest.mark.parametrize("deformed", [False, True])
def test_operators_obey_the_rules_of_pytorch(deformed: bool) -> None:
    rois, maps = random_rois(4, 2, 9, 11).cuda(), torch.randn(2, 8, 9, 11, device="cuda")
    offset = torch.randn(4, 2, 3, 3, device="cuda") if deformed else None
    torch.library.opcheck(torch.ops.dcnzoo.roi_pool, (maps, rois, offset, [3, 3], 1.0, 0.1))
    levels = torch.zeros(4, dtype=torch.int64, device="cuda")
    torch.library.opcheck(torch.ops.dcnzoo.roi_align_pyramid, ([maps], rois, levels, [1.0], [3, 3]))
    boxes, counts = rois[None, :, 1:].contiguous(), torch.tensor([4], device="cuda")
    torch.library.opcheck(torch.ops.dcnzoo.nms_sorted, (boxes, counts, 0.5))

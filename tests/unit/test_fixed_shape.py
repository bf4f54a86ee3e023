"""The detector in fixed shapes: the same detections, and never a question to the GPU."""

from __future__ import annotations

import weakref
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcnzoo.build import build_model, pack_weights, prepare_for_inference
from dcnzoo.gpu import normalise
from dcnzoo.manifest import Architecture
from dcnzoo.models import fixed_shape
from dcnzoo.models.boxes import select_detections
from dcnzoo.models.fixed_shape import FixedInstances
from dcnzoo.models.rcnn import RCNN
from dcnzoo.ops import pool_levels
from dcnzoo.ops.roi_align import pool_levels_in_fixed_shape

CLASSES = 5
SIZES, ORIGINAL_SIZES = [(90, 128), (96, 101)], [(45, 64), (200, 210)]
ARCHITECTURES = (
    "faster_rcnn_r18w16_fpn32_fc128_mdconv_c3-c5_mdpool",
    "mask_rcnn_r18w16_fpn32_fc64_dconv_c3-c5",
    "cascade_mask_rcnn_r18w16_fpn32_fc64",
    "cascade_rcnn_r18w16_fpn32_fc64_dpool",
)


def build(name: str) -> RCNN:
    torch.manual_seed(0)
    return prepare_for_inference(build_model(Architecture.parse(name), CLASSES))


def standardise(layer: nn.Linear, _: Any, output: Tensor) -> Tensor:
    """Makes a layer's outputs those of a trained detector: they differ from RoI to RoI."""
    mean, std = output.mean(dim=0), output.std(dim=0)
    layer.weight.div_(std[:, None] / 2)
    layer.bias.copy_((layer.bias - mean) / (std / 2))
    return (output - mean) / (std / 2)


@pytest.fixture(scope="module")
def images() -> Tensor:
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, images: Tensor) -> RCNN:
    model = build(request.param)
    last = [layer for path, layer in model.named_modules() if path.endswith("fc_cls")]
    hooks = [layer.register_forward_hook(standardise) for layer in last]
    with torch.no_grad():
        model(images, SIZES, ORIGINAL_SIZES)
    for hook in hooks:
        hook.remove()
    return pack_weights(model)


@pytest.mark.parametrize(
    ("threshold", "most", "labels"), [(0.05, 100, None), (0.2, 7, None), (0.0, 30, [1, 4]), (0.999, 5, None)]
)
def test_finds_what_the_detector_finds(
    model: RCNN, images: Tensor, threshold: float, most: int, labels: list[int] | None
) -> None:
    chosen = None if labels is None else torch.tensor(labels)
    limits: dict[str, Any] = {"score_threshold": threshold, "max_detections": most, "labels": chosen}
    settings = fixed_shape.pack_settings(SIZES, ORIGINAL_SIZES, CLASSES, threshold, chosen)
    with torch.inference_mode():
        wanted = model(images, SIZES, ORIGINAL_SIZES, **limits)
        found = fixed_shape.FixedShapeRCNN(model)(
            images,
            fixed_shape.Settings.unpack(settings, len(images)),
            fixed_shape.make_anchors((96, 128), images.device),
            most,
        )
    assert found.boxes.shape == (2, most, 4)
    for one, other in zip(fixed_shape.split_instances(found), wanted, strict=True):
        assert one.labels.equal(other.labels)
        torch.testing.assert_close(one.boxes, other.boxes, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-5, atol=1e-6)
        assert (one.mask_probs is None) == (other.mask_probs is None)
        if one.mask_probs is not None:
            torch.testing.assert_close(one.mask_probs, other.mask_probs, rtol=1e-4, atol=1e-5)
    assert threshold > 0.9 or all(len(other.scores) > 0 for other in wanted)


def test_the_other_arrangement_is_tested_with_detections(model: RCNN, images: Tensor) -> None:
    """More than one detection of more than one class, so that suppression has something to do."""
    with torch.inference_mode():
        found = model(images, SIZES, ORIGINAL_SIZES)
    assert all(len(instances.scores) > 5 for instances in found)
    assert len(torch.cat([instances.labels for instances in found]).unique()) > 1


def test_equal_scores_and_boxes_that_do_not_exist() -> None:
    boxes = torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10], [0, 1, 10, 11], [0, 0, 0, 0.0]])
    scores = torch.tensor([[0.5, 0.5], [0.5, 0.2], [0.5, 0.9], [0.7, 0.7]])
    exists = torch.tensor([True, True, True, False])
    found = fixed_shape.select(
        boxes[None, :, None],
        torch.where(exists[:, None], scores, fixed_shape.NOTHING)[None],
        torch.tensor([0.3]),
        9,
    )
    (one,) = fixed_shape.split_instances(found)
    wanted = select_detections(boxes[:3, None], scores[:3], 0.3, 0.5, 9)
    assert all(a.equal(b) for a, b in zip(one[:3], wanted, strict=True))


def test_levels_are_pooled_alike() -> None:
    rois, levels = torch.rand(6, 5), torch.tensor([0, 2, 1, 2, 2, 0])
    inputs = [torch.zeros(1, 3, 2, 2)] * 3

    def pool(level: int, rois: Tensor) -> Tensor:
        return ((level + 1) * rois[:, 1:4, None, None]).expand(-1, -1, 2, 2)

    found = pool_levels_in_fixed_shape(inputs, rois, levels, pool)
    assert found.equal(pool_levels(inputs, rois, levels, (2, 2), pool))


class Watch(TorchDispatchMode):
    """Fails when something is copied from the host: a GPU's queue would have to be waited for."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        devices = {tensor.device.type for tensor in tensors}
        assert devices <= {"cuda"}, f"{func} on {devices}"
        return result


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("deform_conv2d", "dense", "roi_align", "nms"):
        monkeypatch.setattr(import_module(f"dcnzoo.ops.{module}"), "gpu_problem", lambda _: None)


def detect_without_values(
    model: RCNN, classes: int, size: tuple[int, int, int], watch: TorchDispatchMode
) -> FixedInstances:
    """Runs a detector in half precision on (N, H, W) pixels that only have a shape, as if on a GPU."""
    images, height, width = size
    with FakeTensorMode(), torch.inference_mode():
        for layer in model.modules():
            for path, value in layer.named_parameters(recurse=False):
                empty = torch.empty(value.shape, dtype=torch.float16, device="cuda")
                setattr(layer, path, nn.Parameter(empty, requires_grad=False))
        pixels = torch.empty(images, height, width, 3, dtype=torch.uint8, device="cuda")
        settings = torch.empty(8 * images + classes + 1, device="cuda")
        colour = torch.empty(3, device="cuda")
        anchors = fixed_shape.make_anchors((height, width), torch.device("cuda"))
        with watch:
            unpacked = fixed_shape.Settings.unpack(settings, images)
            normalised = normalise(pixels, unpacked.limits, colour, colour).half()
            return fixed_shape.FixedShapeRCNN(model)(normalised, unpacked, anchors, max_detections=10)


@pytest.mark.usefixtures("pretended_gpu")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_never_waits_for_the_gpu(name: str) -> None:
    """On tensors without values nothing can be asked of them."""
    found = detect_without_values(build(name), CLASSES, (2, 96, 128), Watch())
    assert found.boxes.shape == (2, 10, 4)
    assert found.boxes.device.type == "cuda"
    assert (found.mask_probs is not None) == ("mask" in name)


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that live, as far as they are made here."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._live = 0, dict[int, int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._live:
                storage = tensor.untyped_storage()
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._live.values()))
        return result


@pytest.mark.usefixtures("pretended_gpu")
def test_memory_of_a_photo() -> None:
    """A quarter of the GB that a photo may take, weights included; cuDNN takes some of the rest."""
    name = "faster_rcnn_r50_fpn_dconv_c3-c5"
    model = prepare_for_inference(build_model(Architecture.parse(name), 80))
    memory = Memory()
    detect_without_values(model, 80, (1, 800, 1344), memory)
    weights = sum(weight.nbytes for weight in model.parameters())
    assert memory.peak > 50e6
    assert memory.peak + weights < 250e6

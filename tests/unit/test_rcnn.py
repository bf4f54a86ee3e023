"""The detector as a whole: batches, extreme sizes, no detections."""

from __future__ import annotations

import pytest
import torch

from dcnzoo.build import build_model, prepare_for_inference
from dcnzoo.manifest import Architecture
from dcnzoo.models.rcnn import RCNN

ARCHITECTURES = (
    "faster_rcnn_r50_fpn_mdconv_c3-c5_group4",
    "faster_rcnn_r50_fpn_mdpool",
    "cascade_mask_rcnn_r50_fpn_dconv_c3-c5",
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> RCNN:
    torch.manual_seed(0)
    return prepare_for_inference(build_model(Architecture.parse(request.param), num_classes=5))


def detect(model: RCNN, images: torch.Tensor, sizes: list[tuple[int, int]], **options: object) -> list:
    with torch.inference_mode():
        return model(images.contiguous(memory_format=torch.channels_last), sizes, sizes, **options)


def test_a_batch_gives_what_each_image_gives_alone(model: RCNN) -> None:
    images = torch.randn(3, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    sizes = [(96, 128)] * 3
    together = detect(model, images, sizes)
    for index, instances in enumerate(together):
        (alone,) = detect(model, images[index : index + 1], sizes[:1])
        assert len(alone.scores) > 0
        torch.testing.assert_close(instances.scores, alone.scores, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(instances.labels, alone.labels)
        torch.testing.assert_close(instances.boxes, alone.boxes, rtol=1e-3, atol=1e-2)
        if alone.mask_probs is not None:
            torch.testing.assert_close(instances.mask_probs, alone.mask_probs, rtol=1e-3, atol=1e-3)


def test_boxes_lie_in_the_original_image(model: RCNN) -> None:
    with torch.inference_mode():
        (instances,) = model(torch.randn(1, 3, 96, 128), [(90, 120)], [(45, 240)])
    assert len(instances.boxes) > 0
    assert (instances.boxes >= 0).all()
    assert (instances.boxes <= torch.tensor([240.001, 45.001, 240.001, 45.001])).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 64), (64, 1)])
def test_tiny_images(model: RCNN, size: tuple[int, int]) -> None:
    (instances,) = detect(model, torch.zeros(1, 3, 64, 64), [size])
    assert instances.boxes.shape[1:] == (4,)


def test_no_detection_above_the_threshold(model: RCNN) -> None:
    first, second = detect(model, torch.randn(2, 3, 64, 64), [(64, 64)] * 2, score_threshold=0.999)
    for instances in (first, second):
        assert instances.boxes.shape == (0, 4)
        assert instances.scores.shape == instances.labels.shape == (0,)
        if instances.mask_probs is not None:
            assert instances.mask_probs.shape == (0, 28, 28)


def test_only_the_labels_asked_for(model: RCNN) -> None:
    images, sizes = torch.randn(1, 3, 96, 96), [(96, 96)]
    (every,) = detect(model, images, sizes, max_detections=10_000)
    chosen = (every.labels == 1) | (every.labels == 3)
    (found,) = detect(model, images, sizes, max_detections=3, labels=torch.tensor([1, 3]))
    assert found.labels.tolist() == every.labels[chosen][:3].tolist()
    torch.testing.assert_close(found.scores, every.scores[chosen][:3])
    torch.testing.assert_close(found.boxes, every.boxes[chosen][:3])
    assert found.mask_probs is None or len(found.mask_probs) == 3


def test_at_most_max_detections(model: RCNN) -> None:
    (instances,) = detect(model, torch.randn(1, 3, 96, 96), [(96, 96)], max_detections=3)
    assert len(instances.scores) == 3
    assert (instances.scores.diff() <= 0).all()

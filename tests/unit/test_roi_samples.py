"""How many regions of an image the heads learn from can be chosen."""

from __future__ import annotations

import pytest
import torch

from dcnzoo.build import build_model
from dcnzoo.manifest import Architecture
from dcnzoo.training.initialise import initialise_weights, prepare_for_training
from dcnzoo.training.losses import detection_losses
from dcnzoo.training.targets import Target


@pytest.mark.parametrize(("roi_samples", "regions"), [(8, 8), (24, 24), (None, 512)])
@pytest.mark.parametrize("mask_samples", [None, 1, 2, 1000])
def test_heads_see_as_many_regions(roi_samples: int | None, regions: int, mask_samples: int | None) -> None:
    model = build_model(Architecture.parse("mask_rcnn_r18w16_fpn16_fc32"), num_classes=2)
    generator = torch.Generator().manual_seed(0)
    initialise_weights(model, generator)
    prepare_for_training(model, norm="trainable", frozen_stages=-1)
    boxes = torch.tensor([[8.0, 8.0, 60.0, 70.0], [60.0, 40.0, 100.0, 90.0]])
    masks = torch.zeros(2, 128, 128, dtype=torch.bool)
    masks[0, 8:70, 8:60] = masks[1, 40:90, 60:100] = True
    target = Target(boxes, torch.tensor([0, 1]), masks, torch.zeros(0, 4))
    seen: dict[str, int] = {}
    roi_head = model.roi_head
    roi_head.bbox_head.register_forward_hook(lambda _, inputs, __: seen.update(box=len(inputs[0])))
    roi_head.mask_head.register_forward_hook(lambda _, inputs, __: seen.update(mask=len(inputs[0])))
    images = torch.randn(1, 3, 128, 128, generator=generator)
    detection_losses(
        model, images, [(128, 128)], [target], generator, roi_samples=roi_samples, mask_samples=mask_samples
    )
    assert seen["box"] == regions
    assert min(2, mask_samples or 2) <= seen["mask"] <= min(regions // 4, mask_samples or regions)

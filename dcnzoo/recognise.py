"""The architecture of a checkpoint that does not name it, told by its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dcnzoo.manifest import Architecture, Backbone, Detector, Pool

if TYPE_CHECKING:
    from torch import Tensor

_DETECTORS: dict[tuple[bool, bool], Detector] = {
    (False, False): "faster_rcnn",
    (False, True): "mask_rcnn",
    (True, False): "cascade_rcnn",
    (True, True): "cascade_mask_rcnn",
}
"""By whether there are several box heads, and whether there are mask heads."""

_BACKBONES: dict[tuple[int, bool, bool], Backbone] = {
    (2, False, False): "resnet18",
    (6, True, False): "resnet50",
    (23, True, False): "resnet101",
    (23, True, True): "resnext101_32x4d",
}
"""By the blocks of the third stage, whether blocks are bottlenecks, and whether convolutions have groups."""


def recognise(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """Tells an architecture by a few of its tensors: names tell the parts, shapes the widths.

    Args:
        tensors: under their published names.

    Returns:
        The only architecture that can have all these tensors, if any has (`build.check_fit` tells); None if
        parts of a detector are missing or of shapes that none has.
    """
    cascaded = "roi_head.bbox_head.0.fc_cls.weight" in tensors
    box_head = "roi_head.bbox_head.0" if cascaded else "roi_head.bbox_head"
    pool = "roi_head.bbox_roi_extractor.roi_layers.0"
    masked = any(name.startswith("roi_head.mask_head.") for name in tensors)
    depth = len({name.split(".")[2] for name in tensors if re.match(r"backbone\.layer3\.\d+\.", name)})
    try:
        outputs, inputs = tensors["backbone.layer3.0.conv2.weight"].shape[:2]
        bottlenecks = "backbone.layer3.0.conv3.weight" in tensors
        offsets = tensors.get("backbone.layer3.0.conv2.conv_offset.weight")
        predicted = 0 if offsets is None else len(offsets)
        modulated = predicted % 27 == 0  # two coordinates and a mask for each of nine taps; else no mask
        return Architecture(
            detector=_DETECTORS[cascaded, masked],
            backbone=_BACKBONES[depth, bottlenecks, bottlenecks and inputs < outputs],
            conv="conv" if offsets is None else "mdconv" if modulated else "dconv",
            deform_groups=1 if offsets is None else predicted // (27 if modulated else 18),
            pool=_pool(pool, tensors),
            base_width=len(tensors["backbone.conv1.weight"]),
            channels=len(tensors["neck.lateral_convs.0.conv.weight"]),
            hidden=len(tensors[f"{box_head}.shared_fcs.0.weight"]),
        )
    except (KeyError, ValueError, TypeError):  # a part is missing, is of no known kind, or has no channels
        return None


def _pool(layer: str, tensors: Mapping[str, Tensor]) -> Pool:
    if f"{layer}.offset_fc.0.weight" not in tensors:
        return "roi_align"
    return "mdpool" if f"{layer}.mask_fc.0.weight" in tensors else "dpool"

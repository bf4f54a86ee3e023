"""A small, quick stand-in for a checkpoint: three classes, random weights, plain convolutions."""

from __future__ import annotations

from pathlib import Path

import torch

from dcnzoo.build import build_model
from dcnzoo.manifest import Architecture

CLASSES = ("cat", "dog", "bird")
ARCH = "faster_rcnn_r50_fpn"
MASK_ARCH = "mask_rcnn_r50_fpn"


def write_random_checkpoint(path: Path, arch: str = ARCH) -> Path:
    """Writes a checkpoint file whose detections spread over all classes and scores."""
    torch.manual_seed(3)
    model = build_model(Architecture.parse(arch), len(CLASSES))
    state_dict = model.state_dict()
    state_dict["roi_head.bbox_head.fc_cls.weight"] *= 150
    state_dict["rpn_head.rpn_reg.bias"] += 1  # large proposals: suppression leaves few, which is quick
    torch.save({"meta": {"CLASSES": CLASSES}, "state_dict": state_dict}, path)
    return path

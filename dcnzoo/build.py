"""From an architecture to a model, and from a checkpoint to a model with weights.

Each builder is one literal description of a detector; nothing is looked up by string beyond the two
dicts at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from dcnzoo.checkpoint import Checkpoint
from dcnzoo.errors import CheckpointError
from dcnzoo.manifest import Architecture
from dcnzoo.memory import return_freed_memory
from dcnzoo.models.dcn import DeformConv2d
from dcnzoo.models.fold import FoldedResNet
from dcnzoo.models.fpn import FPN
from dcnzoo.models.heads import BoxHead, MaskHead
from dcnzoo.models.layers import (
    Conv1x1,
    Conv3x3,
    ConvTranspose2x2,
    GroupedConv3x3,
    Linear,
    Stem,
    StridedConv3x3,
)
from dcnzoo.models.rcnn import RCNN
from dcnzoo.models.resnet import BasicBlock, Bottleneck, ConvFactory, ResNet, conv3x3
from dcnzoo.models.roi_features import DeformRoIPool, RoIAlign
from dcnzoo.models.roi_heads import CascadeRoIHead, RoIHead, StandardRoIHead
from dcnzoo.models.rpn import RPNHead
from dcnzoo.ops import active_backend
from dcnzoo.ops.deform_conv2d import released

CASCADE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
"""Units of the box deltas of the three stages."""


PACKED_LAYERS = (
    Conv1x1,
    Conv3x3,
    ConvTranspose2x2,
    DeformConv2d,
    GroupedConv3x3,
    Linear,
    Stem,
    StridedConv3x3,
)
"""Layers that run on the compiled kernels once their weights are packed."""


def build_model(architecture: Architecture, num_classes: int) -> RCNN:
    """Builds a detector with freshly initialised weights, in training mode, batch norm unfolded.

    Args:
        architecture: what to build.
        num_classes: classes without the background.

    Returns:
        The detector; its parameters carry the published names.
    """
    channels = architecture.channels
    backbone = BACKBONES[architecture.backbone](_conv_factory(architecture), architecture.base_width)
    roi_head = DETECTORS[architecture.detector](architecture, num_classes)
    return RCNN(backbone, FPN(backbone.out_channels, channels), RPNHead(channels), roi_head)


def load_model(architecture: Architecture, checkpoint: Checkpoint) -> RCNN:
    """Builds a detector for inference from a checkpoint.

    Args:
        architecture: what the checkpoint is for.
        checkpoint: its tensors are taken over, not copied; the number of classes follows from them.

    Returns:
        The detector in evaluation mode, float32, on the CPU, batch norm folded into the convolutions,
        weights channels-last.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape.
    """
    model, tensors = _match(architecture, checkpoint)
    model.load_state_dict(tensors, assign=True)
    return prepare_for_inference(model)


def check_fit(architecture: Architecture, checkpoint: Checkpoint) -> None:
    """Checks that a checkpoint has exactly the tensors of an architecture.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape.
    """
    _match(architecture, checkpoint)


def prepare_for_inference(model: RCNN) -> RCNN:
    """Folds batch norm, freezes, sets evaluation mode and the channels-last layout; in place."""
    if isinstance(model.backbone, ResNet):
        model.backbone = FoldedResNet(model.backbone)
    model.eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


_MOST_KEPT = 2**25
"""Bytes of freed weights that the C library may keep while others are arranged."""


def pack_weights(model: RCNN) -> RCNN:
    """Arranges weights for the compiled kernels, in place; device and dtype must be final.

    Layers keep only the arranged copy. Of their weights just the shape remains: on the device "meta", or, for
    `deform_conv2d`, which takes no tensors of two devices, as `released` makes it.
    """
    model.rpn_head.pack()
    freed = 0
    for module in model.modules():
        if not isinstance(module, PACKED_LAYERS):
            continue
        module.pack()
        if module.packed_weight is not None:
            model.packed_for = active_backend()[1]
            weight = module.weight.detach()
            deformable = isinstance(module, DeformConv2d)
            shape = released(weight) if deformable else weight.to("meta")
            module.weight = nn.Parameter(shape, requires_grad=False)
            freed += weight.nbytes
        if freed > _MOST_KEPT:
            return_freed_memory()
            freed = 0
    return_freed_memory()
    return model


def _match(architecture: Architecture, checkpoint: Checkpoint) -> tuple[RCNN, dict[str, torch.Tensor]]:
    """Returns a detector without weights, and the weights that it needs."""
    num_classes = checkpoint.num_classes
    if num_classes is None or num_classes < 1:
        raise CheckpointError(
            str(checkpoint.path), "has no box head; only Faster, Mask and Cascade R-CNN are read"
        )
    with torch.device("meta"):  # no time is lost on initial values
        model = build_model(architecture, num_classes)
    expected = model.state_dict()
    found = dict(checkpoint.state_dict)
    for name in expected:
        if name.endswith(".num_batches_tracked"):  # a counter that inference does not need and old files lack
            found.setdefault(name, torch.zeros((), dtype=torch.int64))
    shapes = {
        name: (tuple(found[name].shape), tuple(expected[name].shape)) for name in expected if name in found
    }
    mismatched = [(name, got, want) for name, (got, want) in shapes.items() if got != want]
    missing, unexpected = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unexpected or mismatched:
        problem = f"does not fit {architecture.name}; give the architecture that it was trained with"
        raise CheckpointError(str(checkpoint.path), problem, missing, unexpected, mismatched)
    return model, found


def _conv_factory(architecture: Architecture) -> ConvFactory:
    """The 3×3 convolutions of c3–c5 that may be deformable."""
    if architecture.conv == "conv":
        return conv3x3
    deform_groups, modulated = architecture.deform_groups, architecture.conv == "mdconv"

    def deform_conv3x3(in_channels: int, out_channels: int, stride: int, groups: int) -> nn.Module:
        return DeformConv2d(
            in_channels,
            out_channels,
            stride=stride,
            groups=groups,
            deform_groups=deform_groups,
            modulated=modulated,
        )

    return deform_conv3x3


def faster_rcnn(architecture: Architecture, num_classes: int) -> RoIHead:
    """RoI head of Faster R-CNN."""
    return StandardRoIHead(_box_pool(architecture), _box_head(architecture, num_classes))


def mask_rcnn(architecture: Architecture, num_classes: int) -> RoIHead:
    """RoI head of Mask R-CNN."""
    return StandardRoIHead(
        _box_pool(architecture),
        _box_head(architecture, num_classes),
        RoIAlign(output_size=14),
        MaskHead(num_classes, architecture.channels),
    )


def cascade_rcnn(architecture: Architecture, num_classes: int) -> RoIHead:
    """RoI head of Cascade R-CNN."""
    return CascadeRoIHead(_box_pool(architecture), _cascade_box_heads(architecture, num_classes))


def cascade_mask_rcnn(architecture: Architecture, num_classes: int) -> RoIHead:
    """RoI head of Cascade Mask R-CNN."""
    return CascadeRoIHead(
        _box_pool(architecture),
        _cascade_box_heads(architecture, num_classes),
        RoIAlign(output_size=14),
        nn.ModuleList(MaskHead(num_classes, architecture.channels) for _ in CASCADE_STDS),
    )


def _box_pool(architecture: Architecture) -> RoIAlign | DeformRoIPool:
    if architecture.pool == "roi_align":
        return RoIAlign(output_size=7)
    return DeformRoIPool(architecture.pool == "mdpool", architecture.channels, architecture.hidden)


def _box_head(architecture: Architecture, num_classes: int) -> BoxHead:
    return BoxHead(num_classes, architecture.channels, architecture.hidden)


def _cascade_box_heads(architecture: Architecture, num_classes: int) -> nn.ModuleList:
    channels, hidden = architecture.channels, architecture.hidden
    return nn.ModuleList(
        BoxHead(num_classes, channels, hidden, class_agnostic=True, stds=stds) for stds in CASCADE_STDS
    )


BACKBONES: dict[str, Callable[[ConvFactory, int], ResNet]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnext101_32x4d": partial(ResNet, Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=4),
}

DETECTORS: dict[str, Callable[[Architecture, int], RoIHead]] = {
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "cascade_rcnn": cascade_rcnn,
    "cascade_mask_rcnn": cascade_mask_rcnn,
}

"""How a detector starts: fresh weights, what is frozen, and weights taken from elsewhere.

The rules are those of the published configurations of MMDetection 3.x.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dcnzoo.errors import CheckpointError
from dcnzoo.models.dcn import DeformConv2d
from dcnzoo.models.heads import BoxHead, MaskHead
from dcnzoo.models.rcnn import RCNN
from dcnzoo.models.resnet import ResNet
from dcnzoo.models.roi_features import DeformRoIPoolLayer
from dcnzoo.models.roi_heads import CascadeRoIHead
from dcnzoo.training.options import Norm

logger = logging.getLogger(__name__)


def prepare_for_training(model: RCNN, *, norm: Norm, frozen_stages: int = 1) -> None:
    """Sets training mode and says which parameters learn; `model.train()` later keeps to it.

    Args:
        model: not folded; changed in place.
        norm: "frozen": batch norm keeps its statistics, while scale and shift learn, as published;
            "trainable": statistics are those of the batch, for training from scratch.
        frozen_stages: stages of the backbone, counted from 1, whose parameters and statistics are frozen, and
            with the first one the stem; -1 freezes nothing, 0 the stem alone.

    Raises:
        ValueError: `norm` or `frozen_stages` is none of these.
        TypeError: the model is prepared for inference.
    """
    if norm not in ("frozen", "trainable"):
        raise ValueError(f"norm is {norm!r}, expected frozen or trainable")
    if frozen_stages not in range(-1, 5):
        raise ValueError(f"frozen_stages is {frozen_stages}, expected -1 to 4")
    backbone = _unfolded_backbone(model)
    model.requires_grad_(True)
    stages: list[nn.Module] = [backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4]
    stem: list[nn.Module] = [backbone.conv1, backbone.bn1] if frozen_stages >= 0 else []
    for module in [*stem, *stages[: max(frozen_stages, 0)]]:
        module.requires_grad_(False)
    backbone.norm_frozen = norm == "frozen"
    model.train()


def initialise_weights(model: RCNN, generator: torch.Generator) -> None:
    """Fills a detector with fresh weights, in place.

    Offsets start at zero and the masks that scale taps at 0.5.

    Args:
        model: not folded.
        generator: on the device of the model; the same one gives the same weights.
    """
    with torch.no_grad():
        _initialise_backbone(_unfolded_backbone(model), generator)
        for module in model.neck.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                _zero_bias(module)
        for module in model.rpn_head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01, generator=generator)
                _zero_bias(module)
        for module in model.roi_head.modules():
            if isinstance(module, BoxHead):
                _initialise_box_head(module, generator)
            elif isinstance(module, MaskHead):
                _initialise_mask_head(module, generator)
            elif isinstance(module, DeformRoIPoolLayer):
                _initialise_deform_pool(module, generator)


def _unfolded_backbone(model: RCNN) -> ResNet:
    if not isinstance(model.backbone, ResNet):
        raise TypeError("the detector is prepared for inference; to train it, build it with build_model")
    return model.backbone


def _initialise_backbone(backbone: ResNet, generator: torch.Generator) -> None:
    offsets = {module.conv_offset for module in backbone.modules() if isinstance(module, DeformConv2d)}
    for module in backbone.modules():
        if isinstance(module, DeformConv2d):
            _initialise_deform_conv(module, generator)
        elif isinstance(module, nn.Conv2d) and module not in offsets:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        for block in stage:
            # a block begins as its shortcut
            nn.init.zeros_(cast(nn.BatchNorm2d, getattr(block, "bn3", block.bn2)).weight)


def _initialise_deform_conv(conv: DeformConv2d, generator: torch.Generator) -> None:
    fan_in = conv.weight[0].numel()
    modulated = conv.conv_offset.out_channels > conv.num_offsets
    bound = math.sqrt((1 if modulated else 6) / fan_in)
    nn.init.uniform_(conv.weight, -bound, bound, generator=generator)
    nn.init.zeros_(conv.conv_offset.weight)
    _zero_bias(conv.conv_offset)


def _initialise_box_head(head: BoxHead, generator: torch.Generator) -> None:
    for layer in cast("Iterable[nn.Linear]", head.shared_fcs):
        nn.init.xavier_uniform_(layer.weight, generator=generator)
        _zero_bias(layer)
    for layer, std in ((head.fc_cls, 0.01), (head.fc_reg, 0.001)):
        nn.init.normal_(layer.weight, std=std, generator=generator)
        _zero_bias(layer)


def _initialise_mask_head(head: MaskHead, generator: torch.Generator) -> None:
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            _zero_bias(layer)


def _initialise_deform_pool(layer: DeformRoIPoolLayer, generator: torch.Generator) -> None:
    for branch in (layer.offset_fc, layer.mask_fc):
        linear = [each for each in branch if isinstance(each, nn.Linear)] if branch is not None else []
        for each in linear[:-1]:  # PyTorch's own rule for linear layers
            bound = 1 / math.sqrt(each.in_features)
            nn.init.uniform_(each.weight, -bound, bound, generator=generator)
            nn.init.uniform_(each.bias, -bound, bound, generator=generator)
        for each in linear[-1:]:
            nn.init.zeros_(each.weight)
            _zero_bias(each)


def _zero_bias(layer: nn.Module) -> None:
    if isinstance(layer.bias, Tensor):
        nn.init.zeros_(layer.bias)


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors when weights were loaded; names in the order of the model, or the file.

    Attributes:
        loaded: taken over.
        replaced: depend on the classes, which differ: the model keeps its own.
        missing: the model has them and the weights do not: the model keeps its own.
        unexpected: the weights have them and the model does not.
    """

    loaded: tuple[str, ...]
    replaced: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def load_for_training(
    model: RCNN, state: Mapping[str, Tensor], *, replace_class_heads: bool = False, source: str = "in memory"
) -> LoadReport:
    """Takes over weights, except those of layers that tell classes apart where the classes differ.

    Args:
        model: initialised, not folded; changed in place.
        state: tensors under their published names.
        replace_class_heads: keep the model's class heads even if they have the same shape, since they are for
            other classes.
        source: where the weights come from, for the error message.

    Returns:
        What became of each tensor.

    Raises:
        CheckpointError: a tensor that does not depend on the classes has another shape, or none fits.
    """
    own = model.state_dict()
    heads = _class_head_names(model)
    known = [name for name in own if name in state]
    differing = [name for name in known if state[name].shape != own[name].shape]
    replaced = [name for name in known if name in heads and (replace_class_heads or name in differing)]
    mismatched = [
        (name, tuple(state[name].shape), tuple(own[name].shape)) for name in differing if name not in heads
    ]
    loaded = [name for name in known if name not in replaced]
    if mismatched or not loaded:
        problem = "does not fit the model; give the architecture that it was trained with"
        raise CheckpointError(source, problem, mismatched=mismatched)
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(state[name])
    missing = [name for name in own if name not in state and not name.endswith(".num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    return LoadReport(tuple(loaded), tuple(replaced), tuple(missing), tuple(unexpected))


def _class_head_names(model: RCNN) -> set[str]:
    """Names of the tensors with an entry for each class."""
    layers = ["fc_cls", "conv_logits"]
    if not isinstance(model.roi_head, CascadeRoIHead):  # a cascade moves the boxes of all classes alike
        layers.append("fc_reg")
    return {name for name in model.state_dict() if name.split(".")[-2] in layers}

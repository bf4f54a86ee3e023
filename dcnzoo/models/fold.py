"""Folding of inference-mode batch normalisation into the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcnzoo.models.dcn import DeformConv2d
from dcnzoo.models.resnet import Bottleneck, ResNet


def fold_batch_norm(backbone: ResNet) -> None:
    """Folds every batch norm of the backbone in place; its modules become `nn.Identity`.

    The scale goes into the convolution's weight and the shift into its bias, computed in float64.
    """
    _fold_pairs(backbone, ("conv1", "bn1"))
    for module in backbone.modules():
        if isinstance(module, Bottleneck):
            _fold_pairs(module, ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
            if module.downsample is not None:
                _fold_pairs(module.downsample, ("0", "1"))


def _fold_pairs(parent: nn.Module, *pairs: tuple[str, str]) -> None:
    for conv_name, norm_name in pairs:
        norm = parent.get_submodule(norm_name)
        if isinstance(norm, nn.BatchNorm2d):
            _fold(parent.get_submodule(conv_name), norm)
            setattr(parent, norm_name, nn.Identity())


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.BatchNorm2d) -> None:
    if (
        not isinstance(conv, nn.Conv2d | DeformConv2d)
        or norm.running_mean is None
        or norm.running_var is None
    ):
        raise TypeError(f"cannot fold {norm} into {conv}")
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    conv.weight = _parameter(conv.weight.double() * scale[:, None, None, None], conv.weight)
    conv.bias = _parameter(shift, conv.weight)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype), requires_grad=False)

"""Folding of inference-mode batch normalisation into the convolution before it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from dcnzoo.models.dcn import DeformConv2d
from dcnzoo.models.layers import Conv3x3, Stem
from dcnzoo.models.resnet import BasicBlock, Bottleneck, ResNet


class FoldedBottleneck(nn.Module):
    """A bottleneck for inference: no batch norm, activations and the shortcut's sum inside the convolutions.

    Overwrites its input where the shortcut is the input itself.

    Args:
        block: its convolutions are taken over and changed.
    """

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.conv3 = block.conv1, block.conv3
        _fold(self.conv1, block.bn1)
        _fold(block.conv2, block.bn2)
        _fold(self.conv3, block.bn3)
        self.conv1.relu = self.conv3.relu = True
        self.conv2 = _with_relu(block.conv2)
        self.downsample = _fold_downsample(block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3.add_to(shortcut, self.conv2(self.conv1(x)))


class FoldedBasicBlock(nn.Module):
    """A basic block for inference: no batch norm, the first activation inside the convolution.

    Args:
        block: its convolutions are taken over and changed.
    """

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        _fold(block.conv1, block.bn1)
        _fold(block.conv2, block.bn2)
        self.conv1, self.conv2 = _with_relu(block.conv1), block.conv2
        self.downsample = _fold_downsample(block.downsample)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H/stride, W/stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        output: Tensor = self.conv2(self.conv1(x))
        output += shortcut
        return output.relu_()


def fold_batch_norm(backbone: ResNet) -> None:
    """Folds every batch norm of the backbone in place, and joins the layers of its stem.

    The scale goes into the convolution's weight and the shift into its bias, computed in float64.
    """
    _fold(backbone.conv1, backbone.bn1)
    backbone.conv1 = Stem(backbone.conv1)
    backbone.bn1, backbone.relu, backbone.maxpool = nn.Identity(), nn.Identity(), nn.Identity()
    for stage in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        for index, block in enumerate(stage):
            if isinstance(block, BasicBlock):
                stage[index] = FoldedBasicBlock(block)
            else:
                stage[index] = FoldedBottleneck(cast(Bottleneck, block))


def _with_relu(conv: nn.Module) -> nn.Module:
    """A convolution followed by ReLU, in one where the kernels can."""
    if not isinstance(conv, Conv3x3 | DeformConv2d):
        return nn.Sequential(conv, nn.ReLU(inplace=True))
    conv.relu = True
    return conv


def _fold_downsample(downsample: nn.Sequential | None) -> nn.Module | None:
    if downsample is None:
        return None
    _fold(downsample[0], downsample[1])
    return downsample[0]


@torch.no_grad()
def _fold(conv: nn.Module, norm: nn.Module) -> None:
    if not (isinstance(conv, nn.Conv2d | DeformConv2d) and isinstance(norm, nn.BatchNorm2d)):
        raise TypeError(f"cannot fold {norm} into {conv}")
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"{norm} has no statistics to fold")
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    conv.weight = _parameter(conv.weight.double() * scale[:, None, None, None], conv.weight)
    conv.bias = _parameter(shift, conv.weight)


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.dtype), requires_grad=False)

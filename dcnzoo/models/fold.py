"""Folding of inference-mode batch normalisation into the convolution before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcnzoo.models.dcn import DeformConv2d
from dcnzoo.models.layers import Conv3x3, GroupedConv3x3, Stem
from dcnzoo.models.resnet import BasicBlock, Bottleneck, ResNet


class FoldedBottleneck(nn.Module):
    """A bottleneck for inference: no batch norm, activations and the shortcut's sum inside the convolutions.

    Overwrites its input where the shortcut is the input itself, and begins the block behind it, whose first
    convolution then reads what is still in the cache.

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

    def forward(
        self, x: Tensor, begun: Tensor | None = None, following: nn.Module | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Computes the block.

        Args:
            x: (N, in_channels, H, W).
            begun: its first convolution of x, if the block before has computed it.
            following: the block behind it.

        Returns:
            (N, out_channels, H/stride, W/stride), and the first convolution of `following`, or None.
        """
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.conv2(self.conv1(x) if begun is None else begun)
        if isinstance(following, FoldedBottleneck):
            return self.conv3.add_to_and_convolve(shortcut, x, following.conv1)
        return self.conv3.add_to(shortcut, x), None


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


class FoldedResNet(nn.Module):
    """A backbone for inference: no batch norm, and the layers of its stem in one.

    The scale of a norm goes into the convolution's weight and the shift into its bias, computed in float64.

    Args:
        backbone: its convolutions are taken over and changed.

    Attributes:
        out_channels: channels of c2–c5.
    """

    def __init__(self, backbone: ResNet) -> None:
        super().__init__()
        self.out_channels = backbone.out_channels
        _fold(backbone.conv1, backbone.bn1)
        self.conv1 = Stem(backbone.conv1)
        self.layer1, self.layer2 = _folded(backbone.layer1), _folded(backbone.layer2)
        self.layer3, self.layer4 = _folded(backbone.layer3), _folded(backbone.layer4)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (N, 3, H, W) to "c2" (N, out_channels[0], H/4, W/4) … "c5" (N, …, H/32, W/32)."""
        stages = self.layer1, self.layer2, self.layer3, self.layer4
        following = iter([block for stage in stages for block in stage][1:])
        x, begun, features = self.conv1(images), None, {}
        for level, stage in enumerate(stages, start=2):
            for block in stage:
                behind = next(following, None)
                x, begun = (
                    block(x, begun, behind) if isinstance(block, FoldedBottleneck) else (block(x), None)
                )
            features[f"c{level}"] = x
        return features


def _folded(stage: nn.Sequential) -> nn.ModuleList:
    blocks = [FoldedBasicBlock(b) if isinstance(b, BasicBlock) else FoldedBottleneck(b) for b in stage]  # type: ignore[arg-type]
    return nn.ModuleList(blocks)


def _with_relu(conv: nn.Module) -> nn.Module:
    """A convolution followed by ReLU, in one where the kernels can."""
    if not isinstance(conv, Conv3x3 | DeformConv2d | GroupedConv3x3):
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

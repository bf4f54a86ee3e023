"""ResNet and ResNeXt backbones with deformable convolutions (arXiv:1512.03385, arXiv:1611.05431).

"pytorch style": a bottleneck strides in its 3×3 convolution. Shape letters: N images, H, W image size.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dcnzoo.models.layers import Conv1x1, Conv3x3, GroupedConv3x3

ConvFactory = Callable[[int, int, int, int], nn.Module]
"""(in_channels, out_channels, stride, groups) → a 3×3 convolution without bias."""


def conv3x3(in_channels: int, out_channels: int, stride: int, groups: int) -> nn.Module:
    """A 3×3 convolution that is not deformable."""
    if stride == groups == 1:
        return Conv3x3(in_channels, out_channels, bias=False)
    if stride == 1:
        return GroupedConv3x3(in_channels, out_channels, groups, bias=False)
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut; the first strides, the second may be deformable.

    Args:
        in_channels: channels of the input.
        width: channels between the convolutions.
        out_channels: channels of the output.
        stride: of the first convolution.
        groups: of both convolutions.
        conv: makes the second convolution.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, out_channels: int, stride: int, groups: int, conv: ConvFactory
    ) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride, groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, out_channels, 1, groups)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x += shortcut
        output: Tensor = self.relu(x)
        return output


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a shortcut.

    Args:
        in_channels: channels of the input.
        width: channels of the 3×3 convolution.
        out_channels: channels of the output.
        stride: of the 3×3 convolution.
        groups: of the 3×3 convolution.
        conv: makes the 3×3 convolution.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, out_channels: int, stride: int, groups: int, conv: ConvFactory
    ) -> None:
        super().__init__()
        self.conv1 = Conv1x1(in_channels, width, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, stride, groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Conv1x1(width, out_channels, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, ⌈H/stride⌉, ⌈W/stride⌉)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x += shortcut
        output: Tensor = self.relu(x)
        return output


class ResNet(nn.Module):
    """Four stages of residual blocks; in the last three, `conv` makes a 3×3 convolution of each block.

    Args:
        block: kind of block.
        depths: blocks per stage.
        conv: makes the 3×3 convolutions of layer2, layer3 and layer4 ("c3-c5") that may be deformable.
        base_width: channels of the first convolution; everything else is in proportion.
        groups: of every 3×3 convolution of the blocks.
        width_per_group: channels of a group in the first stage, for a base width of 64.

    Attributes:
        out_channels: channels of c2–c5.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        depths: tuple[int, int, int, int],
        conv: ConvFactory,
        base_width: int = 64,
        groups: int = 1,
        width_per_group: int = 64,
    ) -> None:
        super().__init__()
        self.norm_frozen = False
        self.conv1: nn.Conv2d = nn.Conv2d(3, base_width, 7, stride=2, padding=3, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(base_width)
        self.relu: nn.Module = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        self.out_channels = tuple(block.expansion * base_width * 2**stage for stage in range(4))
        c2, c3, c4, c5 = self.out_channels
        width = groups * width_per_group * base_width // 64
        self.layer1 = _stage(block, base_width, width, c2, depths[0], 1, groups, conv3x3)
        self.layer2 = _stage(block, c2, 2 * width, c3, depths[1], 2, groups, conv)
        self.layer3 = _stage(block, c3, 4 * width, c4, depths[2], 2, groups, conv)
        self.layer4 = _stage(block, c4, 8 * width, c5, depths[3], 2, groups, conv)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps images (N, 3, H, W) to "c2" (N, out_channels[0], ⌈H/4⌉, ⌈W/4⌉) … "c5" (N, …, ⌈H/32⌉, …)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = {}
        for level in range(2, 6):
            x = getattr(self, f"layer{level - 1}")(x)
            features[f"c{level}"] = x
        return features

    def train(self, mode: bool = True) -> ResNet:
        """Sets training mode; frozen batch norm, or one whose parameters are frozen, keeps its statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and (self.norm_frozen or not module.weight.requires_grad):
                module.eval()
        return self


def _stage(
    block: type[BasicBlock | Bottleneck],
    in_channels: int,
    width: int,
    out_channels: int,
    depth: int,
    stride: int,
    groups: int,
    conv: ConvFactory,
) -> nn.Sequential:
    first = block(in_channels, width, out_channels, stride, groups, conv)
    rest = [block(out_channels, width, out_channels, 1, groups, conv) for _ in range(depth - 1)]
    return nn.Sequential(first, *rest)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """What makes the shortcut fit the block's output, where it does not as it is."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(Conv1x1(in_channels, out_channels, stride, bias=False), nn.BatchNorm2d(out_channels))

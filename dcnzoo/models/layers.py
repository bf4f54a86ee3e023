"""Layers that carry their activation and run on the compiled kernels once their weights are packed.

They are PyTorch's own layers otherwise: same parameters, same names, trainable. `half_products`, set before
packing, has them round their factors to 16 bits (`dcnzoo.ops.dense` says what that means), and `half_output`
stores their outputs so, for a layer that rounds them anyway.

Shape letters: N images, C channels, O output channels, H, W map size, R rows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcnzoo.ops import dense


class Conv3x3(nn.Conv2d):
    """3×3 convolution with stride 1 and padding 1, optionally followed by ReLU.

    Args:
        in_channels: C.
        out_channels: O.
        bias: whether there is one.
        relu: whether ReLU follows.
    """

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool = True, relu: bool = False) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias)
        self.relu = relu
        self.half_products = self.half_output = False
        self.packed_weight: Tensor | None = None

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_conv3x3_weight(self.weight, half=self.half_products)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, H, W)."""
        return dense.conv3x3(
            input,
            self.weight,
            self.bias,
            relu=self.relu,
            packed_weight=self.packed_weight,
            half_output=self.half_output,
        )


class SmallConv3x3(Conv3x3):
    """`Conv3x3` for maps of 14 × 14 where larger rounding errors do not matter: only a threshold follows."""

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_small_conv3x3_weight(self.weight, half=self.half_products)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, H, W)."""
        return dense.small_conv3x3(
            input, self.weight, self.bias, relu=self.relu, packed_weight=self.packed_weight
        )


class StridedConv3x3(nn.Conv2d):
    """3×3 convolution with stride 2 and padding 1, for few output channels.

    Args:
        in_channels: C.
        out_channels: O.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, 2, padding=1)
        self.half_products = False
        self.packed_weight: Tensor | None = None

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_strided_conv3x3_weight(self.weight, half=self.half_products)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, ⌈H/2⌉, ⌈W/2⌉)."""
        return dense.strided_conv3x3(input, self.weight, self.bias, packed_weight=self.packed_weight)


class GroupedConv3x3(nn.Conv2d):
    """3×3 convolution with stride 1 and padding 1, in groups, optionally followed by ReLU.

    Its factors are never rounded; `half_output` says of its output alone that it is.

    Args:
        in_channels: C.
        out_channels: O.
        groups: G.
        bias: whether there is one.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int, *, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, groups=groups, bias=bias)
        self.relu = self.half_output = False
        self.packed_weight: Tensor | None = None

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_grouped_conv3x3_weight(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, H, W)."""
        return dense.grouped_conv3x3(
            input,
            self.weight,
            self.bias,
            relu=self.relu,
            packed_weight=self.packed_weight,
            half_output=self.half_output,
        )


class Conv1x1(nn.Conv2d):
    """1×1 convolution, optionally followed by ReLU.

    Args:
        in_channels: C.
        out_channels: O.
        stride: of both axes.
        bias: whether there is one.
        relu: whether ReLU follows.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, bias: bool = True, relu: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)
        self.relu = relu
        self.half_products = self.half_output = False
        self.packed_weight: Tensor | None = None

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_linear_weight(self.weight, half=self.half_products)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, ⌈H/stride⌉, ⌈W/stride⌉)."""
        return dense.conv1x1(
            input,
            self.weight,
            self.bias,
            stride=self.stride[0],
            relu=self.relu,
            packed_weight=self.packed_weight,
            half_output=self.half_output,
        )

    def add_to(self, output: Tensor, input: Tensor) -> Tensor:
        """Adds the convolution of (N, C, H, W) to `output` (N, O, H, W) in place, and returns it."""
        return dense.conv1x1_add_(
            output, input, self.weight, self.bias, relu=self.relu, packed_weight=self.packed_weight
        )

    def add_upsampled(self, input: Tensor, coarse: Tensor) -> Tensor:
        """The convolution, without ReLU, of (N, C, 2H, 2W) plus upsampled `coarse` (N, O, H, W)."""
        return dense.conv1x1_add_upsampled(
            input, self.weight, self.bias, coarse, packed_weight=self.packed_weight
        )

    def add_to_and_convolve(self, output: Tensor, input: Tensor, following: Conv1x1) -> tuple[Tensor, Tensor]:
        """`add_to`, and what `following` makes of the sum; in one pass where the kernels can."""
        packed, packed_next = self.packed_weight, following.packed_weight
        if packed is not None and packed_next is not None and self.relu and following.relu:
            result = dense.conv1x1_add_conv1x1_(
                output,
                input,
                packed,
                self.bias,
                packed_next,
                following.bias,
                following.out_channels,
                half_result=following.half_output,
            )
            if result is not None:
                return output, result
        output = self.add_to(output, input)
        return output, following(output)


class Stem(nn.Conv2d):
    """7×7 convolution with stride 2, ReLU and 3×3 max pooling with stride 2: the first layers of a ResNet.

    Args:
        conv: of shape (O, C, 7, 7); its parameters are taken over.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        with torch.device("meta"):
            super().__init__(conv.in_channels, conv.out_channels, 7, 2, 3)
        self.weight, self.bias = conv.weight, conv.bias
        self.packed_weight: Tensor | None = None

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_stem_weight(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, ⌈H/4⌉, ⌈W/4⌉)."""
        return dense.stem(input, self.weight, self.bias, packed_weight=self.packed_weight)


class ConvTranspose2x2(nn.ConvTranspose2d):
    """2×2 transposed convolution with stride 2, followed by ReLU.

    Args:
        in_channels: C.
        out_channels: O.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 2, stride=2)
        self.half_products = False
        self.packed_weight: Tensor | None = None

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_conv_transpose2x2_weight(self.weight, half=self.half_products)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: ARG002
        """Maps (N, C, H, W) to (N, O, 2H, 2W)."""
        return dense.conv_transpose2x2(
            input, self.weight, self.bias, relu=True, packed_weight=self.packed_weight
        )


class Linear(nn.Linear):
    """Fully connected layer, optionally followed by ReLU.

    Args:
        in_features: C.
        out_features: O.
        relu: whether ReLU follows.
    """

    def __init__(self, in_features: int, out_features: int, *, relu: bool = False) -> None:
        super().__init__(in_features, out_features)
        self.relu = relu
        self.half_products = False
        self.packed_weight: Tensor | None = None

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_linear_weight(self.weight, half=self.half_products)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (R, C) to (R, O)."""
        return dense.linear(input, self.weight, self.bias, relu=self.relu, packed_weight=self.packed_weight)


class MapLinear(Linear):
    """Fully connected layer over all elements of a square map, optionally followed by ReLU.

    Its weight is as for the flattened map, channels first.

    Args:
        channels: C.
        size: P, rows and columns of the map.
        out_features: O.
        relu: whether ReLU follows.
    """

    def __init__(self, channels: int, size: int, out_features: int, *, relu: bool = False) -> None:
        super().__init__(channels * size**2, out_features, relu=relu)
        self.map_size = (channels, size, size)

    def pack(self) -> None:
        """Arranges the weight for the compiled kernels; to be called when device and dtype are final."""
        self.packed_weight = dense.pack_map_linear_weight(self.weight, self.map_size, half=self.half_products)

    def forward(self, input: Tensor) -> Tensor:
        """Maps (R, C, P, P) to (R, O)."""
        return dense.map_linear(
            input, self.weight, self.bias, relu=self.relu, packed_weight=self.packed_weight
        )

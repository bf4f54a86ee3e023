"""Layers with their activation built in, so that an inference engine can fuse the two."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ConvReLU(nn.Conv2d):
    """Convolution followed by ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, O, H', W')."""
        return F.relu(super().forward(input), inplace=True)


class ConvTransposeReLU(nn.ConvTranspose2d):
    """Transposed convolution followed by ReLU."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Maps (N, C, H, W) to (N, O, H', W')."""
        return F.relu(super().forward(input, output_size), inplace=True)


class LinearReLU(nn.Linear):
    """Fully connected layer followed by ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (R, inputs) to (R, outputs)."""
        return F.relu(super().forward(input), inplace=True)

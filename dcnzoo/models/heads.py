"""Box and mask heads: what is computed per region of interest.

Shape letters: R RoIs, C channels, K classes, P bins per axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcnzoo.models.fpn import named
from dcnzoo.models.layers import ConvTranspose2x2, Linear, MapLinear, SmallConv3x3
from dcnzoo.ops import dense
from dcnzoo.ops.types import widened


class BoxHead(nn.Module):
    """Two fully connected layers, then class logits and box deltas.

    Args:
        num_classes: K, without the background.
        channels: C, of the pooled features.
        hidden: width of the two layers.
        class_agnostic: one set of deltas for all classes instead of one per class.
        stds: units of the deltas.
        pooled_size: P.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        hidden: int,
        *,
        class_agnostic: bool = False,
        stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2),
        pooled_size: int = 7,
    ) -> None:
        super().__init__()
        self.stds = stds
        self.shared_fcs = nn.Sequential(
            MapLinear(channels, pooled_size, hidden, relu=True), Linear(hidden, hidden, relu=True)
        )
        self.fc_cls = Linear(hidden, num_classes + 1)
        self.fc_reg = Linear(hidden, 4 if class_agnostic else 4 * num_classes)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Maps features (R, C, P, P) to class logits (R, K+1), background last, and deltas (R, 4 or 4·K).

        Both are float32 even when the weights are shorter: boxes need its resolution.
        """
        hidden = self.shared_fcs(pooled)
        return widened(self.fc_cls(hidden)), widened(self.fc_reg(hidden))


def class_scores(class_logits: Tensor) -> Tensor:
    """Maps logits (R, K+1) to probabilities (R, K): the background, the last class, is dropped."""
    return class_logits.softmax(dim=1)[:, :-1]


class MaskHead(nn.Module):
    """Four convolutions, upsampling, one map per class.

    Args:
        num_classes: K.
        channels: C, of the pooled features and the convolutions.
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*[named(SmallConv3x3(channels, channels, relu=True)) for _ in range(4)])
        self.upsample = ConvTranspose2x2(channels, channels)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """Maps features (R, C, 14, 14) to logits (R, K, 28, 28)."""
        logits: Tensor = self.conv_logits(self.upsample(self.convs(pooled)))
        return logits

    def class_probs(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Probabilities (R, 28, 28), float32, of each RoI's own class from features (R, C, 14, 14)."""
        upsample, last = self.upsample, self.conv_logits
        if upsample.packed_weight is None:
            rows = torch.arange(len(labels), device=labels.device)
            logits: Tensor = self(pooled)[rows, labels]
        else:
            logits = dense.class_mask_logits(
                self.convs(pooled),
                upsample.weight,
                upsample.bias,
                last.weight,
                last.bias,
                labels,
                packed_weight=upsample.packed_weight,
            )
        return logits.float().sigmoid()

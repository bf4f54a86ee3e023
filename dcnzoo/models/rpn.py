"""Region proposal network (arXiv:1506.01497) over p2–p6.

Shape letters: N images, C channels, A anchors per cell, H, W map size, R proposals.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dcnzoo.models.anchors import RATIOS, anchors_at
from dcnzoo.models.boxes import clip_boxes, decode_boxes
from dcnzoo.models.fpn import STRIDES
from dcnzoo.models.layers import Conv1x1, Conv3x3
from dcnzoo.ops import batched_nms, dense


class RPNHead(nn.Module):
    """Objectness and deltas of every anchor, and the proposals that follow from them.

    Args:
        channels: C.
        num_candidates: best anchors per level that are decoded.
        num_proposals: best boxes over all levels that remain.
        iou_threshold: of the suppression within a level.
    """

    def __init__(
        self,
        channels: int,
        num_candidates: int = 1000,
        num_proposals: int = 1000,
        iou_threshold: float = 0.7,
    ) -> None:
        super().__init__()
        self.num_candidates, self.num_proposals = num_candidates, num_proposals
        self.iou_threshold = iou_threshold
        self.rpn_conv = Conv3x3(channels, channels, relu=True)
        self.rpn_cls = Conv1x1(channels, len(RATIOS))
        self.rpn_reg = Conv1x1(channels, 4 * len(RATIOS))
        self.packed_outputs: tuple[Tensor, Tensor] | None = None

    def pack(self) -> None:
        """Arranges the weights of both outputs as one, for the compiled kernels, before they are packed."""
        layers = self.rpn_cls, self.rpn_reg
        packed = dense.pack_linear_weight(torch.cat([layer.weight for layer in layers]))
        if packed is not None:
            biases = [layer.bias for layer in layers if layer.bias is not None]
            self.packed_outputs = packed, torch.cat(biases)

    def forward(self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Proposes boxes.

        Args:
            features: "p2" … "p6", each (N, C, H, W).
            image_sizes: (height, width) of each image, resized frame.

        Returns:
            Per image (R, 5): xyxy in the resized frame and the objectness in 0–1, by descending objectness.
        """
        outputs = {name: self.predict(feature) for name, feature in features.items()}
        return self.propose(outputs, image_sizes, self.num_candidates, self.num_proposals)

    def predict(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Maps one level (N, C, H, W) to objectness logits (N, A, H, W) and deltas (N, 4·A, H, W)."""
        conv, anchors = self.rpn_conv, len(RATIOS)
        if conv.packed_weight is None or self.packed_outputs is None:
            hidden = conv(feature)
            return self.rpn_cls(hidden), self.rpn_reg(hidden)
        both = dense.conv3x3_conv1x1(
            feature, conv.packed_weight, conv.bias, conv.out_channels, *self.packed_outputs, 5 * anchors
        )
        return both[:, :anchors], both[:, anchors:]

    def propose(
        self,
        outputs: dict[str, tuple[Tensor, Tensor]],
        image_sizes: list[tuple[int, int]],
        num_candidates: int,
        num_proposals: int,
    ) -> list[Tensor]:
        """Proposes boxes from what `predict` gives.

        Args:
            outputs: of each level, by its name.
            image_sizes: (height, width) of each image, resized frame.
            num_candidates: best anchors per level that are decoded.
            num_proposals: best boxes over all levels that remain.

        Returns:
            As `forward`.
        """
        proposals = []
        for image, image_size in enumerate(image_sizes):
            candidates = [
                _decode_level(logits[image], deltas[image], STRIDES[name], image_size, num_candidates)
                for name, (logits, deltas) in outputs.items()
            ]
            proposals.append(self._merge_levels(candidates, num_proposals))
        return proposals

    def _merge_levels(self, candidates: list[Tensor], num_proposals: int) -> Tensor:
        """Suppresses within each level, then keeps the best over all."""
        level = torch.cat([c.new_full((len(c),), i, dtype=torch.int64) for i, c in enumerate(candidates)])
        merged = torch.cat(candidates)
        keep = batched_nms(merged[:, :4], merged[:, 4], level, self.iou_threshold)
        return merged[keep[:num_proposals]]


def _decode_level(
    logits: Tensor, deltas: Tensor, stride: int, image_size: tuple[int, int], num_candidates: int
) -> Tensor:
    """Best candidates of a level of one image: (R, 5) boxes and objectness."""
    objectness = logits.permute(1, 2, 0).reshape(-1).float().sigmoid()
    best, index = objectness.topk(min(num_candidates, len(objectness)))
    anchors = anchors_at(index, logits.shape[2], stride)
    pixels = deltas.permute(1, 2, 0).flatten(0, 1)[index // len(RATIOS)]
    chosen = pixels.view(-1, len(RATIOS), 4)[
        torch.arange(len(index), device=index.device), index % len(RATIOS)
    ]
    boxes = clip_boxes(decode_boxes(anchors, chosen.float())[:, 0], image_size)
    valid = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    return torch.cat([boxes, best[:, None]], dim=1)[valid]

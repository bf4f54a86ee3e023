"""The detector in fixed shapes: nothing that a GPU computes decides what the host does next.

The same computation as `RCNN.forward`, on tensors with room for as many boxes as there can be, so that the
host never waits for a number of them, and the whole can be captured as a CUDA graph. What does not exist is
a box of zeros, which pools to zeros, with the score `NOTHING`.

Shape letters: N images, H, W image size, L pyramid levels, A candidates per level, R proposals, K classes,
D most detections.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcnzoo.models.anchors import grid_anchors
from dcnzoo.models.boxes import boxes_to_rois, clip_boxes, decode_boxes, scale_factors
from dcnzoo.models.fpn import STRIDES
from dcnzoo.models.rcnn import RCNN, Instances
from dcnzoo.models.roi_heads import NMS_IOU_THRESHOLD, RoIHead
from dcnzoo.models.rpn import RPNHead
from dcnzoo.ops import nms_sorted

NOTHING = -1.0
"""Score of what does not exist."""

Size = tuple[int, int]


class FixedInstances(NamedTuple):
    """Detections of a batch, by descending score, filled up with zeros.

    Attributes:
        boxes: (N, D, 4) float32 xyxy, pixels of the original images.
        scores: (N, D) float32 in 0–1, or `NOTHING`.
        labels: (N, D) int64 in 0…K-1.
        counts: (N,) int64, how many of them exist.
        mask_probs: (N, D, 28, 28) float32 probabilities over the box; None for a detector without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
    mask_probs: Tensor | None


class Settings(NamedTuple):
    """What a batch is asked for beside its pixels; on the device of the model.

    Attributes:
        limits: (N, 4) width, height, width, height of each image, resized frame.
        growth: (N, 4) factors by which x, y, x, y grew from the original to the resized frame.
        wanted: (K,) 1 for the classes to look for, otherwise 0.
        threshold: (1,) keep detections whose score exceeds it.
    """

    limits: Tensor
    growth: Tensor
    wanted: Tensor
    threshold: Tensor

    @staticmethod
    def unpack(numbers: Tensor, images: int) -> Settings:
        """Views of what `pack_settings` made for so many images."""
        sizes = [4 * images, 4 * images, len(numbers) - 8 * images - 1, 1]
        limits, growth, wanted, threshold = torch.split(numbers, sizes)
        return Settings(limits.reshape(-1, 4), growth.reshape(-1, 4), wanted, threshold)


def pack_settings(
    image_sizes: list[Size],
    original_sizes: list[Size],
    num_classes: int,
    score_threshold: float,
    labels: Tensor | None,
) -> Tensor:
    """All settings of a batch in one piece, (8·N + K + 1,) float32 on the CPU: one copy takes them to a GPU.

    Args:
        image_sizes: (height, width) of each image, resized frame.
        original_sizes: (height, width) of each image, original frame.
        num_classes: K.
        score_threshold: keep detections whose score exceeds it.
        labels: (L,) int64 on the CPU, the classes to look for; None for all.
    """
    limits = [side for height, width in image_sizes for side in (width, height, width, height)]
    pairs = zip(image_sizes, original_sizes, strict=True)
    growth = [factor for pair in pairs for factor in 2 * scale_factors(*pair)]
    wanted = torch.ones(num_classes)
    if labels is not None:
        wanted = torch.zeros(num_classes).index_fill(0, labels, 1.0)
    return torch.cat(
        [torch.tensor(limits + growth, dtype=torch.float32), wanted, torch.tensor([score_threshold])]
    )


def make_anchors(image_size: Size, device: torch.device) -> list[Tensor]:
    """Anchors of each level for padded images of (H, W)."""
    height, width = image_size
    return [
        grid_anchors((-(-height // stride), -(-width // stride)), stride, device)
        for stride in STRIDES.values()
    ]


class FixedShapeRCNN(nn.Module):
    """An R-CNN in fixed shapes.

    Args:
        model: for inference; its layers are shared.
    """

    def __init__(self, model: RCNN) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck
        self.rpn_head, self.roi_head = _Proposals(model.rpn_head), _Detections(cast(RoIHead, model.roi_head))

    def forward(
        self, images: Tensor, settings: Settings, anchors: list[Tensor], max_detections: int
    ) -> FixedInstances:
        """Detects in a batch.

        Args:
            images: (N, 3, H, W) normalised, padded right and bottom.
            settings: what is asked for.
            anchors: of `make_anchors`.
            max_detections: D.

        Returns:
            What `RCNN.forward` finds.
        """
        features = self.neck(self.backbone(images))
        boxes, exist = self.rpn_head(features, settings.limits, anchors)
        found: FixedInstances = self.roi_head(features, boxes, exist, settings, max_detections)
        return found


class _Proposals(nn.Module):
    """What an RPN head proposes."""

    def __init__(self, head: RPNHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self, features: dict[str, Tensor], limits: Tensor, anchors: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Maps "p2" … "p6", (N, C, H, W), to (N, R, 4) boxes, best first, and (N, R) whether they exist."""
        head = self.head
        levels = [
            _candidates(*head.predict(feature), level_anchors, limits, head.num_candidates)
            for feature, level_anchors in zip(features.values(), anchors, strict=True)
        ]
        boxes, scores, counts = (torch.stack(parts, dim=1) for parts in zip(*levels, strict=True))
        remain = nms_sorted(boxes.flatten(0, 1), counts.flatten(), head.iou_threshold)
        scores = torch.where(remain.reshape(scores.shape), scores, NOTHING).flatten(1)
        best, order = scores.sort(dim=1, descending=True, stable=True)
        best, order = best[:, : head.num_proposals], order[:, : head.num_proposals]
        exist = best != NOTHING
        chosen = boxes.flatten(1, 2).gather(1, order[:, :, None].expand(-1, -1, 4))
        return torch.where(exist[:, :, None], chosen, 0.0), exist


class _Detections(nn.Module):
    """What a RoI head detects."""

    def __init__(self, head: RoIHead) -> None:
        super().__init__()
        self.head = head

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: Tensor,
        exist: Tensor,
        settings: Settings,
        max_detections: int,
    ) -> FixedInstances:
        """Detects in proposals (N, R, 4), resized frame, as far as they exist (N, R)."""
        head = self.head
        decoded = head.predict_boxes(features, list(proposals.unbind()), list(settings.limits.unbind()))
        boxes, scores = (torch.stack(parts) for parts in zip(*decoded, strict=True))
        scores = torch.where(exist[:, :, None] & (settings.wanted > 0), scores, NOTHING)
        growth = settings.growth[:, None]
        if head.mask_roi_extractor is None:  # as the reference: duplicates are judged in the original frame
            return select(boxes / growth[:, None], scores, settings.threshold, max_detections)
        found = select(boxes, scores, settings.threshold, max_detections)
        pooled = head.mask_roi_extractor(features, boxes_to_rois(list(found.boxes.unbind())))
        probs = head.predict_masks(pooled, found.labels.flatten())
        shape = (*found.labels.shape, *probs.shape[1:])
        return found._replace(boxes=found.boxes / growth, mask_probs=probs.reshape(shape))


def select(boxes: Tensor, scores: Tensor, threshold: Tensor, max_detections: int) -> FixedInstances:
    """Keeps confident boxes, suppresses duplicates per class, takes the best.

    Args:
        boxes: (N, R, K, 4), or (N, R, 1, 4) where all classes share one box.
        scores: (N, R, K), `NOTHING` where there is no box.
        threshold: (1,) a score must exceed it.
        max_detections: D.

    Returns:
        The detections in the frame of the boxes, without masks.
    """
    images, num_boxes, classes = scores.shape
    confident = (scores > threshold) & (scores != NOTHING)
    by_class = torch.where(confident, scores, NOTHING).transpose(1, 2)
    order = by_class.sort(dim=2, descending=True, stable=True).indices
    of_class = boxes.expand(-1, -1, classes, -1).transpose(1, 2)
    ordered = of_class.gather(2, order[..., None].expand(-1, -1, -1, 4))
    remain = nms_sorted(ordered.flatten(0, 1), confident.sum(dim=1).flatten(), NMS_IOU_THRESHOLD)
    # back in the order of the boxes, which decides between equal scores
    kept = torch.zeros_like(by_class, dtype=torch.bool).scatter(2, order, remain.reshape(order.shape))
    rest = torch.where(kept, by_class, NOTHING).transpose(1, 2).flatten(1)
    best, index = rest.sort(dim=1, descending=True, stable=True)
    room = max(0, max_detections - num_boxes * classes)
    best = F.pad(best[:, :max_detections], (0, room), value=NOTHING)
    index = F.pad(index[:, :max_detections], (0, room))
    exist = best != NOTHING
    labels = torch.where(exist, index % classes, 0)
    flat = boxes.expand(-1, -1, classes, -1).reshape(images, -1, 4)
    chosen = flat.gather(1, index[:, :, None].expand(-1, -1, 4))
    return FixedInstances(torch.where(exist[:, :, None], chosen, 0.0), best, labels, exist.sum(dim=1), None)


def split_instances(found: FixedInstances) -> list[Instances]:
    """Instances of each image, without what does not exist; on the CPU.

    Only their maps of masks are views, and keep the memory of the batch.
    """
    return [
        Instances(
            found.boxes[index, :count].clone(),
            found.scores[index, :count].clone(),
            found.labels[index, :count].clone(),
            None if found.mask_probs is None else found.mask_probs[index, :count],
        )
        for index, count in enumerate(found.counts.tolist())
    ]


def _candidates(
    logits: Tensor, deltas: Tensor, anchors: Tensor, limits: Tensor, num_candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Best candidates of a level: (N, A, 4) boxes, (N, A) objectness, and (N,) how many of them exist."""
    images = len(logits)
    objectness = logits.permute(0, 2, 3, 1).reshape(images, -1).float().sigmoid()
    best, index = objectness.topk(min(num_candidates, objectness.shape[1]))
    chosen = deltas.permute(0, 2, 3, 1).reshape(images, -1, 4).gather(1, index[:, :, None].expand(-1, -1, 4))
    boxes = decode_boxes(anchors[index].reshape(-1, 4), chosen.reshape(-1, 4).float())
    boxes = clip_boxes(boxes.reshape(images, -1, 4), limits[:, None])
    exist = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(dim=2)
    order = exist.logical_not().byte().sort(dim=1, stable=True).indices
    room = num_candidates - order.shape[1]
    boxes = F.pad(boxes.gather(1, order[:, :, None].expand(-1, -1, 4)), (0, 0, 0, room))
    scores = F.pad(best.gather(1, order), (0, room), value=NOTHING)
    return boxes, scores, exist.sum(dim=1)

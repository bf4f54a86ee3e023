"""RoI heads: from proposals to instances, in one stage or in a cascade of three.

Shape letters: N images, C channels, R RoIs, K classes, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dcnzoo.models.boxes import (
    boxes_to_rois,
    clip_boxes,
    decode_boxes,
    select_detections,
    to_original_frame,
)
from dcnzoo.models.heads import BoxHead, MaskHead, class_scores
from dcnzoo.models.rcnn import Instances
from dcnzoo.models.roi_features import DeformRoIPool, RoIAlign

NMS_IOU_THRESHOLD = 0.5
Size = tuple[int, int]


class RoIHead(nn.Module):
    """What both kinds share: from decoded boxes and scores to instances, masks included.

    Args:
        bbox_roi_extractor: features of the box head.
        mask_roi_extractor: features of the mask head; None for a detector without masks.
    """

    def __init__(
        self, bbox_roi_extractor: RoIAlign | DeformRoIPool, mask_roi_extractor: RoIAlign | None
    ) -> None:
        super().__init__()
        self.bbox_roi_extractor, self.mask_roi_extractor = bbox_roi_extractor, mask_roi_extractor

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_sizes: list[Size],
        original_sizes: list[Size],
        score_threshold: float,
        max_detections: int,
        labels: Tensor | None = None,
    ) -> list[Instances]:
        """Detects in every image of a batch.

        Args:
            features: "p2" … "p5", each (N, C, H, W).
            proposals: per image (R, 4) boxes, resized frame.
            image_sizes: (height, width) of each image, resized frame.
            original_sizes: (height, width) of each image, original frame.
            score_threshold: keep detections whose score exceeds it.
            max_detections: keep at most so many per image.
            labels: (L,) int64, the classes to look for, ascending; None for all.

        Returns:
            Instances per image, in its original frame.
        """
        on_cpu = next(iter(features.values())).device.type == "cpu"
        groups = [slice(i, i + 1) for i in range(len(proposals))] if on_cpu else [slice(None)]
        limits = (score_threshold, NMS_IOU_THRESHOLD, max_detections, labels)
        found: list[Instances] = []
        for images in groups:  # on a CPU one by one: so the batch does not change what is found here
            found += self._detect(
                {name: maps[images] for name, maps in features.items()},
                proposals[images],
                image_sizes[images],
                original_sizes[images],
                limits,
            )
        return found

    def _detect(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_sizes: list[Size],
        original_sizes: list[Size],
        limits: tuple[float, float, int, Tensor | None],
    ) -> list[Instances]:
        """As `forward`; `limits` are those of `select_detections`."""
        resized, selected = [], []
        decoded = self.predict_boxes(features, proposals, image_sizes)
        per_image = zip(decoded, image_sizes, original_sizes, strict=True)
        for (boxes, scores), image_size, original_size in per_image:
            # as the reference: with masks, duplicates are judged in the resized frame, else in the original
            frame = boxes if self.mask_roi_extractor else to_original_frame(boxes, image_size, original_size)
            kept, confidences, classes = select_detections(frame, scores, *limits)
            if self.mask_roi_extractor:
                resized.append(kept)
                kept = to_original_frame(kept, image_size, original_size)
            selected.append(Instances(kept, confidences, classes, None))
        return self._add_masks(features, resized, selected) if self.mask_roi_extractor else selected

    def predict_boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: Sequence[Size | Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image boxes (R, K or 1, 4), resized frame, and scores (R, K).

        Args:
            features: "p2" … "p5", each (N, C, H, W).
            proposals: per image (R, 4) boxes, resized frame.
            image_sizes: of each image, resized frame, in a form that `clip_boxes` knows.
        """
        raise NotImplementedError

    def predict_masks(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities (D, 28, 28) of each RoI's own class from features (D, C, 14, 14)."""
        raise NotImplementedError

    def _add_masks(
        self, features: dict[str, Tensor], boxes: list[Tensor], instances: list[Instances]
    ) -> list[Instances]:
        if self.mask_roi_extractor is None:
            return instances
        labels = torch.cat([instance.labels for instance in instances])
        probs = labels.new_zeros((0, 28, 28), dtype=torch.float32)
        if len(labels):
            probs = self.predict_masks(self.mask_roi_extractor(features, boxes_to_rois(boxes)), labels)
        parts = torch.split(probs, [len(instance.labels) for instance in instances])
        return [instance._replace(mask_probs=part) for instance, part in zip(instances, parts, strict=True)]


class StandardRoIHead(RoIHead):
    """Faster and Mask R-CNN (arXiv:1506.01497, arXiv:1703.06870): one box head, at most one mask head."""

    def __init__(
        self,
        bbox_roi_extractor: RoIAlign | DeformRoIPool,
        bbox_head: BoxHead,
        mask_roi_extractor: RoIAlign | None = None,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__(bbox_roi_extractor, mask_roi_extractor)
        self.bbox_head, self.mask_head = bbox_head, mask_head

    def predict_boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: Sequence[Size | Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image boxes (R, K, 4), resized frame, and scores (R, K)."""
        pooled = self.bbox_roi_extractor(features, boxes_to_rois(proposals))
        class_logits, deltas = self.bbox_head(pooled)
        boxes = decode_boxes(torch.cat(proposals), deltas, self.bbox_head.stds)
        counts = [len(proposal) for proposal in proposals]
        scores = class_scores(class_logits)
        parts = zip(torch.split(boxes, counts), torch.split(scores, counts), image_sizes, strict=True)
        return [(clip_boxes(box, image_size), score) for box, score, image_size in parts]

    def predict_masks(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities (D, 28, 28) of each RoI's own class from features (D, C, 14, 14)."""
        if self.mask_head is None:
            raise TypeError("this detector has no mask head")
        return self.mask_head.class_probs(pooled, labels)


class CascadeRoIHead(RoIHead):
    """Cascade R-CNN (arXiv:1712.00726): each stage refines the boxes of the one before.

    Class logits are averaged over the stages, boxes come from the last, and mask probabilities are averaged.
    """

    def __init__(
        self,
        bbox_roi_extractor: RoIAlign | DeformRoIPool,
        bbox_head: nn.ModuleList,
        mask_roi_extractor: RoIAlign | None = None,
        mask_head: nn.ModuleList | None = None,
    ) -> None:
        super().__init__(bbox_roi_extractor, mask_roi_extractor)
        self.bbox_head, self.mask_head = bbox_head, mask_head

    def predict_boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: Sequence[Size | Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Per image boxes (R, 1, 4), resized frame, and scores (R, K)."""
        counts, boxes, all_logits = [len(proposal) for proposal in proposals], proposals, []
        for head in cast("list[BoxHead]", self.bbox_head):
            class_logits, deltas = head(self.bbox_roi_extractor(features, boxes_to_rois(boxes)))
            all_logits.append(class_logits)
            refined = torch.split(decode_boxes(torch.cat(boxes), deltas, head.stds)[:, 0], counts)
            boxes = [clip_boxes(box, size) for box, size in zip(refined, image_sizes, strict=True)]
        scores = class_scores(torch.stack(all_logits).mean(dim=0))
        parts = zip(boxes, torch.split(scores, counts), strict=True)
        return [(box[:, None], score) for box, score in parts]

    def predict_masks(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities (D, 28, 28) of each RoI's own class from features (D, C, 14, 14)."""
        if self.mask_head is None:
            raise TypeError("this detector has no mask heads")
        return torch.stack(
            [head.class_probs(pooled, labels) for head in cast("list[MaskHead]", self.mask_head)]
        ).mean(dim=0)

"""Losses of the detectors, as MMDetection 3.x trains the published models.

Shape letters: N images, L pyramid levels, B anchors of an image, S samples, P of them positive, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcnzoo.manifest import Preprocessing
from dcnzoo.models.anchors import grid_anchors
from dcnzoo.models.boxes import boxes_to_rois, clip_boxes, decode_boxes
from dcnzoo.models.fpn import STRIDES
from dcnzoo.models.heads import BoxHead, MaskHead
from dcnzoo.models.rcnn import RCNN
from dcnzoo.models.roi_heads import CascadeRoIHead, RoIHead
from dcnzoo.ops.types import widened
from dcnzoo.training.targets import (
    Matching,
    RoISample,
    Sampling,
    Target,
    assign,
    encode_boxes,
    mask_targets,
    sample,
    sample_rois,
    some_positive,
)

Size = tuple[int, int]
Stds = tuple[float, float, float, float]
Features = dict[str, Tensor]
Outputs = dict[str, tuple[Tensor, Tensor]]
"""Objectness logits (N, A, H, W) and deltas (N, 4·A, H, W) of each level."""

ANCHOR_MATCHING = Matching(positive_iou=0.7, negative_iou=0.3, low_quality_iou=0.3)
ANCHOR_SAMPLING = Sampling(num_samples=256, positive_fraction=0.5)
ROI_SAMPLING = Sampling(num_samples=512, positive_fraction=0.25)

NUM_CANDIDATES = 2000
"""Best anchors per level that become proposals in training."""


@dataclass(frozen=True)
class Recipe:
    """What the published configurations of the detectors do not have in common.

    Attributes:
        num_proposals: best proposals of an image that the box head samples from.
        anchors_inside: whether anchors that reach beyond the image are left out.
        rpn_beta: deltas of the proposals below this error have a quadratic loss, others a linear one.
        box_beta: the same for the box heads.
        stages: rules of assignment for each box head.
        weights: of the losses of each box head and its mask head.
    """

    num_proposals: int
    anchors_inside: bool
    rpn_beta: float
    box_beta: float
    stages: tuple[Matching, ...]
    weights: tuple[float, ...]


FASTER = Recipe(1000, False, 0.0, 0.0, (Matching(0.5, 0.5),), (1.0,))
MASK = Recipe(1000, False, 0.0, 0.0, (Matching(0.5, 0.5, 0.5),), (1.0,))
CASCADE = Recipe(
    2000, True, 1 / 9, 1.0, (Matching(0.5, 0.5), Matching(0.6, 0.6), Matching(0.7, 0.7)), (1.0, 0.5, 0.25)
)


def recipe_of(model: RCNN) -> Recipe:
    """The recipe that a detector was published with."""
    if isinstance(model.roi_head, CascadeRoIHead):
        return CASCADE
    return MASK if model.has_masks else FASTER


class LossNetwork(nn.Module):
    """A detector whose forward gives the losses, as DistributedDataParallel needs it.

    Args:
        model: prepared for training.
        roi_samples: regions of an image that a box head learns from, None for as many as published.
        mask_samples: regions of an image that a mask head learns from, None for as many as published.
        dtype: of the forward pass, where autocast lowers it; weights and losses are float32.
        size_divisor: of the preprocessing.
    """

    def __init__(
        self,
        model: RCNN,
        roi_samples: int | None = None,
        mask_samples: int | None = None,
        dtype: torch.dtype = torch.float32,
        size_divisor: int = Preprocessing.size_divisor,
    ) -> None:
        super().__init__()
        self.model, self.dtype, self.size_divisor = model, dtype, size_divisor
        self.samples = {"roi_samples": roi_samples, "mask_samples": mask_samples}

    def forward(
        self,
        images: Tensor,
        image_sizes: list[Size],
        targets: list[Target],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Returns the losses of a batch, as `detection_losses` does."""
        lowered = self.dtype != torch.float32
        with torch.autocast(images.device.type, self.dtype if lowered else None, enabled=lowered):
            losses = detection_losses(
                self.model,
                images,
                image_sizes,
                targets,
                generator,
                **self.samples,
                size_divisor=self.size_divisor,
            )
        return {name: loss.float() for name, loss in losses.items()}


@dataclass(frozen=True)
class _Batch:
    """What the losses of a batch are computed from, besides what the network says."""

    model: RCNN
    recipe: Recipe
    image_sizes: list[Size]
    targets: list[Target]
    generator: torch.Generator
    roi_sampling: Sampling
    mask_samples: int | None = None
    size_divisor: int = Preprocessing.size_divisor


def detection_losses(
    model: RCNN,
    images: Tensor,
    image_sizes: list[Size],
    targets: list[Target],
    generator: torch.Generator,
    *,
    roi_samples: int | None = None,
    mask_samples: int | None = None,
    size_divisor: int = Preprocessing.size_divisor,
) -> dict[str, Tensor]:
    """Computes the losses of a batch, weighted: their sum is what to minimise.

    Args:
        model: as `build_model` makes it, not folded.
        images: (N, 3, H, W) normalised, padded right and bottom.
        image_sizes: (height, width) of each image, resized and unpadded.
        targets: what is in each image; with masks for a detector with masks.
        generator: on the CPU; draws the samples.
        roi_samples: regions of an image that a box head learns from, None for 512 as published; a quarter at
            most are objects.
        mask_samples: how many of those a mask head learns from at most, None for all as published.
        size_divisor: of the preprocessing; anchors in the padding beyond an image's own next multiple of it
            are no samples.

    Returns:
        Scalars under the reference's names: loss_rpn_cls, loss_rpn_bbox, loss_cls, loss_bbox, loss_mask; in
        a cascade s0.loss_cls … s2.loss_mask.

    Raises:
        ValueError: there are not as many targets or sizes as images, or masks are missing.
    """
    if not len(images) == len(image_sizes) == len(targets):
        raise ValueError(
            f"got {len(images)} images, {len(image_sizes)} sizes and {len(targets)} targets, expected as many"
        )
    if model.has_masks and any(target.masks is None for target in targets):
        raise ValueError("a detector with masks needs the masks of every target")
    roi_sampling = ROI_SAMPLING if roi_samples is None else replace(ROI_SAMPLING, num_samples=roi_samples)
    batch = _Batch(
        model, recipe_of(model), image_sizes, targets, generator, roi_sampling, mask_samples, size_divisor
    )
    features = model.neck(model.backbone(images))
    outputs = {name: model.rpn_head.predict(feature) for name, feature in features.items()}
    losses = _rpn_losses(batch, outputs)
    return losses | _roi_losses(batch, features, _propose(batch, outputs))


def _rpn_losses(batch: _Batch, outputs: Outputs) -> dict[str, Tensor]:
    """Cross-entropy of sampled anchors and the box loss of the positive ones, averaged over the samples."""
    logits, deltas = _flatten_levels(outputs, 0, 1)[..., 0], _flatten_levels(outputs, 1, 4)
    anchors, cells = _all_anchors(outputs)
    class_loss, box_loss, count = logits.new_zeros(()), logits.new_zeros(()), 0
    for index, target in enumerate(batch.targets):
        usable = _usable_anchors(
            anchors, cells, batch.image_sizes[index], batch.size_divisor, batch.recipe.anchors_inside
        )
        indices = usable.nonzero()[:, 0]
        assigned = assign(anchors[indices], target, ANCHOR_MATCHING)
        positive, background = sample(assigned, ANCHOR_SAMPLING, batch.generator)
        objects, positive, background = assigned[positive], indices[positive], indices[background]
        class_loss = class_loss + _binary_loss(logits[index, positive], 1.0)
        class_loss = class_loss + _binary_loss(logits[index, background], 0.0)
        wanted = encode_boxes(anchors[positive], target.boxes[objects])
        box_loss = box_loss + _box_loss(deltas[index, positive], wanted, batch.recipe.rpn_beta)
        count += max(len(positive), 1) + max(len(background), 1)  # as the reference counts
    return {"loss_rpn_cls": class_loss / count, "loss_rpn_bbox": box_loss / count}


def _flatten_levels(outputs: Outputs, index: int, size: int) -> Tensor:
    """Output `index` of all levels as (N, B, size), in the order of the anchors."""
    maps = [output[index] for output in outputs.values()]
    return widened(torch.cat([each.permute(0, 2, 3, 1).reshape(len(each), -1, size) for each in maps], dim=1))


def _all_anchors(outputs: Outputs) -> tuple[Tensor, Tensor]:
    """The anchors of all levels, (B, 4) xyxy, and the corner (x, y) of each one's cell, (B, 2), in pixels."""
    anchors, cells = [], []
    for name, (logits, _) in outputs.items():
        stride, (num_anchors, height, width) = STRIDES[name], logits.shape[1:]
        anchors.append(grid_anchors((height, width), stride, logits.device))
        rows, columns = (torch.arange(n, device=logits.device) * stride for n in (height, width))
        corners = torch.cartesian_prod(rows, columns).flip(1)
        cells.append(corners.repeat_interleave(num_anchors, dim=0))
    return torch.cat(anchors), torch.cat(cells)


def _usable_anchors(anchors: Tensor, cells: Tensor, image_size: Size, divisor: int, inside: bool) -> Tensor:
    """(B,) bool: the cell is in the image as padded alone and, if asked for, the anchor in the image."""
    height, width = (-(-side // divisor) * divisor for side in image_size)
    usable = (cells[:, 0] < width) & (cells[:, 1] < height)
    if inside:
        limit = anchors.new_tensor(image_size[::-1])
        usable &= (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] < limit).all(dim=1)
    return usable


@torch.no_grad()
def _propose(batch: _Batch, outputs: Outputs) -> list[Tensor]:
    """Per image (R, 4) boxes to sample from."""
    num_proposals = batch.recipe.num_proposals
    proposals = batch.model.rpn_head.propose(outputs, batch.image_sizes, NUM_CANDIDATES, num_proposals)
    return [proposal[:, :4] for proposal in proposals]


def _roi_losses(batch: _Batch, features: Features, proposals: list[Tensor]) -> dict[str, Tensor]:
    recipe, roi_head = batch.recipe, cast(RoIHead, batch.model.roi_head)
    losses: dict[str, Tensor] = {}
    for stage, (box_head, mask_head) in enumerate(_heads(roi_head)):
        samples = [
            sample_rois(boxes, target, recipe.stages[stage], batch.roi_sampling, batch.generator)
            for boxes, target in zip(proposals, batch.targets, strict=True)
        ]
        rois = boxes_to_rois([each.boxes for each in samples])
        logits, deltas = box_head(roi_head.bbox_roi_extractor(features, rois))
        found = _box_head_losses(batch, samples, logits, deltas, box_head.stds)
        found["loss_cls"] = found["loss_cls"] + _touch(roi_head.bbox_roi_extractor)
        if roi_head.mask_roi_extractor is not None and mask_head is not None:
            masked = [some_positive(each, batch.mask_samples, batch.generator) for each in samples]
            positive = boxes_to_rois([each.boxes for each in masked])
            mask_logits = mask_head(roi_head.mask_roi_extractor(features, positive))
            found["loss_mask"] = _mask_loss(batch, masked, mask_logits)
        prefix = f"s{stage}." if len(recipe.stages) > 1 else ""
        losses |= {prefix + name: recipe.weights[stage] * loss for name, loss in found.items()}
        if stage + 1 < len(recipe.stages):
            proposals = _refine(batch, samples, deltas, box_head.stds)
    return losses


def _heads(roi_head: RoIHead) -> list[tuple[BoxHead, MaskHead | None]]:
    """The box head and the mask head of each stage."""
    if not isinstance(roi_head, CascadeRoIHead):
        return [(cast(BoxHead, roi_head.bbox_head), cast("MaskHead | None", roi_head.mask_head))]
    box_heads = list(cast("Iterable[BoxHead]", roi_head.bbox_head))
    mask_heads = list(cast("Iterable[MaskHead | None]", roi_head.mask_head or [None] * len(box_heads)))
    return list(zip(box_heads, mask_heads, strict=True))


def _box_head_losses(
    batch: _Batch, samples: list[RoISample], logits: Tensor, deltas: Tensor, stds: Stds
) -> dict[str, Tensor]:
    """Cross-entropy of all samples and the box loss of the positive ones, averaged over all samples."""
    background = logits.shape[1] - 1
    labels, wanted = [], []
    for each, target in zip(samples, batch.targets, strict=True):
        padding = (0, len(each.boxes) - len(each.objects))
        labels.append(F.pad(target.labels[each.objects], padding, value=background))
        wanted.append(encode_boxes(each.positive_boxes, target.boxes[each.objects], stds))
    label = torch.cat(labels)
    positive = (label != background).nonzero()[:, 0]
    per_class = deltas.reshape(len(deltas), deltas.shape[1] // 4, 4)
    own = label[positive] if per_class.shape[1] > 1 else 0
    count = max(len(label), 1)
    return {
        "loss_cls": F.cross_entropy(logits, label, reduction="sum") / count,
        "loss_bbox": _box_loss(per_class[positive, own], torch.cat(wanted), batch.recipe.box_beta) / count,
    }


def _mask_loss(batch: _Batch, samples: list[RoISample], logits: Tensor) -> Tensor:
    """Mean binary cross-entropy of the map of each positive sample's own class."""
    labels, wanted = [], []
    for each, target in zip(samples, batch.targets, strict=True):
        labels.append(target.labels[each.objects])
        masks = cast(Tensor, target.masks)
        wanted.append(mask_targets(masks, each.objects, each.positive_boxes, logits.shape[-1]))
    label = torch.cat(labels)
    own = widened(logits[torch.arange(len(label), device=label.device), label])
    return _binary_loss(own, torch.cat(wanted)) / max(own.numel(), 1)


@torch.no_grad()
def _refine(batch: _Batch, samples: list[RoISample], deltas: Tensor, stds: Stds) -> list[Tensor]:
    """Per image the next stage's proposals: the sampled boxes as moved; objects' own boxes are dropped."""
    refined = []
    parts = torch.split(deltas.float(), [len(each.boxes) for each in samples])
    for each, part, image_size in zip(samples, parts, batch.image_sizes, strict=True):
        boxes = decode_boxes(each.boxes, part, stds)[:, 0]
        refined.append(clip_boxes(boxes, image_size)[~each.is_object])
    return refined


def _binary_loss(logits: Tensor, wanted: Tensor | float) -> Tensor:
    """Binary cross-entropy, summed."""
    probabilities = torch.as_tensor(wanted, dtype=logits.dtype, device=logits.device).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, probabilities, reduction="sum")


def _box_loss(deltas: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Smooth L1 loss, summed; with beta = 0 the L1 loss."""
    return F.smooth_l1_loss(deltas, wanted.to(deltas.dtype), beta=beta, reduction="sum")


def _touch(module: nn.Module) -> Tensor | float:
    """Zero, computed from every parameter: each then has a gradient, even if no sample reached it."""
    return sum((parameter.flatten()[0] * 0 for parameter in module.parameters()), start=0.0)

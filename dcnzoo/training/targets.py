"""What a detector is to learn: which anchors and regions belong to which object, and samples of them.

As MMDetection 3.x does it (its MaxIoUAssigner and RandomSampler). Shape letters: G objects and I crowds of
an image, B boxes (anchors or proposals), S samples, P of them positive, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dcnzoo.ops import roi_align

BACKGROUND, IGNORED = -1, -2
"""What `assign` says of a box that belongs to no object."""

CROWD_SHARE = 0.5
"""A box with more than this share of its area in one crowd is no example of background."""


@dataclass(frozen=True)
class Target:
    """What is in one image, in pixels of the resized image.

    Padding is right and bottom, so that the coordinates hold in the padded image, too.

    Attributes:
        boxes: (G, 4) float32 xyxy, with positive sides.
        labels: (G,) int64 in 0…K-1.
        masks: (G, H, W) bool or uint8, H×W the padded size of the batch; None for a detector without masks.
        ignored_boxes: (I, 4) float32 xyxy: crowds. They are no objects, and what lies in them is no
            background.

    Raises:
        ValueError: shapes that do not fit together, or a box without an area.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None
    ignored_boxes: Tensor

    def __post_init__(self) -> None:
        num_objects = len(self.boxes)
        masks_fit = self.masks is None or (self.masks.ndim == 3 and len(self.masks) == num_objects)
        if (
            self.boxes.shape != (num_objects, 4)
            or self.labels.shape != (num_objects,)
            or self.ignored_boxes.shape[1:] != (4,)
            or not masks_fit
        ):
            found = [None if t is None else tuple(t.shape) for t in vars(self).values()]
            raise ValueError(
                f"expected boxes (G, 4), labels (G,), masks (G, H, W), crowds (I, 4), got {found}"
            )
        if not (self.boxes[:, 2:] > self.boxes[:, :2]).all():
            raise ValueError("every box must have positive sides")


@dataclass(frozen=True)
class Matching:
    """Rules by which boxes are assigned to objects.

    Attributes:
        positive_iou: least IoU with an object to belong to it.
        negative_iou: background is what stays below it with all objects.
        low_quality_iou: the boxes that overlap most with an object belong to it if their IoU is at least
            this, whatever the other rules say; None for no such rule.
    """

    positive_iou: float
    negative_iou: float
    low_quality_iou: float | None = None


@dataclass(frozen=True)
class Sampling:
    """How many boxes of an image to learn from.

    Attributes:
        num_samples: S.
        positive_fraction: at most this share of them is positive; background fills up the rest.
    """

    num_samples: int
    positive_fraction: float


@dataclass(frozen=True)
class RoISample:
    """Regions of interest of one image to learn from, the positive ones first.

    Attributes:
        boxes: (S, 4) xyxy.
        objects: (P,) int64, index of each positive one's object.
        is_object: (S,) bool, whether the region is the box of an object itself.
    """

    boxes: Tensor
    objects: Tensor
    is_object: Tensor

    @property
    def positive_boxes(self) -> Tensor:
        """(P, 4) xyxy."""
        return self.boxes[: len(self.objects)]


def overlaps(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """How boxes overlap each other.

    Args:
        boxes: (B, 4) xyxy.
        others: (G, 4) xyxy.

    Returns:
        (G, B) intersection over union, and (G, B) intersection over the area of each of `boxes`; 0 where
        there is no area.
    """
    low = torch.maximum(boxes[None, :, :2], others[:, None, :2])
    high = torch.minimum(boxes[None, :, 2:], others[:, None, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=2)
    area, other_area = ((b[:, 2:] - b[:, :2]).prod(dim=1) for b in (boxes, others))
    tiny = torch.finfo(boxes.dtype).tiny
    union = area + other_area[:, None] - intersection
    return intersection / union.clamp(min=tiny), intersection / area.clamp(min=tiny)


def assign(boxes: Tensor, target: Target, matching: Matching) -> Tensor:
    """Assigns boxes to objects.

    Background inside crowds is ignored; the published configurations take it for background instead.

    Args:
        boxes: (B, 4) xyxy.
        target: the objects.
        matching: the rules.

    Returns:
        (B,) int64: index of the object, or BACKGROUND, or IGNORED.
    """
    assigned = boxes.new_full((len(boxes),), BACKGROUND, dtype=torch.int64)
    if len(target.boxes) and len(boxes):
        iou, _ = overlaps(boxes, target.boxes)
        best, nearest = iou.max(dim=0)
        assigned[best >= matching.negative_iou] = IGNORED
        assigned = torch.where(best >= matching.positive_iou, nearest, assigned)
        if matching.low_quality_iou is not None:
            greatest = iou.max(dim=1, keepdim=True).values
            chosen = (iou == greatest) & (greatest >= matching.low_quality_iou)
            # where several objects want a box, the last one gets it, as in the reference
            wanting = torch.arange(1, len(iou) + 1, device=iou.device)[:, None] * chosen
            last = wanting.max(dim=0).values - 1
            assigned = torch.where(last >= 0, last, assigned)
    if len(target.ignored_boxes) and len(boxes):
        in_crowd = overlaps(boxes, target.ignored_boxes)[1].max(dim=0).values > CROWD_SHARE
        assigned[in_crowd & (assigned == BACKGROUND)] = IGNORED
    return assigned


def sample(assigned: Tensor, sampling: Sampling, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws positive boxes and background, without repetition.

    Args:
        assigned: (B,) what `assign` gave.
        sampling: how many.
        generator: on the CPU.

    Returns:
        Ascending indices (int64) of the positive ones, and of the background.
    """
    most = int(sampling.num_samples * sampling.positive_fraction)
    positive = _choose((assigned >= 0).nonzero()[:, 0], most, generator)
    background = (assigned == BACKGROUND).nonzero()[:, 0]
    return positive, _choose(background, sampling.num_samples - len(positive), generator)


def sample_rois(
    proposals: Tensor, target: Target, matching: Matching, sampling: Sampling, generator: torch.Generator
) -> RoISample:
    """Draws regions of interest from proposals and the objects' own boxes.

    Args:
        proposals: (B, 4) xyxy.
        target: the objects.
        matching: rules for the proposals; each object's own box belongs to it.
        sampling: how many.
        generator: on the CPU.
    """
    own = torch.arange(len(target.boxes), device=proposals.device)
    boxes = torch.cat([target.boxes.to(proposals.dtype), proposals])
    assigned = torch.cat([own, assign(proposals, target, matching)])
    positive, background = sample(assigned, sampling, generator)
    chosen = torch.cat([positive, background])
    return RoISample(boxes[chosen], assigned[positive], chosen < len(own))


def some_positive(found: RoISample, most: int | None, generator: torch.Generator) -> RoISample:
    """Draws some of the positive regions, or takes all.

    Args:
        found: what `sample_rois` gave.
        most: how many at most; None for all.
        generator: on the CPU.
    """
    chosen = torch.arange(len(found.objects), device=found.objects.device)
    if most is not None:
        chosen = _choose(chosen, most, generator)
    return RoISample(found.boxes[chosen], found.objects[chosen], found.is_object[chosen])


def encode_boxes(
    boxes: Tensor, objects: Tensor, stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """The deltas that turn boxes into objects: the inverse of `decode_boxes` (arXiv:1506.01497).

    Args:
        boxes: (P, 4) xyxy.
        objects: (P, 4) xyxy, the object of each box.
        stds: units of the deltas.

    Returns:
        (P, 4) of (dx, dy, dw, dh).
    """
    size, object_size = boxes[:, 2:] - boxes[:, :2], objects[:, 2:] - objects[:, :2]
    shift = (objects[:, :2] + objects[:, 2:] - boxes[:, :2] - boxes[:, 2:]) * 0.5
    return torch.cat([shift / size, (object_size / size).log()], dim=1) / boxes.new_tensor(stds)


def mask_targets(masks: Tensor, objects: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cuts the part of each object's mask that is in a box, at the size of the mask head's maps.

    Args:
        masks: (G, H, W) bool or uint8.
        objects: (P,) int64, index of each box's object.
        boxes: (P, 4) xyxy.
        size: M.

    Returns:
        (P, M, M) float32, 0 or 1: whether at least half of the mean over each cell is mask.
    """
    height, width = masks.shape[1:]
    limit = boxes.new_tensor([width, height, width, height])
    inside = torch.minimum(boxes.clamp(min=0), limit).float()
    used, rows = torch.unique(objects, return_inverse=True)  # the others would only take memory as float32
    rois = torch.cat([rows[:, None].float(), inside], dim=1)
    with torch.no_grad():
        cut = roi_align(masks[used][:, None].float(), rois, output_size=(size, size), spatial_scale=1.0)
    return (cut[:, 0] >= 0.5).float()


def _choose(indices: Tensor, most: int, generator: torch.Generator) -> Tensor:
    if len(indices) <= most:
        return indices
    chosen = torch.randperm(len(indices), generator=generator)[:most].sort().values
    return indices[chosen.to(indices.device)]

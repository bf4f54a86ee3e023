"""How the detections of an image overlap its objects: what confusion and errors are told from.

Shapes: D detections, G objects of one image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from dcnzoo.evaluation import Kind
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.results import FIELDS, CocoResults
from dcnzoo.evaluation.segmentation import to_rle

MAX_DETECTIONS = 100
"""Per category and image, as COCO's metrics have it."""

CROWD_OVERLAP = 0.5
"""Least share of a detection inside a crowd of its class for which it is neither right nor wrong."""


@dataclass(frozen=True)
class ImageOverlaps:
    """Detections and objects of one image. Classes are positions among the categories, by ascending id.

    Attributes:
        found: (D,) class of each detection, by descending score.
        scores: (D,) their scores.
        true: (G,) class of each object; crowds are none.
        ious: (D, G) overlap of each with each, whatever the classes.
        in_crowd: (D,) whether the detection lies in a crowd of its class.
    """

    found: NDArray[np.int64]
    scores: NDArray[np.float64]
    true: NDArray[np.int64]
    ious: NDArray[np.float64]
    in_crowd: NDArray[np.bool_]


def image_overlaps(annotations: Annotations, results: CocoResults, kind: Kind) -> list[ImageOverlaps]:
    """Computes the overlaps in every image.

    Args:
        annotations: of the images to look at; with masks that were checked, for masks.
        results: for these images and no others.
        kind: whether boxes or masks overlap.

    Returns:
        One per image, by ascending image id.
    """
    position = {category: k for k, category in enumerate(annotations.category_names)}
    objects, detections = _by_image(annotations.objects), _by_image(results)
    sizes = annotations.image_sizes
    return [_overlaps(objects[key], detections[key], kind, sizes[key], position) for key in sorted(sizes)]


def _overlaps(
    objects: Sequence[dict[str, Any]],
    detections: Sequence[dict[str, Any]],
    kind: Kind,
    image_size: tuple[int, int] | None,
    position: dict[int, int],
) -> ImageOverlaps:
    best = _best(detections)
    plain = [item for item in objects if not item["iscrowd"]]
    crowds = [item for item in objects if item["iscrowd"]]
    found, true, crowd = (
        np.array([position[item["category_id"]] for item in items], np.int64)
        for items in (best, plain, crowds)
    )
    in_crowds = _ious(best, crowds, kind, image_size, crowd=True) >= CROWD_OVERLAP
    return ImageOverlaps(
        found=found,
        scores=np.array([item["score"] for item in best], np.float64),
        true=true,
        ious=_ious(best, plain, kind, image_size, crowd=False),
        in_crowd=(in_crowds & (found[:, None] == crowd)).any(axis=1),
    )


def _best(detections: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sorts by descending score and keeps the best of each category."""
    kept: list[dict[str, Any]] = []
    counts: defaultdict[int, int] = defaultdict(int)
    for detection in sorted(detections, key=lambda item: -item["score"]):
        counts[detection["category_id"]] += 1
        if counts[detection["category_id"]] <= MAX_DETECTIONS:
            kept.append(detection)
    return kept


def _ious(
    detections: Sequence[dict[str, Any]],
    objects: Sequence[dict[str, Any]],
    kind: Kind,
    image_size: tuple[int, int] | None,
    crowd: bool,
) -> NDArray[np.float64]:
    """Returns the (D, G) IoUs; in crowds the overlap relative to the detection."""
    if not detections or not objects:
        return np.zeros((len(detections), len(objects)))
    shapes: list[list[Any]] = [[item[FIELDS[kind]] for item in items] for items in (detections, objects)]
    if kind == "segm" and image_size is not None:
        shapes = [[to_rle(shape, image_size) for shape in group] for group in shapes]
    ious: NDArray[np.float64] = coco_mask.iou(*shapes, [crowd] * len(objects))
    return ious


def _by_image(items: Sequence[dict[str, Any]]) -> defaultdict[int, list[dict[str, Any]]]:
    groups: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for item in items:
        groups[item["image_id"]].append(item)
    return groups

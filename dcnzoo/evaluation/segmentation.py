"""Masks as COCO files hold them: polygons, or run lengths (RLE) in columns, plain or as a string.

pycocotools trusts what it is given: a damaged string makes it loop for ever or read other memory.
Whatever comes from a file is therefore checked here first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

_MAX_CHARACTERS = 7
"""Of one run length: 5 bits each, 35 bits hold any length that a mask can have."""


def check_segmentation(segmentation: object, image_size: tuple[int, int]) -> None:
    """Checks that a segmentation is well formed and belongs to an image of that size.

    Args:
        segmentation: a list of polygons `[x, y, x, y, …]`, or `{"size": [H, W], "counts": …}`.
        image_size: (H, W) of the image.

    Raises:
        ValueError: it is not, and why.
    """
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            _check_polygon(polygon, image_size)
    elif isinstance(segmentation, dict):
        check_rle(segmentation, image_size)
    else:
        raise ValueError("is neither a list of polygons nor run lengths")


def check_rle(rle: object, image_size: tuple[int, int]) -> None:
    """Checks that run lengths are well formed and cover an image of that size exactly.

    Args:
        rle: `{"size": [H, W], "counts": list or string}`.
        image_size: (H, W) of the image.

    Raises:
        ValueError: they are or do not, and why.
    """
    if not isinstance(rle, dict) or "counts" not in rle:
        raise ValueError("is no run lengths: expected {'size': [height, width], 'counts': …}")
    if rle.get("size") not in (list(image_size), tuple(image_size)):
        raise ValueError(f"is of size {rle.get('size')}, the image is {list(image_size)} (height, width)")
    counts = rle["counts"]
    if isinstance(counts, str):
        lengths = run_lengths(counts)
    elif isinstance(counts, list) and all(type(count) is int and 0 <= count < 2**32 for count in counts):
        lengths = np.array(counts, np.int64)
    else:
        raise ValueError("has run lengths that are neither a string nor integers")
    pixels = image_size[0] * image_size[1]
    if (lengths < 0).any() or lengths.sum() != pixels:
        raise ValueError(f"has run lengths that do not add up to the {pixels} pixels of the image")


def run_lengths(counts: str) -> NDArray[np.int64]:
    """Decodes the string form of run lengths, as pycocotools writes it.

    Each character holds 5 bits, lowest first, and a flag that more follow; the last one's highest bit is
    the sign. From the fourth run on, a run is stored as the difference from the one two before it.

    Returns:
        Pixels of each run, background first; negative ones if the string is damaged.

    Raises:
        ValueError: the string is no such code.
    """
    codes = np.frombuffer(counts.encode("utf-8"), np.uint8).astype(np.int64) - 48
    if not codes.size:
        return codes
    last = codes & 32 == 0
    if codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError("has run lengths that are damaged or cut short")
    starts = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    sizes = np.diff(starts, append=codes.size)
    if sizes.max() > _MAX_CHARACTERS:
        raise ValueError("has run lengths that are damaged or cut short")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, sizes))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[last] & 16, 1 << (5 * sizes), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def to_rle(segmentation: Any, image_size: tuple[int, int]) -> dict[str, Any]:
    """Returns a checked segmentation as run lengths in string form."""
    if isinstance(segmentation, list):
        rle: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(segmentation, *image_size))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, *image_size)
    else:
        rle = segmentation
    return rle


def _check_polygon(polygon: object, image_size: tuple[int, int]) -> None:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("has a polygon that is no list of at least three points [x, y, x, y, …]")
    if not all(type(value) in (int, float) for value in polygon):
        raise ValueError("has a polygon with something else than numbers")
    height, width = image_size
    try:
        points = np.array(polygon, np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise ValueError("has a polygon far outside of the image") from error
    if not (np.abs(points - [width / 2, height / 2]) <= [2 * width, 2 * height]).all():
        raise ValueError("has a polygon far outside of the image")
    # The outline is rasterised point by point: no outline of an area is longer than twice its pixels.
    length = np.abs(points - np.roll(points, 1, axis=0)).sum()
    if length > 2 * height * width + 8 * (height + width):
        raise ValueError("has a polygon whose outline is longer than any in the image")

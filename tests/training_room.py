"""A small set to train with: noisy pictures with bright rectangles of two kinds, and a tiny detector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.pictures import save

ARCH = "faster_rcnn_r18w16_fpn16_fc16_dconv_c3-c5"
MASK_ARCH = "mask_rcnn_r18w16_fpn16_fc16_mdconv_c3-c5"
CATEGORIES = {3: "brick", 8: "tile"}
HEIGHT, WIDTH = 48, 64


def picture(rng: np.random.Generator, boxes: list[list[int]], kinds: list[int]) -> np.ndarray:
    """(HEIGHT, WIDTH, 3) RGB."""
    pixels = rng.integers(0, 60, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    for (x, y, width, height), kind in zip(boxes, kinds, strict=True):
        pixels[y : y + height, x : x + width] = (230, 60, 40) if kind == 3 else (40, 90, 240)
    return pixels


def content(images: int, seed: int = 0) -> tuple[dict[str, Any], list[np.ndarray]]:
    """An annotation file of images "0.png" …, each with one object of each kind, and the pictures."""
    rng = np.random.default_rng(seed)
    listed, objects, pictures = [], [], []
    for image_id in range(images):
        boxes = [[int(rng.integers(0, 8)) + 32 * side, int(rng.integers(0, 16)), 20, 24] for side in (0, 1)]
        kinds = [int(kind) for kind in rng.permutation(list(CATEGORIES))]
        listed.append({"id": image_id, "file_name": f"{image_id}.png", "width": WIDTH, "height": HEIGHT})
        pictures.append(picture(rng, boxes, kinds))
        objects += [
            {
                "id": len(objects) + number,
                "image_id": image_id,
                "category_id": kind,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [polygon(box)],
            }
            for number, (box, kind) in enumerate(zip(boxes, kinds, strict=True), start=1)
        ]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    return {"images": listed, "categories": categories, "annotations": objects}, pictures


def polygon(box: list[int]) -> list[int]:
    """The outline of a box (x, y, width, height)."""
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def furnish(room: Path, images: int = 6) -> Path:
    """Writes `train.json`, `val.json` (its first two images) and `images` to a folder."""
    found, pictures = content(images)
    for image, pixels in zip(found["images"], pictures, strict=True):
        save(room / "images" / image["file_name"], pixels)
    write(room / "train.json", found)
    few = {**found, "images": found["images"][:2]}
    write(room / "val.json", {**few, "annotations": [o for o in found["annotations"] if o["image_id"] < 2]})
    return room


def write(path: Path, annotations: dict[str, Any]) -> Path:
    """Writes an annotation file."""
    path.write_text(json.dumps(annotations))
    return path


def options(room: Path, arch: str = ARCH) -> list[str]:
    """Command line of `dcnzoo train` from scratch in the room."""
    text = (
        f"train --arch {arch} --from-scratch --train train.json --val val.json --images images --device cpu"
    )
    text += " --short-side 48 --long-side 64 --batch-size 2 --workers 0 --learning-rate 0.01 --warmup 2"
    return text.split()

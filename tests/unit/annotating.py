"""Small COCO scenes: images of 100 x 100 pixels, and three categories whose ids have gaps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dcnzoo.evaluation.annotations import Annotations, read_annotations

CATEGORIES = {3: "dog", 7: "cat", 90: "bird"}
SIDE = 100

Dicts = list[dict[str, Any]]


def rectangle(box: list[float]) -> list[float]:
    """The polygon of a box (x, y, width, height)."""
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def truth(image_id: int, category_id: int, box: list[float], crowd: int = 0) -> dict[str, Any]:
    """An annotated object, as yet without an id."""
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": crowd,
        "segmentation": [rectangle(box)],
    }


def found(image_id: int, category_id: int, box: list[float], score: float) -> dict[str, Any]:
    """A detection."""
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def annotation_content(objects: Dicts, images: int = 2) -> dict[str, Any]:
    """Content of an annotation file with images 1, 2, …; the objects are numbered from 1."""
    sized = [
        {"id": number, "file_name": f"{number}.jpg", "height": SIDE, "width": SIDE}
        for number in range(1, images + 1)
    ]
    categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
    numbered = [{**item, "id": number} for number, item in enumerate(objects, start=1)]
    return {"images": sized, "categories": categories, "annotations": numbered}


def write(path: Path, content: object) -> Path:
    """Writes a JSON file."""
    path.write_text(json.dumps(content))
    return path


def annotations_of(folder: Path, objects: Dicts, images: int = 2) -> Annotations:
    """Annotations that went through a file."""
    return read_annotations(write(folder / "annotations.json", annotation_content(objects, images)))


def random_scene(seed: int) -> tuple[Dicts, Dicts]:
    """Objects in six images, one in eight of them a crowd, and detections of all kinds, right and wrong."""
    rng = np.random.default_rng(seed)
    ids = list(CATEGORIES)
    objects, detections = [], []
    for image_id in range(1, 7):
        for number in range(8):
            category = ids[rng.integers(3)]
            box = _random_box(rng)
            objects.append(truth(image_id, category, box, crowd=int(number == 0)))
            for _ in range(rng.integers(4)):
                moved = _shifted(rng, box) if rng.random() < 0.8 else _random_box(rng)
                named = category if rng.random() < 0.8 else ids[rng.integers(3)]
                detections.append(found(image_id, named, moved, round(float(rng.random()), 2)))
    return objects, detections


def _random_box(rng: np.random.Generator) -> list[float]:
    x, y = rng.integers(0, 60, 2)
    width, height = rng.integers(4, 40, 2)
    return [float(x), float(y), float(width), float(height)]


def _shifted(rng: np.random.Generator, box: list[float]) -> list[float]:
    """A box that overlaps another by much or by little."""
    reach = [0.3 * box[2], 0.3 * box[3]]
    x, y = (max(0.0, low + float(rng.uniform(-1, 1)) * by) for low, by in zip(box[:2], reach, strict=True))
    return [x, y, box[2], box[3]]

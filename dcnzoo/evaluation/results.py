"""COCO results: read and checked, split into boxes and masks, and written."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, get_args

from dcnzoo.errors import EvaluationError
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.json_file import Entry, entries, read_json
from dcnzoo.evaluation.segmentation import check_rle, to_rle
from dcnzoo.writers.growing import json_elements, json_list
from dcnzoo.writers.whole import replacing

logger = logging.getLogger(__name__)

Kind = Literal["bbox", "segm"]
"""What is scored: boxes or masks, by pycocotools' names."""

KINDS: tuple[Kind, ...] = get_args(Kind)
FIELDS: dict[Kind, str] = {"bbox": "bbox", "segm": "segmentation"}
"""Where a COCO result has it."""

RESULT_FILES: dict[Kind, str] = {"bbox": "detections.bbox.json", "segm": "detections.segm.json"}
CocoResults = list[dict[str, Any]]


def read_results(path: Path, annotations: Annotations) -> dict[Kind, CocoResults]:
    """Reads a COCO result file, of boxes, masks, or both.

    Args:
        path: the file.
        annotations: all images and categories that there may be results for.

    Returns:
        Results of each kind that the file holds.

    Raises:
        EvaluationError: the file cannot be read, is no result file, is empty, or has results for something
            that the annotations do not list.
    """
    items = read_json(path)
    checked = list(entries(path, items, "result"))
    if not checked:
        raise EvaluationError(str(path), "holds no results")
    kinds = [kind for kind in KINDS if checked[0].has(FIELDS[kind])]
    if not kinds:
        raise checked[0].fail("has neither 'bbox' nor 'segmentation'")
    sizes = annotations.image_sizes
    for entry in checked:
        _check(entry, annotations, sizes)
    return {kind: [_result(entry, kind, sizes) for entry in checked] for kind in kinds}


def find_kinds(has_masks: bool, annotations: Annotations) -> list[Kind]:
    """Returns what to score: boxes, and masks if both model and annotations have them.

    Raises:
        EvaluationError: the annotations' masks are damaged.
    """
    if not has_masks:
        return ["bbox"]
    if not annotations.has_masks():
        logger.warning("%s has no masks; only boxes are scored", annotations.path)
        return ["bbox"]
    annotations.check_masks()
    return ["bbox", "segm"]


def split_results(results: Iterable[dict[str, Any]], kind: Kind) -> Iterator[dict[str, Any]]:
    """Yields results with boxes alone, or masks alone.

    Boxes are taken out of the results for masks, since pycocotools would otherwise take an object's area
    from its box, and sort it with the small, medium or large ones by that.
    """
    keys = ("image_id", "category_id", FIELDS[kind], "score")
    for result in results:
        yield {key: result[key] for key in keys}


def write_results(path: Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes a COCO result file, one result per line."""
    layout = json_list(path.name)
    with replacing(path) as part, part.open("w", encoding="ascii", newline="\n") as file:
        file.write(layout.head)
        for number, (_, group) in enumerate(groupby(results, key=lambda result: result["image_id"])):
            file.write((layout.separator if number else "") + json_elements(list(group)))
        file.write(layout.tail)


def read_parts(paths: Iterable[Path]) -> CocoResults:
    """Reads the result files of the processes of a run, by ascending image id.

    The order of the results of one image is kept, so that it does not matter which process had it.
    """
    results = [result for path in paths for result in json.loads(path.read_bytes())]
    return sorted(results, key=lambda result: result["image_id"])


def _check(entry: Entry, annotations: Annotations, sizes: dict[int, tuple[int, int] | None]) -> None:
    image_id = entry.integer("image_id")
    if image_id not in sizes:
        raise entry.fail(f"is about image {image_id}, which {annotations.path} does not list")
    category = entry.integer("category_id")
    if category not in annotations.category_names:
        raise entry.fail(f"has category {category}, which {annotations.path} does not list")
    entry.number("score")


def _result(entry: Entry, kind: Kind, sizes: dict[int, tuple[int, int] | None]) -> dict[str, Any]:
    image_id = entry.fields["image_id"]
    found: Any
    if kind == "bbox":
        found = entry.box_xywh("bbox")
    else:
        image_size = sizes[image_id]
        if image_size is None:
            raise entry.fail("is a mask in an image whose width and height the annotations do not have")
        try:
            check_rle(entry.fields.get("segmentation"), image_size)
        except ValueError as error:
            raise entry.fail(f"has a segmentation that {error}") from error
        found = to_rle(entry.fields["segmentation"], image_size)
    fields = entry.fields
    return {
        "image_id": image_id,
        "category_id": fields["category_id"],
        FIELDS[kind]: found,
        "score": fields["score"],
    }

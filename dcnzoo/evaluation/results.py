"""COCO results: read and checked, split into boxes and masks, and written."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any

from dcnzoo.errors import EvaluationError
from dcnzoo.evaluation import KINDS, Kind
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.json_file import Entry, entries, read_json
from dcnzoo.evaluation.segmentation import check_rle, to_rle
from dcnzoo.writers.growing import json_elements, json_list
from dcnzoo.writers.whole import replacing

logger = logging.getLogger(__name__)

FIELDS: dict[Kind, str] = {"bbox": "bbox", "segm": "segmentation"}
"""Where a COCO result has it."""

RESULT_FILES: dict[Kind, str] = {"bbox": "detections.bbox.json", "segm": "detections.segm.json"}
CocoResults = list[dict[str, Any]]


def read_results(
    path: Path, annotations: Annotations, wanted: Collection[Kind] = ()
) -> dict[Kind, CocoResults]:
    """Reads a COCO result file, of boxes, masks, or both.

    Args:
        path: the file.
        annotations: all images and categories that there may be results for.
        wanted: kinds to read; those that the file holds by default.

    Returns:
        Results of each kind.

    Raises:
        EvaluationError: the file cannot be read, is no result file, is empty, has results for something
            that the annotations do not list, or not all of its results are of the kinds.
    """
    items = read_json(path)
    checked = list(entries(path, items, "result"))
    if not checked:
        raise EvaluationError(str(path), "holds no results")
    held = [kind for kind in KINDS if any(entry.has(FIELDS[kind]) for entry in checked)]
    kinds = [kind for kind in KINDS if kind in (wanted or held)]
    if not kinds:
        raise checked[0].fail("has neither 'bbox' nor 'segmentation'")
    for kind, entry in product(kinds, checked):
        if not entry.has(FIELDS[kind]):
            raise entry.fail(
                f"has no {FIELDS[kind]!r}, which every result needs to be scored by {kind};"
                " add it, or choose with --iou-type"
            )
    sizes = annotations.image_sizes
    for entry in checked:
        _check(entry, annotations, sizes)
    return {kind: [_result(entry, kind, sizes) for entry in checked] for kind in kinds}


def find_kinds(has_masks: bool, annotations: Annotations, wanted: Collection[Kind] = ()) -> list[Kind]:
    """Returns what to score: what is wanted, or else boxes, and masks if model and annotations have them.

    Raises:
        EvaluationError: masks are wanted that the model does not have, or the annotations' are damaged.
    """
    if "segm" in wanted and not has_masks:
        raise annotations.error("cannot be scored by masks: the model has none; give --iou-type bbox")
    if not has_masks or (wanted and "segm" not in wanted):
        return ["bbox"]
    if not wanted and not annotations.has_masks():
        logger.warning("%s has no masks; only boxes are scored", annotations.path)
        return ["bbox"]
    annotations.check_masks()
    return [kind for kind in KINDS if kind in (wanted or KINDS)]


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

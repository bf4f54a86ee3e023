"""COCO results: what `COCO.loadRes` of pycocotools reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import count
from pathlib import Path

from dcnzoo.errors import SourceError
from dcnzoo.sources import ImageSource
from dcnzoo.writers.base import ImageResult, Writer
from dcnzoo.writers.growing import json_elements, json_list

IMAGE_LIST = "images.json"

LARGEST_ID = 2**53 - 1
"""Larger integers do not survive readers of JSON that compute in double precision."""


class CocoWriter(Writer):
    """A JSON list of detections, and `images.json` with the image that each id stands for."""

    product = "detections.coco.json"
    layouts = (json_list(product), json_list(IMAGE_LIST, '{"images": [', "\n]}\n"))
    needs_image_id = True

    def write(self, result: ImageResult) -> None:
        """Appends the detections of one image."""
        if result.image_id is None:
            raise ValueError("expected the id of the image, got None")
        height, width = result.detections.image_size
        location = result.source.location
        image = {"id": result.image_id, "file_name": location, "width": width, "height": height}
        results, images = self.files
        images.append(json_elements([image]))
        results.append(json_elements(result.detections.to_coco(result.image_id)))


class ImageIds:
    """COCO image ids: those of an annotation file, or else made from the files' names.

    Without annotations the id is the name without suffix where that is a number that no image before
    it has (`000000000785.jpg` is 785), and the next free number otherwise.

    Args:
        annotations: COCO annotation file.
        taken: ids that were given before.

    Raises:
        SourceError: the file cannot be read or is no COCO annotation file.
    """

    def __init__(self, annotations: Path | None = None, taken: Iterable[int] = ()) -> None:
        self._listed = None if annotations is None else _read_ids(annotations)
        self._used = set(taken)
        self._numbers = count(1)

    def find(self, source: ImageSource) -> int | None:
        """Returns the id of an image, None if there are annotations and they do not list it.

        Listed images are found by their path below the source or, if that is not listed, by file name.
        """
        if self._listed is not None:
            return self._listed.get(str(source.name), self._listed.get(source.name.name))
        number = int(source.name.stem) if _is_number(source.name.stem) else 0
        while number in self._used or not 0 < number <= LARGEST_ID:
            number = next(self._numbers)
        self._used.add(number)
        return number


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _read_ids(path: Path) -> dict[str, int]:
    try:
        content = json.loads(path.read_bytes())
        return {str(image["file_name"]): int(image["id"]) for image in content["images"]}
    except OSError as error:
        raise SourceError(f"cannot read annotations {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise SourceError(f"{path} is no COCO annotation file: {type(error).__name__} {error}") from error

"""COCO results: what `COCO.loadRes` of pycocotools reads."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable
from itertools import count
from pathlib import Path, PurePath

from dcnzoo.errors import SourceError
from dcnzoo.sources import ImageSource
from dcnzoo.writers.base import ImageResult, Writer
from dcnzoo.writers.growing import json_elements, json_list

logger = logging.getLogger(__name__)

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
        location = result.source.shown
        image = {"id": result.image_id, "file_name": location, "width": width, "height": height}
        results, images = self.files
        images.append(json_elements([image]))
        results.append(json_elements(result.detections.to_coco(result.image_id)))


class ImageIds:
    """COCO image ids: those of an annotation file, or else made from the files' names.

    Without annotations the id is the name without suffix where that is a number that no image before
    it has (`000000000785.jpg` is 785), and the next free number from 1 otherwise.

    Args:
        annotations: COCO annotation file.
        taken: ids that were given before.
        by_path: ids of images that will be found by their path, which no image gets for its file name.

    Raises:
        SourceError: the file cannot be read or is no COCO annotation file.
    """

    def __init__(
        self, annotations: Path | None = None, taken: Iterable[int] = (), by_path: Collection[int] = ()
    ) -> None:
        self._listed = None if annotations is None else _read_ids(annotations)
        file_names = Counter(PurePath(path).name for path in self._listed or ())
        self._by_name = {
            PurePath(path).name: number
            for path, number in (self._listed or {}).items()
            if file_names[PurePath(path).name] == 1
        }
        self._used, self._by_path = set(taken), by_path
        self._numbers = count(1)

    def find(self, source: ImageSource) -> int | None:
        """Returns the id of an image, None if there are annotations and they have none for it.

        Listed images are found by their path below the source or, if that is not listed, by a file name that
        only one listed image has. Of several that are found so, one has the id and a warning says that the
        others have none.
        """
        if self._listed is not None:
            return self._find_listed(source)
        number = int(source.name.stem) if _is_number(source.name.stem) else next(self._numbers)
        while number in self._used or number > LARGEST_ID:
            number = next(self._numbers)
        self._used.add(number)
        return number

    def find_by_path(self, source: ImageSource) -> int | None:
        """Returns the id that the annotations have for the path of an image below its source, if any."""
        return (self._listed or {}).get(str(source.name))

    def find_by_name(self, source: ImageSource) -> int | None:
        """Returns the id of the one annotated image with the file name of an image, if any."""
        return (self._listed or {}).get(source.name.name, self._by_name.get(source.name.name))

    @property
    def example(self) -> str:
        """An annotated path, for messages."""
        return next(iter(self._listed or ()), "nothing")

    def _find_listed(self, source: ImageSource) -> int | None:
        number = self.find_by_path(source)
        by_name = number is None
        if by_name:
            number = self.find_by_name(source)
        if number is None:
            return None
        if number in self._used or (by_name and number in self._by_path):
            logger.warning("leaving out %s: another image has its id %d", source.shown, number)
            return None
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

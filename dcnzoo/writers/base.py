"""What every writer of results has in common.

This package imports neither NumPy nor Pillow before a writer needs them, so that the command line can
name the formats at once.
"""

from __future__ import annotations

import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from dcnzoo.sources import ImageSource

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dcnzoo.results import Detections


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageResult:
    """What there is to write about one image.

    Attributes:
        source: where the image came from, and its name among the results.
        detections: all detections.
        drawn: those that pictures show.
        pixels: (H, W, 3) RGB, None unless a writer needs it.
        image_id: COCO image id, None unless a writer needs it.
    """

    source: ImageSource
    detections: Detections
    drawn: Detections
    pixels: NDArray[np.uint8] | None = None
    image_id: int | None = None


class Writer(ABC):
    """Writes results as they come, image by image, and keeps none of them.

    Whatever was written before an interruption is complete and readable.

    Attributes:
        product: name of the file or folder that it makes below the output folder.
        needs_pixels: whether `ImageResult.pixels` must be there.
        needs_image_id: whether `ImageResult.image_id` must be there.

    Args:
        out: existing folder, in which `product` does not exist yet.
    """

    product: ClassVar[str]
    needs_pixels: ClassVar[bool] = False
    needs_image_id: ClassVar[bool] = False

    def __init__(self, out: Path) -> None:
        self.path = out / self.product

    @abstractmethod
    def write(self, result: ImageResult) -> None:
        """Writes the result of one image."""

    def close(self) -> None:  # noqa: B027
        """Closes what is open, by default nothing."""

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class GrowingFile:
    """A new file that grows by whole pieces and has the same last words after each of them.

    A piece that does not fit on the disk leaves no trace, so the file is complete at any time.

    Args:
        path: new file.
        head: text before the first piece.
        tail: text after the last piece; overwritten by the next.
    """

    def __init__(self, path: Path, head: str = "", tail: str = "") -> None:
        self._tail = tail.encode()
        self._file = path.open("xb", buffering=0)
        self._write(head.encode() + self._tail)

    def append(self, text: str) -> None:
        """Adds a piece; a path that is no valid UTF-8 comes through as the bytes that it has."""
        end = self._file.seek(-len(self._tail), os.SEEK_END)
        try:
            self._write(text.encode("utf-8", "surrogateescape") + self._tail)
        except OSError:
            self._file.truncate(end)
            self._file.seek(end)
            self._write(self._tail)
            raise

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]


class JsonArrayFile(GrowingFile):
    """A JSON file with one growing list, complete after every addition.

    Args:
        path: new file.
        head: text before the first element.
        tail: text after the last element.
    """

    def __init__(self, path: Path, head: str = "[", tail: str = "\n]\n") -> None:
        super().__init__(path, head, tail)
        self._separator = "\n"

    def extend(self, elements: list[dict[str, Any]]) -> None:
        """Adds elements to the list."""
        if elements:
            self.append(self._separator + ",\n".join(map(json.dumps, elements)))
            self._separator = ",\n"


def write_new_file(folder: Path, name: PurePosixPath, suffix: str, content: bytes) -> None:
    """Writes a file of an image's results, under a name that no other image of the run has.

    Args:
        folder: root of the files.
        name: the image's name; folders in it are made.
        suffix: takes the place of the image's own suffix. If another image has that name already, it is
            appended instead, and as a last resort after a number: `a.txt`, `a.png.txt`, `a.png-2.txt`.
        content: of the file.
    """
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for attempt, candidate in enumerate(_candidates(name, suffix)):
        path = folder / candidate
        try:
            file = path.open("xb")
        except FileExistsError:
            continue
        if attempt:
            logger.warning("another image has taken the name; results of %s go to %s", name, path)
        try:
            with file:
                file.write(content)
        except BaseException:
            path.unlink()  # a part of the content would look like all of it
            raise
        return


def _candidates(name: PurePosixPath, suffix: str) -> Iterator[PurePosixPath]:
    yield name.with_suffix(suffix)
    yield name.with_name(name.name + suffix)
    for number in count(2):
        yield name.with_name(f"{name.name}-{number}{suffix}")

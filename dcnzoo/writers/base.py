"""What every writer of results has in common.

This package imports neither NumPy nor Pillow before a writer needs them, so that the command line can
name the formats at once.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, ClassVar

from dcnzoo.sources import ImageSource
from dcnzoo.writers.growing import GrowingFile, Layout
from dcnzoo.writers.whole import PARTIAL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dcnzoo.results import Detections

logger = logging.getLogger(__name__)

NAME_BYTES = 235
"""Most of a stem's last part: file systems take 255, and a rank or number and a suffix are still to come."""

FILE_SUFFIXES = (".txt", ".jpg", PARTIAL)
"""Endings of the files that are made for each image; a folder of such a name could be in a file's way."""


@dataclass(frozen=True)
class ImageResult:
    """What there is to write about one image.

    Attributes:
        source: where the image came from.
        detections: all detections.
        drawn: those that pictures show.
        pixels: (H, W, 3) RGB, None unless a writer needs it.
        image_id: COCO image id, None unless a writer needs it.
        stem: relative path without suffix that no other image of the run has, None unless a writer needs it.
    """

    source: ImageSource
    detections: Detections
    drawn: Detections
    pixels: NDArray[np.uint8] | None = None
    image_id: int | None = None
    stem: str | None = None


class Writer(ABC):
    """Writes results as they come, image by image, and keeps none of them.

    Whatever was written before an interruption is complete and readable.

    Attributes:
        product: name of the file or folder that it makes below the output folder.
        layouts: of the files that grow; a writer of one file per image has none.
        needs_pixels: whether `ImageResult.pixels` must be there.
        needs_image_id: whether `ImageResult.image_id` must be there.
        needs_stem: whether `ImageResult.stem` must be there.

    Args:
        out: existing folder.
        sizes: of growing files that an earlier run left, by name; those that are not named must not exist.
    """

    product: ClassVar[str]
    layouts: ClassVar[tuple[Layout, ...]] = ()
    needs_pixels: ClassVar[bool] = False
    needs_image_id: ClassVar[bool] = False
    needs_stem: ClassVar[bool] = False

    def __init__(self, out: Path, sizes: Mapping[str, int] | None = None) -> None:
        self.path = out / self.product
        known = sizes or {}
        self.files = [GrowingFile(out, layout, known.get(layout.name)) for layout in self.layouts]

    @abstractmethod
    def write(self, result: ImageResult) -> None:
        """Writes the result of one image."""

    def discard(self, stems: Collection[str]) -> None:  # noqa: B027
        """Deletes the files of the images with these stems, and half a file if there is one."""

    def close(self) -> None:
        """Closes what is open."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class FolderWriter(Writer):
    """Writes files of their own for each image, named after its stem.

    Attributes:
        suffix: of their names.
    """

    suffix: ClassVar[str]
    needs_stem = True

    def save(self, name: str, content: bytes) -> None:
        """Writes a file; whoever looks finds all of it or nothing.

        Args:
            name: below the writer's folder.
            content: of the file.
        """
        path, partial = self.path / name, self.path / PARTIAL
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error

    def discard(self, stems: Collection[str]) -> None:
        """Deletes the files of the images with these stems, and half a file if there is one."""
        self.remove(self.path, stems)

    @classmethod
    def remove(cls, path: Path, stems: Collection[str]) -> None:
        """Deletes what such a writer has made in its folder, and folders that become empty; nothing else.

        Args:
            path: the writer's folder, which may be missing.
            stems: of the images whose files go.
        """
        for folder, folders, names in os.walk(path, topdown=False):
            for name in names:
                file = Path(folder, name)
                below = file.relative_to(path)
                if below == Path(PARTIAL) or cls.owner(below) in stems:
                    file.unlink()
            if folders or names:  # else it is none that was emptied
                with suppress(OSError):
                    Path(folder).rmdir()

    @classmethod
    def owner(cls, path: Path) -> str | None:
        """Returns the stem of the image that a file belongs to, None for a file that no image has.

        Args:
            path: of the file, below the writer's folder.
        """
        return path.with_suffix("").as_posix() if path.suffix == cls.suffix else None


class Stems:
    """Gives every image a stem of its own, to name files by.

    It is the image's name without suffix; if another image has that, the whole name; if need be with a
    number after it: `a`, `a.png`, `a.png-2`. Names too long to have a suffix added are cut, and a folder
    that is called like a result's file gets a line after its name: `a.txt_`.

    Args:
        taken: stems that were given before.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        # Only hashes are kept, for there may be millions. Equal ones of different names do no harm.
        self._taken = set(map(hash, taken))

    def find(self, source: ImageSource) -> str:
        """Returns the stem of an image."""
        name = source.name
        folder = PurePosixPath(*map(_folder_name, name.parent.parts))
        first, second = ((folder / shorten(each, NAME_BYTES)).as_posix() for each in (name.stem, name.name))
        candidates = chain([first, second], (f"{second}-{number}" for number in count(2)))
        stem = next(stem for stem in candidates if hash(stem) not in self._taken)
        self._taken.add(hash(stem))
        if stem != first:
            logger.warning("another image has taken the name; results of %s go to %s", source.name, stem)
        return stem


def shorten(name: str, size: int) -> str:
    """Cuts a name to a number of bytes, at the end of a character."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= size else encoded[:size].decode(errors="ignore")


def _folder_name(name: str) -> str:
    return f"{shorten(name, NAME_BYTES)}_" if name.endswith(FILE_SUFFIXES) else name

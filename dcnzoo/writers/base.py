"""What every writer of results has in common.

This package imports neither NumPy nor Pillow before a writer needs them, so that the command line can
name the formats at once.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dcnzoo.sources import ImageSource
from dcnzoo.writers.growing import GrowingFile, Layout
from dcnzoo.writers.whole import PARTIAL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dcnzoo.results import Detections

logger = logging.getLogger(__name__)


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

    def discard(self, keep: Collection[str]) -> None:  # noqa: B027
        """Deletes the files of images whose stem is not to be kept."""

    def close(self) -> None:
        """Closes what is open."""
        for file in self.files:
            file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class FolderWriter(Writer):
    """Writes files of their own for each image, named after its stem."""

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
            partial.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error

    def discard(self, keep: Collection[str]) -> None:
        """Deletes the files of images whose stem is not to be kept."""
        for folder, _, names in os.walk(self.path):
            for path in (Path(folder, name) for name in names):
                if self.owner(path.relative_to(self.path)) not in keep:
                    path.unlink()

    def owner(self, path: Path) -> str:
        """Returns the stem of the image that a file belongs to.

        Args:
            path: of the file, below the writer's folder.
        """
        return path.with_suffix("").as_posix()


class Stems:
    """Gives every image a stem of its own, to name files by.

    It is the image's name without suffix; if another image has that, the whole name; if need be with a
    number after it: `a`, `a.png`, `a.png-2`.

    Args:
        taken: stems that were given before.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        # Only hashes are kept, for there may be millions. Equal ones of different names do no harm.
        self._taken = set(map(hash, taken))

    def find(self, source: ImageSource) -> str:
        """Returns the stem of an image."""
        first, second = source.name.with_suffix("").as_posix(), source.name.as_posix()
        candidates = chain([first, second], (f"{second}-{number}" for number in count(2)))
        stem = next(stem for stem in candidates if hash(stem) not in self._taken)
        self._taken.add(hash(stem))
        if stem != first:
            logger.warning("another image has taken the name; results of %s go to %s", source.name, stem)
        return stem

"""Annotated pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dcnzoo.writers.base import FolderWriter, ImageResult

if TYPE_CHECKING:
    from PIL import Image

JPEG_QUALITY = 92
JPEG_SIDE = 65500
"""Most pixels of a side that libjpeg writes."""


class ImageWriter(FolderWriter):
    """One JPEG per image with boxes, labels and masks drawn on it.

    Args:
        out: existing folder.
        sizes: of growing files; it has none.
        font_file: font for the labels; by default one that has their characters.
    """

    product = "images"
    suffix = ".jpg"
    needs_pixels = True

    def __init__(
        self, out: Path, sizes: Mapping[str, int] | None = None, font_file: Path | None = None
    ) -> None:
        super().__init__(out, sizes)
        self.font_file = font_file

    def write(self, result: ImageResult) -> None:
        """Draws and saves one image."""
        from dcnzoo.annotate import draw_detections

        if result.pixels is None or result.stem is None:
            raise ValueError("expected the pixels and the stem of the image, got None")
        picture = draw_detections(result.pixels, result.drawn, self.font_file)
        self.save(f"{result.stem}.jpg", encode_jpeg(picture))


def encode_jpeg(picture: Image.Image) -> bytes:
    """Returns the contents of a JPEG file; a picture too large for the format is made smaller, in place."""
    if max(picture.size) > JPEG_SIDE:
        picture.thumbnail((JPEG_SIDE, JPEG_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()

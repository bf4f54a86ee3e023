"""Annotated pictures."""

from __future__ import annotations

from dcnzoo.writers.base import ImageResult, Writer, create_file

JPEG_QUALITY = 92


class ImageWriter(Writer):
    """One JPEG per image with boxes, labels and masks drawn on it."""

    product = "images"
    needs_pixels = True

    def write(self, result: ImageResult) -> None:
        """Draws and saves one image."""
        from dcnzoo.annotate import draw_detections

        if result.pixels is None:
            raise ValueError("expected the pixels of the image, got None")
        picture = draw_detections(result.pixels, result.drawn)
        with create_file(self.path, result.source.name, ".jpg") as file:
            picture.save(file, "JPEG", quality=JPEG_QUALITY)

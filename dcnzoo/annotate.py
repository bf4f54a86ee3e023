"""Drawing detections on a picture: masks, boxes, labels.

All sizes follow the picture's, so that a thumbnail and a photo from a camera look alike.
Shapes: H and W the size of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from dcnzoo.fonts import drawable, font_for
from dcnzoo.text import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dcnzoo.results import Detections

Colour = tuple[int, int, int]

HUES: tuple[Colour, ...] = (
    (213, 94, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (0, 114, 178),
    (230, 159, 0),
)
"""Colours that people with any colour vision tell apart: Okabe and Ito, "Color Universal Design" (2008)."""

SHADES = (0.0, 0.45, -0.4, 0.65, -0.6, 0.25, -0.2, 0.55, -0.5, 0.35, -0.3, 0.75)
"""How far each round of the hues goes towards white (positive) or black (negative): 84 colours in all."""

MASK_OPACITY = 0.45
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


class Rectangle(NamedTuple):
    """An area of the picture in pixels; right and bottom are exclusive."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Rectangle) -> float:
        """Returns the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def class_colour(label: int) -> Colour:
    """Returns the colour of a class: seven hues, then the same in other shades."""
    hue = HUES[label % len(HUES)]
    shade = SHADES[label // len(HUES) % len(SHADES)]
    target = WHITE if shade > 0 else BLACK
    red, green, blue = (round(c + (t - c) * abs(shade)) for c, t in zip(hue, target, strict=True))
    return red, green, blue


def text_colour(background: Colour) -> Colour:
    """Returns black or white, whichever reads better on a colour."""
    red, green, blue = background
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else WHITE


def draw_detections(
    image: NDArray[np.uint8], detections: Detections, font_file: Path | None = None
) -> Image.Image:
    """Draws every detection: large ones first, so that small ones stay visible, and labels over all.

    Args:
        image: (H, W, 3) RGB, the original.
        detections: what to draw, in the same frame.
        font_file: font for the labels; by default one that has their characters.

    Returns:
        A new picture.

    Raises:
        ValueError: the image is not the one that the detections belong to, or the file is no font.
    """
    if image.shape[:2] != detections.image_size:
        raise ValueError(f"expected an image of size {detections.image_size}, got {image.shape[:2]}")
    pixels = image.copy()
    width = line_width(detections.image_size)
    areas = np.prod(detections.boxes[:, 2:] - detections.boxes[:, :2], axis=1)
    large_first = np.argsort(-areas, kind="stable")
    rles = detections.rles or ()
    for index in large_first if rles else ():
        draw_mask(pixels, rles[index], class_colour(int(detections.labels[index])), width)
    picture = Image.fromarray(pixels)
    canvas = ImageDraw.Draw(picture)
    for index in large_first:
        draw_box(canvas, detections.boxes[index], class_colour(int(detections.labels[index])), width)
    draw_labels(canvas, detections, font_file)
    return picture


def line_width(image_size: tuple[int, int]) -> int:
    """Returns the width of a box's line for a picture of (H, W)."""
    return max(1, round(_scale(image_size) / 200))


def font_size(image_size: tuple[int, int]) -> int:
    """Returns the height of a label's text for a picture of (H, W), in pixels."""
    return max(10, round(_scale(image_size) / 42))


def draw_mask(pixels: NDArray[np.uint8], rle: Any, colour: Colour, width: int) -> None:
    """Tints a mask and draws its outline, in place.

    Args:
        pixels: (H, W, 3) RGB.
        rle: the mask as COCO run lengths.
        colour: of the class.
        width: of the outline, pixels.
    """
    left, top, box_width, box_height = (int(side) for side in coco_mask.toBbox(rle))
    area = np.s_[top : top + box_height, left : left + box_width]
    mask = coco_mask.decode(rle)[area].astype(bool)
    if not mask.any():
        return
    region = pixels[area]
    region[mask] = np.round(region[mask] * (1 - MASK_OPACITY) + np.multiply(colour, MASK_OPACITY))
    region[mask & ~_eroded(mask, width)] = colour


def draw_box(canvas: ImageDraw.ImageDraw, box: NDArray[np.float32], colour: Colour, width: int) -> None:
    """Draws a box with a thin contrasting edge, which keeps it visible on a background of its own colour.

    Args:
        canvas: to draw on.
        box: (4,) xyxy, pixels.
        colour: of the class.
        width: of the line, pixels.
    """
    left, top, right, bottom = (float(side) for side in box)
    # Pillow draws the last row and column too, and a line inwards from the corner that it is given.
    right, bottom = max(left, right - 1), max(top, bottom - 1)
    edge = text_colour(colour)
    canvas.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=edge, width=1)
    canvas.rectangle((left, top, right, bottom), outline=colour, width=width)


def draw_labels(canvas: ImageDraw.ImageDraw, detections: Detections, font_file: Path | None = None) -> None:
    """Writes class and score beside each box, where they cover the least of each other.

    A label that would fill more than a quarter of the picture's height, or all its width, is left out. A
    class whose name no font can write is named by its category id.

    Args:
        canvas: to draw on; has the size of the detections' image.
        detections: what to label, by descending score; the best choose their places first.
        font_file: font for the labels; by default one that has their characters.

    Raises:
        ValueError: the file is no font.
    """
    height, width = detections.image_size
    size = font_size(detections.image_size)
    padding = max(1, size // 6)
    taken: list[Rectangle] = []
    for name, score, label, box in zip(
        detections.names, detections.scores, detections.labels, detections.boxes, strict=True
    ):
        shown = drawable(one_line(name), detections.category_ids[label], font_file)
        text, font = f"{shown} {score:.2f}", font_for(shown, size, font_file)
        text_size = (canvas.textlength(text, font) + 2 * padding, size + 2 * padding)
        if text_size[0] > width or text_size[1] > height / 4:
            continue
        place = _free_place(box.tolist(), text_size, (width, height), taken)
        taken.append(place)
        colour = class_colour(int(label))
        canvas.rectangle((place.left, place.top, place.right - 1, place.bottom - 1), fill=colour)
        middle = (place.left + padding, (place.top + place.bottom) / 2)
        canvas.text(middle, text, fill=text_colour(colour), font=font, anchor="lm")


def _scale(image_size: tuple[int, int]) -> float:
    return float(np.sqrt(image_size[0] * image_size[1]))


def _eroded(mask: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Takes `width` pixels off a mask on every side."""
    for _ in range(width):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def _free_place(
    box: Sequence[float],
    size: tuple[float, float],
    image_size: tuple[int, int],
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Chooses among the places at a box's corners, all moved into the image, the one that covers least.

    Sizes are (width, height) here.
    """
    left, top, right, bottom = box
    width, height = size
    corners = [
        (left, top - height),
        (left, top),
        (left, bottom),
        (right - width, top - height),
        (right - width, bottom),
        (right - width, top),
        (left, bottom - height),
        (right - width, bottom - height),
    ]
    places = []
    for x, y in corners:
        x = max(0, min(x, image_size[0] - width))
        y = max(0, min(y, image_size[1] - height))
        places.append(Rectangle(round(x), round(y), round(x) + int(width) + 1, round(y) + int(height) + 1))
    return min(places, key=lambda place: sum(place.overlap(other) for other in taken))

"""Pictures of shapes, drawn by code: the set that the model inside the package is trained and tested on.

Circles, triangles, squares, stars, crosses and rings, turned, scaled, squeezed and sheared, lie on textured
backgrounds among clutter that is no object, and partly under it and under each other; light, blur and noise
come on top. Masks are exact: a pixel belongs to the object that covers more than half of it. No object is
hidden by more than two fifths. Each picture follows from its seed and number alone.

Shape letters: H, W size of the picture, O objects, P points.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from pycocotools import mask as coco_mask

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

    Map = NDArray[np.float32]

CLASSES = ("circle", "triangle", "square", "star", "cross", "ring")

SIZE = (192, 192)
"""Height and width of a picture."""

MAX_OBJECTS = 6
LEAST_VISIBLE = 0.6
"""Part of an object that is seen at least."""

_OVERSAMPLING = 4
_WINDOW = 1.6
"""Half the side of the square that is sure to hold a shape, in its radii."""


@dataclass(frozen=True)
class ShapesPicture:
    """A picture and what is on it.

    Attributes:
        pixels: (H, W, 3) RGB.
        labels: (O,) index into `CLASSES` of each object, the lowest first.
        masks: (O, H, W), where each object is seen.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def draw_picture(seed: int, number: int, size: tuple[int, int] = SIZE) -> ShapesPicture:
    """Draws a picture.

    Args:
        seed: of the set that it belongs to.
        number: which picture of the set.
        size: height and width, pixels; what is on the picture grows with the shorter one.
    """
    random = np.random.default_rng((seed, number))
    scale = min(size) / 192
    scene = _Scene(_background(random, size))
    for _ in range(random.integers(0, 6)):
        _paint(scene.picture, _clutter(random, size, scale), _paint_of(random, scene.picture))
    for _ in range(random.integers(1, MAX_OBJECTS + 1)):
        _add_object(random, scene, size, scale)
    for _ in range(random.integers(0, 4)):
        cover = _clutter(random, size, scale)
        if scene.hide(cover):
            _paint(scene.picture, cover, _paint_of(random, scene.picture, cover))
    masks = np.array([alpha > 0.5 for alpha in scene.alphas]).reshape(-1, *size)
    return ShapesPicture(_photographed(random, scene.picture, scale), np.array(scene.labels, np.int64), masks)


def write_set(folder: Path, count: int, seed: int, size: tuple[int, int] = SIZE) -> Path:
    """Draws a set of pictures in COCO's format.

    Args:
        folder: gets `images/000001.jpg` … and `annotations.json`; made if it is not there.
        count: pictures.
        seed: of the set.
        size: height and width of each picture.

    Returns:
        Path of the annotations.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        picture = draw_picture(seed, number, size)
        name = f"{number:06}.jpg"
        Image.fromarray(picture.pixels).save(folder / "images" / name, quality=92)
        images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        for label, mask in zip(picture.labels, picture.masks, strict=True):
            annotations.append(_annotation(len(annotations) + 1, number, int(label), mask))
    categories = [{"id": index, "name": name} for index, name in enumerate(CLASSES, start=1)]
    path = folder / "annotations.json"
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")
    return path


def _annotation(number: int, image: int, label: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {
        "id": number,
        "image_id": image,
        "category_id": label + 1,
        "bbox": coco_mask.toBbox(encoded).tolist(),
        "area": int(mask.sum()),
        "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
        "iscrowd": 0,
    }


@dataclass
class _Scene:
    """A picture in the making.

    Attributes:
        picture: (H, W, 3) RGB, 0–255.
        labels: of the objects so far.
        alphas: how much of each pixel (H, W) is seen to be each object, 0–1.
        areas: of the whole objects, pixels.
    """

    picture: Map
    labels: list[int] = field(default_factory=list)
    alphas: list[Map] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def hide(self, cover: Map) -> bool:
        """Lets something lie on the objects, unless too little would be seen of one; says whether it does."""
        left = [alpha * (1 - cover) for alpha in self.alphas]
        pairs = zip(left, self.areas, strict=True)
        fits = all((alpha > 0.5).sum() > LEAST_VISIBLE * area for alpha, area in pairs)
        if fits:
            self.alphas = left
        return fits


def _add_object(random: Generator, scene: _Scene, size: tuple[int, int], scale: float) -> None:
    """Puts an object on the picture where it and the others are seen well enough, if that is found."""
    for _ in range(8):
        label = int(random.integers(len(CLASSES)))
        alpha, area = _draw_object(random, label, size, scale)
        if (alpha > 0.5).sum() > LEAST_VISIBLE * area and scene.hide(alpha):
            if random.random() < 0.5:
                _cast_shadow(random, scene.picture, alpha, scale)
            _paint(scene.picture, alpha, _paint_of(random, scene.picture, alpha))
            scene.labels.append(label)
            scene.alphas.append(alpha)
            scene.areas.append(area)
            return


# Outlines: (P, 2) points x, y around the origin, radius 1; a ring has a hole.


def outline(random: Generator, label: int) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """The shape's outer contour, and the contour of its hole if it has one."""
    name = CLASSES[label]
    if name == "triangle":
        return _regular(3), None
    if name == "square":
        return _regular(4), None
    if name == "star":
        points = _regular(10)
        points[1::2] *= random.uniform(0.38, 0.5)
        return points, None
    if name == "cross":
        arm = random.uniform(0.26, 0.4)
        quarter = np.array([(arm, arm), (arm, 1), (-arm, 1)])
        turns = [quarter @ np.array([[c, -s], [s, c]]) for c, s in ((1, 0), (0, -1), (-1, 0), (0, 1))]
        return np.concatenate(turns), None
    hole = _regular(64) * random.uniform(0.45, 0.65) if name == "ring" else None
    return _regular(64), hole


def _regular(corners: int) -> NDArray[np.float64]:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _draw_object(random: Generator, label: int, size: tuple[int, int], scale: float) -> tuple[Map, float]:
    """How much of each pixel (H, W) an object covers, 0–1, and its whole area in pixels."""
    outer, hole = outline(random, label)
    radius = scale * np.exp(random.uniform(np.log(22), np.log(54)))
    shape = radius * _distortion(random)
    center = random.uniform(0.1, 0.9, 2) * (size[1], size[0])
    coverage, area = fill_polygon(outer @ shape, center, size, radius)
    if hole is not None:
        inner, inner_area = fill_polygon(hole @ shape, center, size, radius)
        return coverage - inner, area - inner_area
    return coverage, area


def _distortion(random: Generator) -> NDArray[np.float64]:
    """A matrix (2, 2) that turns, squeezes and shears, and keeps areas."""
    squeeze = np.exp(random.uniform(-0.3, 0.3))
    shear = random.uniform(-0.35, 0.35)
    first, second = (_rotation(angle) for angle in random.uniform(0, 2 * np.pi, 2))
    matrix: NDArray[np.float64] = first @ np.diag([squeeze, 1 / squeeze]) @ [[1, shear], [0, 1]] @ second
    return matrix


def _rotation(angle: float) -> NDArray[np.float64]:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def fill_polygon(
    points: NDArray[np.float64], center: NDArray[np.float64], size: tuple[int, int], radius: float
) -> tuple[Map, float]:
    """Coverage (H, W) of a polygon around a centre, and its area with what lies outside the picture."""
    half = int(np.ceil(_WINDOW * radius)) + 1
    left, top = np.floor(center).astype(int) - half
    window = Image.new("L", (2 * half * _OVERSAMPLING,) * 2)
    places = (points + center - (left, top)) * _OVERSAMPLING
    ImageDraw.Draw(window).polygon([(x, y) for x, y in places], fill=255)
    fine = np.asarray(window, np.float32) / 255
    coarse = fine.reshape(2 * half, _OVERSAMPLING, 2 * half, _OVERSAMPLING).mean(axis=(1, 3))
    coverage = np.zeros(size, np.float32)
    y0, y1 = max(top, 0), min(top + 2 * half, size[0])
    x0, x1 = max(left, 0), min(left + 2 * half, size[1])
    if y0 < y1 and x0 < x1:
        coverage[y0:y1, x0:x1] = coarse[y0 - top : y1 - top, x0 - left : x1 - left]
    return coverage, float(coarse.sum())


# What is no object: sticks, scribbles, dots and blobs


def _clutter(random: Generator, size: tuple[int, int], scale: float) -> Map:
    """Coverage (H, W) of a piece of clutter."""
    kind = random.integers(4)
    if kind == 3:
        return _blob(random, size, scale)
    fine = Image.new("L", (size[1] * 2, size[0] * 2))
    draw = ImageDraw.Draw(fine)
    start = random.uniform(0, 1, 2) * (size[1] * 2, size[0] * 2)
    if kind == 0:  # a stick
        angle, length = random.uniform(0, 2 * np.pi), 2 * scale * random.uniform(30, 120)
        end = start + length * np.array([np.cos(angle), np.sin(angle)])
        draw.line([*start, *end], fill=255, width=max(2, round(2 * scale * random.uniform(2, 7))))
    elif kind == 1:  # a scribble
        steps = np.cumsum(random.normal(0, 1, (40, 2)), axis=0)
        walk = start + 2 * scale * 6 * np.cumsum(steps * 0.25, axis=0)
        draw.line(
            [tuple(point) for point in walk], fill=255, width=max(1, round(2 * scale * random.uniform(1, 3)))
        )
    else:  # a handful of dots
        for x, y in start + 2 * scale * random.normal(0, 22, (random.integers(4, 16), 2)):
            radius = 2 * scale * random.uniform(1, 3.5)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return _as_map((np.asarray(fine, np.float32) / 255).reshape(size[0], 2, size[1], 2).mean(axis=(1, 3)))


def _blob(random: Generator, size: tuple[int, int], scale: float) -> Map:
    """Coverage (H, W) of a smooth lump without straight sides."""
    angles = 2 * np.pi * np.arange(72) / 72
    radii = np.ones(72)
    for wave in range(2, 6):
        radii += random.normal(0, 0.35 / wave) * np.cos(wave * angles + random.uniform(0, 2 * np.pi))
    radius = scale * random.uniform(8, 26)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii.clip(0.25, 1.5)[:, None] * radius
    center = random.uniform(0, 1, 2) * (size[1], size[0])
    return fill_polygon(
        points @ np.diag([1.0, random.uniform(0.4, 1)]) @ _rotation(random.uniform(0, 7)),
        center,
        size,
        radius,
    )[0]


# Colours, textures, light


def _background(random: Generator, size: tuple[int, int]) -> Map:
    """(H, W, 3) RGB, 0–255."""
    pattern = _pattern(random, size)[:, :, None]
    picture = _color(random) * pattern + _color(random) * (1 - pattern)
    if random.random() < 0.4:
        second = _noise(random, size, octaves=3)[:, :, None] > random.uniform(0.4, 0.6)
        picture = np.where(second, picture, 0.6 * picture + 0.4 * _color(random))
    return _as_map(picture)


def _pattern(random: Generator, size: tuple[int, int]) -> Map:
    """A texture (H, W), 0–1: clouds, waves, a weave or grain."""
    kind = random.integers(4)
    clouds = _noise(random, size, octaves=int(random.integers(2, 6)))
    if kind == 0:
        return clouds
    rows, columns = np.mgrid[: size[0], : size[1]] * (192 / min(size))
    angle, period = random.uniform(0, np.pi), random.uniform(5, 40)
    along = columns * np.cos(angle) + rows * np.sin(angle)
    waves = 0.5 + 0.5 * np.sin(2 * np.pi * along / period + random.uniform(0, 4) * 3 * clouds)
    if kind == 1:
        return _as_map(waves)
    if kind == 2:
        across = rows * np.cos(angle) - columns * np.sin(angle)
        weave = 0.5 + 0.5 * np.sin(2 * np.pi * across / period)
        return _as_map(0.3 * clouds + 0.7 * (waves > 0.5) * weave)
    return _as_map(0.6 * clouds + 0.4 * random.random(size, dtype=np.float32))


def _noise(random: Generator, size: tuple[int, int], octaves: int) -> Map:
    """Clouds (H, W), 0–1."""
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        cells = 2 ** (octave + 1) + 1
        grid = Image.fromarray(random.random((cells, cells), dtype=np.float32))
        total += np.asarray(grid.resize(size[::-1], Image.Resampling.BICUBIC)) * 0.6**octave
    return _as_map((total - total.min()) / (np.ptp(total) + 1e-6))


def _color(random: Generator) -> Map:
    """RGB (3,), 0–255, from dull to bright."""
    mean = random.uniform(30, 225)
    return _as_map((mean + random.normal(0, 45, 3)).clip(0, 255))


def _paint_of(random: Generator, picture: Map, where: Map | None = None) -> Map:
    """Colours (H, W, 3) for something to be painted, set off from what lies under it."""
    size = picture.shape[:2]
    weight = np.ones(size, np.float32) if where is None else where + 1e-6
    under = np.average(picture.reshape(-1, 3), axis=0, weights=weight.ravel())
    color = _color(random)
    for _ in range(20):
        if np.linalg.norm(color - under) > 70:
            break
        color = _color(random)
    strength = random.uniform(0, 45)
    texture = (_pattern(random, size) - 0.5) * 2 * strength
    return _as_map((color + texture[:, :, None]).clip(0, 255))


def _paint(picture: Map, alpha: Map, paint: Map) -> None:
    """Puts paint on the picture, in place."""
    picture += alpha[:, :, None] * (paint - picture)


def _cast_shadow(random: Generator, picture: Map, alpha: Map, scale: float) -> None:
    """Darkens the picture beside something that is to be painted, in place."""
    dx, dy = np.round(random.uniform(-5, 5, 2) * scale).astype(int)
    moved = Image.fromarray((np.roll(alpha, (dy, dx), axis=(0, 1)) * 255).astype(np.uint8))
    soft = np.asarray(moved.filter(ImageFilter.GaussianBlur(random.uniform(1, 4) * scale)), np.float32) / 255
    picture *= 1 - random.uniform(0.2, 0.6) * soft[:, :, None]


def _photographed(random: Generator, picture: Map, scale: float) -> NDArray[np.uint8]:
    """Puts a picture in uneven light, out of focus a little, and through a noisy sensor."""
    light = 1 + random.uniform(0, 0.35) * (_noise(random, picture.shape[:2], octaves=1) - 0.5)
    lit = Image.fromarray((picture * light[:, :, None]).clip(0, 255).astype(np.uint8))
    blurred = lit.filter(ImageFilter.GaussianBlur(random.uniform(0, 1.2) * scale))
    noisy = np.asarray(blurred) + random.normal(0, random.uniform(0, 12), picture.shape)
    return noisy.clip(0, 255).astype(np.uint8)


def _as_map(values: NDArray[Any]) -> Map:
    return values.astype(np.float32, copy=False)

"""COCO-format training sets: what is in them, and what is wrong with them.

Mistakes of annotators are common and must neither pass unseen nor end a night's run in its third hour: every
annotation, and the head of every image's file, is looked at before training starts.

Shapes: G objects and I crowds of an image, H and W its size before it is resized.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from dcnzoo.errors import EvaluationError, TrainingError
from dcnzoo.evaluation.annotations import AnnotatedImage, leads_out, listing, read_tables
from dcnzoo.evaluation.json_file import Entry
from dcnzoo.evaluation.segmentation import check_segmentation, to_rle
from dcnzoo.image import decode_failure
from dcnzoo.manifest import ClassSet

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1.0
"""Pixels that a box may reach out of its image: annotators round."""

TURNED = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


Box = tuple[float, float, float, float]


class Fault(Enum):
    """What can be wrong with a training set, and what becomes of it."""

    MALFORMED = "malformed annotations, left out"
    UNKNOWN_IMAGE = "annotations of images that the file does not list, left out"
    UNKNOWN_CATEGORY = "annotations of categories that the file does not list, left out"
    OUTSIDE = "boxes outside of their images, or all but less than a pixel of them, left out"
    EMPTY = "boxes narrower than a pixel or areas of zero, left out"
    REACHES_OUT = "boxes that reach out of their images, cut off at the border"
    BAD_MASK = "objects whose mask is missing or damaged, left out"
    MISSING_IMAGE = "images that are missing or cannot be read, left out"
    OTHER_SIZE = "images of another size than annotated, left out"


class Problem(NamedTuple):
    """Something that is wrong.

    Attributes:
        fault: what.
        where: the annotation or image, and details.
    """

    fault: Fault
    where: str


@dataclass(frozen=True)
class TrainingImage:
    """An image and what is in it.

    Attributes:
        file: where it is.
        name: its name in the annotation file.
        image_size: (H, W) of the upright image.
        boxes: (G, 4) float32 xyxy, original frame.
        labels: (G,) int64 in 0…K-1.
        segmentations: of the G objects, polygons or run lengths; empty where masks are not wanted.
        crowds: (I, 4) float32 xyxy, original frame: regions of uncounted objects.
    """

    file: Path
    name: str
    image_size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    segmentations: tuple[Any, ...]
    crowds: NDArray[np.float32]


@dataclass(frozen=True)
class TrainingSet:
    """A training set without its problems.

    Attributes:
        path: the annotation file.
        images: to train with, in the order of the file.
        classes: what the K labels stand for.
        problems: what was wrong.
        empty: how many images were left out because nothing is in them.
    """

    path: Path
    images: tuple[TrainingImage, ...]
    classes: ClassSet
    problems: tuple[Problem, ...]
    empty: int

    @property
    def num_objects(self) -> int:
        """Objects in all images, without crowds."""
        return sum(len(image.labels) for image in self.images)

    def note(self) -> dict[str, Any]:
        """Returns what tells the set from others, in JSON types: how many images, and a digest of them."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(ascii((image.name, image.image_size, len(image.labels))).encode())
        return {"images": len(self.images), "digest": digest.hexdigest()}

    def problem_lines(self) -> Iterator[str]:
        """Yields one line per kind of problem: how many, and the first of them."""
        for fault, places in by_fault(self.problems).items():
            yield f"{self.path}: {len(places)} {fault.value}: {listing(places)}"

    def all_problem_lines(self) -> Iterator[str]:
        """Yields one line per problem."""
        for fault, places in by_fault(self.problems).items():
            yield from (f"{fault.name.lower()}\t{place}" for place in places)


def by_fault(problems: Iterable[Problem]) -> dict[Fault, list[str]]:
    """Sorts the places of problems by what is wrong there; what does not occur is left out."""
    found: dict[Fault, list[str]] = {fault: [] for fault in Fault}
    for problem in problems:
        found[problem.fault].append(problem.where)
    return {fault: places for fault, places in found.items() if places}


def read_training_set(
    path: Path, folder: Path, *, masks: bool, keep_empty: bool = False, class_order: Sequence[str] = ()
) -> TrainingSet:
    """Reads and checks a training set.

    As in the reference, images without any object are left out unless they are asked for, an area of zero or
    a side of less than a pixel makes no object, and crowds are regions where nothing counts as background.

    Args:
        path: COCO annotation file.
        folder: that its file names are relative to.
        masks: whether every object needs a mask.
        keep_empty: whether images without objects are kept, as examples of background.
        class_order: class names of a model; if the categories are the same, labels follow this order,
            otherwise ascending category ids.

    Returns:
        What can be trained with, and all that cannot.

    Raises:
        EvaluationError: the file is no annotation file.
        TrainingError: there is no such folder, or nothing is left to train with.
    """
    listed, categories, entries = read_tables(path)
    if not folder.is_dir():
        raise TrainingError(f"there is no folder {folder}; give the one that the file names are relative to")
    classes = order_classes(categories, class_order)
    problems: list[Problem] = []
    images = list(_find_images(listed, folder, problems))
    sizes = {image.image_id: size for image, _, size in images}
    label_of = {category: label for label, category in enumerate(classes.category_ids)}
    checker = _Checker({image.image_id for image in listed}, sizes, label_of, masks, problems)
    objects: dict[int, list[_Object]] = defaultdict(list)
    for entry in entries:
        if checked := checker.check(entry):
            objects[checked.image_id].append(checked)
    kept = [image for image in images if keep_empty or image[0].image_id in objects]
    if all(item.is_crowd for items in objects.values() for item in items):
        raise TrainingError(_nothing_left(path, folder, problems))
    made = tuple(_training_image(*image, objects[image[0].image_id], masks) for image in kept)
    return TrainingSet(path, made, classes, tuple(problems), len(images) - len(kept))


def order_classes(categories: dict[int, str], class_order: Sequence[str] = ()) -> ClassSet:
    """Decides which label stands for which category.

    Args:
        categories: name of each category id.
        class_order: names in the order of a model's outputs; heeded if they are the same names.
    """
    names = tuple(name for _, name in sorted(categories.items()))
    if sorted(class_order) == sorted(names):
        names = tuple(class_order)
    id_of = {name: category for category, name in categories.items()}
    return ClassSet(names, tuple(id_of[name] for name in names))


class _Object(NamedTuple):
    """A checked annotation: box xyxy within its image."""

    image_id: int
    label: int
    box: Box
    is_crowd: bool
    segmentation: Any


class _FaultyError(Exception):
    """An annotation makes no object."""

    def __init__(self, fault: Fault, where: str) -> None:
        self.problem = Problem(fault, where)
        super().__init__(where)


@dataclass(frozen=True)
class _Checker:
    """Turns annotations into objects and notes what is wrong.

    Attributes:
        listed: ids of the images that the file lists.
        sizes: (H, W) of those that can be used, by id.
        label_of: label of each category id.
        masks: whether objects need masks.
        problems: gets what is wrong.
    """

    listed: set[int]
    sizes: dict[int, tuple[int, int]]
    label_of: dict[int, int]
    masks: bool
    problems: list[Problem]

    def check(self, entry: Entry) -> _Object | None:
        """Returns the object of an annotation, None if it makes none."""
        try:
            return self._object(entry)
        except _FaultyError as error:
            self.problems.append(error.problem)
        except EvaluationError as error:
            self.problems.append(Problem(Fault.MALFORMED, error.problem))
        return None

    def _object(self, entry: Entry) -> _Object | None:
        image_id, category = entry.integer("image_id"), entry.integer("category_id")
        box = entry.box_xywh("bbox")
        area = entry.number("area") if entry.has("area") else box[2] * box[3]
        if image_id not in self.listed:
            raise _FaultyError(Fault.UNKNOWN_IMAGE, f"{entry.name} (image {image_id})")
        if category not in self.label_of:
            raise _FaultyError(Fault.UNKNOWN_CATEGORY, f"{entry.name} (category {category})")
        if image_id not in self.sizes or entry.fields.get("ignore"):
            return None
        if area <= 0 or min(box[2:]) < 1:
            raise _FaultyError(Fault.EMPTY, f"{entry.name} ({box[2]:g}x{box[3]:g})")
        inside = self._cut(entry.name, box, self.sizes[image_id])
        is_crowd = entry.fields.get("iscrowd", 0)
        if is_crowd not in (0, 1):
            raise entry.fail(f"has iscrowd {is_crowd!r}, expected 0 or 1")
        segmentation = entry.fields.get("segmentation")
        if self.masks and not is_crowd and (why := _mask_problem(segmentation, self.sizes[image_id])):
            raise _FaultyError(Fault.BAD_MASK, f"{entry.name} ({why})")
        return _Object(image_id, self.label_of[category], inside, bool(is_crowd), segmentation)

    def _cut(self, name: str, box: Sequence[float], size: tuple[int, int]) -> Box:
        """Returns the part (xyxy) of a box (x, y, width, height) that is in the image."""
        x, y, width, height = box
        reach = max(-x, -y, x + width - size[1], y + height - size[0])
        left, top = max(x, 0.0), max(y, 0.0)
        right, bottom = min(x + width, float(size[1])), min(y + height, float(size[0]))
        if min(right - left, bottom - top) < 1:
            raise _FaultyError(Fault.OUTSIDE, name)
        if reach > TOLERANCE:
            self.problems.append(Problem(Fault.REACHES_OUT, name))
        return left, top, right, bottom


def _mask_problem(segmentation: object, image_size: tuple[int, int]) -> str | None:
    """Says what is wrong with a mask, None if nothing is."""
    from pycocotools import mask as coco_mask

    if not segmentation:
        return "it has none"
    try:
        check_segmentation(segmentation, image_size)
    except ValueError as error:
        return str(error)
    return None if coco_mask.area(to_rle(segmentation, image_size)) else "it covers no pixel"


def _find_images(
    listed: Iterable[AnnotatedImage], folder: Path, problems: list[Problem]
) -> Iterator[tuple[AnnotatedImage, Path, tuple[int, int]]]:
    """Yields the images that are there, with their files and their sizes."""
    for image in listed:
        name = image.file_name or f"image {image.image_id}"
        if image.file_name is None or leads_out(image.file_name):
            why = "has no 'file_name'" if image.file_name is None else "its name leads out of the folder"
            problems.append(Problem(Fault.MISSING_IMAGE, f"{name} ({why})"))
            continue
        file = folder / image.file_name
        found = _size_or_fault(image, file)
        if isinstance(found, Problem):
            problems.append(found)
        else:
            yield image, file, found


def image_fault(image: AnnotatedImage, file: Path) -> Problem | None:
    """Says what is wrong with an image as far as the head of its file tells, None if nothing is."""
    found = _size_or_fault(image, file)
    return found if isinstance(found, Problem) else None


def _size_or_fault(image: AnnotatedImage, file: Path) -> tuple[int, int] | Problem:
    try:
        size = upright_size(file)
    except Exception as error:  # Pillow lets almost any exception through on broken data
        return Problem(Fault.MISSING_IMAGE, f"{image.file_name} ({decode_failure(file, error)})")
    if image.image_size not in (None, size):
        said = image.image_size or size
        details = f"{image.file_name} ({said[1]}x{said[0]} annotated, is {size[1]}x{size[0]})"
        return Problem(Fault.OTHER_SIZE, details)
    return size


def upright_size(file: Path) -> tuple[int, int]:
    """Reads (H, W) of an image from the head of its file, EXIF orientation applied."""
    with Image.open(file) as image:
        width, height = image.size
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in TURNED
    return (width, height) if turned else (height, width)


def _training_image(
    image: AnnotatedImage, file: Path, size: tuple[int, int], objects: Sequence[_Object], masks: bool
) -> TrainingImage:
    single = [item for item in objects if not item.is_crowd]
    crowds = [item.box for item in objects if item.is_crowd]
    return TrainingImage(
        file=file,
        name=str(image.file_name),
        image_size=size,
        boxes=np.array([item.box for item in single], np.float32).reshape(-1, 4),
        labels=np.array([item.label for item in single], np.int64),
        segmentations=tuple(item.segmentation for item in single) if masks else (),
        crowds=np.array(crowds, np.float32).reshape(-1, 4),
    )


def _nothing_left(path: Path, folder: Path, problems: Sequence[Problem]) -> str:
    found = "; ".join(
        f"{len(places)} {fault.value}, the first: {places[0]}" for fault, places in by_fault(problems).items()
    )
    return f"{path} leaves no objects to train with in {folder} (crowds are none){found and f': {found}'}"

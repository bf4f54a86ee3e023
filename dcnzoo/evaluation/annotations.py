"""COCO annotations: which images there are, which categories, and which objects."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from pycocotools import mask as coco_mask

from dcnzoo.errors import EvaluationError
from dcnzoo.evaluation.json_file import Entry, entries, read_json
from dcnzoo.evaluation.segmentation import check_segmentation, to_rle

logger = logging.getLogger(__name__)

LISTED = 10
"""Most names that an error lists."""

LARGEST_IMAGE = 2**32
"""Pixels of an image that run lengths cannot describe any more."""


@dataclass(frozen=True)
class AnnotatedImage:
    """An image of an annotation file.

    Attributes:
        image_id: its id.
        file_name: path below the folder of images, None if the file does not say.
        image_size: (H, W), None if the file does not say.
    """

    image_id: int
    file_name: str | None
    image_size: tuple[int, int] | None


@dataclass(frozen=True)
class Annotations:
    """A checked annotation file, or some of its images.

    Attributes:
        path: the file.
        images: in the order of the file.
        category_names: name of each category id, by ascending id.
        objects: the annotations of the images, as in the file, every one with `iscrowd` and `area`.
    """

    path: Path
    images: tuple[AnnotatedImage, ...]
    category_names: dict[int, str]
    objects: tuple[dict[str, Any], ...]

    @property
    def image_sizes(self) -> dict[int, tuple[int, int] | None]:
        """(H, W) of each image id, None where it is unknown."""
        return {image.image_id: image.image_size for image in self.images}

    def select(self, image_ids: Sequence[int] | None = None, limit: int | None = None) -> Annotations:
        """Returns the annotations of some images.

        Args:
            image_ids: which; all by default.
            limit: at most so many of these, the first in the order of the file.

        Raises:
            EvaluationError: the file has no image with one of the ids.
        """
        images = self.images
        if image_ids is not None:
            chosen = set(image_ids)
            if unknown := sorted(chosen - self.image_sizes.keys()):
                raise self.error(f"{len(unknown)} of the chosen images are not in it: {listing(unknown)}")
            images = tuple(image for image in images if image.image_id in chosen)
        images = images[:limit]
        kept = {image.image_id for image in images}
        objects = tuple(item for item in self.objects if item["image_id"] in kept)
        return replace(self, images=images, objects=objects)

    def has_objects(self) -> bool:
        """Tells whether there are objects to find; crowds are none."""
        return any(not item["iscrowd"] for item in self.objects)

    def has_masks(self) -> bool:
        """Tells whether the objects have masks."""
        return any(item.get("segmentation") for item in self.objects)

    def check_masks(self) -> None:
        """Checks what only the scoring of masks needs.

        Raises:
            EvaluationError: an object has no mask or a damaged one, or an image no size.
        """
        sizes = self.image_sizes
        cure = "mend it, or score boxes alone (`dcnzoo eval --iou-type bbox`)"
        for item in self.objects:
            image_size = sizes[item["image_id"]]
            if image_size is None:
                raise self.error(
                    f"image {item['image_id']} has no width and height, which masks need; {cure}"
                )
            try:
                check_segmentation(item.get("segmentation"), image_size)
            except ValueError as error:
                raise self.error(f"annotation {item['id']}: its segmentation {error}; {cure}") from error

    def category_ids(self, class_names: Sequence[str]) -> tuple[int | None, ...]:
        """Finds the categories that classes stand for, by name.

        Args:
            class_names: names of a model's K classes.

        Returns:
            K category ids, None for a class that is no category: what is found of it cannot be scored.

        Raises:
            EvaluationError: there are objects of a category that is no class, which could never be found.
        """
        annotated = {item["category_id"] for item in self.objects}
        names = {name for category, name in self.category_names.items() if category in annotated}
        if missing := sorted(names - set(class_names)):
            others = sorted(set(class_names) - set(self.category_names.values()))
            raise self.error(
                f"the model does not know {len(missing)} of its categories: {listing(missing)};"
                f" classes that only the model has: {listing(others) or 'none'};"
                " rename one or the other, for names have to be equal"
            )
        id_of = {name: category for category, name in self.category_names.items()}
        unscored = [name for name in class_names if name not in id_of]
        if unscored:
            logger.warning(
                "%s has no category %s; what is found of it is not scored", self.path, listing(unscored)
            )
        return tuple(map(id_of.get, class_names))

    def find_files(self, folder: Path) -> list[Path]:
        """Returns the files of all images.

        Args:
            folder: that file names are relative to.

        Raises:
            EvaluationError: some are not there or elsewhere, or images share a file; with how many and the
                first ten.
        """
        unnamed = [image.image_id for image in self.images if image.file_name is None]
        if unnamed:
            raise self.error(f"{len(unnamed)} images have no 'file_name': {listing(unnamed)}")
        names = [str(image.file_name) for image in self.images]
        counts = Counter(map(PurePath, names))  # "a.jpg" and "./a.jpg" are one file
        if shared := [path for path, count in counts.items() if count > 1]:
            raise self.error(f"{len(shared)} files belong to several images: {listing(shared)}")
        if outside := [name for name in names if leads_out(name)]:
            raise self.error(f"{len(outside)} file names lead out of the folder: {listing(outside)}")
        if absent := [name for name in names if not (folder / name).is_file()]:
            raise self.error(
                f"{len(absent)} of its {len(names)} images are not in {folder}: {listing(absent)};"
                " choose the folder that the file names are relative to"
            )
        return [folder / name for name in names]

    def error(self, problem: str) -> EvaluationError:
        """Returns the error to raise for a problem with these annotations."""
        return EvaluationError(str(self.path), problem)


def read_annotations(path: Path) -> Annotations:
    """Reads a COCO annotation file ("instances").

    An object without `area` gets that of its mask, or of its box where it has no mask or its image no size;
    a warning says how many do.

    Raises:
        EvaluationError: it cannot be read or is not such a file.
    """
    images, categories, annotations = read_tables(path)
    sizes = {image.image_id: image.image_size for image in images}
    objects, without_area = [], 0
    for entry in unique(annotations):
        objects.append(_object(entry, sizes, categories))
        without_area += not _states_area(entry)
    if without_area:
        logger.warning(
            "%s: %d of %d annotations have no 'area', by which objects count as small, medium or large; it is"
            " computed from their masks, or boxes where there are none",
            path,
            without_area,
            len(objects),
        )
    if any(item["id"] == 0 for item in objects):
        logger.warning(
            "%s has an annotation with the id 0, which pycocotools takes for 'nothing' and counts as missed"
            " whatever is found; number annotations from 1",
            path,
        )
    return Annotations(path, images, categories, tuple(objects))


def read_tables(path: Path) -> tuple[tuple[AnnotatedImage, ...], dict[int, str], Iterator[Entry]]:
    """Reads the three tables of a COCO annotation file, the objects unchecked.

    Returns:
        The images; the name of each category id, by ascending id; and the entries about objects.

    Raises:
        EvaluationError: it cannot be read, is not such a file, or its images or categories are at fault.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise EvaluationError(str(path), "is no COCO annotation file: expected a JSON object")
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise EvaluationError(str(path), f"is no COCO annotation file: it has no {key!r}")
    images = tuple(map(_image, unique(entries(path, content["images"], "image"))))
    categories = {
        entry.integer("id"): entry.text("name")
        for entry in unique(entries(path, content["categories"], "category"))
    }
    if not images or not categories:
        raise EvaluationError(str(path), f"has no {'categories' if images else 'images'}")
    if repeated := [name for name, count in Counter(categories.values()).items() if count > 1]:
        raise EvaluationError(str(path), f"has several categories of the same name: {listing(repeated)}")
    return images, dict(sorted(categories.items())), entries(path, content["annotations"], "annotation")


def read_image_ids(path: Path) -> list[int]:
    """Reads a list of image ids: a JSON list, or a text file with one id per line.

    Raises:
        EvaluationError: it cannot be read or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        ids = [
            int(word) for word in text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
        ]
    except OSError as error:
        raise EvaluationError(str(path), f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise EvaluationError(str(path), f"is no list of image ids: {error}") from error
    if not ids:
        raise EvaluationError(str(path), "holds no image ids")
    return ids


def listing(names: Iterable[object]) -> str:
    """Returns the first names of many, and how many more there are."""
    texts = [str(name) for name in names]
    rest = f" and {len(texts) - LISTED} more" if len(texts) > LISTED else ""
    return ", ".join(texts[:LISTED]) + rest


def leads_out(name: str) -> bool:
    """Tells whether a file name leads out of the folder that it is relative to."""
    path = PurePath(name)
    return path.is_absolute() or ".." in path.parts


def unique(items: Iterable[Entry]) -> Iterable[Entry]:
    """Yields entries, whose ids have to differ.

    Raises:
        EvaluationError: one is there twice.
    """
    seen = set()
    for entry in items:
        if entry.integer("id") in seen:
            raise entry.fail("is there twice")
        seen.add(entry.fields["id"])
        yield entry


def _image(entry: Entry) -> AnnotatedImage:
    sized = entry.has("height") and entry.has("width")
    return AnnotatedImage(
        image_id=entry.integer("id"),
        file_name=entry.text("file_name", errors="surrogateescape") if entry.has("file_name") else None,
        image_size=_image_size(entry) if sized else None,
    )


def _image_size(entry: Entry) -> tuple[int, int]:
    height, width = entry.whole_number("height"), entry.whole_number("width")
    if min(height, width) < 1 or height * width >= LARGEST_IMAGE:
        raise entry.fail(f"is said to be of {width}x{height} pixels")
    return height, width


def _object(
    entry: Entry, sizes: dict[int, tuple[int, int] | None], categories: dict[int, str]
) -> dict[str, Any]:
    if entry.integer("image_id") not in sizes:
        raise entry.fail(f"is about image {entry.fields['image_id']}, which the file does not list")
    if entry.integer("category_id") not in categories:
        raise entry.fail(f"has category {entry.fields['category_id']}, which the file does not list")
    box = entry.box_xywh("bbox")
    area = _area(entry, box, sizes[entry.integer("image_id")])
    crowd = entry.fields.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise entry.fail(f"has iscrowd {crowd!r}, expected 0 or 1")
    return {**entry.fields, "area": area, "iscrowd": int(crowd)}


def _states_area(entry: Entry) -> bool:
    return entry.fields.get("area") is not None


def _area(entry: Entry, box: Sequence[float], image_size: tuple[int, int] | None) -> float:
    """Returns an object's area in pixels, computed where it is not stated."""
    if _states_area(entry):
        return entry.number("area")
    segmentation = entry.fields.get("segmentation")
    if not segmentation or image_size is None:
        return box[2] * box[3]
    try:
        check_segmentation(segmentation, image_size)
    except ValueError as error:
        problem = f"has no 'area', and none can be computed, for its segmentation {error}; mend one of them"
        raise entry.fail(problem) from error
    return float(coco_mask.area(to_rle(segmentation, image_size)))

"""What a model found in one image.

Shapes: D detections, K classes, H and W the size of the original image (upright, EXIF applied).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from dcnzoo.predictor import ImageLike

DRAWN_SCORE = 0.3
"""What the score of a detection exceeds that pictures show when nothing else is asked for."""


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The detections of one image, by descending score.

    Indexing with an integer, a slice, a boolean mask or a list of indices gives a new `Detections`.

    Attributes:
        boxes: (D, 4) float32, xyxy in pixels of the original image.
        scores: (D,) float32 in [0, 1].
        labels: (D,) int64, 0 to K - 1.
        class_names: names of all K classes.
        category_ids: COCO category ids of all K classes; unlike labels, they may have gaps.
        image_size: (H, W) of the original image.
        rles: per detection its mask in the original image as COCO run lengths
            (`{"size": [H, W], "counts": str}`); None for a model without masks.
        path: file or address of the image, None when it came from memory.

    Raises:
        ValueError: shapes or lengths do not agree.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    image_size: tuple[int, int]
    rles: tuple[Mapping[str, Any], ...] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = {"boxes": (count, 4), "scores": (count,), "labels": (count,)}
        for field, expected in shapes.items():
            if (actual := getattr(self, field).shape) != expected:
                raise ValueError(f"expected {field} of shape {expected}, got {actual}")
        if self.rles is not None and len(self.rles) != count:
            raise ValueError(f"expected {count} masks, got {len(self.rles)}")
        if len(self.category_ids) != len(self.class_names):
            raise ValueError(f"got {len(self.class_names)} names for {len(self.category_ids)} category ids")
        if count and not 0 <= self.labels.min() <= self.labels.max() < len(self.class_names):
            raise ValueError(f"expected labels from 0 to {len(self.class_names) - 1}, got {self.labels}")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[Any]) -> Detections:
        kept = np.atleast_1d(np.arange(len(self))[index])
        rles = None if self.rles is None else tuple(self.rles[i] for i in kept)
        return replace(
            self, boxes=self.boxes[kept], scores=self.scores[kept], labels=self.labels[kept], rles=rles
        )

    def __repr__(self) -> str:
        height, width = self.image_size
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        found = f"{len(self)} detections: {counts}" if len(self) else "no detections"
        return f"Detections({found}; image {width}x{height})"

    @property
    def names(self) -> tuple[str, ...]:
        """Class name of each detection."""
        return tuple(self.class_names[label] for label in self.labels)

    @property
    def masks(self) -> NDArray[np.bool_] | None:
        """Masks (D, H, W) in the original image, None for a model without masks.

        Decoded anew at every access, since a hundred masks of a large photo fill a gigabyte.
        """
        if self.rles is None:
            return None
        if not self.rles:
            return np.zeros((0, *self.image_size), bool)
        from pycocotools import mask as coco_mask  # here: nothing else needs it

        masks: NDArray[np.bool_] = coco_mask.decode(list(self.rles)).transpose(2, 0, 1).view(np.bool_)
        return masks

    def above(self, score_threshold: float) -> Detections:
        """Returns the detections whose score exceeds `score_threshold`."""
        return self[self.scores > score_threshold]

    def of_classes(self, classes: Iterable[str | int] | str | int) -> Detections:
        """Returns the detections of the given classes.

        Args:
            classes: class names or COCO category ids, or one of them.

        Raises:
            ValueError: a class is unknown.
        """
        return self[np.isin(self.labels, find_labels(classes, self.class_names, self.category_ids))]

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Returns one COCO result per detection, ready for `json.dump` and `COCO.loadRes`.

        Args:
            image_id: id of the image in the annotations.

        Returns:
            Dicts with `image_id`, `category_id`, `bbox` (xywh, pixels of the original image), `score`,
            and `segmentation` (run lengths) if there are masks.
        """
        boxes_xywh = np.hstack([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]])
        results: list[dict[str, Any]] = [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": box_xywh.tolist(),
                "score": float(score),
            }
            for label, box_xywh, score in zip(self.labels, boxes_xywh, self.scores, strict=True)
        ]
        for result, rle in zip(results, self.rles or (), strict=self.rles is not None):
            result["segmentation"] = dict(rle)
        return results

    def plot(
        self,
        image: ImageLike | None = None,
        *,
        score_threshold: float = DRAWN_SCORE,
        font: str | Path | None = None,
    ) -> Image.Image:
        """Draws boxes, labels and masks.

        Args:
            image: the original, in any form that `Predictor` takes; read again from `path` by default.
            score_threshold: what the score of a detection exceeds that is drawn.
            font: file of a font for the labels; by default one that has their characters.

        Returns:
            A new picture of the original size.

        Raises:
            ValueError: no image is given and the detections have no path, or the image has another size or a
                form that `Predictor` does not take, or the font is none.
            ImageReadError: the image, or the file at `path`, cannot be read.
        """
        from dcnzoo.annotate import draw_detections
        from dcnzoo.predictor import to_pixels

        if image is None:
            if self.path is None:
                raise ValueError("these detections came from memory: pass the image to plot()")
            image = self.path
        file = None if font is None else Path(font)
        return draw_detections(to_pixels(image), self.above(score_threshold), file)

    def to_supervision(self) -> Any:
        """Returns the same as a `supervision.Detections`.

        Raises:
            ImportError: the supervision package is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise ImportError("to_supervision() needs `pip install supervision`") from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            mask=self.masks,
            data={"class_name": np.array(self.names, dtype=str)},
        )


def find_labels(
    classes: Iterable[str | int] | str | int, class_names: Sequence[str], category_ids: Sequence[int]
) -> NDArray[np.int64]:
    """Translates class names and category ids to labels.

    Args:
        classes: names or ids in any mixture, or one of them; an id may be written as a string.
        class_names: names of all K classes.
        category_ids: ids of all K classes.

    Returns:
        Labels, sorted and without repetition.

    Raises:
        ValueError: a class is unknown.
    """
    label_of: dict[str, int] = {str(category): label for label, category in enumerate(category_ids)}
    label_of |= {name: label for label, name in enumerate(class_names)}
    if isinstance(classes, (str, int, np.integer)):
        classes = [classes]
    wanted = [str(name) for name in classes]
    unknown = [name for name in wanted if name not in label_of]
    if unknown:
        hint = ""
        if any(name.isdecimal() for name in unknown):
            hint = f"; numbers are category ids: {', '.join(map(str, category_ids))}"
        raise ValueError(
            f"unknown class {', '.join(unknown)}; the model knows {', '.join(class_names)}{hint}"
        )
    return np.unique(np.array([label_of[name] for name in wanted], np.int64))

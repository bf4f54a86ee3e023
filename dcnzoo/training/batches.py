"""From images and objects to the batches that a model learns from.

What is random about an image follows from the seed, the epoch and the image's place in the file alone, so
that neither the number of processes that read nor an interruption changes anything.

Shapes: N images, G objects of an image, H and W its original size, h and w its resized size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from dcnzoo.errors import TrainingError
from dcnzoo.evaluation.segmentation import to_rle
from dcnzoo.image import PreparedImage, collate
from dcnzoo.manifest import Preprocessing
from dcnzoo.processes import Share
from dcnzoo.reader import ImageReaders, ReadSettings, pixel_limit
from dcnzoo.stream import map_ahead
from dcnzoo.training.dataset import TrainingImage
from dcnzoo.training.targets import Target


class TrainingBatch(NamedTuple):
    """What a training step takes.

    Attributes:
        images: (N, 3, height, width) float32 in channels-last memory, normalised and padded.
        image_sizes: per image (h, w), without the padding.
        targets: what is in them.
        names: of the images, as the annotation file has them.
    """

    images: Tensor
    image_sizes: list[tuple[int, int]]
    targets: list[Target]
    names: list[str]


class Variation(NamedTuple):
    """What is done to a picture.

    Attributes:
        short_side: to resize it to.
        flip: whether left and right are exchanged.
        vertical_flip: whether top and bottom are.
    """

    short_side: int
    flip: bool = False
    vertical_flip: bool = False


@dataclass(frozen=True)
class Augmentation:
    """How pictures are varied.

    Attributes:
        short_sides: one of these is drawn for each image and epoch.
        flip: probability of a horizontal flip.
        vertical_flip: of a vertical one, for pictures that have no up and down.
    """

    short_sides: tuple[int, ...] = (800,)
    flip: float = 0.5
    vertical_flip: float = 0.0

    def draw(self, seed: int, epoch: int, index: int) -> Variation:
        """Returns what to do to an image in an epoch."""
        random = np.random.default_rng([seed, epoch, index])
        short_side = self.short_sides[random.integers(len(self.short_sides))]
        horizontally, vertically = random.random(2)
        return Variation(short_side, bool(horizontally < self.flip), bool(vertically < self.vertical_flip))


@dataclass(frozen=True)
class LoadSettings:
    """How batches are made.

    Attributes:
        batch_size: images of a batch.
        preprocessing: long side, normalisation and padding; the short side is the augmentation's.
        augmentation: how pictures are varied.
        masks: whether the targets have masks.
        seed: of the order and of the augmentation.
        workers: processes that read images; 0 reads between the steps.
        share: which of the batches are this process's own.
        image_timeout: seconds that reading an image may take, None for any time; only with workers.
        max_pixels: images with more are refused; None leaves Pillow's limit.
    """

    batch_size: int
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    augmentation: Augmentation = field(default_factory=Augmentation)
    masks: bool = False
    seed: int = 0
    workers: int = 0
    share: Share = field(default_factory=Share)
    image_timeout: float | None = None
    max_pixels: int | None = None


def plan_epoch(
    wide: NDArray[np.bool_], batch_size: int, processes: int, seed: int, epoch: int
) -> list[list[int]]:
    """Deals all images out to batches, in an order of the epoch's own.

    As in the reference, upright and wide images do not meet in a batch, where padding would cost much, and
    each kind is filled up with some of its images again, so that every process has whole batches and as many
    as the others.

    Args:
        wide: (images,) whether an image is wider than high.
        batch_size: images of a batch.
        processes: how many share the batches; the number of batches is a multiple of it.
        seed: of the run.
        epoch: from 0.

    Returns:
        Indices of the images of each batch.
    """
    random = np.random.default_rng([seed, epoch])
    batches: list[list[int]] = []
    for kind in (False, True):
        group = random.permutation(np.flatnonzero(wide == kind))
        if group.size:
            unit = batch_size * processes
            filled = np.resize(group, -(-group.size // unit) * unit)
            batches += filled.reshape(-1, batch_size).tolist()
    return [batches[position] for position in random.permutation(len(batches))]


class BatchLoader:
    """Reads the batches of epochs, some ahead of whoever takes them.

    Args:
        images: all that there are.
        settings: how.
    """

    def __init__(self, images: Sequence[TrainingImage], settings: LoadSettings) -> None:
        self._images, self._settings = images, settings
        self._wide = np.array([image.image_size[1] > image.image_size[0] for image in images])
        sides = (max(settings.augmentation.short_sides), settings.preprocessing.long_side)
        self._readers = ImageReaders(
            settings.workers,
            ReadSettings(*sides, max_pixels=settings.max_pixels),
            settings.image_timeout,
        )
        self._length = len(self._plan(0))

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> BatchLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.close()

    @contextmanager
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Iterator[TrainingBatch]]:
        """Yields the batches of an epoch.

        Args:
            epoch: from 0.
            start: how many batches to leave out at the beginning.

        Raises:
            ImageReadError: an image cannot be read.
            TrainingError: an image is not what it was when the set was checked.
        """
        jobs = [(epoch, indices) for indices in self._plan(epoch)[start:]]
        workers = self._settings.workers
        with (
            pixel_limit(self._settings.max_pixels),
            map_ahead(self._load, jobs, workers, workers) as batches,
        ):
            yield batches

    def _plan(self, epoch: int) -> list[list[int]]:
        settings = self._settings
        share = settings.share
        everyone = plan_epoch(self._wide, settings.batch_size, share.count, settings.seed, epoch)
        return everyone[share.index :: share.count]

    def _load(self, job: tuple[int, list[int]]) -> TrainingBatch:
        epoch, indices = job
        samples = [self._sample(epoch, index) for index in indices]
        return make_batch(samples, self._settings.preprocessing)

    def _sample(self, epoch: int, index: int) -> Sample:
        image, settings = self._images[index], self._settings
        variation = settings.augmentation.draw(settings.seed, epoch, index)
        prepared = self._readers.read(str(image.file), variation.short_side).prepared
        if prepared.original_size != image.image_size:
            raise TrainingError(f"{image.file} has changed while training went on; start again")
        return Sample(image, prepared, variation, settings.masks)


@dataclass(frozen=True)
class Sample:
    """An image as a batch gets it.

    Attributes:
        image: what is in it, original frame.
        prepared: its pixels, resized.
        variation: what is done to it.
        masks: whether masks are wanted.
    """

    image: TrainingImage
    prepared: PreparedImage
    variation: Variation
    masks: bool

    def pixels(self) -> PreparedImage:
        """Returns the pixels as the model shall see them."""
        pixels = self.prepared.pixels
        if self.variation.flip:
            pixels = pixels[:, ::-1]
        if self.variation.vertical_flip:
            pixels = pixels[::-1]
        return PreparedImage(np.ascontiguousarray(pixels), self.prepared.original_size)

    def target(self, padded_size: tuple[int, int]) -> Target:
        """Returns what is in the image, in its resized frame; masks are of the padded size."""
        return Target(
            boxes=torch.from_numpy(self._moved(self.image.boxes)),
            labels=torch.from_numpy(self.image.labels),
            masks=torch.from_numpy(self._moved_masks(padded_size)) if self.masks else None,
            ignored_boxes=torch.from_numpy(self._moved(self.image.crowds)),
        )

    def _moved(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        (height, width), (h, w) = self.image.image_size, self.prepared.pixels.shape[:2]
        scaled = boxes * np.array([w / width, h / height] * 2, np.float32)
        scaled[:, 0::2] = scaled[:, 0::2].clip(0, w)
        scaled[:, 1::2] = scaled[:, 1::2].clip(0, h)
        if self.variation.flip:
            scaled[:, 0::2] = w - scaled[:, 2::-2]
        if self.variation.vertical_flip:
            scaled[:, 1::2] = h - scaled[:, 3::-2]
        return scaled

    def _moved_masks(self, padded_size: tuple[int, int]) -> NDArray[np.bool_]:
        """Masks (G, height, width) of the padded size, resized to the nearest pixel as the reference does."""
        (height, width), (h, w) = self.image.image_size, self.prepared.pixels.shape[:2]
        masks = np.zeros((len(self.image.labels), *padded_size), np.bool_)
        rows, columns = _nearest(height, h), _nearest(width, w)
        if self.variation.flip:
            columns = columns[::-1]
        if self.variation.vertical_flip:
            rows = rows[::-1]
        for mask, segmentation in zip(masks, self.image.segmentations, strict=True):
            decoded: NDArray[Any] = coco_mask.decode(to_rle(segmentation, self.image.image_size))
            mask[:h, :w] = decoded[rows[:, None], columns]
        return masks


def make_batch(samples: Sequence[Sample], preprocessing: Preprocessing) -> TrainingBatch:
    """Normalises images and pads them to one size, and moves their objects accordingly."""
    batch = collate([sample.pixels() for sample in samples], preprocessing)
    height, width = batch.images.shape[-2:]
    return TrainingBatch(
        batch.images,
        batch.image_sizes,
        [sample.target((height, width)) for sample in samples],
        [sample.image.name for sample in samples],
    )


def _nearest(old: int, new: int) -> NDArray[np.intp]:
    """Source index of each pixel when an axis goes from `old` to `new` pixels, as OpenCV's INTER_NEAREST."""
    indices: NDArray[np.intp] = np.floor(np.arange(new) * (old / new)).astype(np.intp)
    return np.minimum(indices, old - 1)

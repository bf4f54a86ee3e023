"""Many images through a model: read ahead, predict in batches, write as results come.

Memory is bounded by the batch size and the number of workers, whatever the number of images.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dcnzoo.errors import ImageError, ImageReadError, OutOfMemoryError
from dcnzoo.predictor import MAX_DETECTIONS, SCORE_THRESHOLD, Predictor
from dcnzoo.processes import Share
from dcnzoo.reader import ImageReaders, ReadSettings, pixel_limit
from dcnzoo.results import DRAWN_SCORE
from dcnzoo.times import StageTimes
from dcnzoo.writers import ImageIds, ImageResult, Listing, Shard, Stems

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dcnzoo.image import PreparedImage
    from dcnzoo.results import Detections
    from dcnzoo.sources import ImageSource

Finish = Callable[[], "list[Detections]"]
"""Waits for the detections of a batch."""

T = TypeVar("T")
R = TypeVar("R")

STAGES = ("decode", "preprocess", "inference", "postprocess", "write")
"""Of the work on an image, in order. Decoding includes a download."""


@dataclass(frozen=True)
class StreamSettings:
    """How images go through a model.

    Attributes:
        batch_size: images per forward pass.
        workers: processes that read and resize images while the model computes; 0 reads between batches.
        score_threshold: what the score of a detection exceeds that the data formats have.
        drawn_score: what the score of a detection exceeds that pictures show.
        max_detections: per image.
        labels: classes to keep, None for all.
        strict: whether an unreadable image stops the run.
        share: which of the images are to be done.
        image_timeout: seconds that reading an image may take, None for any time; only with workers.
        max_pixels: images with more are refused; None leaves Pillow's limit.
    """

    batch_size: int = 1
    workers: int = 0
    score_threshold: float = SCORE_THRESHOLD
    drawn_score: float = DRAWN_SCORE
    max_detections: int = MAX_DETECTIONS
    labels: NDArray[np.int64] | None = None
    strict: bool = False
    share: Share = field(default_factory=Share)
    image_timeout: float | None = None
    max_pixels: int | None = None


@dataclass
class Tally:
    """What a run has done so far.

    Attributes:
        images: images predicted.
        failures: images that could not be read or predicted, or whose results could not be written.
        skipped: images that an earlier run has done.
        unlisted: images left out because the annotations do not list them.
        detections: detections written to the data formats.
        times: seconds per stage, summed over threads.
    """

    images: int = 0
    failures: int = 0
    skipped: int = 0
    unlisted: int = 0
    detections: int = 0
    times: StageTimes = field(default_factory=StageTimes)


class NamedImage(NamedTuple):
    """An image to be done.

    Attributes:
        source: where it comes from.
        image_id: COCO image id, None unless a writer needs it.
        stem: that its files are named by, None unless a writer needs it.
    """

    source: ImageSource
    image_id: int | None
    stem: str | None


class LoadedImage(NamedTuple):
    """An image that is ready for the model.

    Attributes:
        source: where it came from.
        image_id: COCO image id, None unless a writer needs it.
        stem: that its files are named by, None unless a writer needs it.
        prepared: resized pixels.
        pixels: (H, W, 3) RGB, None unless a writer needs it.
        times: seconds that loading took.
    """

    source: ImageSource
    image_id: int | None
    stem: str | None
    prepared: PreparedImage
    pixels: NDArray[np.uint8] | None
    times: StageTimes


class FailedImage(NamedTuple):
    """An image that could not be read, and why."""

    error: ImageReadError


class ImageStream:
    """Takes images from their sources to the writers.

    Args:
        predictor: the model.
        shard: gets every image, with its result or the reason why there is none.
        settings: how.
        tally: counts what is done, readable at any time.
        image_ids: gives the images their COCO ids; those that it does not know are left out.
        progress: called with the number of images that are done since the last call.
        deferred: makes a context in which the run is not interrupted.
    """

    def __init__(
        self,
        predictor: Predictor,
        shard: Shard,
        settings: StreamSettings,
        tally: Tally,
        image_ids: ImageIds | None = None,
        progress: Callable[[int], object] = lambda _: None,
        deferred: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self.predictor, self.shard, self.settings, self.tally = predictor, shard, settings, tally
        self.image_ids, self.progress, self.deferred = image_ids, progress, deferred
        self._stems = None
        if any(writer.needs_stem for writer in shard.writers):
            self._stems = Stems(shard.progress.stems)
        self._listed, self._digest = 0, hashlib.sha256()
        self._begun: deque[tuple[Sequence[LoadedImage], Finish | None]] = deque()

    def run(self, sources: Iterable[ImageSource]) -> None:
        """Predicts and writes every image that belongs to the share and is not done yet.

        Args:
            sources: read a few images ahead of the model.

        Raises:
            ImageReadError: an image is unreadable and the settings are strict.
            OutputError: results cannot be written; those of a single image only if the settings are strict.
        """
        batch: list[LoadedImage] = []
        workers, size = self.settings.workers, self.settings.batch_size
        readers = self._readers()
        with (
            pixel_limit(self.settings.max_pixels),
            map_ahead(partial(_load, readers), self._left(sources), workers, workers + size) as images,
            readers,  # ended first, so that the threads need not wait for what they read
        ):
            for image in images:
                with self.deferred():
                    if isinstance(image, FailedImage):
                        if self.settings.strict:
                            self._finish(0)
                        self._fail(image.error)
                        continue
                    batch.append(image)
                    if len(batch) == size:
                        self._predict(batch)
                        batch = []
        with self.deferred():
            if batch:
                self._predict(batch)
            self._finish(0)
            self.shard.commit(Listing(self._listed, self._digest.hexdigest()))

    def _readers(self) -> ImageReaders:
        sides = self.predictor.preprocessing
        settings = ReadSettings(
            sides.short_side,
            sides.long_side,
            any(writer.needs_pixels for writer in self.shard.writers),
            self.settings.max_pixels,
        )
        return ImageReaders(self.settings.workers, settings, self.settings.image_timeout)

    def _left(self, sources: Iterable[ImageSource]) -> Iterator[NamedImage]:
        """Numbers and names all images, whoever does them, and yields those that are left to be done."""
        done = self.shard.progress.locations
        for source in sources:
            if done[source.shown]:
                # It has its id and its name, which are taken.
                self._list(source)
                done[source.shown] -= 1
                self.tally.skipped += 1
                self.progress(1)
                continue
            image_id = self.image_ids.find(source) if self.image_ids else None
            if self.image_ids and image_id is None:
                self.tally.unlisted += 1
                self.progress(1)
                continue
            stem = self._stems.find(source) if self._stems else None
            if self.settings.share.holds(self._list(source), self.settings.batch_size):
                yield NamedImage(source, image_id, stem)
            else:
                self.progress(1)  # others do it

    def _list(self, source: ImageSource) -> int:
        """Notes that an image is listed, and returns how many were before it."""
        self._digest.update(os.fsencode(source.shown) + b"\0")
        self._listed += 1
        return self._listed - 1

    def _fail(self, error: ImageError) -> None:
        self.tally.failures += 1
        self.shard.fail(error)
        if self.settings.strict:
            raise error
        self.progress(1)

    def _predict(self, batch: Sequence[LoadedImage]) -> None:
        """Predicts a batch, and writes it, or on a GPU the one before: it computes meanwhile."""
        try:
            self._begun.append((batch, self._begin(batch)))
        except OutOfMemoryError:
            self._begun.append((batch, None))
        self._finish(int(self.predictor.overlaps))

    def _finish(self, left: int) -> None:
        """Writes batches that were begun, but for the last ones."""
        while len(self._begun) > left:
            self._write_batch(*self._begun.popleft())

    def _write_batch(self, batch: Sequence[LoadedImage], finish: Finish | None) -> None:
        """Writes a batch when it is computed; one that does not fit into memory image by image."""
        try:
            found = finish() if finish else None
        except OutOfMemoryError:
            found = None
        if found is not None:
            self._write(batch, found)
            return
        for image in batch:
            self.predictor.free_memory()
            try:
                self._write([image], self._begin([image])())
            except OutOfMemoryError as error:
                self._fail(ImageReadError(image.source.location, str(error)))

    def _begin(self, batch: Sequence[LoadedImage]) -> Finish:
        return self.predictor.begin_prepared(
            [image.prepared for image in batch],
            score_threshold=self.settings.score_threshold,
            max_detections=self.settings.max_detections,
            labels=self.settings.labels,
            times=self.tally.times,
        )

    def _write(self, batch: Sequence[LoadedImage], found: Sequence[Detections]) -> None:
        results = [self._result(image, one) for image, one in zip(batch, found, strict=True)]
        with self.tally.times.measure("write"):
            failures = self.shard.write(results)
        for image, one, failure in zip(batch, found, failures, strict=True):
            if failure is None:
                self.tally.times.add(image.times)
                self.tally.images += 1
                self.tally.detections += len(one)
                self.progress(1)
        for failure in filter(None, failures):
            self._fail(failure)

    def _result(self, image: LoadedImage, detections: Detections) -> ImageResult:
        detections = replace(detections, path=image.source.location)
        drawn = detections.above(self.settings.drawn_score)
        return ImageResult(image.source, detections, drawn, image.pixels, image.image_id, image.stem)


def _load(readers: ImageReaders, image: NamedImage) -> LoadedImage | FailedImage:
    """Reads and resizes an image; runs in a worker."""
    try:
        return LoadedImage(*image, *readers.read(image.source.location))
    except ImageReadError as error:
        return FailedImage(error)


@contextmanager
def map_ahead(
    function: Callable[[T], R], items: Iterable[T], workers: int, ahead: int
) -> Iterator[Iterator[R]]:
    """Applies a function in threads, a bounded number of items ahead of whoever takes the results.

    Args:
        function: called in a worker thread, or in the caller's if there are no workers.
        items: taken from the caller's thread.
        workers: number of threads.
        ahead: most results that wait to be taken.

    Yields:
        The results, in the order of the items. On leaving the context, work that has not begun is dropped.
    """
    if workers == 0:
        yield map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    try:
        yield _in_order(pool, function, items, ahead)
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int
) -> Iterator[R]:
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

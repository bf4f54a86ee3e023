"""Many images through a model: read ahead, predict in batches, write as results come.

Memory is bounded by the batch size and the number of workers, whatever the number of images.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from dcnzoo.errors import ImageReadError
from dcnzoo.predictor import MAX_DETECTIONS, SCORE_THRESHOLD, Predictor, StageTimes
from dcnzoo.results import DRAWN_SCORE
from dcnzoo.sources import ImageSource, read_image
from dcnzoo.writers import ErrorLog, ImageIds, ImageResult, Writer
from dcnzoo.writers.folder import output_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dcnzoo.image import PreparedImage

T = TypeVar("T")
R = TypeVar("R")

STAGES = ("decode", "preprocess", "inference", "postprocess", "write")
"""Of the work on an image, in order. Decoding includes a download."""


@dataclass(frozen=True)
class StreamSettings:
    """How images go through a model.

    Attributes:
        batch_size: images per forward pass.
        workers: threads that read and resize images while the model computes; 0 reads between batches.
        score_threshold: least score of a detection in the data formats.
        drawn_score: least score of a detection in pictures.
        max_detections: per image.
        labels: classes to keep, None for all.
        strict: whether an unreadable image stops the run.
    """

    batch_size: int = 1
    workers: int = 0
    score_threshold: float = SCORE_THRESHOLD
    drawn_score: float = DRAWN_SCORE
    max_detections: int = MAX_DETECTIONS
    labels: NDArray[np.int64] | None = None
    strict: bool = False


@dataclass
class Tally:
    """What a run has done so far.

    Attributes:
        images: images predicted.
        failures: images that could not be read.
        unlisted: images left out because the annotations do not list them.
        detections: detections written to the data formats.
        times: seconds per stage, summed over threads.
    """

    images: int = 0
    failures: int = 0
    unlisted: int = 0
    detections: int = 0
    times: StageTimes = field(default_factory=StageTimes)


@dataclass(frozen=True)
class LoadedImage:
    """An image that is ready for the model.

    Attributes:
        source: where it came from.
        image_id: COCO image id, None unless a writer needs it.
        prepared: resized pixels.
        pixels: (H, W, 3) RGB, None unless a writer needs it.
        times: seconds that loading took.
    """

    source: ImageSource
    image_id: int | None
    prepared: PreparedImage
    pixels: NDArray[np.uint8] | None
    times: StageTimes


class ImageStream:
    """Takes images from their sources to the writers.

    Args:
        predictor: the model.
        writers: get every image that could be read, in order.
        errors: gets every image that could not.
        settings: how.
        tally: counts what is done, readable at any time.
        image_ids: gives the images their COCO ids; those that it does not know are left out.
        progress: called with the number of images that are done since the last call.
    """

    def __init__(
        self,
        predictor: Predictor,
        writers: Sequence[Writer],
        errors: ErrorLog,
        settings: StreamSettings,
        tally: Tally,
        image_ids: ImageIds | None = None,
        progress: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.predictor, self.writers, self.errors = predictor, writers, errors
        self.settings, self.tally = settings, tally
        self.image_ids, self.progress = image_ids, progress
        self._keep_pixels = any(writer.needs_pixels for writer in writers)

    def run(self, sources: Iterable[ImageSource]) -> None:
        """Predicts and writes every image.

        Args:
            sources: read a few images ahead of the model.

        Raises:
            ImageReadError: an image is unreadable and the settings are strict.
            OutputError: results cannot be written.
        """
        batch: list[LoadedImage] = []
        ahead = self.settings.workers + self.settings.batch_size
        with map_ahead(self._load, self._numbered(sources), self.settings.workers, ahead) as images:
            for image in images:
                if isinstance(image, ImageReadError):
                    self._fail(image)
                    continue
                batch.append(image)
                if len(batch) == self.settings.batch_size:
                    self._predict(batch)
                    batch = []
            if batch:
                self._predict(batch)

    def _numbered(self, sources: Iterable[ImageSource]) -> Iterator[tuple[ImageSource, int | None]]:
        for source in sources:
            image_id = self.image_ids.find(source) if self.image_ids else None
            if self.image_ids and image_id is None:
                self.tally.unlisted += 1
                self.progress(1)
            else:
                yield source, image_id

    def _load(self, numbered: tuple[ImageSource, int | None]) -> LoadedImage | ImageReadError:
        """Reads and resizes an image; runs in a worker."""
        source, image_id = numbered
        times = StageTimes()
        try:
            with times.measure("decode"):
                pixels = read_image(source.location)
        except ImageReadError as error:
            return error
        with times.measure("preprocess"):
            prepared = self.predictor.prepare(pixels)
        return LoadedImage(source, image_id, prepared, pixels if self._keep_pixels else None, times)

    def _fail(self, error: ImageReadError) -> None:
        self.tally.failures += 1
        with output_errors(self.errors.path):
            self.errors.write(error)
        if self.settings.strict:
            raise error
        self.progress(1)

    def _predict(self, batch: Sequence[LoadedImage]) -> None:
        results = self.predictor.predict_prepared(
            [image.prepared for image in batch],
            score_threshold=self.settings.score_threshold,
            max_detections=self.settings.max_detections,
            labels=self.settings.labels,
            times=self.tally.times,
        )
        for image, detections in zip(batch, results, strict=True):
            detections = replace(detections, path=image.source.location)
            drawn = detections.above(self.settings.drawn_score)
            result = ImageResult(image.source, detections, drawn, image.pixels, image.image_id)
            with self.tally.times.measure("write"):
                for writer in self.writers:
                    with output_errors(writer.path):
                        writer.write(result)
            self.tally.times.add(image.times)
            self.tally.images += 1
            self.tally.detections += len(detections)
        self.progress(len(batch))


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

"""Runs a model over annotated images, in one process or several, and brings the results together."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcnzoo.errors import EvaluationError
from dcnzoo.evaluation import PARTS, Kind
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.results import (
    RESULT_FILES,
    CocoResults,
    read_parts,
    split_results,
    write_results,
)
from dcnzoo.hardware import PeakMemory, peak_memory
from dcnzoo.predictor import Predictor
from dcnzoo.processes import Processes
from dcnzoo.sources import ImageSource
from dcnzoo.stopping import StopSignals
from dcnzoo.stream import STAGES, ImageStream, StreamSettings, Tally
from dcnzoo.writers import ErrorLog, ImageIds, ImageResult, Progress, Shard, Writer, read_journal
from dcnzoo.writers.coco import IMAGE_LIST, CocoWriter
from dcnzoo.writers.folder import output_errors


@dataclass(frozen=True)
class Speed:
    """How fast a run was, and what memory it took.

    Attributes:
        seconds: from the first image to the last, without loading the model and without scoring.
        images: how many were predicted; fewer than were scored if an earlier run had done some.
        images_per_second: of all processes together.
        ms_per_image: of each stage, in milliseconds, summed over threads.
        processes: how many shared the work.
        memory: the most that a process has used.
    """

    seconds: float
    images: int
    images_per_second: float
    ms_per_image: dict[str, float]
    processes: int
    memory: PeakMemory

    def as_json(self) -> dict[str, Any]:
        """Returns the figures in JSON types."""
        figures = asdict(self) | {"memory": self.memory._asdict()}
        return {"memory": figures.pop("memory"), "speed": figures}

    def lines(self) -> Iterator[str]:
        """Yields the figures as lines of text."""
        rate = f"{self.images_per_second:.2f} images/s"
        rate += f" by {self.processes} processes" if self.processes > 1 else ""
        yield f"{self.images} images in {self.seconds:.1f} s ({rate})"
        yield f"ms per image: {', '.join(f'{name} {ms:.1f}' for name, ms in self.ms_per_image.items())}"
        yield f"peak memory: {self.memory}"


class AnnotatedIds(ImageIds):
    """COCO image ids by location."""

    def __init__(self, ids: Mapping[str, int]) -> None:
        self._ids = ids

    def find(self, source: ImageSource) -> int | None:
        """Returns the id of an image."""
        return self._ids[source.location]


class PartWriter(CocoWriter):
    """Writes the results of one process, of images that are what the annotations say.

    Args:
        out: existing folder.
        sizes: of files that an earlier run left.
        annotations: of the images.
    """

    def __init__(self, out: Path, sizes: Mapping[str, int], annotations: Annotations) -> None:
        super().__init__(out, sizes)
        self._annotations, self._sizes = annotations, annotations.image_sizes

    def write(self, result: ImageResult) -> None:
        """Appends the detections of one image.

        Raises:
            EvaluationError: it has another size than annotated; boxes and masks would be compared in vain.
        """
        annotated = None if result.image_id is None else self._sizes[result.image_id]
        height, width = result.detections.image_size
        if annotated is not None and annotated != (height, width):
            raise self._annotations.error(
                f"image {result.image_id} should be {annotated[1]}x{annotated[0]},"
                f" but {result.source.location} is {width}x{height}"
            )
        super().write(result)


def with_categories(
    predictor: Predictor, annotations: Annotations
) -> tuple[Predictor, NDArray[np.int64] | None]:
    """Gives a predictor the category ids of annotations.

    Returns:
        A predictor with the same model; labels of the classes that are categories, None if all are.

    Raises:
        EvaluationError: categories and classes do not go together.
    """
    categories = annotations.category_ids(predictor.class_names)
    ids = tuple(-1 if category is None else category for category in categories)
    labels = [label for label, category in enumerate(categories) if category is not None]
    renamed = copy(predictor)
    renamed.category_ids = ids
    return renamed, None if len(labels) == len(ids) else np.array(labels, np.int64)


def collect(
    predictor: Predictor,
    annotations: Annotations,
    files: Sequence[Path],
    out: Path,
    settings: StreamSettings,
    processes: Processes,
    progress: Callable[[int], object],
) -> Speed:
    """Predicts every image that is left and leaves the results of this process in a shard of its own.

    A first SIGINT or SIGTERM is heeded after the batch in hand.

    Args:
        predictor: the model, which names its detections by the annotations' category ids.
        annotations: of the images to predict.
        files: their files, in the same order.
        out: the output folder.
        settings: how, and which share.
        processes: who else takes part.
        progress: called with the number of images that are done since the last call.

    Returns:
        Speed of all processes together, once all are done.

    Raises:
        EvaluationError: images cannot be read or predicted, or one has another size than annotated.
        OutputError: results cannot be written.
        Stopped: a signal came.
    """
    folder = out / PARTS / settings.share.folder_name
    with output_errors(folder):
        done = _start_shard(folder)
    ids = {str(file): image.image_id for file, image in zip(files, annotations.images, strict=True)}
    sources = (ImageSource(location, PurePosixPath(Path(location).name)) for location in ids)
    tally, start, signals = Tally(), time.perf_counter(), StopSignals()
    with signals.caught(), Shard(folder, done, partial(_open_writers, annotations)) as shard:
        stream = ImageStream(predictor, shard, settings, tally, AnnotatedIds(ids), progress, signals.deferred)
        stream.run(sources)
    tallies = processes.gather(tally)
    seconds = time.perf_counter() - start
    memories = processes.gather(peak_memory(predictor.device))
    _check_failures(tallies, len(ids), out)
    return _speed(tallies, seconds, memories)


def _start_shard(folder: Path) -> Progress:
    """Makes the folder of a shard, or finds out what is done in it."""
    progress = read_journal(folder)
    if progress.journal_size is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    return progress


def _open_writers(annotations: Annotations, out: Path, sizes: Mapping[str, int]) -> list[Writer]:
    return [PartWriter(out, sizes, annotations)]


def _check_failures(tallies: Sequence[Tally], images: int, out: Path) -> None:
    failures = sum(tally.failures for tally in tallies)
    if failures:
        raise EvaluationError(
            str(out),
            f"{failures} of {images} images failed; {PARTS}/*/{ErrorLog.product} there says why;"
            " mend them and run again with --resume",
        )


def _speed(tallies: Sequence[Tally], seconds: float, memories: Sequence[PeakMemory]) -> Speed:
    images = sum(tally.images for tally in tallies)
    return Speed(
        seconds=seconds,
        images=images,
        images_per_second=images / seconds,
        ms_per_image={
            stage: sum(tally.times[stage] for tally in tallies) / max(images, 1) * 1000 for stage in STAGES
        },
        processes=len(tallies),
        memory=PeakMemory(
            max(memory.host_gib for memory in memories),
            max((memory.gpu_gib for memory in memories if memory.gpu_gib is not None), default=None),
        ),
    )


def merge_parts(out: Path, annotations: Annotations, kinds: Sequence[Kind]) -> dict[Kind, CocoResults]:
    """Brings the results of all processes together, in files by kind.

    Args:
        out: the output folder.
        annotations: of the images that were predicted.
        kinds: what there are results of.

    Returns:
        Results of each kind, by ascending image id.

    Raises:
        EvaluationError: images are missing from the parts, or in them twice.
        OutputError: the files cannot be written.
    """
    with output_errors(out):
        parts = sorted((out / PARTS).iterdir())
        done = [
            image["id"] for part in parts for image in json.loads((part / IMAGE_LIST).read_bytes())["images"]
        ]
        if sorted(done) != sorted(annotations.image_sizes):
            raise EvaluationError(
                str(out / PARTS), f"has {len(done)} images, expected {len(annotations.images)}"
            )
        results = read_parts(part / CocoWriter.product for part in parts)
        merged = {kind: list(split_results(results, kind)) for kind in kinds}
        for kind in kinds:
            write_results(out / RESULT_FILES[kind], merged[kind])
    return merged

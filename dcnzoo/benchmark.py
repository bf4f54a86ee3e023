"""How long a detector takes, stage by stage, and how much memory.

Each case is measured in a process of its own, so that none sees another's peak of memory, caches or threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from dcnzoo.fresh_process import run_apart
from dcnzoo.hardware import PeakMemory, hardware_stamp, peak_memory
from dcnzoo.manifest import Architecture, load_manifest
from dcnzoo.memory import raised_as_memory_error
from dcnzoo.models.fixed_shape import FixedShapeRCNN
from dcnzoo.models.rcnn import RCNN
from dcnzoo.predictor import Predictor, load
from dcnzoo.sources import read_image
from dcnzoo.synthetic import random_checkpoint
from dcnzoo.times import StageTimes

R = TypeVar("R")

MODEL_STAGES = {"backbone": "backbone", "neck": "neck", "rpn": "rpn_head", "roi": "roi_head"}
"""Stages within the model → the submodule whose forward each of them is."""

STAGES = ("decode", "preprocess", "transfer", *MODEL_STAGES, "postprocess")
"""Of the work on a batch. Transfer is to the device and the precision, and of the detections back."""

NUM_CLASSES = 80
"""Of random weights for an architecture that is not in the manifest: as many as COCO has."""


@dataclass(frozen=True)
class Model:
    """What to load.

    Attributes:
        name: of a record, None for weights without one.
        arch: of the architecture, where there is neither a record nor a checkpoint that describes itself.
        weights: checkpoint file; None for random weights.
    """

    name: str | None
    arch: str | None
    weights: Path | None

    @property
    def title(self) -> str:
        """What stands for it in reports, less that its weights are random."""
        return self.name or self.arch or Path(str(self.weights)).stem

    def __str__(self) -> str:
        return f"{self.title} (random weights)" if self.weights is None else self.title


@dataclass(frozen=True)
class Case:
    """What is measured at once.

    Attributes:
        model: what to load.
        device: as `dcnzoo.predictor.find_device` takes it.
        precision: "fp32", "tf32", "fp16" or "bf16".
        batch_size: images per forward pass.
    """

    model: Model
    device: str
    precision: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.model}, {self.device}, {self.precision}, batch {self.batch_size}"


@dataclass(frozen=True)
class Settings:
    """What all cases have in common.

    Attributes:
        images: paths or addresses, taken in turn, beginning anew at the end.
        warmup: batches before the measurement.
        repeats: batches that are measured.
        threads: of PyTorch on the CPU, None for its own choice.
        short_side: as `dcnzoo.load` takes it.
        long_side: likewise.
        manifest: the user's manifest.
        cuda_graphs: as `dcnzoo.load` takes it.
    """

    images: tuple[str, ...]
    warmup: int = 2
    repeats: int = 10
    threads: int | None = None
    short_side: int | None = None
    long_side: int | None = None
    manifest: Path | None = None
    cuda_graphs: bool = False


@dataclass(frozen=True)
class Spread:
    """Milliseconds per batch: mean, median and 95th percentile."""

    mean: float
    p50: float
    p95: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Summarises the times of at least one batch."""
        p50, p95 = np.percentile(seconds, [50, 95])
        return cls(*(float(value) * 1000 for value in (np.mean(seconds), p50, p95)))


@dataclass(frozen=True)
class Result:
    """What was measured.

    Attributes:
        case: what it was measured of; its batch size is the one that fitted.
        input_size: (height, width) of the largest input of the model, padded.
        detections: mean number per image.
        stages: per stage of `STAGES`.
        total: from the encoded image to the detections.
        images_per_second: from the mean of the total.
        memory: most that the process has used, loading included.
        stamp: machine and versions.
    """

    case: Case
    input_size: tuple[int, int]
    detections: float
    stages: dict[str, Spread]
    total: Spread
    images_per_second: float
    memory: PeakMemory
    stamp: dict[str, Any]


def run_cases(
    cases: Iterable[Case], measure: Callable[[Case], R], notify: Callable[[str], object]
) -> Iterator[R]:
    """Measures cases; one that does not fit into the memory is tried with half the batch size.

    Args:
        cases: each is measured once, whether it was asked for or arrived at.
        measure: raises MemoryError if a case does not fit.
        notify: is told about every case that did not fit.

    Yields:
        The results, none for a case that does not even fit with a batch of one.
    """
    done = set()
    for case in cases:
        while case not in done:
            done.add(case)
            try:
                yield measure(case)
            except MemoryError as error:
                smaller = replace(case, batch_size=case.batch_size // 2)
                cure = f"batch {smaller.batch_size} instead" if smaller.batch_size else "not measured"
                notify(f"{case} does not fit into the memory: {cure} ({error})")
                if smaller.batch_size:
                    case = smaller


def measure_apart(case: Case, settings: Settings) -> Result:
    """Measures a case in a process of its own; otherwise as `measure`."""
    return run_apart(partial(measure, case, settings))


def measure(case: Case, settings: Settings) -> Result:
    """Measures a case in this process.

    Raises:
        MemoryError: it does not fit into the memory.
        DcnzooError: the model cannot be loaded, or an image cannot be read.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with raised_as_memory_error():
        predictor = load_predictor(case, settings)
        with StageClock(predictor.network, predictor.device) as clock:
            list(_run_batches(predictor, clock, settings.images, case.batch_size, settings.warmup))
            batches = list(_run_batches(predictor, clock, settings.images, case.batch_size, settings.repeats))
    return _summarise(case, batches, clock.input_size, predictor.device)


def load_predictor(case: Case, settings: Settings) -> Predictor:
    """Loads what a case measures.

    Raises:
        DcnzooError: it cannot be loaded.
    """
    model = case.model
    return load(
        model.name,  # nothing here keeps the weights: they are freed as their arranged copies are made
        weights=model.weights or random_checkpoint(*_structure(model, settings.manifest)),
        arch=model.arch,
        manifest=settings.manifest,
        device=case.device,
        precision=case.precision,
        short_side=settings.short_side,
        long_side=settings.long_side,
        cuda_graphs=settings.cuda_graphs,
    )


def _structure(model: Model, manifest: Path | None) -> tuple[Architecture, int]:
    if model.name is None:
        return Architecture.parse(str(model.arch)), NUM_CLASSES
    record = load_manifest(manifest).find(model.name)
    return record.architecture, len(record.classes.names)


class StageClock:
    """Times the stages within a model while it is entered.

    On a GPU the times are those of its own queue, in which the stages follow each other without a pause
    for the measurement.

    Args:
        model: whose `MODEL_STAGES` are timed.
        device: where it computes.

    Attributes:
        input_size: (height, width) of the largest input so far.
    """

    def __init__(self, model: RCNN | FixedShapeRCNN, device: torch.device) -> None:
        self._model, self._device = model, device
        self._marks: list[tuple[str, Any]] = []  # seconds, or an event in the GPU's queue
        self.input_size = (0, 0)

    def __enter__(self) -> StageClock:
        self._handles = [self._model.register_forward_pre_hook(self._note_size)]
        for stage, name in MODEL_STAGES.items():
            module: nn.Module = getattr(self._model, name)
            self._handles += [
                module.register_forward_pre_hook(partial(self._mark, stage)),
                module.register_forward_hook(partial(self._mark, stage)),
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self) -> StageTimes:
        """Returns the seconds per stage since the last call."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        times = StageTimes()
        for (stage, start), (_, end) in zip(self._marks[::2], self._marks[1::2], strict=True):
            times[stage] += _seconds_between(start, end)
        self._marks.clear()
        return times

    def _note_size(self, module: nn.Module, arguments: Any) -> None:  # noqa: ARG002
        size = tuple(arguments[0].shape[-2:])
        self.input_size = max(self.input_size, size, key=lambda size: size[0] * size[1])

    def _mark(self, stage: str, *hook_arguments: object) -> None:  # noqa: ARG002
        if self._device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():  # nothing runs yet
                return
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._marks.append((stage, event))
        else:
            self._marks.append((stage, time.perf_counter()))


def _seconds_between(start: Any, end: Any) -> float:
    if isinstance(start, float):
        return float(end - start)
    return float(start.elapsed_time(end)) / 1000


@dataclass(frozen=True)
class _Batch:
    """What was measured of one batch: seconds per stage, in total, and the mean number of detections."""

    times: StageTimes
    total: float
    detections: float


def _run_batches(
    predictor: Predictor, clock: StageClock, images: Sequence[str], batch_size: int, count: int
) -> Iterator[_Batch]:
    endless = cycle(images)
    for _ in range(count):
        yield _run_batch(predictor, clock, list(islice(endless, batch_size)))


def _run_batch(predictor: Predictor, clock: StageClock, locations: Sequence[str]) -> _Batch:
    times, start = StageTimes(), time.perf_counter()
    with times.measure("decode"):
        images = [read_image(location) for location in locations]
    found = predictor.predict_batch(images, times=times)
    total = time.perf_counter() - start
    within = clock.take()
    # a GPU's clock is not the CPU's: the difference may come out just below zero
    times["transfer"] = max(0.0, times.pop("inference") - sum(within.values()))
    times.add(within)
    return _Batch(times, total, float(np.mean([len(detections) for detections in found])))


def _summarise(
    case: Case, batches: Sequence[_Batch], input_size: tuple[int, int], device: torch.device
) -> Result:
    total = Spread.of([batch.total for batch in batches])
    return Result(
        case=case,
        input_size=input_size,
        detections=float(np.mean([batch.detections for batch in batches])),
        stages={stage: Spread.of([batch.times[stage] for batch in batches]) for stage in STAGES},
        total=total,
        images_per_second=case.batch_size * 1000 / total.mean,
        memory=peak_memory(device),
        stamp=hardware_stamp(device),
    )

"""How long a training step takes, stage by stage, beside the same step on torchvision's operators."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from dcnzoo.benchmark import NUM_CLASSES, Case, Settings, Spread
from dcnzoo.build import build_model
from dcnzoo.fresh_process import run_apart
from dcnzoo.hardware import PeakMemory, hardware_stamp, peak_memory
from dcnzoo.image import make_batch
from dcnzoo.manifest import Preprocessing
from dcnzoo.memory import raised_as_memory_error
from dcnzoo.models.rcnn import RCNN
from dcnzoo.ops import active_backend
from dcnzoo.predictor import PRECISIONS, find_device, prepare_precision
from dcnzoo.sources import read_image
from dcnzoo.synthetic import random_checkpoint
from dcnzoo.times import StageTimes
from dcnzoo.training.batches import TrainingBatch
from dcnzoo.training.initialise import load_for_training, prepare_for_training
from dcnzoo.training.losses import LossNetwork
from dcnzoo.training.options import TrainingOptions
from dcnzoo.training.schedule import make_optimizer
from dcnzoo.training.start import find_source
from dcnzoo.training.targets import Target

STAGES = ("forward", "backward", "optimizer")

OBJECTS = 20
"""In each image; COCO has 7 on average."""

LEARNING_RATE = 1e-9
"""So small that the weights, and with them the work, stay what they are."""

OTHERS = "torchvision"
"""Operators to compare with."""


@dataclass(frozen=True)
class StepResult:
    """What was measured of a case.

    Attributes:
        case: what it was measured of.
        operators: that ran.
        input_size: (height, width) of the input, padded.
        stages: per stage of `STAGES`.
        total: of the step.
        images_per_second: from the mean of the total.
        memory: most that the process has used, loading included.
        stamp: machine and versions.
    """

    case: Case
    operators: str
    input_size: tuple[int, int]
    stages: dict[str, Spread]
    total: Spread
    images_per_second: float
    memory: PeakMemory
    stamp: dict[str, Any]


def compare_apart(case: Case, settings: Settings) -> list[StepResult]:
    """Measures a case with the operators that are active, and with torchvision's if those are others.

    Each is measured in a process of its own; otherwise as `measure_steps`.
    """
    results = [run_apart(partial(measure_steps, case, settings))]
    if results[0].operators != OTHERS:
        with _environment("DCNZOO_OPS", OTHERS):
            results.append(run_apart(partial(measure_steps, case, settings)))
    return results


def measure_steps(case: Case, settings: Settings) -> StepResult:
    """Measures training steps in this process: losses, gradients and SGD, as `dcnzoo train` makes them.

    Raises:
        MemoryError: they do not fit into the memory.
        DcnzooError: the model cannot be loaded, the device cannot train in the precision, or an image cannot
            be read.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with raised_as_memory_error():
        device = find_device(case.device)
        prepare_precision(case.precision, device, training=True)
        model, preprocessing = _model(case, settings, device)
        batches = cycle(list(_batches(case, settings, preprocessing, model.has_masks, device)))
        step = _Step(model, preprocessing.size_divisor, case.precision, device)
        for batch in islice(batches, settings.warmup):
            step.run(batch)
        times = [step.run(batch) for batch in islice(batches, settings.repeats)]
    total = Spread.of([sum(each.values()) for each in times])
    height, width = next(batches).images.shape[-2:]
    return StepResult(
        case,
        active_backend()[0],
        (height, width),
        {stage: Spread.of([each[stage] for each in times]) for stage in STAGES},
        total,
        case.batch_size * 1000 / total.mean,
        peak_memory(device),
        hardware_stamp(device),
    )


def _model(case: Case, settings: Settings, device: torch.device) -> tuple[RCNN, Preprocessing]:
    """The model as it is fine-tuned: batch norm frozen, and the first stage."""
    options = TrainingOptions(
        model=case.model.name,
        arch=case.model.arch,
        weights=case.model.weights,
        from_scratch=case.model.weights is None,
        short_sides=(settings.short_side,) if settings.short_side else (),
        long_side=settings.long_side,
    )
    source = find_source(options, settings.manifest)
    num_classes = len(source.class_names) or NUM_CLASSES
    state = source.state or random_checkpoint(source.architecture, num_classes).state_dict
    model = build_model(source.architecture, num_classes)
    load_for_training(model, state)
    prepare_for_training(model, norm="frozen")
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, source.preprocessing


def _batches(
    case: Case, settings: Settings, preprocessing: Preprocessing, masks: bool, device: torch.device
) -> Iterator[TrainingBatch]:
    """Yields as many batches as there are images for, at most as many as are needed."""
    images = cycle(settings.images)
    count = min(settings.repeats, -(-len(settings.images) // case.batch_size))
    for number in range(count):
        names = list(islice(images, case.batch_size))
        batch = make_batch([read_image(name) for name in names], preprocessing)
        targets = [
            random_target(size, (batch.images.shape[-2], batch.images.shape[-1]), masks, number, device)
            for size in batch.image_sizes
        ]
        yield TrainingBatch(batch.images.to(device), batch.image_sizes, targets, names)


def random_target(
    image_size: tuple[int, int], padded_size: tuple[int, int], masks: bool, seed: int, device: torch.device
) -> Target:
    """Makes objects of all sizes, whose masks are their boxes.

    Args:
        image_size: (height, width) of the resized image.
        padded_size: (height, width) of the masks.
        masks: whether there are masks.
        seed: of the boxes.
        device: of the tensors.
    """
    random = np.random.default_rng(seed)
    size = np.array([image_size[1], image_size[0]], np.float64)
    sides = size * np.exp(random.uniform(math.log(0.03), math.log(0.6), (OBJECTS, 2)))
    corners = random.uniform(0, 1, (OBJECTS, 2)) * (size - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    drawn = np.zeros((OBJECTS, *padded_size), np.bool_)
    for mask, (left, top, right, bottom) in zip(drawn, boxes.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    return Target(
        torch.from_numpy(boxes).to(device),
        torch.zeros(OBJECTS, dtype=torch.int64, device=device),
        torch.from_numpy(drawn).to(device) if masks else None,
        torch.zeros(0, 4, device=device),
    )


class _Step:
    """A training step that times its stages.

    Args:
        model: prepared for training.
        size_divisor: of the preprocessing.
        precision: of the forward pass.
        device: where the model is.
    """

    def __init__(self, model: RCNN, size_divisor: int, precision: str, device: torch.device) -> None:
        dtype = PRECISIONS[precision]
        self._network, self._device = LossNetwork(model, dtype=dtype, size_divisor=size_divisor), device
        self._optimizer = make_optimizer("sgd", model, learning_rate=LEARNING_RATE)

    def run(self, batch: TrainingBatch) -> StageTimes:
        times = StageTimes()
        with self._measured(times, "forward"):
            losses = self._network(batch.images, batch.image_sizes, batch.targets, torch.Generator())
            total = torch.stack(list(losses.values())).sum()
        with self._measured(times, "backward"):
            total.backward()  # type: ignore[no-untyped-call]
        with self._measured(times, "optimizer"):
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), math.inf)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        return times

    @contextmanager
    def _measured(self, times: StageTimes, stage: str) -> Iterator[None]:
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        times[stage] += time.perf_counter() - start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets a variable of the environment for the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

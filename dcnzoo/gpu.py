"""A detector on a GPU: batches go up, through the model and down again without the host in between.

The model runs in fixed shapes (`dcnzoo.models.fixed_shape`), if wished as a CUDA graph per shape of a batch.
Everything but streams, pinned memory and graphs works on a CPU too, which is how it is tested without a GPU.

Shapes: N images, H and W the padded size of a batch, D most detections.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dcnzoo.models.fixed_shape import (
    FixedInstances,
    FixedShapeRCNN,
    Settings,
    make_anchors,
    pack_settings,
    split_instances,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dcnzoo.image import PreparedImage
    from dcnzoo.manifest import Preprocessing
    from dcnzoo.models.rcnn import RCNN, Instances

_LOG = logging.getLogger(__name__)

MOST_GRAPHS = 16
"""Graphs kept; most images of a collection share a few shapes."""

SEEN_BEFORE = 1
"""Batches of a shape that run without a graph before one is captured, which costs about ten of them."""

Computation = Callable[[Tensor, Tensor], FixedInstances]
"""(pixels, settings) → what is found in a batch."""


class Batch(NamedTuple):
    """What goes up to a GPU.

    Attributes:
        pixels: (N, H, W, 3) uint8 RGB, padded with anything at the right and the bottom.
        settings: of `pack_settings`.
    """

    pixels: Tensor
    settings: Tensor


class Pending:
    """Detections that are being computed."""

    def __init__(self, found: FixedInstances, finished: Any) -> None:
        self._found, self._finished = found, finished

    def result(self) -> list[Instances]:
        """Waits for them; per image, on the CPU."""
        if self._finished is not None:
            self._finished.synchronize()
        return split_instances(self._found)


class GpuDetector:
    """Runs a detector on a device.

    Batches may be begun by several threads. With CUDA graphs all of them need the same current stream, as
    threads have that chose none: graphs share memory, and only the order in a stream keeps them apart.

    Args:
        model: for inference, on the device and in its final precision.
        preprocessing: of its images.
        num_classes: K.
        dtype: of the images.
        device: where it computes.
        cuda_graphs: whether shapes that come again run as CUDA graphs.

    Attributes:
        network: what computes, for whoever wants to watch its parts; a graph runs past them.
    """

    def __init__(
        self,
        model: RCNN,
        preprocessing: Preprocessing,
        num_classes: int,
        dtype: torch.dtype,
        device: torch.device,
        cuda_graphs: bool = False,
    ) -> None:
        self.network = FixedShapeRCNN(model)
        self._preprocessing, self._num_classes = preprocessing, num_classes
        self._dtype, self._device, self._lock = dtype, device, threading.Lock()
        on_gpu = device.type == "cuda"
        self._uploads = _new_stream(device) if on_gpu else None
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=device)
            for values in (preprocessing.mean, preprocessing.std)
        )
        self._anchors = lru_cache(maxsize=MOST_GRAPHS)(make_anchors)
        self._graphs = self._new_graphs() if cuda_graphs and on_gpu else None

    def stack(
        self, prepared: Sequence[PreparedImage], score_threshold: float, labels: NDArray[np.int64] | None
    ) -> Batch:
        """Makes a batch of resized images.

        Args:
            prepared: at least one image.
            score_threshold: keep detections whose score exceeds it.
            labels: keep only these classes; None for all.
        """
        return stack_images(
            prepared,
            self._preprocessing.size_divisor,
            self._num_classes,
            score_threshold,
            labels,
            pinned=self._uploads is not None,
        )

    def begin(self, batch: Batch, max_detections: int) -> Pending:
        """Begins to detect, at most so many per image, and returns at once."""
        as_loaded = torch.autocast(self._device.type, enabled=False)  # `dtype` has decided
        with self._lock, torch.inference_mode(), as_loaded, self._on_device():
            pixels, settings = self._upload(batch)
            compute = self.computation(pixels.shape, max_detections)
            if self._graphs is None:
                found = compute(pixels, settings)
            else:
                found = self._graphs.run((pixels.shape, max_detections), compute, pixels, settings)
            return self._download(found)

    def computation(self, shape: Sequence[int], max_detections: int) -> Computation:
        """What is computed for pixels of a shape (N, H, W, 3)."""
        images, height, width, _ = shape
        anchors = self._anchors((height, width), self._device)

        def compute(pixels: Tensor, settings: Tensor) -> FixedInstances:
            unpacked = Settings.unpack(settings, images)
            normalised = normalise(pixels, unpacked.limits, self._mean, self._std)
            found: FixedInstances = self.network(
                normalised.to(self._dtype), unpacked, anchors, max_detections
            )
            return found

        return compute

    def free_memory(self) -> None:
        """Lets the graphs go."""
        with self._lock:
            if self._graphs is not None:
                self._graphs = self._new_graphs()

    def _new_graphs(self) -> GraphCache:
        return GraphCache(GraphCapture(self._device))

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self._device) if self._uploads is not None else nullcontext()

    def _upload(self, batch: Batch) -> Batch:
        """Copies in a stream of its own, so that one batch goes up while another is computed."""
        if self._uploads is None:
            return batch
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._uploads):
            there = Batch(*(tensor.to(self._device, non_blocking=True) for tensor in batch))
        current.wait_stream(self._uploads)
        for tensor in there:
            tensor.record_stream(current)
        return there

    def _download(self, found: FixedInstances) -> Pending:
        if self._uploads is None:
            return Pending(found, None)
        masks = None if found.mask_probs is None else _to_host(found.mask_probs)
        boxes, scores, labels, counts = (_to_host(tensor) for tensor in found[:4])
        there = FixedInstances(boxes, scores, labels, counts, masks)
        finished = torch.cuda.Event()  # type: ignore[no-untyped-call]
        finished.record(torch.cuda.current_stream(self._device))
        return Pending(there, finished)


class GraphCapture:
    """Turns computations into CUDA graphs that share their memory: they never run at the same time.

    That is so if all of them are replayed on one stream, which is therefore the current one in every call.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, _new_stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Computation, pixels: Tensor, settings: Tensor) -> Computation:
        """A computation that replays what `compute` does with tensors of these shapes.

        What it returns is overwritten by the next graph.
        """
        inputs = pixels.clone(), settings.clone()
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):  # libraries choose their kernels and take their memory
            compute(*inputs)
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        capturing = torch.cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        )
        try:
            with capturing:
                found = compute(*inputs)
        except BaseException:  # PyTorch takes no pool again whose graphs are all gone
            self._pool = torch.cuda.graph_pool_handle()
            raise
        return _Graph(graph, compute, inputs, found)


class _Graph:
    """A captured computation. The graph knows addresses only: what it reads lives as long as this."""

    def __init__(
        self,
        graph: torch.cuda.CUDAGraph,
        compute: Computation,
        inputs: tuple[Tensor, Tensor],
        found: FixedInstances,
    ) -> None:
        self._graph, self._kept, self._inputs, self._found = graph, compute, inputs, found

    def __call__(self, pixels: Tensor, settings: Tensor) -> FixedInstances:
        self._inputs[0].copy_(pixels)
        self._inputs[1].copy_(settings)
        self._graph.replay()
        return self._found


class GraphCache:
    """Runs computations as graphs once they come again.

    When there is no room, a computation gets the place of the rarest one that has a graph once it has come
    more often; until then it runs without. So does one whose capture has failed, for good.

    Args:
        capture: makes a graph of a computation and its arguments.
        most: graphs kept.
        seen_before: runs without a graph before one is made.
    """

    def __init__(
        self,
        capture: Callable[[Computation, Tensor, Tensor], Computation],
        most: int = MOST_GRAPHS,
        seen_before: int = SEEN_BEFORE,
    ) -> None:
        self._capture, self._most, self._seen_before = capture, most, seen_before
        self._seen: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, Computation] = {}
        self._failed: set[Hashable] = set()

    def run(self, key: Hashable, compute: Computation, pixels: Tensor, settings: Tensor) -> FixedInstances:
        """Computes, by a graph where there is one.

        Args:
            key: of computations that are the same but for the numbers in their tensors.
            compute: used without a graph, or to make one.
            pixels: its first argument.
            settings: its second.
        """
        self._seen[key] += 1
        if key not in self._graphs:
            if self._seen[key] <= self._seen_before or key in self._failed or not self._make_room(key):
                return compute(pixels, settings)
            try:
                self._graphs[key] = self._capture(compute, pixels, settings)
            except torch.OutOfMemoryError:
                raise  # who has called knows what to do
            except RuntimeError as error:
                self._failed.add(key)
                _LOG.warning("no CUDA graph of %s, which runs without: %s", key, error)
                return compute(pixels, settings)
        return self._graphs[key](pixels, settings)

    def _make_room(self, key: Hashable) -> bool:
        if len(self._graphs) < self._most:
            return True
        rarest = min(self._graphs, key=self._seen.__getitem__)
        if self._seen[key] <= self._seen[rarest]:
            return False
        del self._graphs[rarest]
        return True


def stack_images(
    prepared: Sequence[PreparedImage],
    size_divisor: int,
    num_classes: int,
    score_threshold: float,
    labels: NDArray[np.int64] | None,
    *,
    pinned: bool,
) -> Batch:
    """Pads images to one size, as they are: a quarter of the bytes of what the model takes.

    Args:
        prepared: at least one image.
        size_divisor: of the padded height and width.
        num_classes: K.
        score_threshold: as in `pack_settings`, like `labels`.
        labels: classes to look for.
        pinned: whether a GPU is to read the memory by itself.
    """
    sizes = [(image.pixels.shape[0], image.pixels.shape[1]) for image in prepared]
    height, width = (-(-max(sides) // size_divisor) * size_divisor for sides in zip(*sizes, strict=True))
    pixels = torch.empty(len(prepared), height, width, 3, dtype=torch.uint8, pin_memory=pinned)
    for canvas, image, (h, w) in zip(pixels.numpy(), prepared, sizes, strict=True):
        canvas[:h, :w] = image.pixels
    originals = [image.original_size for image in prepared]
    chosen = None if labels is None else torch.from_numpy(labels)
    settings = pack_settings(sizes, originals, num_classes, score_threshold, chosen)
    return Batch(pixels, settings.pin_memory() if pinned else settings)


def normalise(pixels: Tensor, limits: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """What `dcnzoo.image.collate` makes of images, bit for bit.

    Args:
        pixels: (N, H, W, 3) uint8, with anything in the padding.
        limits: (N, 4) width and height of each image, and both again.
        mean: (3,) float32.
        std: (3,) float32.

    Returns:
        (N, 3, H, W) float32 in channels-last memory; the padding is zero.
    """
    columns = torch.arange(pixels.shape[2], device=pixels.device) < limits[:, 0, None]
    rows = torch.arange(pixels.shape[1], device=pixels.device) < limits[:, 1, None]
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return torch.where(inside, (pixels.float() - mean) / std, 0.0).permute(0, 3, 1, 2)


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _to_host(tensor: Tensor) -> Tensor:
    """A copy in pinned memory that is complete when the stream has come so far."""
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return there.copy_(tensor, non_blocking=True)

"""From images to detections: the Python interface.

Shapes: N images, D detections, K classes, H and W the size of an original image.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, cast, get_args, overload

import numpy as np
import torch
from PIL import Image

from dcnzoo.build import load_model, pack_weights
from dcnzoo.checkpoint import Checkpoint, load_checkpoint
from dcnzoo.download import fetch
from dcnzoo.errors import CheckpointError, DeviceError, ImageReadError, OutOfMemoryError
from dcnzoo.gpu import GpuDetector
from dcnzoo.image import PreparedImage, collate, decode_image, prepare_image, rgb_array
from dcnzoo.manifest import Architecture, ClassSet, Preprocessing, Record, load_manifest
from dcnzoo.memory import is_out_of_memory
from dcnzoo.models.precision import lower_precision
from dcnzoo.ops import paste_masks
from dcnzoo.ops.backend import half_factor
from dcnzoo.ops.gpu import gpu_backend
from dcnzoo.recognise import recognise
from dcnzoo.results import Detections, find_labels
from dcnzoo.sources import read_image
from dcnzoo.times import StageTimes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dcnzoo.models.fixed_shape import FixedShapeRCNN
    from dcnzoo.models.rcnn import RCNN, Instances

logger = logging.getLogger(__name__)

ImageLike: TypeAlias = "str | Path | BinaryIO | Image.Image | NDArray[np.uint8] | torch.Tensor"

OnError = Literal["raise", "skip"]

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

SCORE_THRESHOLD = 0.05
MAX_DETECTIONS = 100
"""What COCO's metric expects, and what the published figures were obtained with."""


class Predictor:
    """A model with all that is needed to use it on images.

    Calls may come from several threads.

    Attributes:
        model: in evaluation mode, on `device`, in `precision`.
        preprocessing: sizes and normalisation of its input.
        class_names: names of the K classes.
        category_ids: COCO category ids of the K classes.
        device: where it computes; of a GPU with its number.
        precision: "fp32", "tf32", "fp16" or "bf16".
    """

    def __init__(
        self,
        model: RCNN,
        preprocessing: Preprocessing,
        classes: ClassSet,
        device: torch.device,
        precision: str = "fp32",
        cuda_graphs: bool = False,
    ) -> None:
        dtype, device = PRECISIONS[precision], with_index(device)
        lowered = device.type == "cpu" and dtype != torch.float32
        with _told_if_out_of_memory("the model does", device, "use another --device"):
            self.model = pack_weights(lower_precision(model, dtype) if lowered else model.to(device, dtype))
        self._image_dtype = torch.float32 if lowered else dtype
        self.preprocessing = preprocessing
        self.class_names, self.category_ids = classes.names, classes.category_ids
        self.device, self.precision = device, precision
        self._gpu: GpuDetector | None = None
        if device.type == "cuda" and has_kernels(device):
            num_classes = len(classes.names)
            self._gpu = GpuDetector(self.model, preprocessing, num_classes, dtype, device, cuda_graphs)

    @property
    def overlaps(self) -> bool:
        """Whether a batch that is begun computes while the caller goes on."""
        return self._gpu is not None

    @property
    def network(self) -> RCNN | FixedShapeRCNN:
        """What computes: the model, or on a GPU the same in fixed shapes."""
        return self.model if self._gpu is None else self._gpu.network

    @overload
    def __call__(
        self,
        images: ImageLike,
        *,
        batch_size: int = ...,
        score_threshold: float = ...,
        max_detections: int = ...,
        classes: Iterable[str | int] | str | int | None = ...,
        on_error: OnError = ...,
    ) -> Detections: ...

    @overload
    def __call__(
        self,
        images: Iterator[ImageLike],
        *,
        batch_size: int = ...,
        score_threshold: float = ...,
        max_detections: int = ...,
        classes: Iterable[str | int] | str | int | None = ...,
        on_error: OnError = ...,
    ) -> Iterator[Detections]: ...

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        batch_size: int = ...,
        score_threshold: float = ...,
        max_detections: int = ...,
        classes: Iterable[str | int] | str | int | None = ...,
        on_error: OnError = ...,
    ) -> list[Detections]: ...

    def __call__(
        self,
        images: ImageLike | Iterator[ImageLike] | list[Any] | tuple[Any, ...],
        *,
        batch_size: int = 1,
        score_threshold: float = SCORE_THRESHOLD,
        max_detections: int = MAX_DETECTIONS,
        classes: Iterable[str | int] | str | int | None = None,
        on_error: OnError = "raise",
    ) -> Detections | Iterator[Detections] | list[Detections]:
        """Detects in one image or in several.

        An image is a path, an address (http, https, file), an open binary file, a Pillow image, an RGB array
        (H, W, 3) or grey array (H, W) of uint8, or an RGB or grey tensor (3 or 1, H, W) of uint8 or of floats
        in 0-1.

        Args:
            images: an image, a list of images, or an iterator of images, which is read as results are taken.
            batch_size: images that go through the model together; their sizes may differ.
            score_threshold: keep detections whose score exceeds it.
            max_detections: keep at most so many per image, the best; at least 1.
            classes: names or COCO category ids to look for, or one of them; all by default.
            on_error: what becomes of one of several images that cannot be read: "raise" its error, or "skip"
                it with a warning, so that there are fewer detections than images; their `path` tells whose
                they are.

        Returns:
            Detections of the one image, a list for a list, an iterator for an iterator.

        Raises:
            ImageReadError: an image cannot be read, and is the only one or not to be skipped.
            ValueError: an image has another shape or type than those above, an option is out of its range,
                or a class is unknown.
        """
        _check_count("batch_size", batch_size)
        _check_count("max_detections", max_detections)
        if math.isnan(score_threshold):
            raise ValueError("expected a score_threshold that is a number, got NaN")
        if on_error not in get_args(OnError):
            raise ValueError(f"expected on_error to be 'raise' or 'skip', got {on_error!r}")
        labels = self.find_labels(classes)
        streams = isinstance(images, Iterator) and not _is_file(images)  # a file is an iterator, too
        several: Any = images if streams or isinstance(images, (list, tuple)) else [images]
        readable = _read(several, skip=on_error == "skip" and several is images)
        results = self._stream(readable, batch_size, score_threshold, max_detections, labels)
        if streams:
            return results
        return list(results) if several is images else next(results)

    def predict_batch(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        score_threshold: float = SCORE_THRESHOLD,
        max_detections: int = MAX_DETECTIONS,
        labels: NDArray[np.int64] | None = None,
        times: StageTimes | None = None,
    ) -> list[Detections]:
        """Detects in decoded images, as one batch.

        Args:
            images: at least one (H, W, 3) RGB image.
            score_threshold: keep detections whose score exceeds it.
            max_detections: keep at most so many per image.
            labels: keep only these classes, see `find_labels`.
            times: gets the seconds of the stages added.

        Returns:
            Detections per image.
        """
        times = StageTimes() if times is None else times
        with times.measure("preprocess"):
            prepared = [self.prepare(image) for image in images]
        return self.predict_prepared(
            prepared,
            score_threshold=score_threshold,
            max_detections=max_detections,
            labels=labels,
            times=times,
        )

    def prepare(self, image: NDArray[np.uint8]) -> PreparedImage:
        """Resizes an (H, W, 3) RGB image; may run in another thread than the model."""
        return prepare_image(image, self.preprocessing)

    def predict_prepared(
        self,
        prepared: Sequence[PreparedImage],
        *,
        score_threshold: float = SCORE_THRESHOLD,
        max_detections: int = MAX_DETECTIONS,
        labels: NDArray[np.int64] | None = None,
        times: StageTimes | None = None,
    ) -> list[Detections]:
        """Detects in images that `prepare` has resized; otherwise as `predict_batch`.

        Raises:
            OutOfMemoryError: the batch does not fit into the memory of the device.
        """
        finish = self.begin_prepared(
            prepared,
            score_threshold=score_threshold,
            max_detections=max_detections,
            labels=labels,
            times=times,
        )
        return finish()

    def begin_prepared(
        self,
        prepared: Sequence[PreparedImage],
        *,
        score_threshold: float = SCORE_THRESHOLD,
        max_detections: int = MAX_DETECTIONS,
        labels: NDArray[np.int64] | None = None,
        times: StageTimes | None = None,
    ) -> Callable[[], list[Detections]]:
        """Begins what `predict_prepared` does: a GPU computes while the caller goes on.

        Returns:
            A function that waits for the detections; on a CPU it computes them.

        Raises:
            OutOfMemoryError: the batch does not fit into the memory of the device; so may the function.
        """
        times = StageTimes() if times is None else times
        work = (prepared, score_threshold, max_detections, labels, times)
        return self._begin_on_cpu(*work) if self._gpu is None else self._begin_on_gpu(self._gpu, *work)

    def _begin_on_gpu(
        self,
        gpu: GpuDetector,
        prepared: Sequence[PreparedImage],
        score_threshold: float,
        max_detections: int,
        labels: NDArray[np.int64] | None,
        times: StageTimes,
    ) -> Callable[[], list[Detections]]:
        with _told_if_batch_does_not_fit(len(prepared), self.device):
            with times.measure("preprocess"):
                batch = gpu.stack(prepared, score_threshold, labels)
            with times.measure("inference"):
                pending = gpu.begin(batch, max_detections)

        def finish() -> list[Detections]:
            with _told_if_batch_does_not_fit(len(prepared), self.device):
                with times.measure("inference"):
                    found = pending.result()
                with times.measure("postprocess"):
                    sizes = [image.original_size for image in prepared]
                    return [self._detections(*pair) for pair in zip(found, sizes, strict=True)]

        return finish

    def _begin_on_cpu(
        self,
        prepared: Sequence[PreparedImage],
        score_threshold: float,
        max_detections: int,
        labels: NDArray[np.int64] | None,
        times: StageTimes,
    ) -> Callable[[], list[Detections]]:
        def finish() -> list[Detections]:
            with _told_if_batch_does_not_fit(len(prepared), self.device):
                return self._predict_prepared(prepared, score_threshold, max_detections, labels, times)

        return finish

    def _predict_prepared(
        self,
        prepared: Sequence[PreparedImage],
        score_threshold: float,
        max_detections: int,
        labels: NDArray[np.int64] | None,
        times: StageTimes,
    ) -> list[Detections]:
        with times.measure("preprocess"):
            batch = collate(prepared, self.preprocessing)
        as_loaded = torch.autocast(self.device.type, enabled=False)  # `precision` has decided
        with times.measure("inference"), torch.inference_mode(), as_loaded:
            images = batch.images.to(self.device, self._image_dtype)
            found = self.model(
                images,
                batch.image_sizes,
                batch.original_sizes,
                score_threshold=score_threshold,
                max_detections=max_detections,
                labels=None if labels is None else torch.from_numpy(labels).to(self.device),
            )
            found = [_to_cpu(instances) for instances in found]
        with times.measure("postprocess"):
            return [
                self._detections(instances, size)
                for instances, size in zip(found, batch.original_sizes, strict=True)
            ]

    def free_memory(self) -> None:
        """Gives memory of the GPU back that PyTorch keeps for later."""
        if self._gpu is not None:
            self._gpu.free_memory()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def find_labels(self, classes: Iterable[str | int] | str | int | None) -> NDArray[np.int64] | None:
        """Translates class names and COCO category ids to labels; None stands for all.

        Raises:
            ValueError: a class is unknown.
        """
        return None if classes is None else find_labels(classes, self.class_names, self.category_ids)

    def _stream(
        self,
        images: Iterator[tuple[ImageLike, NDArray[np.uint8]]],
        batch_size: int,
        score_threshold: float,
        max_detections: int,
        labels: NDArray[np.int64] | None,
    ) -> Iterator[Detections]:
        while batch := list(islice(images, batch_size)):
            results = self.predict_batch(
                [pixels for _, pixels in batch],
                score_threshold=score_threshold,
                max_detections=max_detections,
                labels=labels,
            )
            for (image, _), detections in zip(batch, results, strict=True):
                path = str(image) if isinstance(image, (str, Path)) else None
                yield replace(detections, path=path)

    def _detections(self, instances: Instances, image_size: tuple[int, int]) -> Detections:
        rles = None
        if instances.mask_probs is not None:
            rles = tuple(paste_masks(instances.mask_probs, instances.boxes, image_size))
        return Detections(
            boxes=instances.boxes.numpy(),
            scores=instances.scores.numpy(),
            labels=instances.labels.numpy(),
            class_names=self.class_names,
            category_ids=self.category_ids,
            image_size=image_size,
            rles=rles,
        )


def load(
    name: str | None = None,
    *,
    weights: str | Path | Checkpoint | None = None,
    arch: str | None = None,
    manifest: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: str = "fp32",
    short_side: int | None = None,
    long_side: int | None = None,
    url_base: str | None = None,
    cuda_graphs: bool = False,
) -> Predictor:
    """Loads a model for inference.

    On a GPU, "fp32" is full float32 and "tf32" lets factors be rounded to TensorFloat-32: PyTorch's switches
    for that are those of the process, so that the model loaded last decides.

    Args:
        name: a checkpoint of the manifest; downloaded and verified if it is not in the cache.
        weights: a checkpoint of your own, as a file or loaded, in place of the published one.
        arch: architecture of `weights`, such as "faster_rcnn_r50_fpn_dconv_c3-c5"; by default that of `name`,
            or what the file names, or what its tensors are recognised as.
        manifest: a manifest file that extends the built-in one.
        device: "cpu", "cuda" or "cuda:1"; by default the GPU if there is one.
        precision: "fp32", or for speed "bf16", or on a GPU "tf32" or "fp16". On a processor with AVX512-FP16
            "bf16" and "fp16" are one: float32 maps, multiplied in float16. With AVX512-BF16 alone "bf16" is
            mostly float32 maps, multiplied in bfloat16.
        short_side: resize images to this short side; by default as the model was trained.
        long_side: limit of the long side; by default as the model was trained.
        url_base: address of a mirror to download from; by default the environment variable DCNZOO_MIRROR.
        cuda_graphs: on a GPU, whether batches of a shape that comes again run as a CUDA graph. All calls must
            then have the same current stream, as in threads that chose none.

    Returns:
        The predictor.

    Raises:
        UnknownModelError: no such name or architecture.
        DownloadError: the checkpoint cannot be fetched.
        ChecksumError: the fetched checkpoint is not the published file.
        CheckpointError: the file is no checkpoint of that architecture.
        DeviceError: the device or precision is not available.
        OutOfMemoryError: the model does not fit into the memory of the device.
        ValueError: arguments that do not go together, or a side that is no positive whole number.
    """
    if (name is None and weights is None) or (name is not None and arch is not None):
        raise ValueError("expected a name (with or without weights), or weights (with or without arch)")
    torch_device = find_device(device)
    prepare_precision(precision, torch_device)
    known = load_manifest(manifest)
    record = None if name is None else known.find(name)
    architecture = Architecture.parse(arch) if arch else None
    chosen = weights if weights is not None or record is None else fetch(record, url_base=url_base)
    checkpoint = chosen if isinstance(chosen, Checkpoint) else load_checkpoint(str(chosen))
    architecture, classes, preprocessing = identify(
        checkpoint, record, architecture, known.class_sets.values(), replaces=weights is not None
    )
    preprocessing = with_sides(preprocessing, short_side, long_side)
    model = load_model(architecture, checkpoint)
    del checkpoint, chosen, weights  # so that weights are freed as their arranged copies are made
    return Predictor(model, preprocessing, classes, torch_device, precision, cuda_graphs)


def identify(
    checkpoint: Checkpoint,
    record: Record | None,
    architecture: Architecture | None,
    known: Iterable[ClassSet],
    *,
    replaces: bool = False,
) -> tuple[Architecture, ClassSet, Preprocessing]:
    """Finds what has to be known to use a checkpoint's tensors.

    Args:
        checkpoint: may describe itself.
        record: the manifest's record, which comes before that.
        architecture: comes before the checkpoint's own, and before what its tensors are recognised as.
        known: class sets that give the category ids to equal names.
        replaces: whether the checkpoint takes the place of the record's own file; then the input and the
            classes that it describes come before the record's.

    Returns:
        Structure, classes and input of the model.

    Raises:
        CheckpointError: the architecture is not to be found.
    """
    if checkpoint.description:
        known = [checkpoint.description.classes, *known]
    said = record or checkpoint.description
    trained = (checkpoint.description if replaces else None) or said
    architecture = architecture or (said.architecture if said else recognise(checkpoint.state_dict))
    if architecture is None:
        example = "--arch faster_rcnn_r50_fpn_dconv_c3-c5"
        problem = (
            "does not name its architecture, and its tensors are those of no known one;"
            f" give it with --arch, such as {example}"
        )
        raise CheckpointError(str(checkpoint.path), problem)
    own = record is not None and not replaces
    classes = find_classes(checkpoint, trained.classes if trained else None, known, expected_first=own)
    return architecture, classes, trained.preprocessing if trained else Preprocessing()


@contextmanager
def _told_if_out_of_memory(what: str, device: torch.device, advice: str) -> Iterator[None]:
    """Turns what PyTorch raises when memory is short into an `OutOfMemoryError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"{what} not fit into the memory of {device}; {advice}") from error


def _told_if_batch_does_not_fit(images: int, device: torch.device) -> AbstractContextManager[None]:
    what = "the image does" if images == 1 else f"{images} images together do"
    return _told_if_out_of_memory(what, device, "use a smaller --batch-size or --short-side")


def find_device(device: str | torch.device | None) -> torch.device:
    """Returns the device to compute on: the one asked for, or the GPU if there is one, or the CPU.

    Raises:
        DeviceError: it is unknown or not there.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"unknown device {device!r}; use cpu, cuda or cuda:1 (the second GPU)") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        built = "this PyTorch is built without CUDA" if torch.version.cuda is None else "no GPU was found"
        raise DeviceError(f"cannot use {device}: {built}; use --device cpu, or leave the device out")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"cannot use {device}: there are {torch.cuda.device_count()} GPUs, numbered from 0")
    if found.type not in ("cpu", "cuda"):
        raise DeviceError(f"cannot use {device}: the detectors run on cpu and cuda")
    return found


def has_kernels(device: torch.device) -> bool:
    """Whether the compiled kernels run on a GPU; warns once if they should and do not."""
    name, reason = gpu_backend(device.index)
    if name not in ("native", os.environ.get("DCNZOO_OPS")):
        _warn_of_slow_operators(name, reason)
    return name == "native"


@cache
def _warn_of_slow_operators(name: str, reason: str) -> None:
    logger.warning("the GPU computes by the slower operators of %s: %s", name, reason)


def with_index(device: torch.device) -> torch.device:
    """The same device for every thread: "cuda" alone is whichever GPU is a thread's current one."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


def prepare_precision(precision: str, device: torch.device, *, training: bool = False) -> None:
    """Checks that a device can compute in a precision, and sets what float32 on a GPU means.

    Args:
        precision: as `load` takes it.
        device: to compute on.
        training: gradients are computed, too.

    Raises:
        DeviceError: it cannot.
        ValueError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"expected a precision out of {', '.join(PRECISIONS)}, got {precision!r}")
    on_this_cpu = precision in ("fp32", "bf16") or (
        precision == "fp16" and not training and half_factor() == torch.float16
    )
    if device.type == "cpu" and not on_this_cpu:
        raise DeviceError(f"{precision} needs a GPU; on this CPU use --precision fp32 or bf16")
    if precision in ("fp32", "tf32") and device.type == "cuda":
        # PyTorch's default for convolutions keeps 10 bits of each factor, too few for the reference's scores.
        # The old switches leave the choice to `torch.backends.fp32_precision`; of the new ones alone PyTorch
        # would not let the old ones be read.
        cudnn: Any = torch.backends.cudnn
        cublas: Any = torch.backends.cuda.matmul
        cudnn.allow_tf32 = cublas.allow_tf32 = precision == "tf32"
        for switch in (cudnn.conv, cudnn.rnn, cublas):
            switch.fp32_precision = "tf32" if precision == "tf32" else "ieee"


@contextmanager
def float32_kept(device: torch.device) -> Iterator[None]:
    """Lets float32 be float32 for the block, as `prepare_precision` does, whatever was set before."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    cublas: Any = torch.backends.cuda.matmul
    new = (cudnn.conv, cudnn.rnn, cublas)
    before = [switch.fp32_precision for switch in new]
    old_before = [_legacy_switch(cudnn, before[0]), _legacy_switch(cublas, before[2])]
    prepare_precision("fp32", device)
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = old_before
        for switch, value in zip(new, before, strict=True):
            switch.fp32_precision = value


def _legacy_switch(switch: Any, precision: str) -> bool:
    """Reads `allow_tf32`; where PyTorch refuses, since only new switches were used, what these say."""
    try:
        return bool(switch.allow_tf32)
    except RuntimeError:
        return precision == "tf32"


def with_sides(preprocessing: Preprocessing, short_side: int | None, long_side: int | None) -> Preprocessing:
    """Returns the preprocessing with other sides to resize to.

    Where only one is given, the other is moved as far as it must for short <= long.

    Raises:
        ValueError: both are given and the short side is the longer one, or one is no positive whole number.
    """
    for name, side in (("short_side", short_side), ("long_side", long_side)):
        if side is not None:
            _check_count(name, side)
    short, long = short_side or preprocessing.short_side, long_side or preprocessing.long_side
    if short > long and short_side and long_side:
        raise ValueError(f"expected short side <= long side, got {short_side} and {long_side}")
    if short > long:
        short, long = (long, long) if long_side else (short, short)
    return replace(preprocessing, short_side=short, long_side=long)


def find_classes(
    checkpoint: Checkpoint,
    expected: ClassSet | None,
    known: Iterable[ClassSet],
    *,
    expected_first: bool = False,
) -> ClassSet:
    """Finds the names and category ids of a checkpoint's classes.

    Names are taken only if there are as many as the file has classes.

    Args:
        checkpoint: its own names come first.
        expected: classes of the manifest's record, used if the file has no names.
        known: class sets that give the category ids to equal names; without one they are 1 to K.
        expected_first: whether the record is of this very file, and so comes before the names in it.

    Returns:
        As many classes as the checkpoint's box head has.
    """
    count = checkpoint.num_classes or 0
    candidates = [checkpoint.classes, expected.names if expected else None]
    for names in reversed(candidates) if expected_first else candidates:
        if names and len(names) == count:
            break
        if names:
            logger.warning("%s has %d classes; ignoring the %d names", checkpoint.path, count, len(names))
    else:
        names = tuple(f"class_{label}" for label in range(count))
    ids = (classes.category_ids for classes in (*filter(None, [expected]), *known) if classes.names == names)
    return ClassSet(names, next(ids, tuple(range(1, count + 1))))


def _to_cpu(instances: Instances) -> Instances:
    mask_probs = None if instances.mask_probs is None else instances.mask_probs.cpu()
    boxes, scores, labels = (tensor.cpu() for tensor in instances[:3])
    return instances._replace(boxes=boxes, scores=scores, labels=labels, mask_probs=mask_probs)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"expected a {name} of at least 1, a whole number, got {value!r}")


def _is_file(image: object) -> bool:
    return hasattr(image, "read")


def _read(images: Iterable[ImageLike], skip: bool) -> Iterator[tuple[ImageLike, NDArray[np.uint8]]]:
    """Yields images and their (H, W, 3) RGB pixels.

    Args:
        images: as `Predictor` takes them.
        skip: whether those that cannot be read are left out, with a warning.
    """
    for image in images:
        try:
            pixels = to_pixels(image)
        except ImageReadError as error:
            if not skip:
                raise
            logger.warning("%s; it is skipped", error)
        else:
            yield image, pixels


def to_pixels(image: ImageLike) -> NDArray[np.uint8]:
    """Converts any accepted image to (H, W, 3) RGB.

    Args:
        image: as `Predictor` takes it.

    Raises:
        ImageReadError: it cannot be read.
        ValueError: it has another shape or type.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if _is_file(image):
        return decode_image(cast("BinaryIO", image))
    if isinstance(image, Image.Image):
        return rgb_array(image)
    if isinstance(image, torch.Tensor):
        return _tensor_to_pixels(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected a path, file, Pillow image, array or tensor, got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(
            f"expected a uint8 array (height, width, 3) or (height, width), got {image.dtype} {image.shape}"
        )
    if image.size == 0:
        raise ValueError(f"expected an image with pixels, got shape {image.shape}")
    return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image


def _tensor_to_pixels(image: torch.Tensor) -> NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"expected a tensor (3 or 1, height, width), got {tuple(image.shape)}")
    image = image.detach().cpu()
    if image.is_floating_point():
        if not (image.numel() and 0 <= float(image.min()) <= float(image.max()) <= 1):
            raise ValueError("expected a float tensor with values from 0 to 1; give 0-255 as uint8")
        image = (image.float() * 255).round().to(torch.uint8)
    pixels: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return to_pixels(pixels if len(image) == 3 else pixels[:, :, 0])

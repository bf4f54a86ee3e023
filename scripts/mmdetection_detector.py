"""MMDetection's own detectors, to be measured beside ours.

Its packages are not among those of this project: they are imported when they are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from dcnzoo.benchmark import Settings
from dcnzoo.errors import DcnzooError
from dcnzoo.hardware import peak_resident
from dcnzoo.image import PreparedImage
from dcnzoo.manifest import Architecture, Record
from dcnzoo.results import Detections
from dcnzoo.synthetic import random_checkpoint
from dcnzoo.times import StageTimes

PACKAGES = {"mmengine": "onedl-mmengine", "mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection"}
"""Package to import → name of the distribution."""

STAGES = {
    "backbone": ("backbone", "forward"),
    "neck": ("neck", "forward"),
    "rpn": ("rpn_head", "predict"),
    "roi": ("roi_head", "predict"),
}
"""Stages within a detector → the submodule and its method that each of them is."""


def package_versions() -> dict[str, str]:
    """Imports MMDetection with its operators, and returns the versions of its packages.

    Raises:
        DcnzooError: a package is missing or cannot be imported.
    """
    try:
        for module in ("mmcv.ops", "mmdet.models"):
            import_module(module)
        return {package: import_module(package).__version__ for package in PACKAGES}
    except ImportError as error:
        raise DcnzooError(
            f"MMDetection cannot be imported ({error}): install {', '.join(PACKAGES.values())};"
            f" {PACKAGES['mmcv']} has to be built with its operators, docs/bench.md says how"
        ) from error


def find_config(architecture: Architecture) -> Path:
    """Returns the configuration of a detector, a file that is installed with MMDetection.

    Raises:
        DcnzooError: there is none, or it cannot run on a CPU.
    """
    if architecture.pool != "roi_align":
        raise DcnzooError(f"{architecture.name}: MMDetection has deformable RoI pooling on a GPU only")
    path = Path(import_module("mmdet").__path__[0], ".mim", "configs", config_name(architecture))
    if not path.is_file():
        raise DcnzooError(
            f"{architecture.name}: MMDetection has no configuration {config_name(architecture)};"
            " choose another with --model"
        )
    return path


def config_name(architecture: Architecture) -> str:
    """Returns how MMDetection names a configuration, such as dcn/mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py."""
    folder = "dcnv2" if architecture.conv == "mdconv" else "dcn"
    detector = architecture.detector.replace("_", "-")
    backbone = architecture.name.removeprefix(f"{architecture.detector}_").partition("_fpn")[0]
    groups = f"-group{architecture.deform_groups}" if architecture.deform_groups > 1 else ""
    body = f"{backbone.replace('_', '-')}-{architecture.conv}{groups}-c3-c5"
    return f"{folder}/{detector}_{body}_fpn_1x_coco.py"


class MMDetector:
    """MMDetection's counterpart of one of ours; when called, it detects and returns the seconds per stage.

    Args:
        record: of ours; the weights are the random ones that ours has without a file.
        image: the picture.

    Raises:
        DcnzooError: MMDetection cannot be imported, or lacks that detector.
    """

    def __init__(self, record: Record, image: PreparedImage) -> None:
        self._record, self._image_size = record, image.original_size
        self._model = _load(record)
        self._batch = self._model.data_preprocessor(_inputs(image), False)
        self._times = StageTimes()
        for stage, (part, method) in STAGES.items():
            module = getattr(self._model, part)
            setattr(module, method, partial(self._timed, stage, getattr(module, method)))

    def __call__(self) -> dict[str, float]:
        """Detects; returns the seconds of each stage and in total."""
        self._times.clear()
        with self._times.measure("total"), torch.inference_mode():
            (self._sample,) = self._model.predict(self._batch["inputs"], self._batch["data_samples"])
        return dict(self._times)

    @property
    def found(self) -> Detections:
        """What the last call found, without its masks."""
        found, classes = self._sample.pred_instances, self._record.classes
        return Detections(
            boxes=found.bboxes.numpy(),
            scores=found.scores.numpy(),
            labels=found.labels.numpy(),
            class_names=classes.names,
            category_ids=classes.category_ids,
            image_size=self._image_size,
        )

    def _timed(self, stage: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self._times.measure(stage):
            return function(*arguments, **options)


def measure_memory(record: Record, image: PreparedImage, settings: Settings) -> float:
    """Returns the peak of resident memory in GB (10^9 bytes) of this process, which should be a fresh one.

    Raises:
        DcnzooError: as from `MMDetector`.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    detector = MMDetector(record, image)
    for _ in range(settings.warmup + settings.repeats):
        detector()
    return peak_resident() / 1e9


def _load(record: Record) -> Any:
    """Builds a detector in evaluation mode, with weights."""
    package_versions()
    path = find_config(record.architecture)
    import_module("mmengine.registry").init_default_scope("mmdet")
    config = import_module("mmengine.config").Config.fromfile(path)
    model = import_module("mmdet.registry").MODELS.build(config.model)
    checkpoint = random_checkpoint(record.architecture, len(record.classes.names))
    try:
        model.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise DcnzooError(f"the weights of {record.name} do not fit {path.name}: {error}") from error
    return model.eval()


def _inputs(image: PreparedImage) -> dict[str, Any]:
    """The picture as MMDetection's data pipeline gives it: 8-bit BGR, resized."""
    (height, width), (original_height, original_width) = image.pixels.shape[:2], image.original_size
    sample = import_module("mmdet.structures").DetDataSample(
        metainfo={
            "img_shape": (height, width),
            "ori_shape": image.original_size,
            "scale_factor": (width / original_width, height / original_height),
        }
    )
    pixels = torch.from_numpy(image.pixels).permute(2, 0, 1).flip(0)
    return {"inputs": [pixels], "data_samples": [sample]}

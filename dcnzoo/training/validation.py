"""How good the weights are, by the project's own evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dcnzoo.build import load_model
from dcnzoo.checkpoint import Checkpoint
from dcnzoo.evaluation import PARTS, Kind
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.coco_metrics import coco_metrics
from dcnzoo.evaluation.collect import collect, merge_parts
from dcnzoo.manifest import ClassSet
from dcnzoo.predictor import Predictor, float32_kept
from dcnzoo.processes import Processes
from dcnzoo.stream import StreamSettings
from dcnzoo.training.checkpoint import Identity

FOLDER = "validation"
"""Below the output folder: the detections of the last evaluation."""

SHOWN = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")
"""Of COCO's 12 numbers, those that are kept of every evaluation."""


@dataclass(frozen=True)
class ValidationSet:
    """What weights are evaluated on.

    Attributes:
        annotations: of the images.
        files: their files, in the same order.
        kinds: what is scored.
        category_ids: of the K classes, None for a class that cannot be scored.
    """

    annotations: Annotations
    files: Sequence[Path]
    kinds: Sequence[Kind]
    category_ids: Sequence[int | None]


class Validator:
    """Evaluates weights, together with the other processes.

    Args:
        identity: what the weights are.
        validation_set: what to evaluate on.
        out: the output folder.
        settings: how images go through the model.
        processes: who takes part.
        device: where to compute.
    """

    def __init__(
        self,
        identity: Identity,
        validation_set: ValidationSet,
        out: Path,
        settings: StreamSettings,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self._identity, self._set, self._out = identity, validation_set, out / FOLDER
        self._settings, self._processes, self._device = settings, processes, device
        ids = validation_set.category_ids
        self._classes = ClassSet(
            identity.classes.names, tuple(-1 if category is None else category for category in ids)
        )
        self._labels = np.array(
            [label for label, category in enumerate(ids) if category is not None], np.int64
        )

    def __len__(self) -> int:
        return len(self._set.files)

    def evaluate(self, weights: Mapping[str, Tensor], progress: Callable[[int], object]) -> dict[str, float]:
        """Evaluates weights.

        Args:
            weights: by their published names; not changed.
            progress: called with the number of images that are done since the last call.

        Returns:
            Such as "bbox_AP"; nothing but in the first process.

        Raises:
            EvaluationError: an image cannot be read.
            OutputError: results cannot be written.
            Stopped: a signal came.
        """
        annotations, files, first = self._set.annotations, self._set.files, self._processes.is_first
        if first:  # of an evaluation that did not come to its end
            shutil.rmtree(self._out / PARTS, ignore_errors=True)
        self._processes.wait()
        predictor = self._predictor(weights)
        with float32_kept(self._device):
            collect(predictor, annotations, files, self._out, self._stream(), self._processes, progress)
        if not first:
            return {}
        results = merge_parts(self._out, annotations, self._set.kinds)
        shutil.rmtree(self._out / PARTS, ignore_errors=True)
        figures: dict[str, float] = {}
        for kind, found in results.items():
            stats = coco_metrics(annotations, found, kind).stats
            figures |= {f"{kind}_{name}": stats[name] for name in SHOWN}
        return figures

    def _predictor(self, weights: Mapping[str, Tensor]) -> Predictor:
        state = {name: tensor.detach().float().cpu() for name, tensor in weights.items()}
        checkpoint = Checkpoint(Path("weights in training"), state, self._classes.names, meta={})
        model = load_model(self._identity.architecture, checkpoint)
        return Predictor(model, self._identity.preprocessing, self._classes, self._device)

    def _stream(self) -> StreamSettings:
        labels = None if len(self._labels) == len(self._classes.names) else self._labels
        return replace(self._settings, labels=labels)

"""Files that training leaves: weights for everybody, and all that is needed to go on.

`last.pth` has the published layout, so it can be used as any checkpoint; beside it are the optimizer and the
state of the run. `best.pth` has the weights alone. A file gets its name when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcnzoo import __version__
from dcnzoo.checkpoint import read_content
from dcnzoo.download import sha256_of
from dcnzoo.errors import CheckpointError, OutputError
from dcnzoo.manifest import Architecture, ClassSet, Preprocessing
from dcnzoo.safe_copy import Description, write_safe_copy
from dcnzoo.writers.whole import replacing

LAST, BEST = "last.pth", "best.pth"
SAFE_COPIES = {LAST: "last.safetensors", BEST: "best.safetensors"}

_NO_WAY_ON = "nothing can go on from it, start anew with --overwrite"


@dataclass(frozen=True)
class Identity:
    """What has to be known to use the weights.

    Attributes:
        architecture: that they fill.
        classes: that they tell apart.
        preprocessing: input that they were trained for.
    """

    architecture: Architecture
    classes: ClassSet
    preprocessing: Preprocessing

    def meta(self, **more: Any) -> dict[str, Any]:
        """Returns what a checkpoint says about itself, as MMDetection 2.x and 3.x read it."""
        return {
            "CLASSES": self.classes.names,
            "dataset_meta": {"classes": self.classes.names},
            "category_ids": self.classes.category_ids,
            "arch": self.architecture.name,
            "preprocessing": asdict(self.preprocessing),
            "dcnzoo_version": __version__,
            **more,
        }


@dataclass
class TrainingProgress:
    """How far a run has come.

    Attributes:
        epoch: epochs that are over.
        batch: batches that are done of the next one.
        step: optimizer steps in all.
        evaluation_due: whether the epoch that is over still has to be evaluated.
        best: highest AP so far, None before the first.
        best_epoch: when.
        seconds: that training and evaluation have taken.
        sums: of the losses since the last row of the history.
        history: rows of metrics.csv.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    evaluation_due: bool = False
    best: float | None = None
    best_epoch: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """What `last.pth` holds.

    Attributes:
        weights: the model's own, not their average.
        average: of the weights, None without one.
        optimizer: its state.
        scaler: state of the loss scaling, empty without it.
        progress: how far the run has come.
    """

    weights: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    progress: TrainingProgress


def save_last(folder: Path, identity: Identity, saved: Saved) -> None:
    """Writes `last.pth`; with an average of the weights, that is what others load.

    Raises:
        OutputError: it cannot be written; then the one before is as it was.
    """
    progress = saved.progress
    content = {
        "meta": identity.meta(epoch=progress.epoch, iter=progress.step),
        "state_dict": saved.average or saved.weights,
        "weights": saved.weights if saved.average else None,
        "optimizer": saved.optimizer,
        "scaler": saved.scaler,
        "progress": asdict(progress),
    }
    _save(folder / LAST, content)


def load_last(folder: Path, expected: Mapping[str, Tensor]) -> Saved:
    """Reads `last.pth`.

    Args:
        folder: where it is.
        expected: tensors of the model to be trained, by their published names.

    Raises:
        CheckpointError: it is damaged, not whole, of another model, or something else.
    """
    path = folder / LAST
    try:
        content = read_content(path)
    except CheckpointError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise CheckpointError(str(path), f"is truncated or damaged; {_NO_WAY_ON}") from error
    try:
        averaged = content["weights"] is not None
        saved = Saved(
            weights=dict(content["weights"] if averaged else content["state_dict"]),
            average=dict(content["state_dict"]) if averaged else None,
            optimizer={name: content["optimizer"][name] for name in ("state", "param_groups")},
            scaler=content["scaler"],
            progress=TrainingProgress(
                **{each.name: content["progress"][each.name] for each in fields(TrainingProgress)}
            ),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(str(path), f"was not left by `dcnzoo train`; {_NO_WAY_ON}") from error
    for tensors in filter(None, (saved.weights, saved.average)):
        _check_tensors(path, tensors, expected)
    return saved


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if not isinstance(tensors.get(name), Tensor)]
    unexpected = [name for name in tensors if name not in expected]
    mismatched = [
        (name, tuple(tensors[name].shape), tuple(tensor.shape))
        for name, tensor in expected.items()
        if name not in missing and tensors[name].shape != tensor.shape
    ]
    if missing or unexpected or mismatched:
        problem = f"does not hold the model; {_NO_WAY_ON}"
        raise CheckpointError(str(path), problem, missing, unexpected, mismatched)


def save_best(folder: Path, identity: Identity, weights: Mapping[str, Tensor], **figures: float) -> None:
    """Writes `best.pth` in the published layout, and the same as safetensors.

    Args:
        folder: where to.
        identity: what the weights are.
        weights: by their published names.
        figures: what is said about them: epoch, AP.

    Raises:
        OutputError: they cannot be written.
    """
    _save(folder / BEST, {"meta": identity.meta(**figures), "state_dict": dict(weights)})
    save_safe_copy(folder, BEST, identity, weights)


def save_safe_copy(folder: Path, name: str, identity: Identity, weights: Mapping[str, Tensor]) -> None:
    """Writes weights as safetensors, which say what they are.

    Args:
        folder: where to.
        name: of the file beside it that has the same weights.
        identity: what the weights are.
        weights: by their published names.

    Raises:
        OutputError: they cannot be written.
    """
    sha256 = sha256_of(folder / name)
    description = Description(identity.architecture, identity.classes, identity.preprocessing, name, sha256)
    write_safe_copy(folder / SAFE_COPIES[name], weights, description, overwrite=True)


def _save(path: Path, content: Mapping[str, Any]) -> None:
    try:
        with replacing(path) as part, part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # of a full disk, PyTorch's writer only says that it is at an unexpected position
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OutputError(
            f"cannot write {path}: {cause.strerror or cause}; mend that (of a full disk: make room) and give"
            " --resume"
        ) from error

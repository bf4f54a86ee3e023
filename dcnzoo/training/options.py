"""What can be chosen about training, and what is usual. Imports nothing heavy: `--help` needs it, too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

OptimizerName = Literal["sgd", "adamw"]
Decay = Literal["step", "cosine"]
Norm = Literal["frozen", "trainable"]


@dataclass(frozen=True)
class TrainingOptions:
    """What to train, on what, and how; None stands for a value that depends on the others.

    Attributes:
        model: record of the manifest.
        weights: checkpoint to start from; None for the record's own.
        arch: name of the architecture, where no record gives it.
        from_scratch: whether to start from random weights.
        train: COCO annotations to learn from.
        val: COCO annotations to evaluate with; None for no evaluation.
        images: folder of the images.
        val_images: folder of the images of `val`; None for the same.
        keep_empty: whether images without objects are learned from.
        out: output folder.
        epochs: passes over the images.
        batch_size: images per forward pass of a process.
        accumulate: forward passes per step.
        optimizer: which.
        learning_rate: the highest.
        momentum: of SGD.
        weight_decay: of the optimizer.
        decay: how the learning rate falls.
        milestones: epochs after which it falls, for "step"; none for the usual ones.
        warmup: steps in which it rises.
        clip_norm: largest norm of the gradient.
        roi_samples: regions of an image that a box head learns from.
        mask_samples: regions of an image that a mask head learns from.
        ema: decay of the average of the weights; None for no average.
        norm: what becomes of batch norm's statistics.
        frozen_stages: stages of the backbone that stay as they are.
        short_sides: to resize images to, one drawn for each; none for the model's own.
        long_side: limit of the long side.
        flip: share of images with left and right exchanged.
        vertical_flip: share of images with top and bottom exchanged.
        seed: of all that is random.
        evaluate_every: epochs between evaluations.
        save_every: steps between checkpoints.
        log_every: steps between rows of the history.
        tensorboard: whether to write events for TensorBoard.
        precision: "fp32", "tf32", "fp16" or "bf16".
        workers: processes that read images.
        max_pixels: images with more are refused; None leaves Pillow's limit.
        image_timeout: seconds that reading an image may take.
        quiet: whether to say nothing.
        url_base: mirror to download from.
    """

    train: Path = Path()
    images: Path = Path()
    out: Path = Path()
    model: str | None = None
    weights: Path | None = None
    arch: str | None = None
    from_scratch: bool = False
    val: Path | None = None
    val_images: Path | None = None
    keep_empty: bool = False
    epochs: int = 12
    batch_size: int = 2
    accumulate: int = 1
    optimizer: OptimizerName = "sgd"
    learning_rate: float | None = None
    momentum: float = 0.9
    weight_decay: float | None = None
    decay: Decay = "step"
    milestones: tuple[int, ...] = ()
    warmup: int | None = None
    clip_norm: float | None = None
    roi_samples: int | None = None
    mask_samples: int | None = None
    ema: float | None = None
    norm: Norm | None = None
    frozen_stages: int | None = None
    short_sides: tuple[int, ...] = ()
    long_side: int | None = None
    flip: float = 0.5
    vertical_flip: float = 0.0
    seed: int = 0
    evaluate_every: int = 1
    save_every: int = 1000
    log_every: int = 50
    tensorboard: bool = False
    precision: str = "fp32"
    workers: int = 0
    max_pixels: int | None = None
    image_timeout: float | None = None
    quiet: bool = False
    url_base: str | None = None

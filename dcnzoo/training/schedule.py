"""How fast weights are learned: the learning rate of every step, and the optimizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from dcnzoo.training.options import Decay, OptimizerName

REFERENCE_BATCH = 16
"""Images of a step that the base learning rates are for."""

BASE_LEARNING_RATES: dict[OptimizerName, float] = {"sgd": 0.02, "adamw": 1e-4}
WEIGHT_DECAYS: dict[OptimizerName, float] = {"sgd": 1e-4, "adamw": 0.05}

WARMUP_STEPS = 500
WARMUP_START = 0.001
"""Share of the learning rate that the first step has."""

STEP_FACTOR = 0.1


@dataclass(frozen=True)
class Schedule:
    """The learning rate over time.

    Attributes:
        learning_rate: the highest.
        steps_per_epoch: optimizer steps of an epoch.
        epochs: how many there are.
        decay: "step" multiplies by 0.1 after each milestone, "cosine" falls to 0 as half a cosine does.
        milestones: epochs after which "step" multiplies.
        warmup_steps: during which the rate rises linearly, on top of the decay.
    """

    learning_rate: float
    steps_per_epoch: int
    epochs: int
    decay: Decay = "step"
    milestones: tuple[int, ...] = (8, 11)
    warmup_steps: int = WARMUP_STEPS

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps_per_epoch * self.epochs

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, which are counted from 0."""
        return self.learning_rate * self._decay_at(step) * self._warmup_at(step)

    def _decay_at(self, step: int) -> float:
        if self.decay == "cosine":
            return 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        epoch = step // self.steps_per_epoch
        return float(STEP_FACTOR ** sum(epoch >= milestone for milestone in self.milestones))

    def _warmup_at(self, step: int) -> float:
        if step >= self.warmup_steps:
            return 1.0
        return WARMUP_START + (1 - WARMUP_START) * step / self.warmup_steps


def default_milestones(epochs: int) -> tuple[int, ...]:
    """Returns the milestones of a schedule: 8 and 11 of 12 epochs, and the same shares of others."""
    return tuple(sorted({max(1, round(epochs * share / 12)) for share in (8, 11)} - {epochs}))


def default_learning_rate(optimizer: OptimizerName, images_per_step: int) -> float:
    """Returns the learning rate for a number of images per step: linear in it."""
    return BASE_LEARNING_RATES[optimizer] * images_per_step / REFERENCE_BATCH


def make_optimizer(
    name: OptimizerName,
    model: nn.Module,
    *,
    learning_rate: float,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> torch.optim.Optimizer:
    """Makes an optimizer.

    Args:
        name: "sgd" or "adamw".
        model: those of its parameters that need a gradient are trained, all at one rate.
        learning_rate: of the first step.
        momentum: of SGD.
        weight_decay: coupled for SGD, decoupled for AdamW.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if name == "sgd":
        return torch.optim.SGD(
            parameters, learning_rate, momentum=momentum, weight_decay=weight_decay, fused=True
        )
    return torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate

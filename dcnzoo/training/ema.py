"""Exponential moving average of the weights: smoother than the last ones, and often better."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

RAMP_STEPS = 2000
"""Steps in which the decay approaches its value: the average of the first steps would remember too much."""


class ModelEMA:
    """Average of a model's weights and statistics over its steps.

    Attributes:
        decay: share of the average that stays in a step, once the ramp is over.
        state: the average, by tensor name; counters are the model's own.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after a step; steps are counted from 1."""
        share = 1 - self.decay * (1 - math.exp(-step / RAMP_STEPS))
        for name, tensor in model.state_dict().items():
            average = self.state[name]
            if average.is_floating_point():
                average.lerp_(tensor, share)
            else:
                average.copy_(tensor)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from an average that was saved."""
        for name, tensor in state.items():
            self.state[name].copy_(tensor)

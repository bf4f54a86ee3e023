"""Learning rates, optimizers and the average of weights, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dcnzoo.training.ema import RAMP_STEPS, ModelEMA
from dcnzoo.training.schedule import (
    Schedule,
    default_learning_rate,
    default_milestones,
    make_optimizer,
    set_learning_rate,
)


class TestSchedule:
    STEPS = Schedule(0.02, steps_per_epoch=10, epochs=12, milestones=(8, 11), warmup_steps=4)

    @pytest.mark.parametrize(
        ("step", "expected"),
        [
            (0, 0.02 * 0.001),
            (1, 0.02 * (0.001 + 0.999 / 4)),
            (4, 0.02),
            (79, 0.02),
            (80, 0.002),
            (109, 0.002),
            (110, 0.0002),
            (119, 0.0002),
        ],
    )
    def test_steps(self, step: int, expected: float) -> None:
        assert self.STEPS.learning_rate_at(step) == pytest.approx(expected, rel=1e-12)

    def test_cosine(self) -> None:
        schedule = Schedule(0.02, 10, 12, "cosine", warmup_steps=0)
        rates = [schedule.learning_rate_at(step) for step in range(schedule.total_steps)]
        assert rates[0] == 0.02
        assert rates[60] == pytest.approx(0.01)
        assert rates[119] == pytest.approx(0.01 * (1 - math.cos(math.pi / 120)))
        assert rates == sorted(rates, reverse=True)

    @pytest.mark.parametrize(
        ("epochs", "expected"), [(12, (8, 11)), (24, (16, 22)), (36, (24, 33)), (3, (2,)), (2, (1,)), (1, ())]
    )
    def test_milestones(self, epochs: int, expected: tuple[int, ...]) -> None:
        assert default_milestones(epochs) == expected

    def test_the_rate_is_in_proportion_to_the_images_of_a_step(self) -> None:
        assert default_learning_rate("sgd", 16) == 0.02
        assert default_learning_rate("sgd", 2) == 0.0025
        assert default_learning_rate("adamw", 32) == pytest.approx(2e-4)


class TestOptimizer:
    @pytest.fixture
    def model(self) -> nn.Module:
        return nn.ModuleDict(
            {"body": nn.Linear(2, 2), "conv_offset": nn.Linear(2, 2), "stem": nn.Linear(2, 2)}
        )

    def test_all_that_is_not_frozen_learns_at_one_rate(self, model: nn.Module) -> None:
        """Offsets, too."""
        model["stem"].requires_grad_(False)  # type: ignore[index]
        optimizer = make_optimizer("sgd", model, learning_rate=0.5)
        (group,) = optimizer.param_groups
        assert (len(group["params"]), group["lr"]) == (4, 0.5)
        set_learning_rate(optimizer, 0.2)
        assert group["lr"] == 0.2

    def test_sgd_with_momentum_and_decay(self) -> None:
        weight = nn.Parameter(torch.tensor([2.0]))
        model = nn.ParameterList([weight])
        optimizer = make_optimizer("sgd", model, learning_rate=0.1, momentum=0.5, weight_decay=0.25)
        for _ in range(2):
            weight.grad = torch.tensor([1.0])
            optimizer.step()
        # 1 + 0.25 * 2 = 1.5; 2 - 0.15 = 1.85; 0.5 * 1.5 + 1 + 0.25 * 1.85 = 2.2125
        assert weight.item() == pytest.approx(1.85 - 0.22125)

    def test_adamw(self, model: nn.Module) -> None:
        optimizer = make_optimizer("adamw", model, learning_rate=1e-4, weight_decay=0.05)
        assert isinstance(optimizer, torch.optim.AdamW)
        assert optimizer.param_groups[0]["weight_decay"] == 0.05


class TestAverage:
    def test_by_hand(self) -> None:
        model = nn.BatchNorm1d(1)
        average = ModelEMA(model, 0.9)
        with torch.no_grad():
            model.weight.fill_(3.0)
        assert model.num_batches_tracked is not None
        model.num_batches_tracked.fill_(7)
        average.update(model, step=1)
        share = 1 - 0.9 * (1 - math.exp(-1 / RAMP_STEPS))
        assert average.state["weight"].item() == pytest.approx(1 + 2 * share)
        assert average.state["num_batches_tracked"] == 7
        average.update(model, step=10**6)
        assert average.state["weight"].item() == pytest.approx(3 - 0.9 * (2 - 2 * share), rel=1e-6)

    def test_it_goes_on_from_a_saved_one(self) -> None:
        model = nn.Linear(2, 2)
        average, other = ModelEMA(model, 0.5), ModelEMA(nn.Linear(2, 2), 0.5)
        other.load(average.state)
        assert all(torch.equal(other.state[name], tensor) for name, tensor in average.state.items())
        assert other.state["weight"] is not average.state["weight"]

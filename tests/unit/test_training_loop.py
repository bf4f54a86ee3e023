"""What a training step asks of the device."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dcnzoo.errors import TrainingError
from dcnzoo.training.batches import TrainingBatch
from dcnzoo.training.loop import LoopSettings, Trainer, TrainingProgress

NAMES = ("rpn_cls", "rpn_reg", "cls")


class Questions(TorchDispatchMode):
    """Counts the numbers that are asked for one by one; a GPU would be waited for each time."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Losses(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, *_: object) -> dict[str, Tensor]:
        return dict(zip(NAMES, (2 * self.factors).unbind(), strict=True))


@pytest.fixture
def seen() -> list[dict[str, float]]:
    """Losses of each batch."""
    return []


@pytest.fixture
def trainer(seen: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """Of a model without images."""
    model, trainer = Losses(), Trainer.__new__(Trainer)
    trainer.settings, trainer.progress = LoopSettings(), TrainingProgress()
    trainer.ema, trainer._learned = None, []
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=False)
    everything: Any = trainer
    everything.model, everything.network, everything.loader = model, model, [None]
    everything.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    everything.schedule = SimpleNamespace(learning_rate_at=lambda _: 0.0)
    everything.reporter = SimpleNamespace(batch=lambda _, values: seen.append(values))
    monkeypatch.setattr(trainer, "_losses", lambda batch: model(batch))
    return trainer


def batch(*names: str) -> TrainingBatch:
    return TrainingBatch(torch.zeros(0), [], [], list(names))


def test_losses_are_read_at_once(trainer: Trainer, seen: list[dict[str, float]]) -> None:
    """And the norm of the gradient once."""
    with Questions() as questions:
        trainer._learn(batch())
    assert questions.count <= 1
    assert seen == [{"rpn_cls": 2.0, "rpn_reg": 4.0, "cls": 6.0}]
    assert trainer.progress.sums["loss"] == 12
    assert trainer.progress.sums["gradient_norm"] == pytest.approx(12**0.5)


def test_a_gradient_that_is_no_number_names_all_images_of_the_step(trainer: Trainer, tmp_path: Path) -> None:
    trainer.settings, trainer.out = LoopSettings(accumulate=2), tmp_path
    trainer.loader = [None] * 4  # type: ignore[assignment]
    for name in ("a.png", "b.png", "c.png"):
        trainer._learn(batch(name))
        trainer.progress.batch += 1
    trainer.model.factors.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"gradient_norm became .* with the images c\.png, d\.png;"):
        trainer._learn(batch("d.png"))

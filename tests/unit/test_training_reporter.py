"""What is seen of training: a bar on a terminal, lines elsewhere, events for TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from dcnzoo.training.reporter import Reporter

LOSSES = {"loss_cls": 0.25, "loss_bbox": 0.5}
ROW = {"epoch": 0.5, "step": 3.0, "seconds": 1.0, "learning_rate": 0.01, "loss": 0.75, **LOSSES}
FIGURES = {"bbox_AP": 0.125, "bbox_AP50": 0.5, "bbox_AR_100": 0.2}


def go_on(reporter: Reporter) -> None:
    reporter.batch(0, LOSSES)
    reporter.row(ROW)
    with reporter.evaluation(4) as moved:
        moved(4)
    reporter.evaluated(1, FIGURES, ROW)
    reporter.close()


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    go_on(Reporter(6, 2, 2, quiet=False))
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    expected = "epoch 0.50/2: loss 0.7500, loss_cls 0.2500, loss_bbox 0.5000, learning rate 0.01, 0.0"
    assert first.startswith(expected)
    assert first.endswith(" left")
    assert second == "epoch 1/2 evaluated: bbox_AP 0.125, bbox_AP50 0.500"
    assert out == ""


def test_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    go_on(Reporter(6, 2, 2, quiet=False))
    err = capsys.readouterr().err
    assert "epoch 1/2" in err
    assert "3/6" in err
    assert "loss_cls=0.250" in err
    assert "learning rate" not in err
    assert "epoch 1/2 evaluated: bbox_AP 0.125" in err


def test_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    go_on(Reporter(6, 2, 2, quiet=True))
    assert capsys.readouterr() == ("", "")


def test_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard's writer gets every figure; it goes on behind the step that is saved."""

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            opened.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            added.append((name, value, step))

        def close(self) -> None:
            added.append(("closed", 0, 0))

    opened: list[tuple[str, int]] = []
    added: list[tuple[str, float, int]] = []
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    go_on(Reporter(6, 2, 2, quiet=True, events=tmp_path, step=2))
    assert opened == [(str(tmp_path), 3)]
    assert added == [
        ("train/learning_rate", 0.01, 3),
        ("train/loss", 0.75, 3),
        ("train/loss_cls", 0.25, 3),
        ("train/loss_bbox", 0.5, 3),
        ("validation/bbox_AP", 0.125, 3),
        ("validation/bbox_AP50", 0.5, 3),
        ("validation/bbox_AR_100", 0.2, 3),
        ("closed", 0, 0),
    ]

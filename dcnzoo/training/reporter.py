"""What is seen of a run while it goes on: a bar on a terminal, lines elsewhere, TensorBoard if asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from dcnzoo.training.history import Row, describe

TENSORBOARD = "tensorboard"
"""Folder below the output folder."""


class Reporter:
    """Says on standard error how a run goes on.

    Args:
        total: batches of the whole run.
        done: batches that are done already.
        epochs: how many there are.
        quiet: whether to say nothing.
        events: folder for TensorBoard, None for none.
        step: optimizer steps that are done already.
    """

    def __init__(
        self, total: int, done: int, epochs: int, *, quiet: bool, events: Path | None = None, step: int = 0
    ) -> None:
        self._total, self._done, self._epochs, self._quiet = total, done, epochs, quiet
        self._bar: Any = tqdm(
            total=total, initial=done, unit="batch", disable=quiet or not sys.stderr.isatty(), smoothing=0.05
        )
        self._start, self._first = time.perf_counter(), done
        self._events = None if events is None else _open_events(events, step)

    def batch(self, epoch: int, losses: Mapping[str, float]) -> None:
        """A batch is done."""
        self._done += 1
        if not self._bar.disable:
            self._bar.set_description(f"epoch {epoch + 1}/{self._epochs}", refresh=False)
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in losses.items()}, refresh=False)
            self._bar.update()

    def row(self, row: Row) -> None:
        """There is a new row of the history."""
        if self._events is not None:
            _add(self._events, row)
        if self._bar.disable and not self._quiet:
            seconds = (time.perf_counter() - self._start) / max(self._done - self._first, 1)
            left = timedelta(seconds=round(seconds * (self._total - self._done)))
            rate = f"{seconds:.2f} s per batch, {left} left"
            click.echo(
                f"epoch {row['epoch']:.2f}/{self._epochs}: {', '.join(describe(row))}, {rate}", err=True
            )

    def evaluated(self, epoch: int, figures: Mapping[str, float], row: Row) -> None:
        """Weights have been evaluated."""
        if self._events is not None:
            _add(self._events, {"step": row["step"], **figures})
        shown = (f"{name} {value:.3f}" for name, value in figures.items() if name.endswith(("_AP", "_AP50")))
        self.say(f"epoch {epoch}/{self._epochs} evaluated: {', '.join(shown)}")

    def say(self, line: str) -> None:
        """Prints a line."""
        if not self._quiet:
            self._bar.write(line, file=sys.stderr)

    @contextmanager
    def evaluation(self, images: int) -> Iterator[Callable[[int], object]]:
        """Shows how far an evaluation is; yields what moves it on."""
        with tqdm(
            total=images, desc="evaluating", unit="image", disable=self._bar.disable, leave=False
        ) as bar:
            yield bar.update

    def close(self) -> None:
        """Ends the bar and TensorBoard's file."""
        self._bar.close()
        if self._events is not None:
            self._events.close()


def _open_events(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(folder), purge_step=step + 1)
    return writer


def _add(events: Any, row: Row) -> None:
    for name, value in row.items():
        if name not in ("step", "epoch", "seconds"):
            kind = "train" if "loss" in name or name in ("learning_rate", "gradient_norm") else "validation"
            events.add_scalar(f"{kind}/{name}", value, int(row["step"]))

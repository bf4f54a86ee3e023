"""The training loop: batches, steps, evaluations and checkpoints.

Everything random follows from the seed and the position in the run, and a checkpoint holds all the rest. So a
run that was killed and resumed computes the same numbers as one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcnzoo.errors import OutOfMemoryError, TrainingError
from dcnzoo.memory import is_out_of_memory
from dcnzoo.models.rcnn import RCNN
from dcnzoo.predictor import PRECISIONS
from dcnzoo.processes import Processes
from dcnzoo.stopping import Stopped, StopSignals
from dcnzoo.training.batches import BatchLoader, TrainingBatch
from dcnzoo.training.checkpoint import (
    LAST,
    Identity,
    Saved,
    TrainingProgress,
    save_best,
    save_last,
    save_safe_copy,
)
from dcnzoo.training.ema import ModelEMA
from dcnzoo.training.history import write_picture, write_table
from dcnzoo.training.losses import LossNetwork
from dcnzoo.training.reporter import Reporter
from dcnzoo.training.schedule import Schedule, set_learning_rate
from dcnzoo.training.targets import Target
from dcnzoo.training.validation import Validator

SAMPLING = 1
"""Tells the random numbers that draw samples from those that draw batches and augmentation."""

SCORE = "bbox_AP"
"""Decides which weights are the best."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop runs.

    Attributes:
        accumulate: batches of an optimizer step.
        clip_norm: largest norm of the gradient, None for any.
        roi_samples: regions of an image that a box head learns from, None for as many as published.
        mask_samples: regions of an image that a mask head learns from, None for as many as published.
        precision: of the forward pass: "fp32", "tf32", "fp16" or "bf16"; weights are float32.
        seed: of the run.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        save_every: steps between checkpoints within an epoch.
        log_every: steps between rows of the history.
    """

    accumulate: int = 1
    clip_norm: float | None = None
    roi_samples: int | None = None
    mask_samples: int | None = None
    precision: str = "fp32"
    seed: int = 0
    evaluate_every: int = 1
    save_every: int = 1000
    log_every: int = 50


class Trainer:
    """Trains a detector.

    Args:
        model: on the device, prepared for training.
        identity: what its weights are.
        loader: gives the batches.
        optimizer: of the model's parameters.
        schedule: of the learning rate.
        settings: how.
        out: existing output folder.
        device: where to compute.
        processes: who else takes part.
        reporter: says how the run goes on.
        validator: evaluates the weights; None for no evaluation.
        ema: average of the weights; None for none.
        saved: checkpoint to go on from; None to start.
    """

    def __init__(
        self,
        model: RCNN,
        identity: Identity,
        loader: BatchLoader,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        settings: LoopSettings,
        out: Path,
        *,
        device: torch.device,
        processes: Processes,
        reporter: Reporter,
        validator: Validator | None = None,
        ema: ModelEMA | None = None,
        saved: Saved | None = None,
    ) -> None:
        self.model, self.identity, self.loader, self.optimizer = model, identity, loader, optimizer
        self.schedule, self.settings, self.out, self.device = schedule, settings, out, device
        self.processes, self.reporter, self.validator, self.ema = processes, reporter, validator, ema
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.progress = TrainingProgress()
        self._learned: list[str] = []  # names of the images since the last step
        if saved is not None:
            self._restore(saved)
        dtype = PRECISIONS[settings.precision]
        divisor = identity.preprocessing.size_divisor
        self.network: nn.Module = LossNetwork(
            model, settings.roi_samples, settings.mask_samples, dtype, divisor
        )
        if processes.count > 1:
            self.network = DistributedDataParallel(self.network)

    def run(self) -> TrainingProgress:
        """Trains until the last epoch is over, and returns the final progress.

        A first SIGINT or SIGTERM is heeded after the step in hand, and leaves a checkpoint.

        Raises:
            TrainingError: the loss is no number any more.
            ImageReadError: an image cannot be read.
            OutOfMemoryError: a batch does not fit into the memory of the device.
            OutputError: a file cannot be written.
            Stopped: a signal came.
        """
        signals = StopSignals()
        with (
            closing(self.reporter),
            signals.caught(),
            signals.deferred(),
            self.loader,
            self._told_if_out_of_memory(),
        ):
            self._evaluate_if_due()
            while self.progress.epoch < self.schedule.epochs:
                self._run_epoch(signals)
                self._evaluate_if_due()
        weights = self._final_weights()
        if self.processes.is_first:
            save_safe_copy(self.out, LAST, self.identity, weights)
        return self.progress

    def _run_epoch(self, signals: StopSignals) -> None:
        progress, settings, start = self.progress, self.settings, time.perf_counter()
        with self.loader.epoch(progress.epoch, progress.batch) as batches:
            for batch in batches:
                self._learn(batch)
                progress.batch += 1
                now = time.perf_counter()
                progress.seconds, start = progress.seconds + now - start, now
                if not self._is_step_done():
                    continue
                if progress.step % settings.log_every == 0:
                    self._log()
                if signum := self._agreed(signals.pending):
                    self._save()
                    raise Stopped(signum)
                if progress.step % settings.save_every == 0:
                    self._save()
        progress.epoch, progress.batch = progress.epoch + 1, 0
        is_last = progress.epoch == self.schedule.epochs
        progress.evaluation_due = self.validator is not None and (
            is_last or progress.epoch % settings.evaluate_every == 0
        )
        self._log()
        self._save()
        if self.processes.is_first and not progress.evaluation_due:  # which draws it anew
            write_picture(self.out, progress.history)

    def _learn(self, batch: TrainingBatch) -> None:
        """Adds the gradient of a batch, and makes a step if it was the last one of it."""
        first = self.progress.batch - self.progress.batch % self.settings.accumulate
        size = min(self.settings.accumulate, len(self.loader) - first)
        is_last = self.progress.batch + 1 == first + size
        self._learned += batch.names
        with self._unsynchronised(not is_last):
            losses = self._losses(batch)
            stacked = torch.stack(list(losses.values()))
            values = dict(zip(losses, stacked.tolist(), strict=True))  # a GPU is waited for once
            self._check(values, batch.names)
            self.scaler.scale(stacked.sum() / size).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": sum(values.values()), **values, "batches": 1}.items():
            self.progress.sums[name] = self.progress.sums.get(name, 0.0) + value
        if is_last:
            self._step()
        self.reporter.batch(self.progress.epoch, values)

    def _losses(self, batch: TrainingBatch) -> dict[str, Tensor]:
        images = batch.images.to(self.device, non_blocking=True)
        targets = [_moved(target, self.device) for target in batch.targets]
        position = self.progress.epoch * len(self.loader) + self.progress.batch
        generator = seeded_generator(self.settings.seed, SAMPLING, position, self.processes.rank)
        losses: dict[str, Tensor] = self.network(images, batch.image_sizes, targets, generator)
        return losses

    def _step(self) -> None:
        progress = self.progress
        set_learning_rate(self.optimizer, self.schedule.learning_rate_at(progress.step))
        self.scaler.unscale_(self.optimizer)
        parameters, most = self.model.parameters(), self.settings.clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, most))
        if not self.scaler.is_enabled():  # which skips steps whose gradient is too large
            self._check({"gradient_norm": norm}, self._learned)
        self._learned = []
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        progress.step += 1
        if math.isfinite(norm):
            for name, value in (("gradient_norm", norm), ("steps", 1)):
                progress.sums[name] = progress.sums.get(name, 0.0) + value
        if self.ema is not None:
            self.ema.update(self.model, progress.step)

    def _check(self, values: Mapping[str, float], names: Iterable[str]) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            last = self.out / LAST
            kept = f"{last} is from before" if last.exists() else "there is no checkpoint yet"
            raise TrainingError(
                f"{', '.join(bad)} became infinite or not a number at step {self.progress.step + 1}, epoch"
                f" {self.progress.epoch + 1}, with the images {', '.join(names)}; {kept}; try a lower"
                " --learning-rate, a longer --warmup or --clip-norm"
            )

    def _is_step_done(self) -> bool:
        batch = self.progress.batch
        return batch % self.settings.accumulate == 0 or batch == len(self.loader)

    def _log(self) -> None:
        """Adds a row to the history: means since the last one, over all processes."""
        progress = self.progress
        if not progress.sums:
            return
        gathered = self.processes.gather(progress.sums)
        progress.sums = {}
        totals = {name: sum(each.get(name, 0.0) for each in gathered) for name in gathered[0]}
        batches, steps = totals.pop("batches"), totals.pop("steps", 1.0)
        means = {
            name: value / (steps if name == "gradient_norm" else batches) for name, value in totals.items()
        }
        row = {
            "epoch": progress.epoch + progress.batch / len(self.loader),
            "step": float(progress.step),
            "seconds": round(progress.seconds, 1),
            "learning_rate": self.schedule.learning_rate_at(progress.step - 1),
            **means,
        }
        progress.history.append(row)
        if self.processes.is_first:
            self.reporter.row(row)
            write_table(self.out, progress.history)

    def _evaluate_if_due(self) -> None:
        progress, start = self.progress, time.perf_counter()
        if self.validator is None or not progress.evaluation_due:
            return
        weights = self._final_weights()
        with self.reporter.evaluation(len(self.validator)) as moved:
            figures = self.validator.evaluate(weights, moved)
        progress.evaluation_due = False
        progress.seconds += time.perf_counter() - start
        if self.processes.is_first:
            self._note(figures, weights)
        self._save()

    def _note(self, figures: Mapping[str, float], weights: Mapping[str, Tensor]) -> None:
        """Writes down what an evaluation has found."""
        progress = self.progress
        progress.history[-1] = {**progress.history[-1], **figures}
        self.reporter.evaluated(progress.epoch, figures, progress.history[-1])
        write_table(self.out, progress.history)
        write_picture(self.out, progress.history)
        if progress.best is None or figures[SCORE] > progress.best:
            progress.best, progress.best_epoch = figures[SCORE], progress.epoch
            save_best(self.out, self.identity, weights, epoch=progress.epoch, **figures)

    def _final_weights(self) -> Mapping[str, Tensor]:
        """The weights that others get: the average, if there is one."""
        self._share_statistics()
        return self.model.state_dict() if self.ema is None else self.ema.state

    def _share_statistics(self) -> None:
        """Gives all processes the first one's batch statistics and their average; each has its own."""
        if self.processes.count > 1:
            for name, buffer in self.model.named_buffers():
                torch.distributed.broadcast(buffer, 0)
                if self.ema is not None:
                    torch.distributed.broadcast(self.ema.state[name], 0)

    def _save(self) -> None:
        self._share_statistics()
        if self.processes.is_first:
            saved = Saved(
                dict(self.model.state_dict()),
                None if self.ema is None else self.ema.state,
                self.optimizer.state_dict(),
                self.scaler.state_dict(),
                self.progress,
            )
            save_last(self.out, self.identity, saved)

    def _restore(self, saved: Saved) -> None:
        self.model.load_state_dict(saved.weights)
        self.optimizer.load_state_dict(saved.optimizer)
        self.scaler.load_state_dict(saved.scaler)
        if self.ema is not None and saved.average is not None:
            self.ema.load(saved.average)
        self.progress = saved.progress
        if not self.processes.is_first:  # the sums are the first one's
            self.progress = replace(saved.progress, sums=dict.fromkeys(saved.progress.sums, 0.0))

    def _agreed(self, signum: int | None) -> int | None:
        """The signal that any process has got, so that all stop after the same step."""
        return max((each for each in self.processes.gather(signum) if each), default=None)

    def _unsynchronised(self, wanted: bool) -> AbstractContextManager[None]:
        if wanted and isinstance(self.network, DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()

    @contextmanager
    def _told_if_out_of_memory(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemoryError(
                f"training does not fit into the memory of {self.device}; use a smaller --batch-size (with"
                " --accumulate for as many images per step), a smaller --short-side, or --precision bf16"
            ) from error


def seeded_generator(*seeds: int) -> torch.Generator:
    """Returns a generator on the CPU whose numbers follow from all the seeds."""
    state = np.random.SeedSequence(seeds).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) % 2**63)


def _moved(target: Target, device: torch.device) -> Target:
    moved = {name: None if tensor is None else tensor.to(device) for name, tensor in vars(target).items()}
    return Target(**moved)  # type: ignore[arg-type]

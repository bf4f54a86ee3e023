"""From options to a trainer: what is learned from what, and with which values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dcnzoo.build import build_model
from dcnzoo.checkpoint import load_checkpoint
from dcnzoo.download import fetch
from dcnzoo.errors import TrainingError
from dcnzoo.evaluation.annotations import listing, read_annotations
from dcnzoo.evaluation.results import find_kinds
from dcnzoo.manifest import Architecture, Preprocessing, Record, load_manifest
from dcnzoo.models.rcnn import RCNN
from dcnzoo.predictor import identify, with_sides
from dcnzoo.processes import Processes
from dcnzoo.reader import pixel_limit
from dcnzoo.stream import StreamSettings
from dcnzoo.training.batches import Augmentation, BatchLoader, LoadSettings
from dcnzoo.training.checkpoint import BEST, LAST, SAFE_COPIES, Identity, Saved, TrainingProgress, load_last
from dcnzoo.training.dataset import TrainingSet, image_fault, read_training_set
from dcnzoo.training.ema import ModelEMA
from dcnzoo.training.initialise import (
    LoadReport,
    initialise_weights,
    load_for_training,
    prepare_for_training,
)
from dcnzoo.training.loop import SCORE, LoopSettings, Trainer, seeded_generator
from dcnzoo.training.options import Norm, TrainingOptions
from dcnzoo.training.reporter import TENSORBOARD, Reporter
from dcnzoo.training.schedule import (
    WARMUP_STEPS,
    WEIGHT_DECAYS,
    Schedule,
    default_learning_rate,
    default_milestones,
    make_optimizer,
)
from dcnzoo.training.validation import ValidationSet, Validator

INITIALISATION = 0
"""Tells the random numbers of fresh weights from all others."""


@dataclass(frozen=True)
class Source:
    """What training starts from.

    Attributes:
        architecture: of the model.
        preprocessing: of its input.
        class_names: what the weights tell apart; empty where there are none.
        state: the weights by their published names; None for random ones.
        name: of the weights, for people.
    """

    architecture: Architecture
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    state: Mapping[str, Tensor] | None = field(default=None, repr=False)
    name: str = "random weights"


def find_source(options: TrainingOptions, manifest: Path | None) -> Source:
    """Finds, fetches and reads what training starts from.

    Raises:
        DcnzooError: there is no such model or architecture, or its weights cannot be fetched or read.
    """
    known = load_manifest(manifest)
    record = None if options.model is None else known.find(options.model)
    architecture = None if options.arch is None else Architecture.parse(options.arch)
    if options.from_scratch:
        source = Source(*_said(record, architecture))
    else:
        path = options.weights or fetch(_needed(record), url_base=options.url_base)
        checkpoint = load_checkpoint(path)
        if checkpoint.num_classes is None and "conv1.weight" in checkpoint.state_dict:
            state = {f"backbone.{name}": tensor for name, tensor in checkpoint.state_dict.items()}
            source = Source(*_said(record, architecture), (), state, f"backbone {path}")
        else:
            replaces = options.weights is not None
            found = identify(checkpoint, record, architecture, known.class_sets.values(), replaces=replaces)
            source = Source(found[0], found[2], found[1].names, checkpoint.state_dict, str(path))
    sides = max(options.short_sides, default=None), options.long_side
    return Source(**{**vars(source), "preprocessing": with_sides(source.preprocessing, *sides)})


def _said(record: Record | None, architecture: Architecture | None) -> tuple[Architecture, Preprocessing]:
    """Structure and input of a model as the options have them, where no checkpoint says more."""
    if record is not None:
        return record.architecture, record.preprocessing
    if architecture is None:
        raise TrainingError("the weights are a backbone alone; give the detector's architecture with --arch")
    return architecture, Preprocessing()


def _needed(record: Record | None) -> Record:
    if record is None:
        raise ValueError("expected a model, weights, or from_scratch")
    return record


def read_training_data(options: TrainingOptions, source: Source) -> TrainingSet:
    """Reads and checks the training set.

    Raises:
        EvaluationError: it is no annotation file.
        TrainingError: nothing is left to train with.
    """
    with pixel_limit(options.max_pixels):
        return read_training_set(
            options.train,
            options.images,
            masks=source.architecture.has_masks,
            keep_empty=options.keep_empty,
            class_order=source.class_names,
        )


def check_problems(training_set: TrainingSet, strict: bool) -> None:
    """Refuses a training set with problems where that was asked for.

    Raises:
        TrainingError: it has some, and `strict`.
    """
    if strict and training_set.problems:
        raise TrainingError(
            f"{training_set.path} has {len(training_set.problems)} problems; mend them, or leave --strict out"
        )


def read_validation_set(
    options: TrainingOptions, source: Source, training_set: TrainingSet
) -> ValidationSet | None:
    """Reads and checks the set to evaluate with, None without one.

    Raises:
        EvaluationError: it cannot be evaluated with, or some of its images cannot.
    """
    if options.val is None:
        return None
    annotations = read_annotations(options.val)
    if not annotations.has_objects():
        raise annotations.error(
            "has no objects to find (crowds are none), and so no AP; annotate some, or leave --val out"
        )
    files = annotations.find_files(options.val_images or options.images)
    with pixel_limit(options.max_pixels):
        faults = [
            fault
            for image, file in zip(annotations.images, files, strict=True)
            if (fault := image_fault(image, file))
        ]
    if faults:
        raise annotations.error(
            f"{len(faults)} of its images cannot be used: {listing([fault.where for fault in faults])}"
        )
    kinds = find_kinds(source.architecture.has_masks, annotations)
    return ValidationSet(annotations, files, kinds, annotations.category_ids(training_set.classes.names))


@dataclass(frozen=True)
class Prepared:
    """What is ready to be trained.

    Attributes:
        model: on its device, prepared for training.
        identity: what its weights are.
        source: what it started from.
        report: what became of those weights; None for random ones.
        saved: checkpoint to go on from; None to start.
        loader: of the batches.
        schedule: of the learning rate.
        norm: what becomes of batch norm's statistics.
        frozen_stages: stages of the backbone that stay as they are.
    """

    model: RCNN
    identity: Identity
    source: Source
    report: LoadReport | None
    saved: Saved | None
    loader: BatchLoader
    schedule: Schedule
    norm: Norm
    frozen_stages: int


def prepare(
    options: TrainingOptions,
    source: Source,
    training_set: TrainingSet,
    processes: Processes,
    device: torch.device,
    resumes: bool,
) -> Prepared:
    """Makes the model and decides what the options leave open.

    Args:
        options: what was asked for.
        source: what to start from.
        training_set: what to learn from.
        processes: who takes part.
        device: where to compute.
        resumes: whether to go on from the checkpoint in the output folder, if there is one.

    Raises:
        CheckpointError: the weights do not fit, or the checkpoint to go on from is damaged or not whole.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = True
    torch.manual_seed(options.seed)
    identity = Identity(source.architecture, training_set.classes, source.preprocessing)
    model, report = _make_model(identity, source, options.seed)
    norm = options.norm or ("trainable" if options.from_scratch else "frozen")
    frozen_stages = options.frozen_stages
    if frozen_stages is None:
        frozen_stages = -1 if options.from_scratch else 1
    prepare_for_training(model, norm=norm, frozen_stages=frozen_stages)
    loader = _make_loader(options, identity, training_set, processes)
    saved = load_last(options.out, model.state_dict()) if resumes and (options.out / LAST).exists() else None
    return Prepared(
        model=model.to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        identity=identity,
        source=source,
        report=report,
        saved=saved,
        loader=loader,
        schedule=_make_schedule(options, len(loader), processes.count),
        norm=norm,
        frozen_stages=frozen_stages,
    )


def _make_model(identity: Identity, source: Source, seed: int) -> tuple[RCNN, LoadReport | None]:
    model = build_model(identity.architecture, len(identity.classes.names))
    initialise_weights(model, seeded_generator(seed, INITIALISATION))
    if source.state is None:
        return model, None
    differ = source.class_names != identity.classes.names
    return model, load_for_training(model, source.state, replace_class_heads=differ, source=source.name)


def _make_loader(
    options: TrainingOptions, identity: Identity, training_set: TrainingSet, processes: Processes
) -> BatchLoader:
    settings = LoadSettings(
        options.batch_size,
        identity.preprocessing,
        Augmentation(_short_sides(options, identity), options.flip, options.vertical_flip),
        masks=identity.architecture.has_masks,
        seed=options.seed,
        workers=options.workers,
        share=processes.share,
        image_timeout=options.image_timeout,
        max_pixels=options.max_pixels,
    )
    return BatchLoader(training_set.images, settings)


def _short_sides(options: TrainingOptions, identity: Identity) -> tuple[int, ...]:
    return tuple(sorted(options.short_sides)) or (identity.preprocessing.short_side,)


def _make_schedule(options: TrainingOptions, batches: int, processes: int) -> Schedule:
    steps_per_epoch = -(-batches // options.accumulate)
    images_per_step = options.batch_size * options.accumulate * processes
    return Schedule(
        options.learning_rate or default_learning_rate(options.optimizer, images_per_step),
        steps_per_epoch,
        options.epochs,
        options.decay,
        options.milestones or default_milestones(options.epochs),
        min(WARMUP_STEPS, steps_per_epoch) if options.warmup is None else options.warmup,
    )


def make_trainer(
    options: TrainingOptions,
    prepared: Prepared,
    validation_set: ValidationSet | None,
    processes: Processes,
    device: torch.device,
) -> Trainer:
    """Makes what trains; the output folder has to be there."""
    model, schedule, saved = prepared.model, prepared.schedule, prepared.saved
    optimizer = make_optimizer(
        options.optimizer,
        model,
        learning_rate=schedule.learning_rate,
        momentum=options.momentum,
        weight_decay=_weight_decay(options),
    )
    progress = saved.progress if saved else TrainingProgress()
    batches = len(prepared.loader)
    reporter = Reporter(
        options.epochs * batches,
        progress.epoch * batches + progress.batch,
        options.epochs,
        quiet=options.quiet or not processes.is_first,
        events=options.out / TENSORBOARD if options.tensorboard and processes.is_first else None,
        step=progress.step,
    )
    return Trainer(
        model,
        prepared.identity,
        prepared.loader,
        optimizer,
        schedule,
        _loop_settings(options),
        options.out,
        device=device,
        processes=processes,
        reporter=reporter,
        validator=_make_validator(options, prepared.identity, validation_set, processes, device),
        ema=None if options.ema is None else ModelEMA(model, options.ema),
        saved=saved,
    )


def _loop_settings(options: TrainingOptions) -> LoopSettings:
    names = LoopSettings.__dataclass_fields__
    return LoopSettings(**{name: getattr(options, name) for name in names})


def _weight_decay(options: TrainingOptions) -> float:
    return WEIGHT_DECAYS[options.optimizer] if options.weight_decay is None else options.weight_decay


def _make_validator(
    options: TrainingOptions,
    identity: Identity,
    validation_set: ValidationSet | None,
    processes: Processes,
    device: torch.device,
) -> Validator | None:
    if validation_set is None:
        return None
    settings = StreamSettings(
        options.batch_size,
        options.workers,
        share=processes.share,
        image_timeout=options.image_timeout,
        max_pixels=options.max_pixels,
    )
    return Validator(identity, validation_set, options.out, settings, processes, device)


def effective_lines(
    options: TrainingOptions,
    prepared: Prepared,
    training_set: TrainingSet,
    validation_set: ValidationSet | None,
    processes: Processes,
    device: torch.device,
) -> Iterator[str]:
    """Yields the values in effect, and what training starts from."""
    identity, schedule = prepared.identity, prepared.schedule
    names = identity.classes.names
    origin = f"{identity.architecture.name}, from {prepared.source.name}"
    yield f"model: {origin}, {len(names)} classes: {listing(names)}"
    if prepared.report is not None:
        yield from report_lines(prepared.report)
    left_out = f", {training_set.empty} without objects left out" if training_set.empty else ""
    yield f"training set: {len(training_set.images)} images, {training_set.num_objects} objects{left_out}"
    count = 0 if validation_set is None else len(validation_set.files)
    evaluated = f"{count} images, every {options.evaluate_every} epochs" if count else "none"
    yield f"validation set: {evaluated}"
    sides = listing(_short_sides(options, identity))
    flips = f"flip {options.flip:g}, vertical flip {options.vertical_flip:g}"
    yield f"input: short side {sides}, long side {identity.preprocessing.long_side}, {flips}"
    images = options.batch_size * options.accumulate * processes.count
    factors = f"{processes.count} processes x {options.accumulate} batches x {options.batch_size}"
    total = f"{schedule.total_steps} in {schedule.epochs} epochs"
    yield f"steps: {schedule.steps_per_epoch} per epoch, {total}, {images} images each ({factors})"
    if schedule.decay == "step":
        fall = f"a tenth after epochs {listing(schedule.milestones)}" if schedule.milestones else "constant"
    else:
        fall = schedule.decay
    yield f"learning rate: {schedule.learning_rate:.4g}, {fall}, warm-up of {schedule.warmup_steps} steps"
    momentum = f"momentum {options.momentum:g}, " if options.optimizer == "sgd" else ""
    clip = "not clipped" if options.clip_norm is None else f"clipped to {options.clip_norm:g}"
    yield f"optimizer: {options.optimizer}, {momentum}weight decay {_weight_decay(options):g}, {clip}"
    average = "none" if options.ema is None else f"decay {options.ema:g}"
    frozen = f"frozen stages: {prepared.frozen_stages}"
    yield f"batch norm: {prepared.norm}, {frozen}, average of weights: {average}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    yield f"device: {device}{threads}, {options.precision}, seed {options.seed}"
    if prepared.saved is not None:
        done = prepared.saved.progress
        yield f"resumed after {done.step} steps, in epoch {min(done.epoch + 1, options.epochs)}"


def report_lines(report: LoadReport) -> Iterator[str]:
    """Yields what became of the weights that training starts from."""
    yield f"weights: {len(report.loaded)} tensors loaded"
    for names, what in (
        (report.replaced, "replaced, since the classes differ"),
        (report.missing, "not in the file, begin at random"),
        (report.unexpected, "of the file not used"),
    ):
        if names:
            yield f"weights: {len(names)} {what}: {listing(names)}"


def summary(out: Path, progress: TrainingProgress) -> str:
    """Returns what came of a run that is over, as lines of text."""
    lines = [f"last weights: {out / LAST}, {out / SAFE_COPIES[LAST]}"]
    if progress.best is not None:
        lines.append(
            f"best weights, {SCORE} {progress.best:.3f} after epoch {progress.best_epoch}:"
            f" {out / BEST}, {out / SAFE_COPIES[BEST]}"
        )
    return "\n".join(lines)

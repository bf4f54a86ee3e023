"""`dcnzoo predict`: detections of many images, written as they are made.

Nothing heavy is imported before the options are known to make sense.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcnzoo.cli.inference import (
    FREE,
    InferenceOptions,
    check_model_name,
    inputs_note,
    load_predictor,
    model_options,
    progress_bar,
    run_options,
)
from dcnzoo.cli.options import FILE, POSITIVE, Number, several, split
from dcnzoo.errors import SourceError, without_credentials
from dcnzoo.processes import Share, environment_share
from dcnzoo.sources import STDIN, check_sources, find_images, local_path
from dcnzoo.writers import PRODUCTS, WRITERS, CropWriter, ErrorLog, ImageIds, ImageWriter, Shard, Writer
from dcnzoo.writers.folder import OutputFolder, exclusive

if TYPE_CHECKING:
    import torch

    from dcnzoo.cli.main import SharedOptions
    from dcnzoo.predictor import Predictor
    from dcnzoo.stream import StreamSettings, Tally

PROGRAM = "dcnzoo predict"


@dataclasses.dataclass(frozen=True)
class Options(InferenceOptions):
    """The options of `predict`, as the command line gives them."""

    sources: tuple[str, ...]
    formats: tuple[str, ...]
    save_images: bool
    save_crops: bool
    font: Path | None
    annotations: Path | None
    score_threshold: float | None
    max_detections: int
    classes: tuple[str, ...]
    strict: bool
    shard: Share | None

    def check(self) -> None:
        """Checks what click cannot: options that depend on each other.

        Raises:
            click.UsageError: they do not go together.
        """
        if not self.sources:
            raise click.UsageError("Name at least one SOURCE: a file, a folder, a glob, an address, or -.")
        self.check_model()
        if self.annotations is not None and "coco" not in self.formats:
            raise click.UsageError("--annotations gives the image ids of --format coco; add that format.")
        if self.font is not None:
            self._check_font(self.font)

    def _check_font(self, font: Path) -> None:
        from dcnzoo.fonts import check_font

        if not self.save_images:
            raise click.UsageError("--font is for the labels in pictures; add --save-images.")
        try:
            check_font(font)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--font") from error


def _parse_sources(
    context: click.Context,  # noqa: ARG001
    parameter: click.Parameter,  # noqa: ARG001
    values: Sequence[str],
) -> tuple[str, ...]:
    return tuple(map(local_path, values))


def _parse_shard(context: click.Context, parameter: click.Parameter, value: str | None) -> Share | None:
    if value is None:
        return None
    numbers = [int(part) if part.isdecimal() else 0 for part in value.split("/")]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1]:
        raise click.BadParameter(f"expected I/N with 1 <= I <= N, got {value}", context, parameter)
    return Share(numbers[0] - 1, numbers[1])


@click.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, callback=_parse_sources)
@model_options
@click.option(
    "--out", type=FILE, metavar="DIR", default="dcnzoo-out", show_default=True, help="Folder for the results."
)
@click.option(
    "--format",
    "formats",
    metavar=f"[{'|'.join(WRITERS)}]",
    multiple=True,
    default=["jsonl"],
    show_default=True,
    callback=several(click.Choice(list(WRITERS))),
    help="Format of the results; several with commas.",
)
@click.option("--save-images", is_flag=True, help="Also save pictures with boxes, labels and masks.")
@click.option("--save-crops", is_flag=True, help="Also save what is in each box.")
@click.option(
    "--font",
    type=FILE,
    metavar="FILE",
    help="Font for labels in pictures.  [default: one that has their characters]",
)
@click.option("--annotations", type=FILE, metavar="FILE", help="COCO file with image ids for --format coco.")
@click.option(
    "--score-threshold",
    type=Number(0, 1),
    metavar="SCORE",
    help="Scores must exceed this.  [default: 0.05, in pictures and crops 0.3]",
)
@click.option(
    "--max-detections", type=POSITIVE, metavar="N", default=100, show_default=True, help="Most per image."
)
@click.option(
    "--classes", metavar="NAMES", multiple=True, callback=split, help="Only these: names or category ids."
)
@click.option("--strict", is_flag=True, help="Stop at the first image that cannot be read.")
@click.option(
    "--shard",
    metavar="I/N",
    callback=_parse_shard,
    help="Do part I of N, 1 to N; `dcnzoo merge` joins them.  [default: what torchrun says]",
)
@run_options
@click.pass_obj
def predict(shared: SharedOptions, /, **options: Any) -> int:
    """Detect objects in images.

    A SOURCE is an image, a folder (with its subfolders), a glob, a .txt file with one path or address per
    line, an http(s) address, or - for lines on standard input.

    Results go to files in DIR as they are made. An image that cannot be read does not stop the run: it is
    listed in errors.jsonl, and the exit code is 1.
    """
    chosen = Options(**options)
    chosen.check()
    return run(chosen, shared.manifest)


def run(options: Options, manifest: Path | None) -> int:
    """Predicts as the options say; everything that can be checked without the model is checked before it.

    Returns:
        Exit code: 1 if an image failed.
    """
    check_model_name(options, manifest)
    share = options.shard or environment_share()
    if share.count > 1 and options.shard is None:
        part = f"part {share.index + 1} of {share.count}"
        click.echo(f"doing {part} of the images, since RANK and WORLD_SIZE are set", err=True)
    searched = excluded(options, share)
    check_sources(options.sources, searched)
    by_path = check_image_ids(options, searched)
    folder = open_folder(options, manifest, share)
    with exclusive(folder.path):
        folder.check(options.sources)
        predictor = load_predictor(options, manifest, share)
        settings = stream_settings(options, predictor, share)
        tally = stream(options, folder, predictor, settings, searched, by_path)
    if tally.failures:
        log = folder.path / ErrorLog.product
        click.echo(f"images that failed: {tally.failures}; {log} says why", err=True)
    return 1 if tally.failures else 0


def open_folder(options: Options, manifest: Path | None, share: Share) -> OutputFolder:
    """Returns the folder for the results: below `--out`, if the work is shared."""
    path = options.out / share.folder_name if share.count > 1 else options.out
    inputs = inputs_note(
        path,
        model=options.model,
        weights=options.weights,
        manifest=manifest,
        files=[options.annotations],
        sources=options.sources,
    )
    sources = [without_credentials(source) for source in options.sources]
    note = {**options.note(PROGRAM), **inputs, "sources": sources, "shard": dataclasses.astuple(share)}
    return OutputFolder(path, PRODUCTS, note, overwrite=options.overwrite, resume=options.resume, free=FREE)


def excluded(options: Options, share: Share) -> list[Path]:
    """Returns the folders in which no images are looked for, since results go there."""
    shards = [Share(index, share.count).folder_name for index in range(share.count)]
    return [options.out / name for name in (*PRODUCTS, *shards)]


def check_image_ids(options: Options, searched: Sequence[Path]) -> set[int]:
    """Checks that the annotations, if there are any, list at least one of the images.

    Returns:
        Ids of the images that they list with their paths; none for standard input, which is read once.

    Raises:
        SourceError: they cannot be read or list none.
    """
    by_path: set[int] = set()
    if options.annotations is not None and STDIN not in options.sources:
        image_ids, by_name, name = ImageIds(options.annotations), False, ""
        for image in find_images(options.sources, searched):
            number = image_ids.find_by_path(image)
            if number is not None:
                by_path.add(number)
            by_name = by_name or image_ids.find_by_name(image) is not None
            name = name or str(image.name)
        if not (by_path or by_name):
            raise SourceError(
                f"{options.annotations} lists none of the images by path below the source or by file name:"
                f" it has {image_ids.example}, the source has {name}"
            )
    return by_path


def stream_settings(options: Options, predictor: Predictor, share: Share) -> StreamSettings:
    """Translates the options that need the model.

    Raises:
        click.BadParameter: the model does not know a class.
    """
    from dcnzoo.predictor import SCORE_THRESHOLD
    from dcnzoo.results import DRAWN_SCORE
    from dcnzoo.stream import StreamSettings

    try:
        labels = predictor.find_labels(options.classes or None)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--classes") from error
    threshold = options.score_threshold
    return StreamSettings(
        batch_size=options.batch_size,
        workers=options.workers,
        score_threshold=SCORE_THRESHOLD if threshold is None else threshold,
        drawn_score=DRAWN_SCORE if threshold is None else threshold,
        max_detections=options.max_detections,
        labels=labels,
        strict=options.strict,
        share=share,
        image_timeout=options.image_timeout,
        max_pixels=options.max_pixels,
    )


def stream(
    options: Options,
    folder: OutputFolder,
    predictor: Predictor,
    settings: StreamSettings,
    searched: Sequence[Path],
    by_path: Collection[int],
) -> Tally:
    """Takes the images through the model to the writers, with a progress bar and a summary."""
    from dcnzoo.stopping import StopSignals
    from dcnzoo.stream import ImageStream, Tally

    tally, start, signals = Tally(), time.perf_counter(), StopSignals()
    images = find_images(options.sources, searched)
    first = next(images)  # standard input without any is an error that leaves no folder
    folder.start()
    done = folder.progress()
    try:
        with ExitStack() as stack:
            stack.enter_context(signals.caught())
            shard = stack.enter_context(Shard(folder.path, done, partial(open_writers, options)))
            image_ids = None
            if any(writer.needs_image_id for writer in shard.writers):
                image_ids = ImageIds(options.annotations, done.image_ids, by_path)
            progress = stack.enter_context(
                progress_bar(options.quiet, lambda: count_images(options, searched))
            )
            taken = ImageStream(predictor, shard, settings, tally, image_ids, progress, signals.deferred)
            taken.run(chain([first], images))
    finally:
        if not options.quiet:
            seconds = time.perf_counter() - start
            lines = [*summary(options, tally, seconds, predictor.device), f"results: {folder.path}"]
            click.echo("\n".join(lines), err=True)
    return tally


def open_writers(options: Options, out: Path, sizes: Mapping[str, int]) -> Iterator[Writer]:
    """Opens the writers that the options ask for."""
    for name in options.formats:
        yield WRITERS[name](out, sizes)
    if options.save_images:
        yield ImageWriter(out, sizes, options.font)
    if options.save_crops:
        yield CropWriter(out, sizes)


def count_images(options: Options, searched: Sequence[Path]) -> int | None:
    """Returns the number of images, None if they come from standard input."""
    if STDIN in options.sources:
        return None
    return sum(1 for _ in find_images(options.sources, searched))


def summary(options: Options, tally: Tally, seconds: float, device: torch.device) -> Iterator[str]:
    """Yields the lines that close a run."""
    from dcnzoo.hardware import peak_memory
    from dcnzoo.stream import STAGES

    rate = tally.images / seconds if seconds else 0.0
    yield (
        f"{tally.images} images, {tally.failures} failures, {tally.detections} detections"
        f" in {seconds:.1f} s ({rate:.2f} images/s)"
    )
    if tally.skipped:
        yield f"images that an earlier run has done: {tally.skipped}"
    if tally.unlisted:
        yield f"images left out, since {options.annotations} has no id for them: {tally.unlisted}"
    if tally.images:
        stages = ", ".join(f"{stage} {tally.times[stage] / tally.images * 1000:.1f}" for stage in STAGES)
        yield f"ms per image: {stages}"
    yield f"peak memory: {peak_memory(device)}"

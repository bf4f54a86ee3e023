"""`dcnzoo bench`: how long detectors take, stage by stage, and how much memory."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dcnzoo.cli.bench_report import RANDOM, as_csv, as_row, as_text, step_lines, step_row
from dcnzoo.cli.list import match_records
from dcnzoo.cli.options import FILE, POSITIVE, PRECISIONS, several, split, url_base_option
from dcnzoo.errors import DcnzooError, OutputError
from dcnzoo.sources import find_images
from dcnzoo.writers.folder import output_errors

if TYPE_CHECKING:
    from dcnzoo.benchmark import Case, Model, Result, Settings
    from dcnzoo.cli.main import SharedOptions
    from dcnzoo.training.benchmark import StepResult

R = TypeVar("R")

STDOUT = Path("-")
DEFAULT_SIZE = (480, 800)
"""Becomes 800x1333, the largest input of the published preprocessing."""

JPEG_QUALITY = 90
_CURE = "name another file"


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `bench`, as the command line gives them."""

    models: tuple[str, ...]
    weights: str | None
    arch: str | None
    images: tuple[str, ...]
    image_size: tuple[int, int] | None
    devices: tuple[str, ...]
    precisions: tuple[str, ...]
    cuda_graphs: bool
    batch_sizes: tuple[int, ...]
    threads: int | None
    warmup: int
    repeats: int
    short_side: int | None
    long_side: int | None
    json_file: Path | None
    csv_file: Path | None
    url_base: str | None
    quiet: bool
    train: bool

    @property
    def own_weights(self) -> Path | None:
        """The user's checkpoint file, None for a published checkpoint or random weights."""
        return None if self.weights in (None, RANDOM) else Path(str(self.weights))

    @property
    def picture_size(self) -> tuple[int, int] | None:
        """(height, width) of the generated picture, None if there are photos."""
        return None if self.images else self.image_size or DEFAULT_SIZE

    def check(self) -> None:
        """Checks what click cannot: options that depend on each other.

        Raises:
            click.UsageError: they do not go together.
        """
        if not self.models and self.arch is None and self.own_weights is None:
            raise click.UsageError("Name a --model (`dcnzoo list` shows them), or give --weights.")
        if self.models and self.arch is not None:
            raise click.UsageError("--model has an architecture of its own; give --arch only without it.")
        if self.arch is not None and self.weights is None:
            raise click.UsageError("--arch needs --weights: a checkpoint file, or random.")
        if self.train and self.cuda_graphs:
            raise click.UsageError("--cuda-graphs repeat predictions, not training steps; leave out one.")
        if self.images and self.image_size:
            raise click.UsageError("--images have sizes of their own; give --image-size only without them.")
        if self.short_side and self.long_side and self.short_side > self.long_side:
            raise click.UsageError(f"--short-side {self.short_side} exceeds --long-side {self.long_side}.")
        if self.json_file == self.csv_file == STDOUT:
            raise click.UsageError("Only one of --json and --csv can go to the standard output.")
        if self.json_file is not None and self.json_file == self.csv_file:
            raise click.UsageError(
                f"--json and --csv both name {self.json_file}; give each a file of its own."
            )
        for path in (self.json_file, self.csv_file):
            if path is not None and not path.parent.is_dir():
                raise click.UsageError(f"There is no folder {path.parent} for {path.name}.")
            if path is not None and path.is_dir():
                raise click.UsageError(f"{path} is a folder; name a file in it.")


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", value)
    if match is None:
        raise click.BadParameter(f"{value!r} is no HEIGHTxWIDTH such as 480x800.", context, parameter)
    return int(match[1]), int(match[2])


@click.command()
@click.option(
    "--model",
    "models",
    metavar="NAME",
    multiple=True,
    callback=split,
    help="Checkpoints of the manifest: names, parts of names, or shell patterns; several with commas.",
)
@click.option(
    "--weights",
    metavar="FILE",
    help="Checkpoint file of your own; or `random`: seeded random weights, which need no download.",
)
@click.option("--arch", metavar="NAME", help="Architecture of --weights, in place of --model.")
@click.option(
    "--images", metavar="SOURCE", multiple=True, help="Photos to measure with: files, folders, globs."
)
@click.option(
    "--image-size",
    metavar="HxW",
    callback=_size,
    help="Size of a generated picture to measure with; it is resized as photos are."
    "  [default: {}x{}, resized to 800x1333]".format(*DEFAULT_SIZE),
)
@click.option(
    "--device",
    "devices",
    metavar="DEVICE",
    multiple=True,
    callback=split,
    help="cpu, cuda or cuda:1; several with commas.  [default: the GPU if there is one]",
)
@click.option(
    "--precision",
    "precisions",
    metavar="[{}]".format("|".join(PRECISIONS)),
    multiple=True,
    default=["fp32"],
    show_default=True,
    callback=several(click.Choice(PRECISIONS)),
    help="Several with commas.",
)
@click.option(
    "--cuda-graphs/--no-cuda-graphs",
    default=False,
    help="On a GPU, repeat batches of the same shape without the CPU; the model's stages are then one,"
    " counted as transfer.  [default: off]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    metavar="N",
    multiple=True,
    default=["1"],
    show_default=True,
    callback=several(POSITIVE),
    help="Images per forward pass; several with commas.",
)
@click.option(
    "--threads", type=POSITIVE, metavar="N", help="Threads on the CPU.  [default: PyTorch's choice]"
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    metavar="N",
    default=2,
    show_default=True,
    help="Batches before those that count.",
)
@click.option(
    "--repeats", type=POSITIVE, metavar="N", default=10, show_default=True, help="Batches that are measured."
)
@click.option("--short-side", type=POSITIVE, metavar="N", help="Resize to this short side, pixels.")
@click.option("--long-side", type=POSITIVE, metavar="N", help="Limit of the long side, pixels.")
@click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write everything there; - for stdout.")
@click.option(
    "--csv", "csv_file", type=FILE, metavar="FILE", help="Write a row per case there; - for stdout."
)
@url_base_option
@click.option("--quiet", is_flag=True, help="Do not say what is being measured.")
@click.option(
    "--train", is_flag=True, help="Measure training steps, and the same ones on torchvision's operators."
)
@click.pass_obj
def bench(shared: SharedOptions, /, **options: Any) -> int:
    """Measure speed and memory of detectors.

    Every combination of model, device, precision and batch size is measured in a process of its own: the
    stages from the encoded image to the detections, images per second, and the peak of memory. A batch that
    does not fit into the memory is halved until it does.
    """
    chosen = Options(**options)
    chosen.check()
    return run(chosen, shared.manifest)


def run(options: Options, manifest: Path | None) -> int:
    """Measures as the options say, and reports.

    Returns:
        Exit code: 1 if something failed, or did not fit into the memory even with a batch of one.
    """
    from dcnzoo.benchmark import measure_apart

    cases = find_cases(options, manifest)
    _check_files(options)
    if options.train:
        from dcnzoo.training.benchmark import compare_apart

        pairs, notes, failed = _measure(options, manifest, cases, compare_apart)
        report_training(options, [result for pair in pairs for result in pair], notes)
        done = [pair[0].case for pair in pairs]
    else:
        results, notes, failed = _measure(options, manifest, cases, measure_apart)
        report(options, results, notes, manifest)
        done = [result.case for result in results]
    measured = {dataclasses.replace(case, batch_size=1) for case in done}
    missed = measured != {dataclasses.replace(case, batch_size=1) for case in cases}
    return 1 if failed or missed else 0


def _measure(
    options: Options, manifest: Path | None, cases: Sequence[Case], measure: Callable[[Case, Settings], R]
) -> tuple[list[R], list[str], bool]:
    """Measures cases.

    Returns:
        The results, what there is to note about them, and whether an error came after them.
    """
    from dcnzoo.benchmark import Settings, run_cases

    notes: list[str] = []

    def notify(note: str) -> None:
        notes.append(note)
        click.echo(note, err=True)

    def measure_case(case: Case) -> R:
        if not options.quiet:
            click.echo(f"measuring {case}", err=True)
        return measure(case, settings)

    with image_files(options) as images:
        settings = Settings(
            images,
            options.warmup,
            options.repeats,
            options.threads,
            options.short_side,
            options.long_side,
            manifest,
            options.cuda_graphs,
        )
        results: list[R] = []
        try:
            results.extend(run_cases(cases, measure_case, notify))
        except (DcnzooError, RuntimeError) as error:  # the latter from a process that crashed
            if not results:
                raise
            notify(f"{error}; nothing was measured after that")
            return results, notes, True
        return results, notes, False


def find_cases(options: Options, manifest: Path | None) -> list[Case]:
    """Combines what the options name, small batches first; fetches the checkpoints.

    Raises:
        UnknownModelError: there is no such model or architecture.
        DeviceError: a device is not there, or cannot compute in a precision.
        DownloadError: a checkpoint cannot be fetched.
    """
    from dcnzoo.benchmark import Case
    from dcnzoo.predictor import find_device, prepare_precision

    devices = [find_device(device) for device in options.devices or [None]]
    for device, precision in product(devices, options.precisions):
        prepare_precision(precision, device, training=options.train)
    combinations = product(
        find_models(options, manifest),
        dict.fromkeys(map(str, devices)),
        options.precisions,
        sorted(options.batch_sizes),
    )
    return [Case(*combination) for combination in combinations]


def find_models(options: Options, manifest: Path | None) -> list[Model]:
    """Finds the models that the options name, and their weights.

    Raises:
        click.UsageError: one file of weights for several models.
        UnknownModelError: there is no such model or architecture.
        DownloadError: a checkpoint cannot be fetched.
    """
    from dcnzoo.benchmark import Model
    from dcnzoo.download import fetch
    from dcnzoo.manifest import Architecture, load_manifest

    own = options.own_weights
    if options.arch is not None:
        Architecture.parse(options.arch)
    if not options.models:
        return [Model(None, options.arch, own)]
    known = load_manifest(manifest)
    found = (
        # a whole name may be a part of others
        [known.records[pattern]] if pattern in known.records else match_records(known, pattern)
        for pattern in options.models
    )
    records = {record.name: record for record in chain.from_iterable(found)}
    if own is not None and len(records) > 1:
        raise click.UsageError(f"--weights {own} is for one model, and --model names {len(records)}.")
    if options.weights is None:
        return [
            Model(record.name, None, fetch(record, url_base=options.url_base)) for record in records.values()
        ]
    return [Model(name, None, own) for name in records]


@contextmanager
def image_files(options: Options) -> Iterator[tuple[str, ...]]:
    """Yields the paths of the images that are measured with: the user's, or a generated one.

    Raises:
        SourceError: a source does not exist or holds no image.
    """
    if options.picture_size is None:
        needed = max(options.batch_sizes) * max(options.warmup, options.repeats)
        yield tuple(image.location for image in islice(find_images(options.images), needed))
        return
    from PIL import Image

    from dcnzoo.synthetic import random_picture

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "picture.jpg")
        picture = random_picture(*options.picture_size)
        Image.fromarray(picture).save(path, quality=JPEG_QUALITY)
        yield (str(path),)


def report(options: Options, results: Sequence[Result], notes: Sequence[str], manifest: Path | None) -> None:
    """Prints the tables, unless other results go to the standard output, and writes the files.

    Raises:
        OutputError: a file cannot be written.
    """
    from dcnzoo.manifest import load_manifest

    records = load_manifest(manifest).records
    rows = [as_row(result, records.get(str(result.case.model.name))) for result in results]
    if results and STDOUT not in (options.json_file, options.csv_file):
        click.echo(as_text(results, rows))
    _write_files(options, results[0].stamp if results else None, rows, notes)


def report_training(options: Options, results: Sequence[StepResult], notes: Sequence[str]) -> None:
    """Prints the tables of training steps, unless other results go to the standard output; writes the files.

    Raises:
        OutputError: a file cannot be written.
    """
    rows = [step_row(result) for result in results]
    if results and STDOUT not in (options.json_file, options.csv_file):
        click.echo("\n".join(step_lines(results)))
    _write_files(options, results[0].stamp if results else None, rows, notes)


def _check_files(options: Options) -> None:
    """Checks that the files can be written, and leaves everything as it was.

    Raises:
        OutputError: one cannot.
    """
    for path in (options.json_file, options.csv_file):
        if path is not None and path != STDOUT:
            with output_errors(path, _CURE):
                is_new = not path.exists()
                path.open("ab").close()
                if is_new:
                    path.unlink()


def _write_files(
    options: Options, stamp: object, rows: Sequence[dict[str, Any]], notes: Sequence[str]
) -> None:
    """Writes the standard output first, then the files; one that fails keeps no other from being written."""
    texts = {}
    if options.json_file is not None:
        everything = {"stamp": stamp, "settings": _settings(options), "results": rows, "notes": notes}
        texts[options.json_file] = json.dumps(everything, indent=2) + "\n"
    if options.csv_file is not None:
        texts[options.csv_file] = as_csv(rows)
    failures = []
    for path in sorted(texts, key=lambda path: path != STDOUT):
        try:
            _write(path, texts[path])
        except OutputError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _settings(options: Options) -> dict[str, Any]:
    """How it was measured; the rest of the options is in the rows or says where those go."""
    shared = ("images", "picture_size", "threads", "warmup", "repeats", "short_side", "long_side")
    return {name: getattr(options, name) for name in shared}


def _write(path: Path, text: str) -> None:
    if path == STDOUT:
        click.echo(text, nl=False)
        return
    with output_errors(path, _CURE):
        path.write_text(text, encoding="utf-8")

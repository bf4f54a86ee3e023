"""What the commands that run a model share: options, loading, limits, progress."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dcnzoo import __version__
from dcnzoo.cli.options import FILE, POSITIVE, PRECISIONS, Command, Number, check_run, url_base_option
from dcnzoo.sources import LIST_SUFFIX, is_url
from dcnzoo.writers.folder import PLACE, contents_note

if TYPE_CHECKING:
    from dcnzoo.predictor import Predictor
    from dcnzoo.processes import Share

DEFAULT_WORKERS = min(4, os.cpu_count() or 1)
DAY = 86400
"""Seconds."""

FREE = (
    "version",
    "cuda_graphs",
    "device",
    "image_timeout",
    "out",
    "overwrite",
    "quiet",
    "resume",
    "strict",
    "workers",
)
"""What may differ between a run and the one that resumes it."""


@dataclasses.dataclass(frozen=True)
class InferenceOptions:
    """Options of every command that runs a model, as the command line gives them."""

    model: str | None
    weights: Path | None
    arch: str | None
    out: Path
    device: str | None
    precision: str
    cuda_graphs: bool
    batch_size: int
    workers: int
    short_side: int | None
    long_side: int | None
    max_pixels: int | None
    image_timeout: float
    overwrite: bool
    resume: bool
    quiet: bool
    url_base: str | None

    def check_model(self) -> None:
        """Checks what click cannot: options about the model that depend on each other.

        Raises:
            click.UsageError: they do not go together.
        """
        check_run(model=self.model, arch=self.arch, resume=self.resume, overwrite=self.overwrite)
        if self.model is None and self.weights is None:
            raise click.UsageError("Name a --model (`dcnzoo list` shows them), or give --weights.")
        if self.short_side and self.long_side and self.short_side > self.long_side:
            raise click.UsageError(f"--short-side {self.short_side} exceeds --long-side {self.long_side}.")

    def note(self, program: str) -> dict[str, Any]:
        """Returns what is noted about the run: program, version and options, in JSON types."""
        return run_note(program, dataclasses.asdict(self))


def run_note(program: str, options: dict[str, Any]) -> dict[str, Any]:
    """Returns what is noted about a run: program, version and options, in JSON types.

    Args:
        program: name of the command.
        options: as the command line gives them.
    """
    return {
        "program": program,
        "version": __version__,
        **{
            name: str(value) if isinstance(value, Path) else value
            for name, value in options.items()
            if name != "url_base"  # may hold a password, and changes no result
        },
    }


def inputs_note(
    out: Path,
    *,
    model: str | None,
    weights: Path | None,
    manifest: Path | None,
    files: Iterable[Path | None] = (),
    sources: Iterable[str | Path | None] = (),
) -> dict[str, Any]:
    """Returns what is noted about the files that a run reads, so that no other ones are taken for them.

    Hashing takes about a second per GB.

    Args:
        out: folder for the results.
        model: record of the manifest, None for none.
        weights: checkpoint file of the user, None for none.
        manifest: of the user, None for none on the command line.
        files: whose contents decide what comes out, beside the model's; None stands for none.
        sources: where images are looked for; None stands for nowhere.

    Raises:
        DcnzooError: the manifest cannot be read, or does not have the model.
    """
    from dcnzoo.manifest import own_manifests

    manifests = own_manifests(manifest)
    contents = contents_note([*manifests, _weights_file(model, weights, manifest), *files])
    note = {"manifests": [str(path) for path in manifests], **contents}
    if any(source is not None and _depends_on_place(str(source)) for source in sources):
        # Seen from the results, so that a tree may be moved as a whole.
        note[PLACE] = os.path.relpath(Path.cwd(), out.resolve())
    return note


def _weights_file(model: str | None, weights: Path | None, manifest: Path | None) -> Path | None:
    """Returns the file with the weights if nobody else makes sure what is in it."""
    from dcnzoo.download import cached_path, checkpoint_path
    from dcnzoo.manifest import load_manifest

    if weights is not None or model is None:
        return weights
    record = load_manifest(manifest).find(model)
    path = checkpoint_path(record)
    return path if record.sha256 is None and path != cached_path(record) else None


def _depends_on_place(source: str) -> bool:
    """Tells whether it depends on the working directory what a source is; a list may have relative lines."""
    path = Path(source)
    return not is_url(source) and (not path.is_absolute() or path.suffix.lower() == LIST_SUFFIX)


_MODEL_OPTIONS = (
    click.option("--model", metavar="NAME", help="Checkpoint of the manifest; see `dcnzoo list`."),
    click.option("--weights", type=FILE, metavar="FILE", help="Checkpoint file of your own."),
    click.option("--arch", metavar="NAME", help="Architecture of --weights.  [default: as its tensors tell]"),
)

_INPUT_OPTIONS = (
    click.option(
        "--cuda-graphs/--no-cuda-graphs",
        default=False,
        help="On a GPU, repeat batches of the same shape without the CPU.  [default: off]",
    ),
    click.option(
        "--batch-size",
        type=POSITIVE,
        metavar="N",
        default=1,
        show_default=True,
        help="Images per forward pass.",
    ),
    click.option(
        "--short-side",
        type=POSITIVE,
        metavar="N",
        help="Resize to this short side, pixels.  [default: as trained]",
    ),
    click.option(
        "--long-side",
        type=POSITIVE,
        metavar="N",
        help="Limit of the long side, pixels.  [default: as trained]",
    ),
)

_MACHINE_OPTIONS = (
    click.option(
        "--workers",
        type=click.IntRange(min=0),
        metavar="N",
        default=DEFAULT_WORKERS,
        show_default=True,
        help="Processes that decode while the model computes.",
    ),
    click.option(
        "--max-pixels",
        type=POSITIVE,
        metavar="N",
        envvar="DCNZOO_MAX_PIXELS",
        help="Refuse larger images, as decompression bombs.  [default: 178956970]",
    ),
    click.option(
        "--image-timeout",
        type=Number(0, DAY, min_open=True),
        metavar="SECONDS",
        default=60,
        show_default=True,
        help="Give an image up that takes longer to read; not with --workers 0.",
    ),
    click.option("--resume", is_flag=True, help="Go on where an earlier run into DIR stopped."),
    click.option("--overwrite", is_flag=True, help="Replace the results of an earlier run in DIR."),
    click.option("--quiet", is_flag=True, help="No progress bar and no summary."),
    url_base_option,
)


def model_options(command: Command) -> Command:
    """Adds the options that choose the model."""
    for option in reversed(_MODEL_OPTIONS):
        command = option(command)
    return command


def run_options(command: Command) -> Command:
    """Adds the options that say how it runs."""
    command = machine_options(command)
    for option in reversed(_INPUT_OPTIONS):
        command = option(command)
    return command


def machine_options(
    command: Command, needs: str = "tf32 needs a GPU, fp16 one or a CPU with AVX512-FP16"
) -> Command:
    """Adds the options about the machine, the reading of images, and earlier results.

    Args:
        command: to add them to.
        needs: what the precisions need.
    """
    options = (
        click.option(
            "--device", metavar="DEVICE", help="cpu, cuda or cuda:1.  [default: the GPU if there is one]"
        ),
        click.option(
            "--precision",
            type=click.Choice(PRECISIONS),
            default="fp32",
            show_default=True,
            help=f"Numbers to compute with; {needs}.",
        ),
        *_MACHINE_OPTIONS,
    )
    for option in reversed(options):
        command = option(command)
    return command


def check_model_name(options: InferenceOptions, manifest: Path | None) -> None:
    """Checks the name of the model or architecture.

    Raises:
        UnknownModelError: there is no such name.
    """
    from dcnzoo.manifest import Architecture, load_manifest

    if options.model is not None:
        load_manifest(manifest).find(options.model)
    elif options.arch is not None:
        Architecture.parse(options.arch)


def load_predictor(options: InferenceOptions, manifest: Path | None, share: Share) -> Predictor:
    """Loads the model, onto a GPU of its own for each of several processes.

    Raises:
        DcnzooError: it cannot be loaded.
    """
    from dcnzoo.predictor import load

    return load(
        options.model,
        weights=options.weights,
        arch=options.arch,
        manifest=manifest,
        device=own_device(options.device, share),
        precision=options.precision,
        cuda_graphs=options.cuda_graphs,
        short_side=options.short_side,
        long_side=options.long_side,
        url_base=options.url_base,
    )


def own_device(device: str | None, share: Share) -> str | None:
    """Gives each of several processes the GPU of its number, unless one was asked for.

    Args:
        device: what was asked for, None if nothing was.
        share: what the process has to do.
    """
    import torch

    if share.count > 1 and device in (None, "cuda") and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', share.index)) % torch.cuda.device_count()}"
    return device


@contextmanager
def progress_bar(quiet: bool, count: Callable[[], int | None]) -> Iterator[Callable[[int], object]]:
    """Shows a bar with rate and time left, on a terminal only; yields what moves it on.

    Args:
        quiet: whether to show none.
        count: gives the number of images, None if unknown; called only if the bar is shown.
    """
    from tqdm import tqdm

    shown = sys.stderr.isatty() and not quiet
    with tqdm(total=count() if shown else None, unit="image", disable=not shown) as bar:
        yield bar.update

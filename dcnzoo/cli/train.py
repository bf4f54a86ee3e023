"""`dcnzoo train`: fine-tunes a detector on annotated images, or trains one from scratch.

Nothing heavy is imported before the options are known to make sense.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from dcnzoo.cli.inference import FREE, inputs_note, machine_options, model_options, own_device, run_note
from dcnzoo.cli.options import FILE, POSITIVE, Number, check_run, several
from dcnzoo.errors import TrainingError
from dcnzoo.run_folder import read_note
from dcnzoo.training.options import Decay, Norm, OptimizerName, TrainingOptions
from dcnzoo.writers.folder import OutputFolder, exclusive, output_errors
from dcnzoo.writers.whole import write_whole

if TYPE_CHECKING:
    from dcnzoo.cli.main import SharedOptions
    from dcnzoo.processes import Processes
    from dcnzoo.training.dataset import TrainingSet

PROGRAM = "dcnzoo train"
PROBLEMS = "problems.txt"
TRAINING_SET = "training_set"
"""Notes which images are learned from."""

USUAL = TrainingOptions()

_NOT_NEGATIVE = Number(min=0)
_ABOVE_ZERO = Number(min=0, min_open=True)
_SHARE = Number(0, 1)


@dataclasses.dataclass(frozen=True)
class Options(TrainingOptions):
    """The options of `train`, as the command line gives them.

    Attributes:
        strict: whether a problem with the annotations is an error.
        device: to compute on, None for the GPU if there is one.
        overwrite: whether the results of an earlier run are replaced.
        resume: whether to go on where an earlier run stopped.
    """

    strict: bool = False
    device: str | None = None
    overwrite: bool = False
    resume: bool = False

    def check(self) -> None:
        """Checks what click cannot: options that depend on each other.

        Raises:
            click.UsageError: they do not go together.
        """
        check_run(model=self.model, arch=self.arch, resume=self.resume, overwrite=self.overwrite)
        self._check_model()
        if self.val is None and self.val_images is not None:
            raise click.UsageError("--val-images are the images of --val; give both or none.")
        if self.long_side and self.short_sides and max(self.short_sides) > self.long_side:
            raise click.UsageError(
                f"--short-side {max(self.short_sides)} exceeds --long-side {self.long_side}."
            )
        if self.milestones and self.decay == "cosine":
            raise click.UsageError("--milestones belong to --decay step; cosine has none.")
        if self.milestones and max(self.milestones) >= self.epochs:
            raise click.UsageError(f"--milestones must lie before the end, after {self.epochs} epochs.")
        if self.tensorboard and find_spec("tensorboard") is None:
            raise click.UsageError("--tensorboard needs TensorBoard; `pip install tensorboard` does it.")

    def _check_model(self) -> None:
        if self.from_scratch and self.weights is not None:
            raise click.UsageError("--from-scratch starts without weights; leave --weights out, or it.")
        if self.model is not None:
            return
        if self.weights is None and not self.from_scratch:
            raise click.UsageError(
                "Name a --model whose published weights to start from (`dcnzoo list` shows them), or give"
                " --weights, or --arch and --from-scratch."
            )
        if self.arch is None and self.from_scratch:
            raise click.UsageError(
                "Give --arch, the architecture to train, such as --arch faster_rcnn_r50_fpn_dconv_c3-c5."
            )


@click.command()
@model_options
@click.option("--from-scratch", is_flag=True, help="Start from random weights, with trainable batch norm.")
@click.option("--train", type=FILE, metavar="FILE", required=True, help="COCO annotations to learn from.")
@click.option("--val", type=FILE, metavar="FILE", help="COCO annotations to evaluate with.")
@click.option("--images", type=FILE, metavar="DIR", required=True, help="Folder with the images.")
@click.option("--val-images", type=FILE, metavar="DIR", help="Images of --val.  [default: as --images]")
@click.option("--keep-empty", is_flag=True, help="Learn from images without objects, too.")
@click.option("--strict", is_flag=True, help="Do not start if anything is wrong with the annotations.")
@click.option(
    "--out",
    type=FILE,
    metavar="DIR",
    default="dcnzoo-train",
    show_default=True,
    help="Folder for the results.",
)
@click.option(
    "--epochs",
    type=POSITIVE,
    metavar="N",
    default=USUAL.epochs,
    show_default=True,
    help="Passes over the images.",
)
@click.option(
    "--batch-size",
    type=POSITIVE,
    metavar="N",
    default=USUAL.batch_size,
    show_default=True,
    help="Images per forward pass of a process.",
)
@click.option(
    "--accumulate",
    type=POSITIVE,
    metavar="N",
    default=USUAL.accumulate,
    show_default=True,
    help="Forward passes per step.",
)
@click.option(
    "--optimizer",
    type=click.Choice(get_args(OptimizerName)),
    default=USUAL.optimizer,
    show_default=True,
    help="What makes the steps.",
)
@click.option(
    "--learning-rate",
    type=_ABOVE_ZERO,
    metavar="X",
    help="Highest learning rate.  [default: 0.02 (adamw: 0.0001) for 16 images per step, and in proportion]",
)
@click.option(
    "--momentum",
    type=Number(0, 1, max_open=True),
    metavar="X",
    default=USUAL.momentum,
    show_default=True,
    help="Share of a step that the next one keeps, with sgd.",
)
@click.option(
    "--weight-decay", type=_NOT_NEGATIVE, metavar="X", help="Weight decay.  [default: 0.0001; adamw: 0.05]"
)
@click.option(
    "--decay",
    type=click.Choice(get_args(Decay)),
    default=USUAL.decay,
    show_default=True,
    help="How the learning rate falls: to a tenth after each milestone, or along a cosine to 0.",
)
@click.option(
    "--milestones",
    metavar="N,N",
    multiple=True,
    callback=several(POSITIVE),
    help="Epochs after which the learning rate falls to a tenth.  [default: 8,11 of 12]",
)
@click.option(
    "--warmup",
    type=click.IntRange(min=0),
    metavar="N",
    help="Steps in which the learning rate rises.  [default: 500, at most an epoch]",
)
@click.option(
    "--clip-norm", type=_ABOVE_ZERO, metavar="X", help="Largest norm of the gradient.  [default: any]"
)
@click.option(
    "--roi-samples",
    type=click.IntRange(min=4),
    metavar="N",
    help="Regions of an image that a box head learns from, at most a quarter of them objects."
    "  [default: 512]",
)
@click.option(
    "--mask-samples",
    type=POSITIVE,
    metavar="N",
    help="Of these objects, how many a mask head learns from at most.  [default: all]",
)
@click.option(
    "--ema",
    type=Number(0, 1, min_open=True, max_open=True),
    metavar="X",
    help="Average the weights with this decay, such as 0.999.",
)
@click.option(
    "--norm",
    type=click.Choice(get_args(Norm)),
    help="Batch norm's statistics.  [default: frozen; trainable with --from-scratch]",
)
@click.option(
    "--frozen-stages",
    type=click.IntRange(-1, 4),
    metavar="N",
    help="Stages of the backbone that stay as they are.  [default: 1; -1, none, with --from-scratch]",
)
@click.option(
    "--short-side",
    "short_sides",
    metavar="N,N",
    multiple=True,
    callback=several(POSITIVE),
    help="Resize to this short side, pixels; of several one is drawn per image, and the largest evaluates.",
)
@click.option("--long-side", type=POSITIVE, metavar="N", help="Limit of the long side, pixels.")
@click.option(
    "--flip",
    type=_SHARE,
    metavar="X",
    default=USUAL.flip,
    show_default=True,
    help="Share of images whose left and right are exchanged.",
)
@click.option(
    "--vertical-flip",
    type=_SHARE,
    metavar="X",
    default=USUAL.vertical_flip,
    show_default=True,
    help="Share of images whose top and bottom are exchanged: 0.5 where there is no up and down.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    default=USUAL.seed,
    show_default=True,
    help="Seed of all that is random.",
)
@click.option(
    "--evaluate-every",
    type=POSITIVE,
    metavar="N",
    default=USUAL.evaluate_every,
    show_default=True,
    help="Epochs between evaluations; the last one is always evaluated.",
)
@click.option(
    "--save-every",
    type=POSITIVE,
    metavar="N",
    default=USUAL.save_every,
    show_default=True,
    help="Steps between checkpoints; there is one after every epoch anyway.",
)
@click.option(
    "--log-every",
    type=POSITIVE,
    metavar="N",
    default=USUAL.log_every,
    show_default=True,
    help="Steps between rows of metrics.csv.",
)
@click.option("--tensorboard", is_flag=True, help="Write events for TensorBoard, too.")
@partial(machine_options, needs="tf32 and fp16 need a GPU")
@click.pass_obj
def train(shared: SharedOptions, /, **options: Any) -> None:
    """Train a detector on annotated images.

    Starts from the published weights of --model, from --weights FILE, or from nothing. Layers that tell
    classes apart are made anew when the classes differ. DIR gets last.pth, best.pth (also as safetensors),
    metrics.csv and curves.png.

    Several processes share the work: torchrun --nproc-per-node 2 -m dcnzoo train …
    """
    chosen = Options(**options)
    chosen.check()
    run(chosen, shared.manifest)


def run(options: Options, manifest: Path | None) -> None:
    """Trains as the options say; everything that can be checked without the model is checked before it."""
    from dcnzoo.predictor import find_device, prepare_precision, with_index
    from dcnzoo.processes import environment_share, find_processes

    device = with_index(find_device(own_device(options.device, environment_share())))
    prepare_precision(options.precision, device, training=True)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with find_processes(backend) as processes, exclusive(options.out, processes.is_first):
        folder = open_folder(options, manifest, processes)
        if processes.is_first:
            folder.check([str(path) for path in (options.train, options.val, options.weights) if path])
        resumes = processes.gather(folder.resumes)[0]
        _train(options, manifest, processes, folder, device, resumes)


def open_folder(options: Options, manifest: Path | None, processes: Processes) -> OutputFolder:
    """Returns the output folder, unchanged."""
    from dcnzoo.training.checkpoint import BEST, LAST, SAFE_COPIES
    from dcnzoo.training.history import CURVES, METRICS
    from dcnzoo.training.reporter import TENSORBOARD
    from dcnzoo.training.validation import FOLDER

    products = [LAST, BEST, *SAFE_COPIES.values(), METRICS, CURVES, PROBLEMS, TENSORBOARD, FOLDER]
    note = {**run_note(PROGRAM, dataclasses.asdict(options)), "processes": processes.count}
    if processes.is_first:  # the others check and write nothing
        note |= inputs_note(
            options.out,
            model=options.model,
            weights=options.weights,
            manifest=manifest,
            files=[options.train, options.val],
            sources=[options.images, options.val_images],
        )
    return OutputFolder(
        options.out,
        products,
        note,
        overwrite=options.overwrite,
        resume=options.resume,
        free={*FREE, "save_every", "tensorboard", TRAINING_SET},
    )


def note_training_set(folder: OutputFolder, training_set: TrainingSet) -> None:
    """Notes which images are learned from, or makes sure that a run to resume learned from the same.

    Images that cannot be read are left out, so that it takes more than the options to tell.

    Raises:
        TrainingError: it learned from others.
    """
    found = training_set.note()
    if not folder.resumes:
        folder.note[TRAINING_SET] = found
        return
    before = (read_note(folder.path) or {}).get(TRAINING_SET)
    if found != before:
        count = before.get("images") if isinstance(before, dict) else None
        now = "as many others" if count == found["images"] else found["images"]
        raise TrainingError(
            f"cannot resume the run in {folder.path}, which learned from {count} images, now {now};"
            " restore these, or start anew with --overwrite"
        )


def _train(
    options: Options,
    manifest: Path | None,
    processes: Processes,
    folder: OutputFolder,
    device: Any,
    resumes: bool,
) -> None:
    from dcnzoo.training import start

    source = start.find_source(options, manifest)
    training_set = start.read_training_data(options, source)
    if processes.is_first:
        for line in training_set.problem_lines():
            click.echo(f"warning: {line}", err=True)
    start.check_problems(training_set, options.strict)
    if processes.is_first:
        note_training_set(folder, training_set)
    validation_set = start.read_validation_set(options, source, training_set)
    prepared = start.prepare(options, source, training_set, processes, device, resumes)
    if processes.is_first:
        folder.start()
        with output_errors(options.out):
            lines = "".join(f"{line}\n" for line in training_set.all_problem_lines())
            write_whole(options.out / PROBLEMS, lines)
    if processes.is_first and not options.quiet:
        for line in start.effective_lines(options, prepared, training_set, validation_set, processes, device):
            click.echo(line, err=True)
    processes.wait()
    progress = start.make_trainer(options, prepared, validation_set, processes, device).run()
    if processes.is_first and not options.quiet:
        click.echo(start.summary(options.out, progress))

"""`dcnzoo eval`: how good a model's detections are, by COCO's metrics.

Nothing heavy is imported before the options are known to make sense.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
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
from dcnzoo.cli.options import FILE, POSITIVE, Number, several
from dcnzoo.evaluation import CONFUSION_SCORE, EVALUATORS, KINDS, PARTS
from dcnzoo.writers.folder import OutputFolder, exclusive, output_errors

if TYPE_CHECKING:
    from dcnzoo.cli.main import SharedOptions
    from dcnzoo.evaluation import Kind
    from dcnzoo.evaluation.annotations import Annotations
    from dcnzoo.evaluation.results import CocoResults
    from dcnzoo.manifest import Published
    from dcnzoo.processes import Processes

PROGRAM = "dcnzoo eval"


@dataclasses.dataclass(frozen=True)
class Options(InferenceOptions):
    """The options of `eval`, as the command line gives them."""

    results: Path | None
    coco: Path | None
    annotations: Path | None
    images: Path | None
    limit: int | None
    image_ids: Path | None
    iou_types: tuple[Kind, ...] | None
    per_class: bool
    evaluator: str
    confusion_score: float
    as_json: bool

    def check(self) -> None:
        """Checks what click cannot: options that depend on each other.

        Raises:
            click.UsageError: they do not go together.
        """
        if self.results is None:
            self.check_model()
        elif self.model or self.weights or self.arch:
            raise click.UsageError(
                "--results scores a file without a model; leave --model, --weights and --arch out."
            )
        if self.results is not None and self.resume:
            raise click.UsageError(
                "--resume goes on with a model's run; there is nothing to go on with here."
            )
        if (self.coco is None) == (self.annotations is None):
            raise click.UsageError("Give --coco, a folder laid out as COCO, or --annotations and --images.")
        if self.coco is not None and self.images is not None:
            raise click.UsageError("--coco has images of its own; give --images only with --annotations.")
        if self.annotations is not None and self.images is None and self.results is None:
            raise click.UsageError(
                "--annotations needs --images, the folder that its file names are relative to."
            )
        if find_spec(EVALUATORS[self.evaluator]) is None:
            raise click.UsageError(
                f"--evaluator {self.evaluator} is not installed; `pip install {self.evaluator}` does it."
            )

    @property
    def annotation_file(self) -> Path:
        """The annotations."""
        coco = self.coco or Path()
        return self.annotations or coco / "annotations" / "instances_val2017.json"

    @property
    def image_folder(self) -> Path:
        """Where the images are."""
        coco = self.coco or Path()
        return self.images or coco / "val2017"


def _kinds(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> tuple[Kind, ...] | None:
    """Returns what to score, None if nothing was asked for."""
    return several(click.Choice(KINDS))(context, parameter, values) or None


@click.command(name="eval")
@model_options
@click.option("--results", type=FILE, metavar="FILE", help="Score this COCO result file, without a model.")
@click.option(
    "--coco", type=FILE, metavar="DIR", help="Folder with annotations/instances_val2017.json and val2017/."
)
@click.option("--annotations", type=FILE, metavar="FILE", help="Any COCO annotation file.")
@click.option("--images", type=FILE, metavar="DIR", help="Images of --annotations.")
@click.option("--limit", type=POSITIVE, metavar="N", help="Only the first N images.")
@click.option(
    "--image-ids", type=FILE, metavar="FILE", help="Only these images: one id per line, or a JSON list."
)
@click.option(
    "--out",
    type=FILE,
    metavar="DIR",
    default="dcnzoo-eval",
    show_default=True,
    help="Folder for the results.",
)
@click.option(
    "--iou-type",
    "iou_types",
    metavar="[{}]".format("|".join(KINDS)),
    multiple=True,
    callback=_kinds,
    help="Score boxes (bbox) or masks (segm); both with a comma.  [default: what there is]",
)
@click.option("--per-class", is_flag=True, help="Also print AP and AR of each class.")
@click.option(
    "--confusion-score",
    type=Number(0, 1),
    metavar="SCORE",
    default=CONFUSION_SCORE,
    show_default=True,
    help="Least score in the confusion matrix.",
)
@click.option(
    "--evaluator",
    type=click.Choice(list(EVALUATORS)),
    default="pycocotools",
    show_default=True,
    help="What computes the metrics.",
)
@click.option("--json", "as_json", is_flag=True, help="Print metrics.json, for programs.")
@run_options
@click.pass_obj
def evaluate(shared: SharedOptions, /, **options: Any) -> None:
    """Score a model, or a result file, against COCO annotations.

    Prints the 12 COCO numbers for boxes and masks, what each type of error costs, and which classes are
    confused. DIR gets metrics.json, the detections, confusion matrices and precision-recall curves.

    Several processes share the work: torchrun --nproc-per-node 2 -m dcnzoo eval …
    """
    chosen = Options(**options)
    chosen.check()
    run(chosen, shared.manifest)


def run(options: Options, manifest: Path | None) -> None:
    """Evaluates as the options say; everything that can be checked without the model is checked before it."""
    from dcnzoo.evaluation.annotations import read_annotations, read_image_ids
    from dcnzoo.evaluation.results import read_results
    from dcnzoo.processes import find_processes

    check_model_name(options, manifest)
    listed = read_annotations(options.annotation_file)
    chosen = None if options.image_ids is None else read_image_ids(options.image_ids)
    annotations = listed.select(chosen, options.limit)
    results = None
    if options.results is not None:
        results = read_results(options.results, listed, options.iou_types or ())
    with find_processes() as processes, exclusive(options.out, processes.is_first):
        folder = open_folder(options, manifest, processes)
        if processes.is_first:
            folder.check([str(path) for path in (options.annotation_file, options.results) if path])
        finished = processes.is_first and folder.resumes and is_finished(options.out)
        run_figures: dict[str, Any] = {}
        if processes.gather(finished)[0]:
            results, run_figures = read_finished(options.out, annotations)
        elif results is None:
            results, run_figures = predict(options, manifest, annotations, folder, processes)
        elif processes.is_first:
            folder.start()
        if processes.is_first:
            report(options, manifest, annotations, results, run_figures)
            shutil.rmtree(options.out / PARTS, ignore_errors=True)


def is_finished(out: Path) -> bool:
    """Tells whether a run has come to its end: what it writes last is there."""
    from dcnzoo.evaluation.report import METRICS_FILE

    return (out / METRICS_FILE).exists()


def read_finished(out: Path, annotations: Annotations) -> tuple[dict[Kind, CocoResults], dict[str, Any]]:
    """Returns what `predict` has returned in a run that came to its end.

    Raises:
        EvaluationError: a file cannot be read, is not whole, or is about other images than annotated.
    """
    from dcnzoo.errors import EvaluationError
    from dcnzoo.evaluation.json_file import read_json
    from dcnzoo.evaluation.report import METRICS_FILE
    from dcnzoo.evaluation.results import RESULT_FILES

    metrics = read_json(out / METRICS_FILE)
    try:
        results = {kind: read_json(out / RESULT_FILES[kind]) for kind in KINDS if kind in metrics}
        images = {result["image_id"] for found in results.values() for result in found}
        same = metrics["num_images"] == len(annotations.images) and images <= annotations.image_sizes.keys()
        run_figures = {name: metrics[name] for name in ("memory", "speed", "hardware")}
    except (KeyError, TypeError) as error:
        problem = "does not hold all results of a finished run; start anew with --overwrite"
        raise EvaluationError(str(out), problem) from error
    if not same:
        problem = f"holds results of other images than {annotations.path} lists; start anew with --overwrite"
        raise EvaluationError(str(out), problem)
    return results, run_figures


def open_folder(options: Options, manifest: Path | None, processes: Processes) -> OutputFolder:
    """Returns the output folder, unchanged."""
    from dcnzoo.evaluation.report import product_names
    from dcnzoo.evaluation.results import RESULT_FILES

    products = [*product_names(), *RESULT_FILES.values(), PARTS]
    note = {**options.note(PROGRAM), "processes": processes.count}
    if processes.is_first:  # the others check and write nothing
        note |= inputs_note(
            options.out,
            model=options.model,
            weights=options.weights,
            manifest=manifest,
            files=[options.annotation_file, options.image_ids],
            sources=[options.image_folder],
        )
    free = {*FREE, "per_class", "evaluator", "confusion_score", "as_json"}
    return OutputFolder(
        options.out,
        products,
        note,
        overwrite=options.overwrite,
        resume=options.resume,
        can_resume=options.results is None,
        free=free,
    )


def predict(
    options: Options,
    manifest: Path | None,
    annotations: Annotations,
    folder: OutputFolder,
    processes: Processes,
) -> tuple[dict[Kind, CocoResults], dict[str, Any]]:
    """Runs the model over the images.

    Returns:
        Results of each kind, in the first process only; speed, memory and hardware, in JSON types.
    """
    files = annotations.find_files(options.image_folder)

    from dcnzoo.evaluation.collect import collect, merge_parts, with_categories
    from dcnzoo.evaluation.results import find_kinds
    from dcnzoo.hardware import hardware_stamp
    from dcnzoo.stream import StreamSettings

    loaded = load_predictor(options, manifest, processes.share)
    kinds = find_kinds(loaded.model.has_masks, annotations, options.iou_types or ())
    predictor, labels = with_categories(loaded, annotations)
    settings = StreamSettings(
        options.batch_size,
        options.workers,
        labels=labels,
        share=processes.share,
        image_timeout=options.image_timeout,
        max_pixels=options.max_pixels,
    )
    with progress_bar(options.quiet or not processes.is_first, lambda: len(files)) as progress:
        if processes.is_first:
            folder.start()
        processes.wait()
        speed = collect(predictor, annotations, files, options.out, settings, processes, progress)
    results = merge_parts(options.out, annotations, kinds) if processes.is_first else {}
    if processes.is_first and not options.quiet:
        click.echo("\n".join(speed.lines()), err=True)
    return results, {**speed.as_json(), "hardware": hardware_stamp(predictor.device)}


def report(
    options: Options,
    manifest: Path | None,
    annotations: Annotations,
    results: dict[Kind, CocoResults],
    run_figures: dict[str, Any],
) -> None:
    """Scores the results; writes and prints what comes of it."""
    from dcnzoo.evaluation import report as text
    from dcnzoo.evaluation.coco_metrics import find_evaluator
    from dcnzoo.evaluation.scoring import evaluate as score

    evaluator = find_evaluator(options.evaluator)
    evaluations = {
        kind: score(annotations, found, kind, evaluator, options.confusion_score)
        for kind, found in results.items()
    }
    compared = text.compare(evaluations, *find_published(options, manifest, annotations))
    metrics: dict[str, Any] = {
        kind: {**text.metrics_json(one), **compared.get(kind, {})} for kind, one in evaluations.items()
    }
    figures = {
        "program": PROGRAM,
        "evaluator": evaluator.package,
        "num_images": len(annotations.images),
        **metrics,
        **run_figures,
        "options": options.note(PROGRAM),
    }
    content = json.dumps(figures, indent=2)
    with output_errors(options.out):
        text.write_report(options.out, annotations, evaluations, f"{content}\n")
    lines = text.report_lines(annotations, evaluations, compared, options.per_class)
    click.echo(content if options.as_json else "\n".join(lines))
    if not options.quiet:
        click.echo(f"results: {options.out}", err=True)


def find_published(
    options: Options, manifest: Path | None, annotations: Annotations
) -> tuple[Published, bool]:
    """Returns what was published of the model, and whether the images are the ones it was measured on."""
    from dcnzoo.evaluation.report import is_val2017
    from dcnzoo.manifest import Published, load_manifest

    known = load_manifest(manifest)
    is_published = options.model is not None and options.weights is None
    published = known.find(str(options.model)).published if is_published else Published()
    return published, is_val2017(annotations, known.class_sets["coco"])

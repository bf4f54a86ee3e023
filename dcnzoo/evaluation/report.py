"""What an evaluation says, as text for people and as files for programs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcnzoo.evaluation import KINDS, Kind
from dcnzoo.evaluation.annotations import Annotations
from dcnzoo.evaluation.coco_metrics import METRICS
from dcnzoo.evaluation.curves import draw_curves, write_curves
from dcnzoo.evaluation.error_types import ErrorType
from dcnzoo.evaluation.scoring import Evaluation
from dcnzoo.manifest import ClassSet, Published
from dcnzoo.text import table
from dcnzoo.writers.whole import replacing

METRICS_FILE = "metrics.json"
BACKGROUND = "(background)"

VAL2017_IMAGES = 5000
"""Images of COCO val2017, on which the published AP was measured."""

_HEADINGS: dict[Kind, str] = {"bbox": "boxes", "segm": "masks"}
_EXPLAINED = dict(
    zip(
        METRICS,
        (
            "IoU 0.50 to 0.95",
            "IoU 0.50",
            "IoU 0.75",
            "objects below 32² pixels",
            "objects of 32² to 96² pixels",
            "objects above 96² pixels",
            "1 detection per image",
            "10 detections per image",
            "100 detections per image",
            "objects below 32² pixels",
            "objects of 32² to 96² pixels",
            "objects above 96² pixels",
        ),
        strict=True,
    )
)
_SHOWN_CLASSES = 8
"""Most classes whose confusion matrix fits on a screen; of more, the most frequent confusions are shown."""

_SHOWN_CONFUSIONS = 10


def product_names() -> list[str]:
    """Returns the names of the files that `write_report` may write."""
    files = ("confusion_matrix.{}.csv", "precision_recall.{}.csv", "precision_recall.{}.png")
    return [METRICS_FILE, *(name.format(kind) for name in files for kind in KINDS)]


def write_report(
    out: Path, annotations: Annotations, evaluations: Mapping[Kind, Evaluation], metrics: str
) -> None:
    """Writes the confusion matrices, the curves and the figures to a folder, so that all are of one report.

    They get their names when all are complete, so that a full disk leaves those of an earlier report as they
    were; the figures, which say that a run is finished, are away meanwhile and come last.

    Args:
        out: existing folder.
        annotations: of the images that were scored.
        evaluations: what was measured.
        metrics: content of metrics.json.

    Raises:
        OSError: a file cannot be written.
    """
    names = [*annotations.category_names.values(), BACKGROUND]
    with ExitStack() as stack:

        def begin(name: str) -> Path:
            return stack.enter_context(replacing(out / name))

        begin(METRICS_FILE).write_text(metrics, encoding="utf-8", newline="\n")  # begun first, named last
        for kind, evaluation in evaluations.items():
            _write_matrix(begin(f"confusion_matrix.{kind}.csv"), evaluation.confusion, names)
            write_curves(begin(f"precision_recall.{kind}.csv"), evaluation.metrics)
            draw_curves(evaluation.metrics).save(begin(f"precision_recall.{kind}.png"), "PNG")
        (out / METRICS_FILE).unlink(missing_ok=True)


def metrics_json(evaluation: Evaluation) -> dict[str, Any]:
    """Returns all figures of boxes or masks in JSON types."""
    errors = evaluation.errors
    return {
        **evaluation.metrics.stats,
        "per_class": [asdict(one) for one in evaluation.metrics.classes],
        "errors": {
            kind.name.lower(): {"ap50_gain": errors.gains[kind], "count": errors.counts[kind]}
            for kind in ErrorType
        },
    }


def is_val2017(annotations: Annotations, coco: ClassSet) -> bool:
    """Tells whether the images are all of COCO val2017, so that published figures may be compared."""
    ids = dict(zip(coco.category_ids, coco.names, strict=True))
    return len(annotations.images) == VAL2017_IMAGES and annotations.category_names == ids


def compare(
    evaluations: Mapping[Kind, Evaluation], published: Published, comparable: bool
) -> dict[Kind, dict[str, float | None]]:
    """Puts the published AP beside the measured.

    Args:
        evaluations: what was measured.
        published: what the weights' authors reported.
        comparable: whether it was measured on the same images.

    Returns:
        Per kind `published_AP` (0 to 1) and `difference` (measured minus published, None if they are
        not comparable); nothing where nothing was published.
    """
    figures: dict[Kind, float | None] = {"bbox": published.box_ap, "segm": published.mask_ap}
    compared: dict[Kind, dict[str, float | None]] = {}
    for kind, evaluation in evaluations.items():
        percent = figures[kind]
        if percent is not None:
            difference = evaluation.metrics.stats["AP"] - percent / 100 if comparable else None
            compared[kind] = {"published_AP": percent / 100, "difference": difference}
    return compared


def report_lines(
    annotations: Annotations,
    evaluations: Mapping[Kind, Evaluation],
    compared: Mapping[Kind, Mapping[str, float | None]],
    per_class: bool,
) -> Iterator[str]:
    """Yields what people want to know, as lines of text.

    Args:
        annotations: of the images that were scored.
        evaluations: what was measured.
        compared: what `compare` returned.
        per_class: whether to include the metrics of each class.
    """
    crowds = sum(item["iscrowd"] for item in annotations.objects)
    yield (
        f"{annotations.path}: {len(annotations.images)} images,"
        f" {len(annotations.objects) - crowds} objects, {crowds} crowds"
    )
    yield ""
    yield from _metric_lines(evaluations)
    yield from _comparison_lines(evaluations, compared, len(annotations.images))
    if per_class:
        yield ""
        yield from _class_lines(evaluations)
    yield ""
    yield from _error_lines(evaluations)
    for kind, evaluation in evaluations.items():
        yield ""
        yield from _confusion_lines(kind, evaluation.confusion, list(annotations.category_names.values()))


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yields the lines of a table whose first column is text and whose others are numbers."""
    yield from table(rows, numbers=range(1, len(rows[0]))).split("\n")


def _metric_lines(evaluations: Mapping[Kind, Evaluation]) -> Iterator[str]:
    rows = [["", *(_HEADINGS[kind] for kind in evaluations)]]
    for name in METRICS:
        title = f"{name.partition('_')[0]:<4}  {_EXPLAINED[name]}"
        rows.append([title, *(_figure(one.metrics.stats[name]) for one in evaluations.values())])
    yield from _table(rows)


def _comparison_lines(
    evaluations: Mapping[Kind, Evaluation],
    compared: Mapping[Kind, Mapping[str, float | None]],
    images: int,
) -> Iterator[str]:
    for kind, figures in compared.items():
        title, measured = _HEADINGS[kind], evaluations[kind].metrics.stats["AP"]
        line = f"published AP of {title} {_figure(figures['published_AP'])}, measured {_figure(measured)}"
        if figures["difference"] is not None:
            yield f"{line}, difference {figures['difference']:+.3f}"
        else:
            yield (
                f"{line} on {images} images: not compared, for these are not known to be the ones that it was"
                " published on"
            )


def _class_lines(evaluations: Mapping[Kind, Evaluation]) -> Iterator[str]:
    heading = ["class", "objects"]
    for kind in evaluations:
        heading += [f"{_HEADINGS[kind]} AP", "AP50", "AP75", "AR"]
    rows = [heading]
    for same_class in zip(*(one.metrics.classes for one in evaluations.values()), strict=True):
        figures = [figure for one in same_class for figure in (one.ap, one.ap50, one.ap75, one.ar)]
        rows.append([same_class[0].name, str(same_class[0].objects), *map(_figure, figures)])
    yield from _table(rows)


def _error_lines(evaluations: Mapping[Kind, Evaluation]) -> Iterator[str]:
    heading = ["AP50 gained if there were no errors of the type"]
    for kind in evaluations:
        heading += [_HEADINGS[kind], "errors"]
    rows = [heading]
    for error in ErrorType:
        row = [f"  {error.name.lower()}"]
        for one in evaluations.values():
            row += [f"{one.errors.gains[error]:.3f}", str(one.errors.counts[error])]
        rows.append(row)
    yield from _table(rows)


def _confusion_lines(kind: Kind, matrix: NDArray[np.int64], names: list[str]) -> Iterator[str]:
    title = f"{_HEADINGS[kind]}: true class in rows, found class in columns"
    if len(names) <= _SHOWN_CLASSES:
        labels = [*names, BACKGROUND]
        rows = [[title, *labels]]
        rows += [
            [f"  {name}", *map(str, counts)] for name, counts in zip(labels, matrix.tolist(), strict=True)
        ]
        yield from _table(rows)
        return
    mistaken = matrix[:-1, :-1] * (1 - np.eye(len(names), dtype=np.int64))
    yield f"{_HEADINGS[kind]}: most frequent confusions of classes"
    for index in np.argsort(-mistaken, axis=None, kind="stable")[:_SHOWN_CONFUSIONS]:
        true, found = np.unravel_index(index, mistaken.shape)
        if mistaken[true, found]:
            yield f"  {names[true]} taken for {names[found]}: {mistaken[true, found]}"


def _write_matrix(path: Path, matrix: NDArray[np.int64], names: list[str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["true \\ found", *names])
        rows.writerows([name, *counts] for name, counts in zip(names, matrix.tolist(), strict=True))


def _figure(value: float | None) -> str:
    """Returns three digits, or a dash where there was nothing to find."""
    return "-" if value is None or value < 0 else f"{value:.3f}"

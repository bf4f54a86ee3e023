"""What `dcnzoo bench` measured, as tables, JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from dcnzoo.text import table

if TYPE_CHECKING:
    from dcnzoo.benchmark import Result, Spread
    from dcnzoo.manifest import Record
    from dcnzoo.training.benchmark import StepResult

RANDOM = "random"
"""Stands for a file where the weights are random."""

_COLUMNS = (
    *("model", "device", "precision", "batch", "input", "found", "images/s", "p50 ms", "p95 ms"),
    *("RSS GiB", "GPU GiB", "V100 images/s"),
)


def as_row(result: Result, record: Record | None) -> dict[str, Any]:
    """A result as JSON has it.

    Args:
        result: what was measured.
        record: of the model, if it has one.
    """
    case = result.case
    times = {"total": result.total, **result.stages}
    return {
        "model": case.model.title,
        "weights": RANDOM if case.model.weights is None else str(case.model.weights),
        "device": case.device,
        "precision": case.precision,
        "batch_size": case.batch_size,
        "input_size": list(result.input_size),
        "detections_per_image": round(result.detections, 2),
        "images_per_second": round(result.images_per_second, 4),
        "milliseconds_per_batch": _spreads(times),
        "peak_memory_gib": _rounded(result.memory.host_gib),
        "peak_gpu_memory_gib": _rounded(result.memory.gpu_gib),
        "published_v100_images_per_second": record.published.fps_v100 if record else None,
    }


def _spreads(times: dict[str, Spread]) -> dict[str, dict[str, float]]:
    return {
        stage: {name: round(value, 3) for name, value in dataclasses.asdict(spread).items()}
        for stage, spread in times.items()
    }


def _rounded(amount: float | None) -> float | None:
    return None if amount is None else round(amount, 4)


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as a table with a line of titles; nothing for no rows."""
    flat = [_flat(row) for row in rows]
    text = io.StringIO()
    if flat:
        writer = csv.DictWriter(text, list(flat[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(flat)
    return text.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    row = dict(row)
    height, width = row.pop("input_size")
    times = {
        f"{stage}_{name}_ms": value
        for stage, spread in row.pop("milliseconds_per_batch").items()
        for name, value in spread.items()
    }
    return {**row, "input_height": height, "input_width": width, **times}


def as_text(results: Sequence[Result], rows: Sequence[dict[str, Any]]) -> str:
    """Tables for a terminal: the stages of each case, all cases, and the machine.

    Args:
        results: at least one.
        rows: of the same results.
    """
    return "\n".join(_paragraphs(results, rows))


def step_row(result: StepResult) -> dict[str, Any]:
    """Training steps of a case, on the operators of one kind, as JSON has them."""
    case = result.case
    return {
        "model": case.model.title,
        "weights": RANDOM if case.model.weights is None else str(case.model.weights),
        "device": case.device,
        "precision": case.precision,
        "batch_size": case.batch_size,
        "operators": result.operators,
        "input_size": list(result.input_size),
        "images_per_second": round(result.images_per_second, 4),
        "milliseconds_per_batch": _spreads({"total": result.total, **result.stages}),
        "peak_memory_gib": _rounded(result.memory.host_gib),
        "peak_gpu_memory_gib": _rounded(result.memory.gpu_gib),
    }


def step_lines(results: Sequence[StepResult]) -> Iterator[str]:
    """Yields tables for a terminal: the stages of each case's steps, and the machine.

    Args:
        results: at least one; of a case those on its own operators first, then those on others.
    """
    for case, group in groupby(results, key=lambda result: result.case):
        own, *others = group
        height, width = own.input_size
        yield f"{case}: milliseconds per training step, input {height}x{width}"
        yield _step_table(own, others)
        yield ""
    yield from _machine_lines([result.stamp for result in results])


def _step_table(own: StepResult, others: Sequence[StepResult]) -> str:
    """Mean times of the stages on each kind of operators, and how many times slower the others are."""
    rows = [["  stage", own.operators], *([f"  {stage}"] for stage in (*own.stages, "total"))]
    rows += [["  images/s"], ["  RSS GiB"]]
    for result in (own, *others):
        means = [spread.mean for spread in (*result.stages.values(), result.total)]
        figures = [f"{mean:.1f}" for mean in means]
        figures += [f"{result.images_per_second:.3g}", _gibibytes(result.memory.host_gib)]
        for row, figure in zip(rows[1:], figures, strict=True):
            row.append(figure)
        if result is not own:
            rows[0] += [result.operators, "times"]
            own_means = [spread.mean for spread in (*own.stages.values(), own.total)]
            ratios = [f"{mean / base:.2f}" for mean, base in zip(means, own_means, strict=True)]
            for row, ratio in zip(rows[1:], [*ratios, "", ""], strict=True):
                row.append(ratio)
    return table([tuple(row) for row in rows], numbers=range(1, len(rows[0])))


def _paragraphs(results: Sequence[Result], rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for result in results:
        yield f"{result.case}: milliseconds per batch\n{_stage_table(result)}\n"
    yield table([_COLUMNS, *map(_cells, rows)], numbers=range(3, len(_COLUMNS)))
    yield "V100: as published, that is, on another machine and by another program.\n"
    yield from _machine_lines([result.stamp for result in results])


def _machine_lines(stamps: Sequence[dict[str, Any]]) -> Iterator[str]:
    stamp = stamps[0]
    cpu, operators = stamp["cpu"], stamp["operators"]
    yield f"CPU: {cpu['model']}, {cpu['vector_instructions']}, {cpu['threads']} threads"
    gpus = dict.fromkeys(each["gpu"] for each in stamps if each["gpu"])
    yield f"GPU: {'; '.join(gpus) or 'not used'}"
    yield f"operators: {operators['backend']}, because {operators['because']}"
    yield "versions: " + ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    yield f"load average at the end of the first case: {stamp['load_average']}"


def _stage_table(result: Result) -> str:
    titles = ("  stage", "mean", "p50", "p95", "share")
    body = [
        (
            f"  {stage}",
            *(f"{value:.1f}" for value in (spread.mean, spread.p50, spread.p95)),
            f"{spread.mean / result.total.mean:.1%}",
        )
        for stage, spread in {**result.stages, "total": result.total}.items()
    ]
    return table([titles, *body], numbers=range(1, 5))


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    total = row["milliseconds_per_batch"]["total"]
    speed = row["published_v100_images_per_second"]
    return (
        f"{row['model']}{' (random weights)' if row['weights'] == RANDOM else ''}",
        row["device"],
        row["precision"],
        str(row["batch_size"]),
        "x".join(map(str, row["input_size"])),
        f"{row['detections_per_image']:.0f}",
        f"{row['images_per_second']:.3g}",
        f"{total['p50']:.1f}",
        f"{total['p95']:.1f}",
        _gibibytes(row["peak_memory_gib"]),
        _gibibytes(row["peak_gpu_memory_gib"]),
        "-" if speed is None else str(speed),
    )


def _gibibytes(amount: float | None) -> str:
    return "-" if amount is None else f"{amount:.2f}"

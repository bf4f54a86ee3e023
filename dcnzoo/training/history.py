"""What was learned and when: a table, and a picture of it."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dcnzoo.chart import Chart, Curve, draw_charts
from dcnzoo.writers.folder import output_errors
from dcnzoo.writers.whole import replacing, write_whole

METRICS, CURVES = "metrics.csv", "curves.png"

FIRST_COLUMNS = ("epoch", "step", "seconds", "learning_rate", "loss")

Row = Mapping[str, float]


def write_table(folder: Path, rows: Sequence[Row]) -> None:
    """Writes `metrics.csv`; what a row does not have stays empty.

    Raises:
        OutputError: it cannot be written.
    """
    columns = list(dict.fromkeys([*FIRST_COLUMNS, *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    with output_errors(folder):
        write_whole(folder / METRICS, text.getvalue())


def write_picture(folder: Path, rows: Sequence[Row]) -> None:
    """Writes `curves.png`: the losses, and the AP once there is one, over the epochs.

    Raises:
        OutputError: it cannot be written.
    """
    losses = curves_of(rows, lambda name: name.startswith(("loss", "s0", "s1", "s2")))
    scores = curves_of(rows, lambda name: name.endswith(("_AP", "_AP50")))
    charts = [Chart("losses", losses, "epoch"), Chart("AP on the validation set", scores, "epoch")]
    picture = draw_charts(charts)
    with output_errors(folder), replacing(folder / CURVES) as part:
        picture.save(part, "PNG")


def curves_of(rows: Sequence[Row], wanted: Callable[[str], bool]) -> list[Curve]:
    """Returns a curve over the epochs for each wanted column that has numbers; its title has the last one."""
    names = dict.fromkeys(name for row in rows for name in row if wanted(name))
    points = {name: [(row["epoch"], row[name]) for row in rows if name in row] for name in names}
    return [Curve(f"{name}   {each[-1][1]:.3g}", each) for name, each in points.items()]


def describe(row: Row) -> Iterator[str]:
    """Yields the losses and the learning rate of a row, for a line of text."""
    yield from (f"{name} {value:.4f}" for name, value in row.items() if "loss" in name)
    yield f"learning rate {row['learning_rate']:.3g}"

"""What was learned and when: a table, and a picture of it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from dcnzoo.annotate import BLACK, WHITE, Colour, class_colour
from dcnzoo.evaluation.curves import GREY, LEGEND, MARGIN, OVERSAMPLING, PANEL, TEXT
from dcnzoo.writers.folder import output_errors
from dcnzoo.writers.whole import replacing, write_whole

METRICS, CURVES = "metrics.csv", "curves.png"

FIRST_COLUMNS = ("epoch", "step", "seconds", "learning_rate", "loss")

Row = Mapping[str, float]


class Curve(NamedTuple):
    """A line of a chart.

    Attributes:
        title: its line in the legend.
        points: (x, y), by ascending x.
    """

    title: str
    points: list[tuple[float, float]]


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
    picture = draw_charts([("losses", losses), ("AP on the validation set", scores)])
    with output_errors(folder), replacing(folder / CURVES) as part:
        picture.save(part, "PNG")


def curves_of(rows: Sequence[Row], wanted: Callable[[str], bool]) -> list[Curve]:
    """Returns a curve over the epochs for each wanted column that has numbers."""
    names = dict.fromkeys(name for row in rows for name in row if wanted(name))
    return [Curve(name, [(row["epoch"], row[name]) for row in rows if name in row]) for name in names]


def draw_charts(charts: Sequence[tuple[str, Sequence[Curve]]]) -> Image.Image:
    """Draws charts side by side, each with its title, axes and legend."""
    width = MARGIN + PANEL + LEGEND
    size = (width * len(charts), PANEL + 2 * MARGIN)
    large = Image.new("RGB", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), WHITE)
    canvas = ImageDraw.Draw(large)
    for position, (title, curves) in enumerate(charts):
        _Chart(canvas, MARGIN + position * width, curves).draw(title)
    return large.resize(size, Image.Resampling.LANCZOS)


class _Chart:
    """One chart; all sizes are in pixels of the finished picture.

    Args:
        canvas: where to draw.
        left: of the axes.
        curves: what to draw.
    """

    def __init__(self, canvas: ImageDraw.ImageDraw, left: int, curves: Sequence[Curve]) -> None:
        self.canvas, self.left, self.curves = canvas, left, curves
        points = [point for curve in curves for point in curve.points]
        self.right_end = max((x for x, _ in points), default=0) or 1.0
        self.top_end = round_up(max((y for _, y in points), default=0))
        self.font = ImageFont.load_default(TEXT * OVERSAMPLING)

    def draw(self, title: str) -> None:
        for fifth in range(6):
            share = fifth / 5
            self._line([(share, 0), (share, 1)], GREY)
            self._line([(0, share), (1, share)], GREY)
            self._text((share, 0), (0, 6), f"{share * self.right_end:.3g}", "ma")
            self._text((0, share), (-6, 0), f"{share * self.top_end:.3g}", "rm")
        self._line([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)], BLACK)
        self._text((0.5, 0), (0, 30), "epoch", "ma")
        self._text((0.5, 1), (0, -10), title, "ms")
        for row, curve in enumerate(self.curves):
            self._curve(row, curve)

    def _curve(self, row: int, curve: Curve) -> None:
        colour = class_colour(row)
        shares = [(x / self.right_end, y / self.top_end) for x, y in curve.points]
        if len(shares) == 1:
            shares = [(shares[0][0] - 0.01, shares[0][1]), (shares[0][0] + 0.01, shares[0][1])]
        self._line(shares, colour, 2)
        down = -10 - row * 24
        legend = [self._at(1, 1, 14, -down), self._at(1, 1, 36, -down)]
        self.canvas.line(legend, colour, 4 * OVERSAMPLING)
        self._text((1, 1), (44, -down), f"{curve.title}   {curve.points[-1][1]:.3g}", "lm")

    def _at(self, x: float, y: float, dx: float = 0, dy: float = 0) -> tuple[float, float]:
        """Pixel of a place in the chart, 0 to 1 from its lower left corner, moved by (dx, dy)."""
        return (
            (self.left + x * PANEL + dx) * OVERSAMPLING,
            (MARGIN + (1 - y) * PANEL + dy) * OVERSAMPLING,
        )

    def _line(self, places: Sequence[tuple[float, float]], colour: Colour, width: int = 1) -> None:
        self.canvas.line([self._at(*place) for place in places], colour, width * OVERSAMPLING, joint="curve")

    def _text(self, place: tuple[float, float], moved: tuple[float, float], text: str, anchor: str) -> None:
        self.canvas.text(self._at(*place, *moved), text, BLACK, self.font, anchor=anchor)


def round_up(value: float) -> float:
    """Returns the end of an axis that a value fits on and whose fifths are short numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if factor * power >= value)


def describe(row: Row) -> Iterator[str]:
    """Yields the losses and the learning rate of a row, for a line of text."""
    yield from (f"{name} {value:.4f}" for name, value in row.items() if "loss" in name)
    yield f"learning rate {row['learning_rate']:.3g}"

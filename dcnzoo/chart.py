"""Charts of curves, drawn as a picture; all sizes are in pixels of the finished one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from dcnzoo.annotate import BLACK, WHITE, Colour, class_colour
from dcnzoo.fonts import font_for

GREY: Colour = (225, 225, 225)
PANEL = 480
MARGIN = 64
LEGEND = 240
TEXT = 15
OVERSAMPLING = 3

Point = tuple[float, float]


class Curve(NamedTuple):
    """A line of a chart.

    Attributes:
        title: its line in the legend.
        points: (x, y), by ascending x.
        colour: by default that of the class of its number.
    """

    title: str
    points: Sequence[Point]
    colour: Colour | None = None


class Chart(NamedTuple):
    """Curves over a pair of axes, which begin at 0.

    Attributes:
        title: above it.
        curves: what to draw; may be none.
        x_title: below the horizontal axis.
        y_title: above the vertical axis.
        top: end of the vertical axis, None for one that all curves fit under.
    """

    title: str
    curves: Sequence[Curve]
    x_title: str
    y_title: str = ""
    top: float | None = None


def draw_charts(charts: Sequence[Chart]) -> Image.Image:
    """Draws charts side by side, each with its title, axes and legend."""
    width = MARGIN + PANEL + LEGEND
    size = (width * len(charts), PANEL + 2 * MARGIN)
    large = Image.new("RGB", (size[0] * OVERSAMPLING, size[1] * OVERSAMPLING), WHITE)
    canvas = ImageDraw.Draw(large)
    for position, chart in enumerate(charts):
        _Panel(canvas, MARGIN + position * width, chart).draw()
    return large.resize(size, Image.Resampling.LANCZOS)


def round_up(value: float) -> float:
    """Returns the end of an axis that a value fits on and whose fifths are short numbers."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if factor * power >= value)


class _Panel:
    """The place of one chart.

    Args:
        canvas: where to draw.
        left: of the axes.
        chart: what to draw.
    """

    def __init__(self, canvas: ImageDraw.ImageDraw, left: int, chart: Chart) -> None:
        self.canvas, self.left, self.chart = canvas, left, chart
        points = [point for curve in chart.curves for point in curve.points]
        self.right_end = max((x for x, _ in points), default=0) or 1.0
        self.top_end = chart.top or round_up(max((y for _, y in points), default=0))

    def draw(self) -> None:
        for fifth in range(6):
            share = fifth / 5
            self._line([(share, 0), (share, 1)], GREY)
            self._line([(0, share), (1, share)], GREY)
            self._text((share, 0), (0, 6), f"{share * self.right_end:.3g}", "ma")
            self._text((0, share), (-6, 0), f"{share * self.top_end:.3g}", "rm")
        self._line([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)], BLACK)
        self._text((0.5, 0), (0, 30), self.chart.x_title, "ma")
        self._text((0, 1), (0, -10), self.chart.y_title, "ms")
        self._text((0.5, 1), (0, -10), self.chart.title, "ms")
        for row, curve in enumerate(self.chart.curves):
            self._curve(row, curve)

    def _curve(self, row: int, curve: Curve) -> None:
        colour = class_colour(row) if curve.colour is None else curve.colour
        shares = [(x / self.right_end, y / self.top_end) for x, y in curve.points]
        if len(shares) == 1:
            shares = [(shares[0][0] - 0.01, shares[0][1]), (shares[0][0] + 0.01, shares[0][1])]
        self._line(shares, colour, 2)
        down = 10 + row * 24
        self.canvas.line([self._at(1, 1, 14, down), self._at(1, 1, 36, down)], colour, 4 * OVERSAMPLING)
        self._text((1, 1), (44, down), curve.title, "lm")

    def _at(self, x: float, y: float, dx: float = 0, dy: float = 0) -> Point:
        """Pixel of a place in the chart, 0 to 1 from its lower left corner, moved by (dx, dy)."""
        return (
            (self.left + x * PANEL + dx) * OVERSAMPLING,
            (MARGIN + (1 - y) * PANEL + dy) * OVERSAMPLING,
        )

    def _line(self, places: Sequence[Point], colour: Colour, width: int = 1) -> None:
        self.canvas.line([self._at(*place) for place in places], colour, width * OVERSAMPLING, joint="curve")

    def _text(self, place: Point, moved: Point, text: str, anchor: str) -> None:
        font = font_for(text, TEXT * OVERSAMPLING)
        self.canvas.text(self._at(*place, *moved), text, BLACK, font, anchor=anchor)

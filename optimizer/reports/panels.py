"""Figures of equal panels at fixed places: no display, no pyplot, no layout pass, which would draw everything twice."""

import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from optimizer.reports.lettering import set_fonts
from optimizer.reports.palette import LIGHT
from optimizer.reports.scales import Span

__all__ = ["BELOW", "CEILING", "DPI", "Sheet", "Texts", "draw_below", "draw_ceiling", "draw_title", "new_figure"]

DPI = 150
"""Dots per inch of PNG files."""

CEILING = "ceiling: the best of any merge of the sources"
"""Legend of the line of `draw_ceiling`."""

BELOW = "trial below the axis"
"""Legend of the triangles of `draw_below`."""

# For notebooks, which embed the pictures.
_SCREEN_DPI = 80
# Distances in inches.
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.85, 0.2, 0.42, 0.08
_LINE = 0.19  # a line of a title or a caption
_TICKS, _NAME = 0.24, 0.29  # the numbers of an axis, and its name
_LEGEND_ROW, _LEGEND_ENTRY = 0.25, 2.6
_GAP = 0.14  # between two panels without numbers between them


class _ShownFigure(Figure):
    """A figure that notebooks display without pyplot."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=_SCREEN_DPI)
        return stream.getvalue()


def new_figure(width: float, height: float, layout: str | None = None) -> Figure:
    """Return an empty figure of a size in inches, on a canvas that needs no display."""
    figure = _ShownFigure(figsize=(width, height), dpi=DPI, layout=layout, facecolor=LIGHT["card"])  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class Texts:
    """The texts around the panels of a sheet: its title, a caption below it, and the names of the axes."""

    title: str
    x: str
    y: str
    caption: str = ""


@dataclass
class Sheet:
    """A figure of panels in rows of `columns`, filled one after another, with a common legend.

    Attributes:
        texts: The texts around the panels.
        count: Number of panels.
        columns: Panels in a row.
        size: Width and height of a panel in inches.
        entries: Most entries of the legend.
        title_lines: Lines of each panel's title.
        same_x: Whether all panels have the same x axis, so that only the lowest have numbers.
        same_y: The same of the y axis and the first column.
        tick_height: Height in inches of the texts below an x axis.
    """

    texts: Texts
    count: int
    columns: int
    size: tuple[float, float]
    entries: int
    title_lines: int = 1
    same_x: bool = True
    same_y: bool = True
    tick_height: float = _TICKS
    marks: dict[str, Line2D] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows = math.ceil(self.count / self.columns)
        across = self.size[0] + (_GAP if self.same_y else 0.65)
        down = self.size[1] + _GAP + _LINE * self.title_lines + (0.0 if self.same_x else self.tick_height)
        captions = len(self.texts.caption.splitlines())
        top = _TOP + _LINE * captions + _LINE * self.title_lines + 0.06
        width = _LEFT + self.columns * across - (across - self.size[0]) + _RIGHT
        in_row = max(1, int((width - 0.4) // _LEGEND_ENTRY))
        below = self.tick_height + _NAME + _LEGEND_ROW * math.ceil(self.entries / in_row) + _BOTTOM
        height = top + rows * down - (down - self.size[1]) + below
        self._width, self._height, self._top, self._below, self._in_row = width, height, top, below, in_row
        self._across, self._down = across, down
        self._numbered = (True, True)
        self.figure = new_figure(width, height)

    def panels(self) -> Iterator[Axes]:
        """Yield the panels, each with its grid, in the order of reading."""
        for position in range(self.count):
            row, column = divmod(position, self.columns)
            left = _LEFT + column * self._across
            upper = self._height - self._top - row * self._down
            axes = self.figure.add_axes(
                (
                    left / self._width,
                    (upper - self.size[1]) / self._height,
                    self.size[0] / self._width,
                    self.size[1] / self._height,
                )
            )
            for spine in axes.spines.values():
                spine.set_color(LIGHT["rule"])
            axes.tick_params(labelsize=8, color=LIGHT["rule"], labelcolor=LIGHT["quiet"], length=2.5)
            lowest = position + self.columns >= self.count
            self._numbered = lowest or not self.same_x, column == 0 or not self.same_y
            if lowest:
                axes.set_xlabel(self.texts.x, fontsize=9, color=LIGHT["ink"])
            yield axes

    def set_x(self, axes: Axes, low: float, high: float, ticks: Sequence[float], labels: Sequence[str]) -> None:
        """Set the x axis of the panel that was yielded last, with its grid."""
        axes.set_xlim(low, high)
        axes.vlines(ticks, 0, 1, transform=axes.get_xaxis_transform(), colors=LIGHT["grid"], lw=0.7, zorder=0.5)
        # A tick consists of five objects; panels without numbers are drawn without them.
        numbered = self._numbered[0]
        axes.set_xticks(ticks if numbered else [], labels if numbered else [])

    def set_y(self, axes: Axes, span: Span) -> None:
        """Set the y axis of the panel that was yielded last, with its grid."""
        axes.set_ylim(span.low, span.high)
        axes.hlines(span.ticks, 0, 1, transform=axes.get_yaxis_transform(), colors=LIGHT["grid"], lw=0.7, zorder=0.5)
        numbered = self._numbered[1]
        axes.set_yticks(span.ticks if numbered else [], span.labels if numbered else [])

    def _leave_out_legend_rows(self, rows: int) -> None:
        """Make the figure lower by rows that the legend does not need."""
        less = _LEGEND_ROW * rows
        higher = self._height
        self._height, self._below = higher - less, self._below - less
        for axes in self.figure.axes:
            left, bottom, width, height = axes.get_position().bounds
            scale = higher / self._height
            axes.set_position((left, bottom * scale - less / self._height, width, height * scale))
        self.figure.set_size_inches(self._width, self._height)

    def mark(self, name: str, line: Line2D) -> None:
        """Add an entry to the legend, once."""
        self.marks.setdefault(name, line)

    def finish(self) -> Figure:
        """Add title, caption, axis name and legend, set the fonts and return the figure."""
        self._leave_out_legend_rows(math.ceil((self.entries - len(self.marks)) / self._in_row))
        figure, middle = self.figure, (_LEFT + self._width - _RIGHT) / 2 / self._width
        figure.text(
            middle, 1 - 0.12 / self._height, self.texts.title, ha="center", va="top", fontsize=12, color=LIGHT["ink"]
        )
        if self.texts.caption:
            place = 1 - (_TOP - 0.06) / self._height
            figure.text(
                middle,
                place,
                self.texts.caption,
                ha="center",
                va="top",
                fontsize=8.5,
                color=LIGHT["quiet"],
                linespacing=1.4,
            )
        centre = (self._below + self._height - self._top) / 2 / self._height
        figure.text(
            0.1 / self._width, centre, self.texts.y, ha="left", va="center", rotation=90, fontsize=9, color=LIGHT["ink"]
        )
        if self.marks:
            figure.legend(
                self.marks.values(),
                self.marks.keys(),
                loc="lower center",
                bbox_to_anchor=(0.5, 0.0),
                ncols=min(self._in_row, len(self.marks)),
                fontsize=8.5,
                frameon=False,
                labelcolor=LIGHT["ink"],
                borderpad=0.2,
            )
        set_fonts(figure)
        return figure


def draw_title(axes: Axes, text: str, size: float = 8.5) -> None:
    """Write the title of a panel at its fixed place."""
    # With a given y matplotlib does not look for a place above the other texts, which takes long.
    axes.set_title(text, fontsize=size, y=1.0, pad=4, color=LIGHT["ink"], linespacing=1.25)


def draw_ceiling(axes: Axes, ceiling: float) -> Line2D:
    """Draw a ceiling in per cent, with its number, across a panel."""
    line = axes.axhline(ceiling, c=LIGHT["ink"], ls=(0, (5, 2)), lw=0.9, zorder=2)
    low, high = axes.get_ylim()
    axes.text(
        0.99,
        ceiling + 0.012 * (high - low),
        f"{ceiling:.2f}",
        ha="right",
        va="bottom",
        fontsize=6.5,
        color=LIGHT["quiet"],
        transform=axes.get_yaxis_transform(),
    )
    return line


def draw_below(axes: Axes, places: Sequence[float]) -> Line2D:
    """Draw triangles at the lower edge of a panel, for points that lie below it."""
    (line,) = axes.plot(
        places,
        [0.03] * len(places),
        ls="",
        marker="v",
        ms=3.5,
        mew=0,
        c=LIGHT["trial"],
        transform=axes.get_xaxis_transform(),
        zorder=2.5,
    )
    return line

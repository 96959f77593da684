"""The report page's charts as lists of shapes, which the template writes as SVG.

Colours are classes of the page's stylesheet, so that they adapt to dark mode and print. Texts remain selectable text.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from matplotlib.ticker import MaxNLocator

from optimizer.analysis import Curve
from optimizer.families import Layout
from optimizer.recipes import Parameter
from optimizer.reports.alphas import AlphaRow, envelope, is_exact, points_along
from optimizer.reports.page.rounding import decimals_of, share_in_short
from optimizer.reports.scales import Scale, Span
from optimizer.search import SearchResult, Trial
from optimizer.similarity import EXACT_METRICS

__all__ = [
    "MOST_POINTS",
    "Drawing",
    "Shape",
    "against_alpha",
    "best_so_far",
    "block_map",
    "dumbbells",
    "shown_trials",
    "way_to_target",
]

_Point = TypeVar("_Point")
# Maximum number of points in a chart; of more trials only every n-th is drawn.
MOST_POINTS = 250
# Every n-th point of a curve is drawn; a panel is two inches wide.
_EVERY = 4
# Similarities closer than this differ by rounding only.
_SAME = 1e-9


@dataclass(frozen=True)
class Shape:
    """An SVG element: its tag, its attributes, its text, and the tip that a pointer over it shows."""

    tag: str
    attributes: Mapping[str, object]
    text: str = ""
    tip: str = ""


@dataclass
class Drawing:
    """A chart: its size in SVG units, its shapes in the order of painting, and `label`, a description in words."""

    width: float
    height: float
    label: str
    shapes: list[Shape] = field(default_factory=list)

    def add(self, tag: str, style: str, text: str = "", *, tip: str = "", **attributes: object) -> None:
        """Add a shape of a CSS class; an underscore in an attribute's name stands for a dash."""
        written = {name.replace("_", "-"): _written(value) for name, value in attributes.items() if value is not None}
        self.shapes.append(Shape(tag, {"class": style, **written}, text, tip))

    def line(self, style: str, x1: float, y1: float, x2: float, y2: float) -> None:
        """Add a straight line."""
        self.add("line", style, x1=x1, y1=y1, x2=x2, y2=y2)

    def words(self, style: str, x: float, y: float, text: str, anchor: str = "start") -> None:
        """Add a text with its baseline at `y`."""
        self.add("text", style, text, x=x, y=y, text_anchor=None if anchor == "start" else anchor)

    def path(self, style: str, points: Sequence[tuple[float, float]]) -> None:
        """Add a line through points."""
        if points:
            self.add("path", style, d="M" + "L".join(f"{_written(x)} {_written(y)}" for x, y in points))

    def triangles(self, places: Iterable[float], y: float) -> None:
        """Add triangles with their upper edge at `y`, for points below the chart."""
        self.add("path", "below", d="".join(f"M{_written(x - 3)} {_written(y)}h6l-3 5z" for x in places))

    def points(self, style: str, points: Iterable[tuple[float, float]]) -> None:
        """Add dots as a single element; the stroke width of the CSS class is their size."""
        path = "".join(f"M{_written(x)} {_written(y)}h0" for x, y in points)
        if path:
            self.add("path", style, d=path)


# Width and height of a block in a map, and the gap to the next block, in SVG units.
_CELL = 92.0, 21.0, 3.0
_COLUMNS = 3


def block_map(row: AlphaRow, scale: Scale, layout: Layout) -> Drawing:
    """Draw an alpha on the blocks of a network.

    For a UNet, the input blocks go down on the left, the middle is at the bottom, and the output blocks go up on the
    right; skip connections join blocks of the same height. Other blocks, those of text encoders, are in between. The
    blocks of other networks fill one column after another.

    Args:
        row: The alpha.
        scale: The colour scale.
        layout: The layout of the network.

    Returns:
        The chart.
    """
    if layout.unet is None:
        return _columns(row, scale, layout)
    inputs, middle, outputs = (layout.groups[kind] for kind in layout.unet)
    alphas = dict(zip(layout.blocks, zip(row.values, row.searched, strict=True), strict=True))
    width, height, gap = _CELL
    inner = [block for block in layout.blocks if block not in (*inputs, *middle, *outputs)]
    rows = max(len(inputs), len(outputs))
    columns = (1.0, 104.0, 207.0)
    drawing = Drawing(
        300, (rows + len(middle)) * (height + gap) + 12, f"alphas of {row.step} on the blocks: {_in_words(row, layout)}"
    )

    def cell(block: str, x: float, y: float) -> None:
        alpha, searched = alphas[block]
        _cell(drawing, scale, block, alpha, x, y, searched=searched)

    bottom = rows * (height + gap) + 10
    for position in range(min(len(inputs), len(outputs))):
        y = 1 + position * (height + gap) + height / 2
        drawing.line("skip", columns[0] + width, y, columns[2], y)
    turn = bottom + height / 2
    for x in (columns[0] + width / 2, columns[2] + width / 2):
        drawing.line("flow", x, 1, x, turn)
    drawing.line("flow", columns[0] + width / 2, turn, columns[2] + width / 2, turn)
    for position, block in enumerate(inner):
        y = 1 + (rows / 2 - len(inner) / 2 + position) * (height + gap)
        drawing.add("rect", "clear", x=columns[1] - 6, y=y - 18, width=width + 12, height=height + 24)
        titles = [encoder.title for encoder in layout.text_encoders if encoder.block == block]
        what = titles[0] if len(titles) == 1 else f"{len(titles)} text encoders"
        drawing.words("small", columns[1] + width / 2, y - 6, what, "middle")
        cell(block, columns[1], y)
    for position, block in enumerate(inputs):
        cell(block, columns[0], 1 + position * (height + gap))
    for position, block in enumerate(reversed(outputs)):
        cell(block, columns[2], 1 + position * (height + gap))
    for position, block in enumerate(middle):
        cell(block, columns[1], bottom + position * (height + gap))
    return drawing


def _columns(row: AlphaRow, scale: Scale, layout: Layout) -> Drawing:
    """Draw the blocks in columns, in the layout's order."""
    _, height, gap = _CELL
    rows = -(-len(layout.blocks) // _COLUMNS)
    drawing = Drawing(300, rows * (height + gap) + 2, f"alphas of {row.step} on the blocks: {_in_words(row, layout)}")
    for position, (block, alpha, searched) in enumerate(zip(layout.blocks, row.values, row.searched, strict=True)):
        column, line = divmod(position, rows)
        _cell(drawing, scale, block, alpha, 1 + column * 103.0, 1 + line * (height + gap), searched=searched)
    return drawing


def _cell(drawing: Drawing, scale: Scale, block: str, alpha: float, x: float, y: float, *, searched: bool) -> None:
    width, height, _ = _CELL
    style = scale.style(alpha, searched)
    # The colours are translucent: an opaque rectangle below hides the lines between blocks.
    drawing.add("rect", "clear", x=x, y=y, width=width, height=height, rx=3)
    tip = f"{block}: {alpha:.12g}{'' if searched else ', not searched'}"
    drawing.add("rect", f"cell {style}", tip=tip, x=x, y=y, width=width, height=height, rx=3)
    drawing.words(f"on {style} block", x + 7, y + 14.5, block)
    drawing.words(f"on {style} number", x + width - 7, y + 14.5, f"{alpha:.3f}" if searched or alpha else "0", "end")


def way_to_target(nearest: tuple[str, float], recipe: float | None, reachable: float) -> Drawing:
    """Draw a bar of shares explained, from the nearest source to the target, with the recipe and the ceiling.

    Args:
        nearest: Name of the source that explains most by itself, and its share.
        recipe: Share that the recipe explains; None without one.
        reachable: Share that the best merge of the sources explains.

    Returns:
        The bar.
    """
    name, start = nearest
    left, right, top, bottom = 2.0, 598.0, 6.0, 24.0
    low = max(min(start, reachable, 1.0 if recipe is None else recipe), 0.0)
    if low >= 1 - _SAME:
        low = 0.0

    def place(share: float) -> float:
        return left + (min(max(share, low), 1.0) - low) / (1.0 - low) * (right - left)

    said = f"{name} alone explains {100 * start:.1f} %" + (
        "" if recipe is None else f", the recipe {100 * recipe:.1f} %"
    )
    drawing = Drawing(600, 30, f"{said}, the best merge of the sources {100 * reachable:.1f} %; the target is 100 %")
    drawing.add("rect", "way", x=left, y=top, width=right - left, height=bottom - top, rx=3)
    end = place(reachable if recipe is None else recipe)
    drawing.add("rect", "gone", x=left, y=top, width=max(end - left, 0.0), height=bottom - top, rx=3)
    drawing.line("bound", place(reachable), top - 5, place(reachable), bottom + 5)
    return drawing


def dumbbells(
    label: str,
    measured: Sequence[tuple[str, Sequence[str]]],
    before: Mapping[str, float],
    after: Mapping[str, float],
    ceiling: Mapping[str, float],
) -> Drawing:
    """Draw similarities block by block: a ring before, a dot after, and a bar at the ceiling if known.

    Args:
        label: Description of the chart.
        measured: The metrics with their blocks. Several metrics get headings.
        before: Similarities in [-1, 1] of the step's input A, by block.
        after: Similarities of the step's result. A missing block is one whose tensors in the target equal the base's.
        ceiling: Highest similarities that a merge can reach.

    Returns:
        The chart, with axes in per cent.
    """
    left, right, line, top = 46.0, 250.0, 17.0, 8.0
    numbers = [100 * value for values in (before, after, ceiling) for value in values.values()]
    low, high, ticks = _axis(numbers) if numbers else (0.0, 100.0, [0.0, 50.0, 100.0])
    decimals = decimals_of(after.values())
    rows = [(block, "") for _, blocks in measured for block in blocks]
    if len(measured) > 1:
        rows = [row for name, blocks in measured for row in (("", name), *((block, "") for block in blocks))]
    bottom = top + line * len(rows) + 2
    drawing = Drawing(320, bottom + 18, label)

    def place(value: float) -> float:
        return left + (100 * value - low) / (high - low) * (right - left)

    for tick in ticks:
        x = place(tick / 100)
        drawing.line("grid", x, top, x, bottom)
        drawing.words("tick", x, bottom + 12, f"{tick:.10g}", "middle")
    for position, (block, name) in enumerate(rows):
        y = top + line * (position + 0.5)
        if name:
            drawing.words("small", 4, y + 4, f"by {name}")
            continue
        drawing.words("tick", left - 8, y + 3.5, block, "end")
        if block not in after:
            drawing.words("tick", 318, y + 3.5, "unchanged", "end")
            continue
        value = after[block]
        falls = block in before and value < before[block] - _SAME
        if block in before:
            drawing.line("change worse" if falls else "change", place(before[block]), y, place(value), y)
            drawing.add("circle", "before", cx=place(before[block]), cy=y, r=3.2)
        if block in ceiling:
            drawing.line("bound", place(ceiling[block]), y - 6, place(ceiling[block]), y + 6)
        drawing.add("circle", "after worse" if falls else "after", cx=place(value), cy=y, r=3.6)
        drawing.words("tick number", 318, y + 3.5, share_in_short(value, decimals).removesuffix(" %"), "end")
        told = {"before": before.get(block), "after": value, "ceiling": ceiling.get(block)}
        tip = ", ".join(f"{what} {100 * share:.6f} %" for what, share in told.items() if share is not None)
        drawing.add("rect", "hit", tip=f"{block}: {tip}", x=0.0, y=y - line / 2, width=320.0, height=line)
    return drawing


def best_so_far(search: SearchResult, span: Span, ceiling: float | None = None) -> Drawing:
    """Draw the similarities of a search's trials, and the best so far as a line.

    Args:
        search: The search.
        span: The axis of similarity.
        ceiling: The highest total similarity, in [-1, 1], that a merge can reach.

    Returns:
        The chart.
    """
    right, top, bottom = 312.0, 8.0, 150.0
    best = search.best
    found = "no completed trial" if best is None else f"best {100 * best.total:.4f}% in trial {best.number}"
    drawing = Drawing(320, 182, f"similarity against trial in {search.name}: {len(search.trials)} trials, {found}")
    scored = [trial for trial in search.completed if math.isfinite(trial.total)]
    done = [(trial.number, 100 * trial.total, trial) for trial in scored]
    last = max([1, *(trial.number for trial in search.trials)])
    values = [value for _, value, _ in done]
    tops = _running_best(values)
    low, high = span.low, span.high
    left = _margin(span.ticks)

    def across(number: float) -> float:
        return left + 4 + number / last * (right - left - 8)

    for tick in _whole_ticks(last):
        drawing.words("tick", across(tick), bottom + 14, str(tick), "middle")
    drawing.words("tick", (left + right) / 2, bottom + 28, "trial", "middle")

    def up(value: float) -> float:
        return bottom - (max(value, low) - low) / (high - low) * (bottom - top)

    for level, text in zip(span.ticks, span.labels, strict=True):
        drawing.line("grid", left, up(level), right, up(level))
        drawing.words("tick", left - 5, up(level) + 3.5, text, "end")
    if ceiling is not None:
        drawing.line("ceiling", left, up(100 * ceiling), right, up(100 * ceiling))
    if done:
        plain = [(across(number), up(value)) for number, value, trial in done if value >= low and not is_exact(trial)]
        drawing.points("trial", _thinned(plain))
        below = [across(number) for number, value, _ in done if value < low]
        if below:
            drawing.triangles(_thinned(below), bottom - 6)
        path = f"M{_written(across(done[0][0]))} {_written(up(tops[0]))}"
        for (number, _, _), reached, earlier in zip(done[1:], tops[1:], tops, strict=False):
            if reached > earlier:
                path += f"H{_written(across(number))}V{_written(up(reached))}"
        drawing.add("path", "best", d=f"{path}H{_written(across(last))}")
        for number, value, trial in done:
            if is_exact(trial) and value >= low:
                tip = f"trial {number}, exact optimum: {value:.6f} %"
                drawing.add("path", "exact", tip=tip, d=_diamond(across(number), up(value)))
    drawing.line("axis", left, bottom, right, bottom)
    if failed := [across(trial.number) for trial in search.trials if trial.similarity is None]:
        drawing.add("path", "failed", d="".join(_cross(x, bottom - 4) for x in _thinned(failed)))
    return drawing


def shown_trials(search: SearchResult) -> tuple[Trial, ...]:
    """Return the completed trials to draw: every n-th, and always the best and those at exact optima."""
    done, best = search.completed, search.best
    step = math.ceil(len(done) / MOST_POINTS) or 1
    return tuple(
        trial
        for place, trial in enumerate(done)
        if place % step == 0 or trial is best or (step > 1 and is_exact(trial))
    )


def against_alpha(
    search: SearchResult,
    parameter: Parameter,
    trials: Sequence[Trial],
    best: int,
    span: Span,
    curve: Curve | None = None,
    ceiling: float | None = None,
) -> Drawing:
    """Draw the similarity of a free alpha's blocks against its value: the curve, trials, exact optimum and best trial.

    Args:
        search: The search.
        parameter: The free alpha.
        trials: The completed trials to draw.
        best: The number of the best trial.
        span: The axis of similarity.
        curve: The similarity along the alpha. Without it the line is the upper envelope of the trials.
        ceiling: The highest similarity of the blocks, in [-1, 1], that a merge can reach.

    Returns:
        The chart.
    """
    right, top, bottom = 154.0, 6.0, 88.0
    low, high = parameter.free.low, parameter.free.high
    points = points_along(trials, parameter)
    chosen = next((point for point in points if point[2].number == best), None)
    at = "" if chosen is None else f", best trial at {chosen[0]:.4f} with {chosen[1]:.4f}%"
    reach = "" if ceiling is None else f", ceiling {100 * ceiling:.4f}%"
    drawing = Drawing(160, 106, f"similarity against {parameter.name}: {len(search.trials)} trials{at}{reach}")
    left = _margin(span.ticks)

    def across(alpha: float) -> float:
        return left + 4 + (alpha - low) / (high - low) * (right - left - 8)

    def up(value: float) -> float:
        return bottom - (value - span.low) / (span.high - span.low) * (bottom - top)

    for alpha in (low, (low + high) / 2, high):
        drawing.words("tick", across(alpha), bottom + 13, f"{alpha:.3g}", "middle")
    last = len(span.ticks) - 1
    for place, (tick, text) in enumerate(zip(span.ticks, span.labels, strict=True)):
        drawing.line("grid", left, up(tick), right, up(tick))
        # The panels are low: the ends suffice, and the middle if there is one.
        if place in (0, last) or 2 * place == last:
            drawing.words("tick", left - 4, up(tick) + 3.5, text, "end")
    if ceiling is not None:
        drawing.line("ceiling", left, up(100 * ceiling), right, up(100 * ceiling))
    # At an exact optimum the best trial itself shows it.
    main = None if chosen is not None and is_exact(chosen[2]) else _main_optimum(trials)
    for alpha in [alpha for alpha, _, trial in points if trial is main]:
        drawing.line("optimum", across(alpha), top, across(alpha), bottom)
    if curve is not None:
        along = zip(curve.alphas[::_EVERY].tolist(), (100 * curve.similarities[::_EVERY]).tolist(), strict=True)
        drawing.path("curve", [(across(alpha), up(value)) for alpha, value in along if value >= span.low])
    elif len(points) > 1:
        edge = zip(*envelope([(alpha, value) for alpha, value, _ in points]), strict=True)
        drawing.path("envelope", [(across(alpha), up(value)) for alpha, value in edge if value >= span.low])
    drawing.points("trial", ((across(alpha), up(value)) for alpha, value, _ in points if value >= span.low))
    if below := [across(alpha) for alpha, value, _ in points if value < span.low]:
        drawing.triangles(below, bottom - 6)
    if chosen is not None and chosen[1] >= span.low:
        tip = f"best trial, {best}: {chosen[1]:.6f} % at {chosen[0]:.12g}"
        drawing.add("path", "chosen", tip=tip, d=_star(across(chosen[0]), up(chosen[1])))
    drawing.line("axis", left, bottom, right, bottom)
    return drawing


def _main_optimum(trials: Sequence[Trial]) -> Trial | None:
    """Return the trial at the exact optimum of the most informative metric; several optima would confuse readers."""
    origins = {trial.origin: trial for trial in reversed(trials)}
    return next((origins[origin] for name in EXACT_METRICS if (origin := f"exact {name}") in origins), None)


def _in_words(row: AlphaRow, layout: Layout) -> str:
    texts = [f"{block} {alpha:.3f}" for block, alpha in zip(layout.blocks, row.values, strict=True)]
    return ", ".join(texts)


def _axis(numbers: Sequence[float], *, room: float = 0.04, most: int = 4) -> tuple[float, float, list[float]]:
    """Return the lower and upper end of an axis for these numbers, and its ticks."""
    low, high = min(numbers), max(numbers)
    spread = max(high - low, 1e-7 * max(abs(low), abs(high), 1.0))
    low, high = low - room * spread, high + room * spread
    ticks = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return low, high, [round(float(tick), 9) for tick in ticks if low <= tick <= high]


def _margin(ticks: Sequence[float]) -> float:
    """Return the width in SVG units of the numbers beside an axis, for letters 10 units high."""
    return 10.0 + 5.7 * max([3, *(len(f"{tick:.10g}") for tick in ticks)])


def _whole_ticks(last: int) -> list[int]:
    ticks = MaxNLocator(6, integer=True, min_n_ticks=1).tick_values(0, last)
    return [round(tick) for tick in ticks if 0 <= tick <= last]


def _running_best(values: Sequence[float]) -> list[float]:
    tops: list[float] = []
    for value in values:
        tops.append(max(value, tops[-1]) if tops else value)
    return tops


def _thinned(points: Sequence[_Point]) -> Sequence[_Point]:
    """Return at most `MOST_POINTS` of the points, evenly spaced."""
    return points[:: math.ceil(len(points) / MOST_POINTS) or 1]


def _diamond(x: float, y: float) -> str:
    return f"M{_written(x)} {_written(y - 4.5)}l4.5 4.5l-4.5 4.5l-4.5 -4.5z"


def _cross(x: float, y: float) -> str:
    return f"M{_written(x - 3)} {_written(y - 3)}l6 6m0 -6l-6 6"


def _star(x: float, y: float) -> str:
    corners = [
        (x + size * math.sin(math.pi * n / 5), y - size * math.cos(math.pi * n / 5))
        for n, size in enumerate((6.5, 2.7) * 5)
    ]
    return "M" + "L".join(f"{_written(a)} {_written(b)}" for a, b in corners) + "z"


def _written(value: object) -> object:
    """Return a coordinate rounded to a tenth, to keep the page small; other values are unchanged."""
    return f"{value:.1f}".removesuffix(".0").replace("-0.0", "0") if isinstance(value, float) else value

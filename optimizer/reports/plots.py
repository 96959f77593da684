"""Plots of a fit as matplotlib figures and PNG files. They need no display and no pyplot and work in any thread."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from optimizer.errors import InputError
from optimizer.files import atomic_path
from optimizer.recipes import Parameter
from optimizer.reports.alphas import AlphaRow, alpha_rows, block_score, is_exact
from optimizer.reports.file_names import file_name_part
from optimizer.reports.lettering import label, set_fonts
from optimizer.reports.tables import percent
from optimizer.search import FitResult, SearchResult, Trial
from optimizer.similarity import EXACT_METRICS, total_similarity
from optimizer.studies import Stage, StepScores

__all__ = ["figures", "write_plots"]

_DPI = 150
# For notebooks, which embed the pictures.
_SCREEN_DPI = 80
# Okabe and Ito's colours, distinguishable for colour-blind readers.
_BLUE, _VERMILION, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#8a8a8a"
# Colours of cells that were not searched.
_PALE, _HATCH = "#e4e4e4", "#bdbdbd"
# Steps with more blocks than this get a row to themselves.
_WIDE = 14
# Maximum number of panels in one figure.
_MOST_PANELS = 40
# Steps between ticks, times a power of ten.
_TICKS = [1, 2, 2.5, 5, 10]
# Similarities in per cent closer than this differ by rounding only.
_SAME = 1e-9


class _ShownFigure(Figure):
    """A figure that notebooks display without pyplot."""

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.savefig(stream, format="png", dpi=_SCREEN_DPI)
        return stream.getvalue()


def figures(result: FitResult) -> Iterator[tuple[str, Figure]]:
    """Draw the plots of a fit one after another.

        plots = dict(figures(result))
        plots["alphas"]

    Args:
        result: The fit.

    Yields:
        Each plot's name and matplotlib figure, which notebooks display directly. The names are best-so-far (similarity
        against trial, by search), similarity-per-block (before and after, by step), alphas (steps by blocks), and
        similarity-against-alpha-SEARCH, with a panel per free alpha, of the last pass. SEARCH is made safe for file
        names; -2, -3 ... follow if one figure cannot contain all panels. Empty plots are left out.
    """
    taken: set[str] = set()
    for stem, figure in _drawn(result):
        names = (f"{stem}{ending}" for ending in ("", *(f"-{number}" for number in range(2, len(taken) + 3))))
        # Different search names may map to the same file name.
        name = next(name for name in names if name.lower() not in taken)
        taken.add(name.lower())
        yield name, figure


def write_plots(result: FitResult, folder: Path | str) -> list[Path]:
    """Write `figures(result)` as PNG files at 150 dots per inch, each named after its figure.

    Args:
        result: The fit.
        folder: The folder to write to; created if missing.

    Returns:
        The paths of the files.

    Raises:
        InputError: If the folder cannot be created; or, after all other plots are written, with one line per plot that
            cannot be written: the disk is full, the folder is not writable, or another program has the old file open.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: the folder for the plots cannot be made: {error.strerror}") from error
    written: list[Path] = []
    problems: list[str] = []
    for name, figure in figures(result):
        path = folder / f"{name}.png"
        try:
            with atomic_path(path) as temporary:
                _lay_out(figure)
                figure.savefig(temporary, format="png", dpi=_DPI)
        except InputError as error:
            problems += error.problems
        else:
            written.append(path)
    if problems:
        raise InputError(problems)
    return written


def _drawn(result: FitResult) -> Iterator[tuple[str, Figure]]:
    searches = [search for search in result.searches if search.trials]
    if searches:
        yield "best-so-far", _draw_best_so_far(searches)
    metrics = {stage.name: stage.metric for stage in result.study.stages}
    scores = [entry for entry in result.scores if entry.metric == metrics.get(entry.stage) and entry.after]
    if scores:
        yield "similarity-per-block", _draw_blocks(scores, {stage.name: stage for stage in result.study.stages})
    rows = alpha_rows(result)
    if rows:
        yield "alphas", _draw_alphas(result, rows)
    # Only the last of several passes over a step: earlier ones scored it with different alphas of the other steps.
    latest = {search.searched: search for search in searches}
    for search in latest.values():
        most = min(len(result.recipe.layout.blocks), _MOST_PANELS)
        pages = _pages(search.open, most) if search.completed else []
        for number, page in enumerate(pages, start=1):
            stem = f"similarity-against-alpha-{file_name_part(search.searched)}"
            yield stem, _draw_against_alpha(search, page, f", {number} of {len(pages)}" if len(pages) > 1 else "")


def _draw_best_so_far(searches: Sequence[SearchResult]) -> Figure:
    columns = min(len(searches), 3 if len(searches) > 4 else 2)
    size = (8.0, 4.4) if len(searches) == 1 else (4.2, 2.9)
    figure, panels = _grid(len(searches), columns, size)
    seen: dict[str, Line2D] = {}
    for axes, search in zip(panels, searches, strict=True):
        seen |= _draw_trials(axes, search)
        best = search.best
        found = "no completed trial" if best is None else f"{percent(best.total)} in trial {best.number}"
        axes.set_title(f"{label(search.name)}\n{search.stage.metric}: {found}", fontsize=9)
    figure.suptitle("Best similarity so far", fontsize=12)
    _name_axes(figure, panels, columns, "trial", "similarity (%)")
    order = ["best so far", "trial", "trial at an exact optimum", "trial below the panel", "failed trial"]
    return _finish(figure, {name: seen[name] for name in order if name in seen})


def _draw_trials(axes: Axes, search: SearchResult) -> dict[str, Line2D]:
    def mark(name: str, trials: Sequence[Trial], **style: object) -> None:
        if trials:
            values = [100 * trial.total for trial in trials]
            (lines[name],) = axes.plot([trial.number for trial in trials], values, label=name, **style)  # type: ignore[arg-type]

    lines: dict[str, Line2D] = {}
    exact = [trial for trial in search.completed if is_exact(trial)]
    mark("trial", [trial for trial in search.completed if not is_exact(trial)], ls="", marker=".", ms=5, c=_GREY)
    mark("trial at an exact optimum", exact, ls="", marker="D", ms=5, c=_GREEN, zorder=4)
    if search.completed:
        best = 100 * np.maximum.accumulate([trial.total for trial in search.completed])
        # The line extends to the last trial even if that one did not complete.
        numbers = [*(trial.number for trial in search.completed), search.trials[-1].number]
        values = [100 * trial.total for trial in search.completed]
        (lines["best so far"],) = axes.step(numbers, [*best, best[-1]], where="post", c=_BLUE, lw=1.6, zorder=3)
        # A few trials far below would compress the line at the top edge, so the panel cuts them off.
        low, high = min(best[0], float(np.median(values))), best[-1]
        if min(values) < high - 3 * (high - low) < high:
            low = high - 1.2 * (high - low)
            axes.set_ylim(low, high + 0.1 * (high - low))
            below = [trial.number for trial, value in zip(search.completed, values, strict=True) if value < low]
            (lines["trial below the panel"],) = axes.plot(
                below, [0.03] * len(below), ls="", marker="v", ms=3.5, c=_GREY, transform=axes.get_xaxis_transform()
            )
    failed = [trial.number for trial in search.trials if trial.similarity is None]
    if failed:
        # Failed trials have no similarity; they are drawn at the lower edge of the panel.
        (lines["failed trial"],) = axes.plot(
            failed, [0.03] * len(failed), ls="", marker="x", ms=5, c=_VERMILION, transform=axes.get_xaxis_transform()
        )
    if not search.completed:
        axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    return lines


def _draw_blocks(scores: Sequence[StepScores], stages: Mapping[str, Stage]) -> Figure:
    widest = max(len(entry.after) for entry in scores)
    columns = 1 if widest > _WIDE or len(scores) == 1 else min(len(scores), 2 if len(scores) <= 8 else 3)
    height = 3.6 if len(scores) == 1 else 2.7
    if any(len(stages[entry.stage].measured) > 1 for entry in scores):
        # Then the block labels include their metric.
        height += 0.5
    figure, panels = _grid(len(scores), columns, (max(5.4 / columns, 4.6, 0.38 * widest + 1.2), height))
    marks = {"marker": "o", "ls": ""}
    for axes, entry in zip(panels, scores, strict=True):
        blocks = list(entry.after)
        before, after = ([100 * values[block] for block in blocks] for values in (entry.before, entry.after))
        colours = [_VERMILION if last < first - _SAME else _BLUE for first, last in zip(before, after, strict=True)]
        axes.vlines(range(len(blocks)), before, after, colors=colours, lw=2, alpha=0.6)
        axes.plot(before, marker="o", ls="", ms=6, mfc="white", mec=_GREY, mew=1.4)
        for position, (value, colour) in enumerate(zip(after, colours, strict=True)):
            axes.plot([position], [value], marker="o", ls="", ms=6, c=colour)
        names = [block + _metric_of(stages[entry.stage], block) for block in blocks]
        axes.set_xticks(range(len(blocks)), names, rotation=90, fontsize=8)
        axes.set_xlim(-0.6, len(blocks) - 0.4)
        axes.set_title(
            f"{label(entry.stage, 24)} · {label(entry.step, 24)}\n"
            f"{entry.metric}: {percent(total_similarity(entry.before))} → {percent(total_similarity(entry.after))}",
            fontsize=9,
        )
    figure.suptitle("Similarity to the target, block by block", fontsize=12)
    _name_axes(figure, panels, columns, "block", "similarity (%)")
    return _finish(
        figure,
        {
            "before (the step's input A)": Line2D([], [], ms=6, mfc="white", mec=_GREY, mew=1.4, **marks),  # type: ignore[arg-type]
            "after": Line2D([], [], ms=6, c=_BLUE, **marks),  # type: ignore[arg-type]
            "after, lower than before": Line2D([], [], ms=6, c=_VERMILION, **marks),  # type: ignore[arg-type]
        },
    )


def _metric_of(stage: Stage, block: str) -> str:
    """Return " (METRIC)" for a block that another metric than the stage's first one scores, else an empty text."""
    return next((f" ({metric})" for metric, blocks in stage.measured[1:] if block in blocks), "")


def _draw_alphas(result: FitResult, rows: Sequence[AlphaRow]) -> Figure:
    blocks = result.recipe.layout.blocks
    values = np.array([row.values for row in rows])
    figure = _figure(0.44 * len(blocks) + 3.0, 0.36 * max(len(rows), 2) + 1.6)
    axes = figure.add_subplot()
    # Only searched cells are coloured, so only they determine the scale.
    coloured = [number for row in rows for number in row.found]
    norm, colours = Normalize(min([0.0, *coloured]), max([1e-3, *coloured])), colormaps["viridis"]
    image = axes.imshow(values, aspect="auto", cmap=colours, norm=norm)
    for row, line in enumerate(rows):
        for column, (number, found) in enumerate(zip(line.values, line.searched, strict=True)):
            red, green, blue, _ = colours(norm(number))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            if not found:
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fc=_PALE, ec=_HATCH, hatch="////", lw=0))
            background = {"facecolor": _PALE, "edgecolor": "none", "pad": 1.0} if not found else None
            axes.text(
                column,
                row,
                f"{number:.2f}" if found or number else "0",
                ha="center",
                va="center",
                fontsize=7.5,
                color="black" if not found or not dark else "white",
                bbox=background,
            )
    axes.set_xticks(range(len(blocks)), blocks, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [_row_title(row) for row in rows], fontsize=8)
    axes.set_xticks(np.arange(0.5, len(blocks) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color="white", lw=1)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("block")
    axes.set_ylabel("step")
    axes.set_title("Alphas", fontsize=12)
    figure.colorbar(image, ax=axes, label="alpha", pad=0.01, aspect=max(5.0, 3.0 * len(rows)), ticks=MaxNLocator(4))
    if not all(all(row.searched) for row in rows):
        figure.legend(
            handles=[Patch(fc=_PALE, ec=_HATCH, hatch="////", label="not searched")],
            loc="outside lower center",
            fontsize=8,
            frameon=False,
        )
    set_fonts(figure)
    return figure


def _row_title(row: AlphaRow) -> str:
    title = label(row.step, 28)
    return title if row.alpha == "alpha" else f"{title}.{row.alpha}"


def _pages(parameters: Sequence[Parameter], most: int) -> list[tuple[Parameter, ...]]:
    """Split free alphas into figures of at most `most` panels, keeping a step on one figure if it fits."""
    pages: list[tuple[Parameter, ...]] = []
    for step in dict.fromkeys(parameter.step for parameter in parameters):
        of_step = tuple(parameter for parameter in parameters if parameter.step == step)
        if pages and len(pages[-1]) + len(of_step) <= most:
            pages[-1] += of_step
        else:
            pages += [of_step[first : first + most] for first in range(0, len(of_step), most)]
    return pages


def _draw_against_alpha(search: SearchResult, parameters: Sequence[Parameter], page: str) -> Figure:
    count = len(parameters)
    columns = count if count <= 3 else 3 if count <= 9 else 6
    size = (6.4, 4.2) if count == 1 else (3.3, 2.4) if count <= 9 else (2.35, 1.95)
    figure, panels = _grid(count, columns, size)
    one_step = len({parameter.step for parameter in search.parameters}) == 1
    found = _exact_optimum(search)
    seen: dict[str, Line2D] = {}
    for axes, parameter in zip(panels, parameters, strict=True):
        points = [
            (trial.alphas[parameter.name], 100 * score, trial)
            for trial in search.completed
            if (score := block_score(trial, parameter)) is not None
        ]
        if points:
            alphas, scores, _ = zip(*points, strict=True)
            (seen["completed trial"],) = axes.plot(
                alphas, scores, ls="", marker="o", ms=3.5, mew=0, c=_BLUE, alpha=0.45
            )
        if found is not None:
            line = axes.axvline(found[1][parameter.name], c=_GREEN, ls="--", lw=1.2, zorder=1)
            seen[f"exact optimum of {found[0]}"] = line
        for x, y, trial in points:
            if search.best is not None and trial.number == search.best.number:
                (seen[f"best trial ({trial.number})"],) = axes.plot(
                    [x], [y], ls="", marker="*", ms=11, mec="white", mew=0.7, c=_VERMILION, zorder=4
                )
        margin = 0.04 * (parameter.free.high - parameter.free.low)
        axes.set_xlim(parameter.free.low - margin, parameter.free.high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=_TICKS))
        axes.set_title(_panel_title(search, parameter, one_step, 30 if count <= 9 else 18), fontsize=8.5)
    step = f"\nstep {label(search.step)}" if one_step else ""
    figure.suptitle(f"Similarity against alpha: {label(search.name)}{page}{step}", fontsize=11)
    blocks = "block" if all(len(parameter.blocks) == 1 for parameter in parameters) else "blocks"
    _name_axes(
        figure, panels, columns, "alpha", f"{search.stage.measured[0][0]} similarity of the panel's {blocks} (%)"
    )
    return _finish(figure, seen)


def _exact_optimum(search: SearchResult) -> tuple[str, Mapping[str, float]] | None:
    """Return a metric with an exact optimum and the alphas there; None without one.

    Results that were read from the trials have no exact optimum, but a trial at it.
    """
    for name in EXACT_METRICS:
        if name in search.exact:
            return name, search.exact[name].point
        for trial in search.completed:
            if trial.origin == f"exact {name}":
                return name, trial.alphas
    return None


def _panel_title(search: SearchResult, parameter: Parameter, one_step: bool, limit: int) -> str:
    rest = parameter.name.removeprefix(parameter.step).removeprefix(".")
    scored = sum(block in search.stage.blocks for block in parameter.blocks)
    if scored > 1:
        rest += f", mean of {scored} blocks"
    elif scored:
        rest += next(_metric_of(search.stage, block) for block in parameter.blocks if block in search.stage.blocks)
    return rest if one_step else f"{label(parameter.step, max(limit - len(rest), 8))} {rest}"


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, on a canvas that needs no display."""
    figure = _ShownFigure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _lay_out(figure: Figure) -> None:
    """Place the parts of a figure for good. Otherwise `savefig` draws the figure twice, first for its layout."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")


def _grid(panels: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels of about `size` inches, in rows of `columns`, each with separate scales."""
    lines = math.ceil(panels / columns)
    figure = _figure(columns * size[0] + 0.4, lines * size[1] + 1.2)
    found = [figure.add_subplot(lines, columns, position + 1) for position in range(panels)]
    for axes in found:
        axes.grid(color="#e6e6e6", lw=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
        # Ticks show whole numbers: an offset like "+9.748e1" above the axis is hard to read.
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICKS, min_n_ticks=2))
    return figure, found


def _name_axes(figure: Figure, panels: Sequence[Axes], columns: int, x: str, y: str) -> None:
    """Label the x axes of the last row (one label for the figure would overlap the legend) and the common y axis."""
    for axes in panels[(len(panels) - 1) // columns * columns :]:
        axes.set_xlabel(x, fontsize=10)
    figure.supylabel(y, fontsize=10)


def _finish(figure: Figure, legend: Mapping[str, Line2D]) -> Figure:
    """Add the legend, set the fonts and return the figure."""
    figure.legend(
        legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), fontsize=9, frameon=False
    )
    set_fonts(figure)
    return figure

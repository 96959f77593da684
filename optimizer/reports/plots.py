"""Plots of a fit as matplotlib figures and PNG files. They need no display and no pyplot and work in any thread."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from optimizer.errors import InputError
from optimizer.files import atomic_path
from optimizer.reports.against_alpha import draw_against_alpha, pages_of
from optimizer.reports.alphas import AlphaRow, alpha_rows, is_exact
from optimizer.reports.file_names import file_name_part
from optimizer.reports.landscape import Landscape
from optimizer.reports.lettering import label, set_fonts
from optimizer.reports.palette import LIGHT, number_colour, ramp_share
from optimizer.reports.panels import (
    BELOW,
    CEILING,
    DPI,
    Sheet,
    Texts,
    draw_below,
    draw_ceiling,
    draw_title,
    new_figure,
)
from optimizer.reports.scales import MOST_LEVELS, Scale, Span
from optimizer.reports.tables import percent
from optimizer.search import FitResult, SearchResult, Trial
from optimizer.similarity import total_similarity
from optimizer.studies import Stage, StepScores

__all__ = ["figures", "write_plots"]

# Steps with more blocks than this get a row to themselves.
_WIDE = 14
# Maximum number of panels in one figure.
_MOST_PANELS = 40
# Similarities in per cent closer than this differ by rounding only.
_SAME = 1e-9


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
        names; -2, -3 ... follow if one figure cannot contain all panels, or for blocks scored by another metric. Empty
        plots are left out. Curves and ceilings come from the statistics in the study's folder; without these, plots
        show trials alone.
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
                figure.savefig(temporary, format="png", dpi=DPI)
        except InputError as error:
            problems += error.problems
        else:
            written.append(path)
    if problems:
        raise InputError(problems)
    return written


def _drawn(result: FitResult) -> Iterator[tuple[str, Figure]]:
    landscape = Landscape.of(result)
    searches = [search for search in result.searches if search.trials]
    if searches:
        yield "best-so-far", _draw_best_so_far(searches, landscape)
    stages = {stage.name: stage for stage in result.study.stages}
    scores = [
        entry
        for entry in result.scores
        if entry.stage in stages and entry.metric == stages[entry.stage].metric and entry.after
    ]
    if scores:
        yield "similarity-per-block", _draw_blocks(scores, stages, landscape)
    rows = alpha_rows(result)
    if rows:
        yield "alphas", _draw_alphas(result, rows)
    # Only the last of several passes over a step: earlier ones scored it with different alphas of the other steps.
    latest = {search.searched: search for search in searches}
    for search in latest.values():
        most = min(len(result.recipe.layout.blocks), _MOST_PANELS)
        pages = pages_of(search, most) if search.completed else []
        for number, (metric, page) in enumerate(pages, start=1):
            stem = f"similarity-against-alpha-{file_name_part(search.searched)}"
            numbered = f", {number} of {len(pages)}" if len(pages) > 1 else ""
            yield stem, draw_against_alpha(search, metric, page, landscape, numbered)


def _draw_best_so_far(searches: Sequence[SearchResult], landscape: Landscape) -> Figure:
    spans = landscape.history_spans(searches)
    columns = min(len(searches), 3 if len(searches) > 4 else 2)
    sheet = Sheet(
        Texts("Best similarity so far", "trial", "similarity (%)"),
        len(searches),
        columns,
        (7.0, 3.6) if len(searches) == 1 else (3.7, 2.2),
        entries=6,
        title_lines=2,
        same_x=False,
        same_y=len(set(spans.values())) == 1,
    )
    for axes, search in zip(sheet.panels(), searches, strict=True):
        sheet.set_y(axes, spans[search.stage.metric])
        _draw_trials(sheet, axes, search, spans[search.stage.metric])
        ceiling = landscape.total_ceiling(search.stage)
        if ceiling is not None:
            sheet.mark(CEILING, draw_ceiling(axes, 100 * ceiling))
        best = search.best
        found = "no completed trial" if best is None else f"{percent(best.total)} in trial {best.number}"
        draw_title(axes, f"{label(search.name)}\n{search.stage.metric}: {found}")
    order = ["best so far", "trial", "trial at an exact optimum", CEILING, BELOW, "failed trial"]
    sheet.marks = {name: sheet.marks[name] for name in order if name in sheet.marks}
    return sheet.finish()


def _draw_trials(sheet: Sheet, axes: Axes, search: SearchResult, span: Span) -> None:
    def mark(name: str, trials: Sequence[Trial], **style: object) -> None:
        shown = [trial for trial in trials if 100 * trial.total >= span.low]
        if shown:
            values = [100 * trial.total for trial in shown]
            (line,) = axes.plot([trial.number for trial in shown], values, ls="", **style)  # type: ignore[arg-type]
            sheet.mark(name, line)

    completed = search.completed
    mark("trial", [trial for trial in completed if not is_exact(trial)], marker=".", ms=5, c=LIGHT["trial"])
    exact = [trial for trial in completed if is_exact(trial)]
    mark("trial at an exact optimum", exact, marker="D", ms=5, c=LIGHT["good"], zorder=4)
    if completed:
        best = 100 * np.maximum.accumulate([trial.total for trial in completed])
        # The line extends to the last trial even if that one did not complete.
        numbers = [*(trial.number for trial in completed), search.trials[-1].number]
        (line,) = axes.step(numbers, [*best, best[-1]], where="post", c=LIGHT["best"], lw=1.6, zorder=3)
        sheet.mark("best so far", line)
        if below := [trial.number for trial in completed if 100 * trial.total < span.low]:
            sheet.mark(BELOW, draw_below(axes, below))
    failed = [trial.number for trial in search.trials if trial.similarity is None]
    if failed:
        # Failed trials have no similarity; they are drawn at the lower edge of the panel.
        (line,) = axes.plot(
            failed,
            [0.03] * len(failed),
            ls="",
            marker="x",
            ms=5,
            c=LIGHT["worse"],
            transform=axes.get_xaxis_transform(),
        )
        sheet.mark("failed trial", line)
    last = search.trials[-1].number
    ticks = [
        round(tick) for tick in MaxNLocator(6, integer=True, min_n_ticks=1).tick_values(0, last) if 0 <= tick <= last
    ]
    sheet.set_x(axes, -0.03 * max(last, 1), 1.03 * max(last, 1), ticks, list(map(str, ticks)))


def _draw_blocks(scores: Sequence[StepScores], stages: Mapping[str, Stage], landscape: Landscape) -> Figure:
    # A panel for each step and metric: similarities by different metrics do not compare.
    shown = [
        (entry, name, blocks)
        for entry in scores
        for name, measured in stages[entry.stage].measured
        if (blocks := [block for block in measured if block in entry.after])
    ]
    spans = {}
    for metric in dict.fromkeys(name for _, name, _ in shown):
        of_metric = [(entry, block) for entry, name, blocks in shown if name == metric for block in blocks]
        spans[metric] = Span.of(
            (100 * values[block] for entry, block in of_metric for values in (entry.before, entry.after)), metric
        )
    widest = max(len(blocks) for _, _, blocks in shown)
    columns = 1 if widest > _WIDE or len(shown) == 1 else min(len(shown), 2 if len(shown) <= 12 else 3)
    sheet = Sheet(
        Texts("Similarity to the target, block by block", "block", "similarity (%)"),
        len(shown),
        columns,
        (max(5.4 / columns, 4.2, 0.38 * widest + 0.6), 2.7 if len(shown) == 1 else 1.8),
        entries=5,
        title_lines=2,
        same_x=False,
        same_y=len(set(spans.values())) == 1,
        tick_height=0.55,
    )
    for axes, (entry, metric, blocks) in zip(sheet.panels(), shown, strict=True):
        sheet.set_y(axes, spans[metric])
        _draw_step(
            sheet,
            axes,
            entry,
            blocks,
            {block: 100 * value for block, value in landscape.ceilings.get(metric, {}).items()},
        )
        before, after = (
            total_similarity({block: values[block] for block in blocks}) for values in (entry.before, entry.after)
        )
        ceiling = landscape.ceiling_of(metric, blocks)
        reach = "" if ceiling is None else f" (ceiling {percent(ceiling)})"
        draw_title(
            axes,
            f"{label(entry.stage, 24)} · {label(entry.step, 24)}\n"
            f"{metric}: {percent(before)} → {percent(after)}{reach}",
        )
    return sheet.finish()


def _draw_step(
    sheet: Sheet, axes: Axes, entry: StepScores, blocks: Sequence[str], ceilings: Mapping[str, float]
) -> None:
    """Draw the similarity of each block before and after a step, in per cent, and its ceiling."""
    before, after = ([100 * values[block] for block in blocks] for values in (entry.before, entry.after))
    places = np.arange(len(blocks))
    lower = np.array([last < first - _SAME for first, last in zip(before, after, strict=True)])
    colours = [LIGHT["worse"] if is_lower else LIGHT["best"] for is_lower in lower]
    axes.vlines(places, before, after, colors=colours, lw=2, alpha=0.6)
    round_dot = {"marker": "o", "ls": "", "ms": 5.5}
    (line,) = axes.plot(places, before, c=LIGHT["trial"], mfc=LIGHT["card"], mec=LIGHT["trial"], mew=1.4, **round_dot)  # type: ignore[arg-type]
    sheet.mark("before (the step's input A)", line)
    for name, chosen, colour in (("after", ~lower, "best"), ("after, lower than before", lower, "worse")):
        if chosen.any():
            (line,) = axes.plot(places[chosen], np.array(after)[chosen], c=LIGHT[colour], **round_dot)  # type: ignore[arg-type]
            sheet.mark(name, line)
    known = [(place, ceilings[block]) for place, block in enumerate(blocks) if block in ceilings]
    if known:
        half = min(0.32, 0.04 * len(blocks))
        levels, lefts, rights = zip(*((ceiling, p - half, p + half) for p, ceiling in known), strict=True)
        axes.hlines(levels, lefts, rights, colors=LIGHT["ink"], lw=1.2, zorder=4)
        sheet.mark(CEILING, Line2D([], [], c=LIGHT["ink"], lw=1.2))
    low = axes.get_ylim()[0]
    if below := [place for place, value in enumerate(np.minimum(before, after)) if value < low]:
        sheet.mark("below the axis", draw_below(axes, below))
    sheet.set_x(axes, -0.6, len(blocks) - 0.4, places.tolist(), blocks)
    axes.tick_params(axis="x", labelrotation=90)


def _draw_alphas(result: FitResult, rows: Sequence[AlphaRow]) -> Figure:
    blocks, scale = result.recipe.layout.blocks, Scale.of(rows)
    figure = new_figure(0.44 * len(blocks) + 3.0, 0.36 * max(len(rows), 2) + 1.6, layout="constrained")
    axes = figure.add_subplot()
    cells = np.array([[_colour(scale, number) for number in row.values] for row in rows])
    axes.imshow(cells, aspect="auto")
    for row, line in enumerate(rows):
        for column, (number, found) in enumerate(zip(line.values, line.searched, strict=True)):
            if not found:
                corner = (column - 0.5, row - 0.5)
                axes.add_patch(Rectangle(corner, 1, 1, fc=LIGHT["paper"], ec=LIGHT["hatch"], hatch="////", lw=0))
            on_colour = number_colour(scale.level(number), negative=number < 0)
            axes.text(
                column,
                row,
                f"{number:.2f}" if found or number else "0",
                ha="center",
                va="center",
                fontsize=7.5,
                color=on_colour if found else LIGHT["ink"],
                bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 1.0} if not found else None,
            )
    axes.set_xticks(range(len(blocks)), blocks, rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [_row_title(row) for row in rows], fontsize=8)
    axes.set_xticks(np.arange(0.5, len(blocks) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(rows) - 1), minor=True)
    axes.grid(which="minor", color=LIGHT["card"], lw=1)
    axes.tick_params(which="minor", length=0)
    axes.tick_params(color=LIGHT["rule"], labelcolor=LIGHT["quiet"])
    for spine in axes.spines.values():
        spine.set_color(LIGHT["rule"])
    axes.set_xlabel("block", fontsize=9, color=LIGHT["ink"])
    axes.set_ylabel("step", fontsize=9, color=LIGHT["ink"])
    axes.set_title("Alphas", fontsize=12, color=LIGHT["ink"])
    _draw_scale(figure, axes, scale, len(rows))
    if not all(all(row.searched) for row in rows):
        figure.legend(
            handles=[Patch(fc=LIGHT["paper"], ec=LIGHT["hatch"], hatch="////", label="not searched")],
            loc="outside lower center",
            fontsize=8,
            frameon=False,
        )
    set_fonts(figure)
    return figure


def _draw_scale(figure: Figure, axes: Axes, scale: Scale, rows: int) -> None:
    """Draw the colours of alphas beside the map."""
    low = -scale.largest if scale.negative else 0.0
    numbers = np.linspace(low, scale.largest, 2 * MOST_LEVELS + 1)
    bar = figure.colorbar(
        _mappable(scale, numbers), ax=axes, label="alpha", pad=0.01, aspect=max(5.0, 3.0 * rows), ticks=MaxNLocator(4)
    )
    bar.outline.set_edgecolor(LIGHT["rule"])
    bar.ax.tick_params(labelsize=8, color=LIGHT["rule"], labelcolor=LIGHT["quiet"])
    bar.ax.yaxis.label.set(fontsize=9, color=LIGHT["ink"])


def _mappable(scale: Scale, numbers: np.ndarray) -> ScalarMappable:
    colours = ListedColormap([_colour(scale, float(number)) for number in numbers])
    return ScalarMappable(Normalize(float(numbers[0]), float(numbers[-1])), colours)


def _colour(scale: Scale, alpha: float) -> tuple[float, float, float]:
    """Return the colour of an alpha: the report's, which is translucent, on white."""
    share = ramp_share(scale.level(alpha))
    red, green, blue = (1 - share * (1 - int(part) / 255) for part in LIGHT["other" if alpha < 0 else "ramp"].split())
    return red, green, blue


def _row_title(row: AlphaRow) -> str:
    title = label(row.step, 28)
    return title if row.alpha == "alpha" else f"{title}.{row.alpha}"


def _lay_out(figure: Figure) -> None:
    """Place the parts of a figure for good. Otherwise `savefig` draws the figure twice, first for its layout."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")

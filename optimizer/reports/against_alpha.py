"""Plots of similarity against alpha, a panel for each free alpha, all with the same axes."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from optimizer.analysis import Curve
from optimizer.recipes import Parameter
from optimizer.reports.alphas import envelope, is_exact, metric_of, points_along
from optimizer.reports.landscape import Landscape
from optimizer.reports.lettering import label
from optimizer.reports.palette import LIGHT
from optimizer.reports.panels import BELOW, CEILING, Sheet, Texts, draw_below, draw_ceiling, draw_title
from optimizer.search import SearchResult, Trial
from optimizer.similarity import EXACT_METRICS

__all__ = ["draw_against_alpha", "pages_of"]


def pages_of(search: SearchResult, most: int) -> list[tuple[str, tuple[Parameter, ...]]]:
    """Return the metric and the free alphas of each figure.

    Args:
        search: The search.
        most: The largest number of free alphas in a figure; a step is on one figure if it fits.

    Returns:
        Metrics, joined by + for alphas that move blocks of several, with their free alphas.
    """
    pages: list[tuple[str, tuple[Parameter, ...]]] = []
    by_metric: dict[str, list[Parameter]] = {}
    for parameter in search.open:
        by_metric.setdefault(metric_of(search.stage, parameter), []).append(parameter)
    for metric in (name for name in (*dict(search.stage.measured), *by_metric) if name in by_metric):
        of_metric = by_metric.pop(metric)
        begun = len(pages)
        for step in dict.fromkeys(parameter.step for parameter in of_metric):
            of_step = tuple(parameter for parameter in of_metric if parameter.step == step)
            if len(pages) > begun and len(pages[-1][1]) + len(of_step) <= most:
                pages[-1] = metric, (*pages[-1][1], *of_step)
            else:
                pages += [(metric, of_step[first : first + most]) for first in range(0, len(of_step), most)]
    return pages


def draw_against_alpha(
    search: SearchResult, metric: str, parameters: Sequence[Parameter], landscape: Landscape, page: str
) -> Figure:
    """Draw a panel for each free alpha: its curve, or the upper envelope of its trials.

    Args:
        search: A search with a completed trial.
        metric: The metric of the free alphas' blocks.
        parameters: The free alphas.
        landscape: The curves and ceilings.
        page: The end of the title, for a figure among several.

    Returns:
        The figure.
    """
    count = len(parameters)
    columns = count if count <= 3 else 3 if count <= 9 else 6
    curves = landscape.curves.get(search.name, {})
    points = {parameter.name: points_along(search.completed, parameter) for parameter in parameters}
    span = landscape.span_along(search, metric, parameters)
    one_step = len({parameter.step for parameter in search.parameters}) == 1
    known = sum(parameter.name in curves for parameter in parameters)
    blocks = "block" if all(len(parameter.blocks) == 1 for parameter in parameters) else "blocks"
    step = f", step {label(search.step)}" if one_step else ""
    sheet = Sheet(
        Texts(
            f"Similarity against alpha: {label(search.name)}{page}{step}",
            "alpha",
            f"{metric} similarity of the panel's {blocks} (%)" if metric else "similarity (%)",
            _caption(metric, known, count),
        ),
        count,
        columns,
        (6.0, 3.6) if count == 1 else (3.0, 1.8) if count <= 9 else (2.0, 1.3),
        entries=6,
        same_x=len({(parameter.free.low, parameter.free.high) for parameter in parameters}) == 1,
    )
    for axes, parameter in zip(sheet.panels(), parameters, strict=True):
        sheet.set_y(axes, span)
        _draw_panel(sheet, axes, search, parameter, points[parameter.name], curves.get(parameter.name))
        ceiling = landscape.ceiling_of(metric, [block for block in parameter.blocks if block in search.stage.blocks])
        if ceiling is not None:
            sheet.mark(CEILING, draw_ceiling(axes, 100 * ceiling))
        draw_title(axes, _panel_title(search, parameter, one_step, 30 if count <= 9 else 18))
    return sheet.finish()


def _caption(metric: str, known: int, count: int) -> str:
    """Return what the lines of the panels are."""
    exact = "Lines: the similarity along each alpha, all others as in the best trial, computed from the statistics."
    envelope = "Dotted lines: the upper envelope of the trials, from the best one outwards; no trial lies above them."
    if known == count:
        return exact
    if known:
        return f"{exact}\n{envelope}"
    return f"{envelope} Without trials no curve is known{f' for {metric}' if metric else ''}."


def _draw_panel(
    sheet: Sheet,
    axes: Axes,
    search: SearchResult,
    parameter: Parameter,
    points: Sequence[tuple[float, float, Trial]],
    curve: Curve | None,
) -> None:
    """Draw the curve of a free alpha, or the envelope of its trials, its trials, the best one and an exact optimum."""
    low, best = axes.get_ylim()[0], search.best
    if curve is not None:
        (line,) = axes.plot(curve.alphas, 100 * curve.similarities, c=LIGHT["best"], lw=1.3, zorder=3)
        sheet.mark("similarity along this alpha", line)
    elif len(points) > 1:
        alphas, tops = envelope([(alpha, score) for alpha, score, _ in points])
        (line,) = axes.plot(alphas, tops, c=LIGHT["best"], ls=":", lw=1.1, zorder=3)
        sheet.mark("upper envelope of the trials", line)
    if shown := [(alpha, score) for alpha, score, _ in points if score >= low]:
        across, up = zip(*shown, strict=True)
        (line,) = axes.plot(across, up, ls="", marker="o", ms=2.8, mew=0, c=LIGHT["trial"], alpha=0.75, zorder=2.5)
        sheet.mark("completed trial", line)
    if below := [alpha for alpha, score, _ in points if score < low]:
        sheet.mark(BELOW, draw_below(axes, below))
    optimum = _exact_optimum(search)
    at_best = best is not None and is_exact(best)
    if optimum is not None and not at_best:
        line = axes.axvline(optimum[1][parameter.name], c=LIGHT["good"], ls="--", lw=1.0, zorder=1)
        sheet.mark(f"exact optimum of {optimum[0]}", line)
    for alpha, score, trial in points:
        if best is not None and trial.number == best.number:
            (line,) = axes.plot(
                [alpha], [score], ls="", marker="*", ms=9, mec=LIGHT["card"], mew=0.6, c=LIGHT["worse"], zorder=5
            )
            sheet.mark(f"best trial ({best.number})" + (f", {best.origin} optimum" if at_best else ""), line)
    free = parameter.free
    margin = 0.04 * (free.high - free.low)
    ends = (free.low, (free.low + free.high) / 2, free.high)
    sheet.set_x(axes, free.low - margin, free.high + margin, ends, [f"{end:.4g}" for end in ends])


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
    return rest if one_step else f"{label(parameter.step, max(limit - len(rest), 8))} {rest}"

"""Terminal tables: similarities, candidates, verified steps and simplified recipes."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from optimizer.analysis import Simplified, Verified
from optimizer.printable import printable
from optimizer.recipes import Expected
from optimizer.search import FitResult, SearchResult
from optimizer.similarity import total_similarity
from optimizer.studies import StepScores

__all__ = [
    "block_table",
    "candidates_table",
    "percent",
    "simplified_table",
    "spread_table",
    "steps_table",
    "verified_table",
]

# Letters of a column beside its text: a space on either side and a border.
_PADDING = 3
_MISSING = "-"


def percent(similarity: float) -> str:
    """Return a similarity in [-1, 1] as per cent, in the article's form "97.4805%"; "-" if it is not finite."""
    return f"{100 * similarity:.4f}%" if math.isfinite(similarity) else _MISSING


def _block_cell(similarity: float | None) -> str:
    return "unchanged" if similarity is None else percent(similarity)


def block_table(
    title: str,
    rows: Mapping[str, Mapping[str, float | None]],
    totals: Mapping[str, float] | None = None,
    *,
    width: int = 80,
    ascii_only: bool = False,
) -> Table:
    """Return a table of similarities by block, in per cent, with totals.

    Args:
        title: The table's title.
        rows: Similarities in [-1, 1] by row and block. A missing block is shown as "-", None (the target's block equals
            the base's) as "unchanged".
        totals: Totals in [-1, 1] by row; the mean of the blocks for rows without one.
        width: Letters of the console. If the blocks do not fit as columns, they become lines.
        ascii_only: Whether the console's encoding lacks box characters: borders become + - |, other letters are
            escaped.

    Returns:
        The table.
    """
    blocks = list(dict.fromkeys(block for scores in rows.values() for block in scores))
    lines: list[list[str]] = []
    for name, scores in rows.items():
        total = (totals or {}).get(name, total_similarity(scores))
        cells_of_row = (_block_cell(scores.get(block, math.nan)) for block in blocks)
        lines.append([name, *cells_of_row, percent(total)])
    cells = [["", *blocks, "total"], *lines]
    blocks_as_lines = 1 + sum(max(map(len, column)) + _PADDING for column in zip(*cells, strict=True)) > width
    if blocks_as_lines:
        cells = [list(column) for column in zip(*cells, strict=True)]
        cells[0][0] = "block"
    table = _table(title, cells[0], ascii_only=ascii_only)
    for position, line in enumerate(cells[1:], start=2):
        total_follows = blocks_as_lines and position == len(cells) - 1
        table.add_row(*(_text(cell, ascii_only) for cell in line), end_section=total_follows)
    return table


def steps_table(result: FitResult, *, ascii_only: bool = False) -> Table:
    """Return a table of the total similarity of every stage's steps, before (the step's input A) and after, by metric.

    Best trial and number of trials belong to the search that set the step's alphas; they are in the row of its metric.

    Args:
        result: The fit.
        ascii_only: See `block_table`.

    Returns:
        The table.
    """
    header = ["stage", "step", "metric", "before", "after", "best trial", "trials"]
    table = _table("Similarity by step", header, left=3, ascii_only=ascii_only)
    for position, scores in enumerate(result.scores):
        search = _search_of(result, scores)
        found = [_MISSING, _MISSING]
        if search is not None:
            found = [_MISSING if search.best is None else str(search.best.number), str(len(search.completed))]
        before, after = (percent(total_similarity(values)) for values in (scores.before, scores.after))
        following = result.scores[position + 1 : position + 2]
        table.add_row(
            *(
                _text(cell, ascii_only)
                for cell in (scores.stage, scores.step, scores.metric.replace("+", " + "), before, after, *found)
            ),
            end_section=any((later.stage, later.step) != (scores.stage, scores.step) for later in following),
        )
    return table


def spread_table(result: FitResult, *, ascii_only: bool = False) -> Table:
    """Return a table of each stage's total on its own random inputs and on other ones: mean, lowest and highest."""
    header = ["stage", "step", "metric", "fitted on", "others", "lowest", "highest"]
    table = _table("Similarity on random inputs that were not fitted on", header, left=3, ascii_only=ascii_only)
    for spread in result.spread:
        totals = spread.totals
        figures = (spread.fitted, math.fsum(totals) / len(totals), min(totals), max(totals))
        cells = [spread.stage, spread.step, spread.metric, *map(percent, figures)]
        table.add_row(*(_text(cell, ascii_only) for cell in cells))
    return table


def candidates_table(result: FitResult, *, ascii_only: bool = False) -> Table:
    """Return a table of the best recipe and the next best that differ: file, search, similarity, loss, difference.

    Args:
        result: The fit.
        ascii_only: See `block_table`.

    Returns:
        The table. `loss` is in percentage points; `differs by` is the largest difference from the best recipe in a
        coefficient of a source in a scored block.
    """
    header = ["recipe", "search", "trial", "similarity", "loss", "differs by"]
    table = _table("Best recipes that differ", header, left=2, ascii_only=ascii_only)
    found = {search.name: search.best for search in result.searches}
    for name in dict.fromkeys(candidate.search for candidate in result.candidates):
        if (best := found[name]) is not None:
            cells = [result.study.outputs.best.name, name, str(best.number), percent(best.total), _MISSING, _MISSING]
            table.add_row(*(_text(cell, ascii_only) for cell in cells))
    for candidate in result.candidates:
        cells = [
            result.study.outputs.candidate(candidate.number).name,
            candidate.search,
            str(candidate.trial),
            percent(candidate.similarity),
            f"{100 * candidate.loss:.4f}",
            f"{candidate.distance:.2f}",
        ]
        table.add_row(*(_text(cell, ascii_only) for cell in cells))
    return table


def verified_table(steps: Sequence[Verified], *, ascii_only: bool = False) -> Table:
    """Return a table of the measured similarity of each step beside the expected one, by block and in total.

    Args:
        steps: The verified steps.
        ascii_only: See `block_table`.

    Returns:
        The table, in per cent. It lists the blocks that have an expected value or cannot be measured.
    """
    header = ["step", "block", "measured", "expected", "difference"]
    table = _table("Similarity by step, measured and expected", header, left=2, ascii_only=ascii_only)
    described = [_verified_rows(verified) for verified in steps]
    for position, rows in enumerate(described):
        following = described[position + 1] if position + 1 < len(described) else []
        for line, row in enumerate(rows):
            cells = [steps[position].step if line == 0 else "", *row]
            # No line separates steps that have a total only.
            last = line == len(rows) - 1 and max(len(rows), len(following)) > 1
            table.add_row(*(_text(cell, ascii_only) for cell in cells), end_section=last)
    return table


def simplified_table(simplified: Simplified, *, ascii_only: bool = False) -> Table:
    """Return a table of a recipe before and after: similarities, numbers by grid, steps and sources."""
    table = _table("Simplified", ["", "before", "after", "difference"], ascii_only=ascii_only)
    totals = [("explained", *simplified.explained)] if simplified.before else []
    totals += [(f"similarity, {name}", old, new) for name, (old, new) in simplified.totals.items()]
    sections = [[[name, percent(old), percent(new), f"{100 * (new - old):+.4f}"] for name, old, new in totals]]
    kinds = {"0": "alphas at 0", "finer": "alphas on no grid"}
    counts = [
        (kinds.get(grid, f"alphas on grid {grid}"), old, new) for grid, (old, new) in simplified.changes.grids().items()
    ]
    sections.append([_counted(*line) for line in [*counts, ("distinct numbers", *simplified.distinct)]])
    dropped = [("steps dropped", simplified.changes.steps), ("sources dropped", simplified.changes.sources)]
    sections.append([[name, "", str(len(names)), ", ".join(names) or _MISSING] for name, names in dropped])
    for rows in sections:
        for position, row in enumerate(rows, start=1):
            table.add_row(*(_text(cell, ascii_only) for cell in row), end_section=position == len(rows))
    return table


def _counted(name: str, before: int, after: int) -> list[str]:
    return [name, str(before), str(after), f"{after - before:+d}" if after != before else _MISSING]


def _verified_rows(verified: Verified) -> list[list[str]]:
    expected = verified.expected or Expected(())
    reported = {**expected.similarities}
    rows = [
        [block, *_comparison(verified.measured.get(block), reported.get(block))]
        for block in dict.fromkeys([*reported, *verified.not_measurable])
    ]
    # An expected mean that includes blocks which cannot be measured is comparable only roughly.
    without = f" without {', '.join(verified.not_measurable)}" if verified.not_measurable else ""
    rows.append([f"total{without}", *_comparison(verified.total if verified.measured else None, expected.total)])
    return rows


def _comparison(measured: float | None, reported: float | None) -> list[str]:
    """Return the cells of two similarities and their difference in percentage points."""
    shown = ["not measurable" if measured is None else percent(measured)]
    shown.append(_MISSING if reported is None else percent(reported))
    both = measured is not None and reported is not None
    return [*shown, f"{100 * (measured - reported):+.4f}" if both else _MISSING]  # type: ignore[operator]


def _search_of(result: FitResult, scores: StepScores) -> SearchResult | None:
    """Return the search by this metric that set the step's alphas: of several passes the last one."""
    for search in reversed(result.searches):
        steps = {parameter.step for parameter in search.parameters}
        if search.stage.name == scores.stage and search.stage.metric == scores.metric and scores.step in steps:
            return search
    return None


def _table(title: str, header: Sequence[str], *, left: int = 1, ascii_only: bool) -> Table:
    table = Table(title=_text(title, ascii_only), box=box.ASCII2 if ascii_only else box.ROUNDED, title_justify="left")
    for position, name in enumerate(header):
        # Long text is wrapped, not cut off, since the ellipsis is not an ASCII character.
        justify = "left" if position < left else "right"
        table.add_column(_text(name, ascii_only), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _text(text: str, ascii_only: bool) -> Text:
    # Rich would interpret [markup] in a str; names come from users.
    shown = printable(text)
    return Text(shown.encode("ascii", "backslashreplace").decode("ascii") if ascii_only else shown)

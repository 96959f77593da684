"""Tables of a fit for the terminal: similarities, candidates, what was verified and simplified."""

import math
from collections.abc import Mapping, Sequence

from optuna.trial import FrozenTrial
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

# What a column takes besides its text: a space on either side and a border.
_PADDING = 3
_MISSING = "-"


def percent(similarity: float) -> str:
    """A similarity in [-1, 1] as the article prints it, "97.4805%"; "-" for one that is not finite."""
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
    """Similarities {row: {block: value in [-1, 1]}} in percent, with a total for each row (default: its mean).

    Blocks are columns if that fits `width` characters, else lines. A block that a row lacks shows "-"; one that has
    None shows "unchanged", as a target may have it from the base. `ascii_only` is for consoles whose encoding has no
    box characters: borders become + - |, and other letters are escaped.
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
    """The total similarity of every stage's steps before (of input A) and after, by metric, and how it was found.

    The trials are those of the search that the step's alphas come from; they stand beside the metric it used.
    `ascii_only` as for `block_table`.
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
            end_section=any((other.stage, other.step) != (scores.stage, scores.step) for other in following),
        )
    return table


def spread_table(result: FitResult, *, ascii_only: bool = False) -> Table:
    """Each stage's total on the random inputs that it was fitted on, and on others: their mean, lowest and highest."""
    header = ["stage", "step", "metric", "fitted on", "others", "lowest", "highest"]
    table = _table("Similarity on random inputs that were not fitted on", header, left=3, ascii_only=ascii_only)
    for spread in result.spread:
        totals = spread.totals
        figures = (spread.fitted, math.fsum(totals) / len(totals), min(totals), max(totals))
        cells = [spread.stage, spread.step, spread.metric, *map(percent, figures)]
        table.add_row(*(_text(cell, ascii_only) for cell in cells))
    return table


def candidates_table(result: FitResult, *, ascii_only: bool = False) -> Table:
    """The best recipe and the next best that differ: file, what was searched, similarity, loss, difference.

    The difference is the largest of a source's coefficients in a scored block from the best recipe's.
    """
    header = ["recipe", "search", "trial", "similarity", "loss", "differs by"]
    table = _table("Best recipes that differ", header, left=2, ascii_only=ascii_only)
    found = {search.name: search.best for search in result.searches}
    for name in dict.fromkeys(one.search for one in result.candidates):
        if (best := found[name]) is not None:
            cells = [
                result.study.outputs.best.name,
                name,
                str(best.number),
                percent(_similarity(best)),
                _MISSING,
                _MISSING,
            ]
            table.add_row(*(_text(cell, ascii_only) for cell in cells))
    for one in result.candidates:
        cells = [
            result.study.outputs.candidate(one.number).name,
            one.search,
            str(one.trial),
            percent(one.similarity),
            f"{100 * one.loss:.4f}",
            f"{one.apart:.2f}",
        ]
        table.add_row(*(_text(cell, ascii_only) for cell in cells))
    return table


def verified_table(steps: Sequence[Verified], *, ascii_only: bool = False) -> Table:
    """What was measured for each step beside what its recipe expects, in percent, blocks first, then the total.

    Blocks are listed where a value was reported for them or they cannot be measured; "-" where nothing was reported.
    """
    header = ["step", "block", "measured", "expected", "difference"]
    table = _table("Similarity by step, measured and expected", header, left=2, ascii_only=ascii_only)
    described = [_verified_rows(verified) for verified in steps]
    for position, rows in enumerate(described):
        following = described[position + 1] if position + 1 < len(described) else []
        for line, row in enumerate(rows):
            cells = [steps[position].step if line == 0 else "", *row]
            # Steps with a total alone stand together.
            last = line == len(rows) - 1 and max(len(rows), len(following)) > 1
            table.add_row(*(_text(cell, ascii_only) for cell in cells), end_section=last)
    return table


def simplified_table(simplified: Simplified, *, ascii_only: bool = False) -> Table:
    """What became of a recipe: similarities, numbers by the grid they lie on, steps and sources, before and after."""
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
        [block, *_beside(verified.measured.get(block), reported.get(block))]
        for block in dict.fromkeys([*reported, *verified.not_measurable])
    ]
    # A reported mean over blocks that cannot be measured is not quite comparable.
    without = f" without {', '.join(verified.not_measurable)}" if verified.not_measurable else ""
    rows.append([f"total{without}", *_beside(verified.total if verified.measured else None, expected.total)])
    return rows


def _beside(measured: float | None, reported: float | None) -> list[str]:
    shown = ["not measurable" if measured is None else percent(measured)]
    shown.append(_MISSING if reported is None else percent(reported))
    both = measured is not None and reported is not None
    return [*shown, f"{100 * (measured - reported):+.4f}" if both else _MISSING]  # type: ignore[operator]


def _similarity(trial: FrozenTrial) -> float:
    return math.nan if trial.value is None else trial.value


def _search_of(result: FitResult, scores: StepScores) -> SearchResult | None:
    """The search whose metric these are and which set the step's alphas."""
    # Of several passes the last one.
    for search in reversed(result.searches):
        own = {parameter.step for parameter in search.parameters}
        if search.stage.name == scores.stage and search.stage.metric == scores.metric and scores.step in own:
            return search
    return None


def _table(title: str, header: Sequence[str], *, left: int = 1, ascii_only: bool) -> Table:
    table = Table(title=_text(title, ascii_only), box=box.ASCII2 if ascii_only else box.ROUNDED, title_justify="left")
    for position, name in enumerate(header):
        # Folded, not cut off: the sign for text left out is no ASCII character.
        justify = "left" if position < left else "right"
        table.add_column(_text(name, ascii_only), justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _text(text: str, ascii_only: bool) -> Text:
    # Text, not str: names come from users and may hold rich's [markup].
    shown = printable(text)
    return Text(shown.encode("ascii", "backslashreplace").decode("ascii") if ascii_only else shown)

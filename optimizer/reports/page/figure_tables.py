"""Tables of figures with few digits in sight and all of them to copy, without columns that repeat others."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from optimizer.reports.page.rounding import MISSING, decimals_of, share_in_short

__all__ = ["Cell", "Column", "FigureTable", "figure_table"]


@dataclass(frozen=True)
class Cell:
    """A figure: as shown, and with all digits; the latter is empty for a figure that is missing."""

    shown: str
    full: str = ""


@dataclass(frozen=True)
class Column:
    """A column of figures.

    Attributes:
        title: The heading.
        values: The figure of each row; rows without one show a dash.
        is_share: Whether the figures are shares in [-1, 1], shown as per cent.
        strong: Whether the column is set in bold.

    """

    title: str
    values: Mapping[str, float | None]
    is_share: bool = True
    strong: bool = False


@dataclass(frozen=True)
class FigureTable:
    """A table of figures.

    Attributes:
        label: The table's name, unique on the page.
        corner: The heading of the rows' names.
        columns: The columns that are left.
        rows: The names of the rows with their cells.
        notes: A sentence for each column that was left out, since its figures are equal or those of another column.

    """

    label: str
    corner: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    notes: tuple[str, ...] = field(default=())


def figure_table(label: str, corner: str, rows: Sequence[str], columns: Iterable[Column]) -> FigureTable:
    """Return a table without the columns that say nothing new.

    Args:
        label: The table's name.
        corner: The heading of the rows' names.
        rows: The names of the rows, in order.
        columns: The columns.

    Returns:
        The table.
    """
    kept: list[tuple[Column, tuple[Cell, ...]]] = []
    notes = []
    for column in columns:
        cells = _cells(column, rows)
        shown = [cell.shown for cell in cells]
        twin = next((other for other, others in kept if [cell.shown for cell in others] == shown), None)
        if len(rows) > 1 and len(set(shown)) == 1:
            notes.append(f"{column.title}: {'unknown' if shown[0] == MISSING else shown[0]} in every {corner}.")
        elif len(rows) > 1 and twin is not None:
            notes.append(f"{column.title}: as {twin.title} in every {corner}.")
        else:
            kept.append((column, cells))
    table = tuple((row, tuple(cells[place] for _, cells in kept)) for place, row in enumerate(rows))
    return FigureTable(label, corner, tuple(column for column, _ in kept), table, tuple(notes))


def _cells(column: Column, rows: Sequence[str]) -> tuple[Cell, ...]:
    values = [column.values.get(row) for row in rows]
    decimals = decimals_of(values)
    return tuple(_cell(value, decimals, is_share=column.is_share) for value in values)


def _cell(value: float | None, decimals: int, *, is_share: bool) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell(MISSING)
    return Cell(share_in_short(value, decimals) if is_share else f"{value:.3f}", repr(float(value)))

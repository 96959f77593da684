"""The trials of a fit as a data frame and as a CSV file."""

import csv
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from optimizer.files import replace_text
from optimizer.search import FitResult

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["trials_table", "write_trials"]

_TRIAL_COLUMNS = ("search", "stage", "step", "trial", "state", "similarity", "origin", "seconds")


def trials_table(result: FitResult) -> "pd.DataFrame":
    """Return a data frame with one row per trial.

        trials_table(result).nlargest(5, "similarity")[["trial", "similarity"]]

    Args:
        result: The fit.

    Returns:
        Rows in the order in which searches and trials ran. Columns: search, stage, step (the scored one), trial (its
        number), state, similarity (the total, in [-1, 1]), origin, seconds; one per free alpha, by its name
        (`TEMP1.OUT06`); one per scored block (`similarity.OUT06`), in layout order. A missing value, the total of a
        failed trial for example, is NaN.
    """
    import pandas as pd  # noqa: PLC0415  every fit ends with `write_trials`, which must not wait for pandas

    columns, rows = _columns_and_rows(result)
    # Built from rows, since a mapping of columns would merge those of equal names: a step may be called "similarity".
    return pd.DataFrame(rows, columns=columns)


def write_trials(result: FitResult, path: Path | str) -> None:
    """Write `trials_table(result)` as CSV: UTF-8, LF, floats in full precision.

    A text that a spreadsheet would execute as a formula, a step named `=1+1` for example, gets an apostrophe in front.
    Raises InputError if the folder is missing or not writable, or if the disk is full; an existing file stays intact.

    Args:
        result: The fit.
        path: The file to write.
    """
    columns, rows = _columns_and_rows(result)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(map(_cell, columns))
    table.writerows(map(_cell, row) for row in rows)
    replace_text(Path(path), text.getvalue())


def _columns_and_rows(result: FitResult) -> tuple[list[str], list[list[object]]]:
    parameters = list(dict.fromkeys(free.name for search in result.searches for free in search.parameters))
    scored = {block for search in result.searches for block in search.stage.blocks}
    blocks = [block for block in result.recipe.layout.blocks if block in scored]
    rows = [
        [
            search.name,
            search.stage.name,
            search.step,
            trial.number,
            str(trial.state),
            trial.total,
            trial.origin,
            math.nan if trial.seconds is None else trial.seconds,
            *(trial.alphas.get(name, math.nan) for name in parameters),
            *(trial.block_scores.get(block, math.nan) for block in blocks),
        ]
        for search in result.searches
        for trial in search.trials
    ]
    return [*_TRIAL_COLUMNS, *parameters, *(f"similarity.{block}" for block in blocks)], rows


def _cell(value: object) -> object:
    """Return a cell: nothing for NaN, and an apostrophe in front of a text that spreadsheets would execute."""
    if isinstance(value, float) and math.isnan(value):
        return ""
    # Tab and carriage return would also start a formula, but names contain no control characters.
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value

"""Every trial of a fit, as a data frame and as a CSV file."""

import math
from pathlib import Path

import pandas as pd

from optimizer.files import replace_text
from optimizer.search import FitResult

__all__ = ["trials_table", "write_trials"]

_TRIAL_COLUMNS = ("search", "stage", "step", "trial", "state", "similarity", "origin", "seconds")


def trials_table(result: FitResult) -> pd.DataFrame:
    """One row per trial, searches and trials in the order in which they ran.

        trials_table(result).nlargest(5, "similarity")[["trial", "similarity"]]

    The columns are search, stage, step (the one scored), trial (its number), state, similarity (the total, in [-1, 1]),
    origin, seconds; one per parameter, named as it is (`TEMP1.OUT06`); one per scored block (`similarity.OUT06`), in
    layout order. What a trial does not have, such as the total of a failed one, is NaN.
    """
    parameters = list(dict.fromkeys(one.name for search in result.searches for one in search.parameters))
    scored = {block for search in result.searches for block in search.stage.blocks}
    blocks = [block for block in result.recipe.layout.blocks if block in scored]
    rows = [
        [
            search.name,
            search.stage.name,
            search.step,
            trial.number,
            trial.state.name,
            math.nan if trial.value is None else trial.value,
            trial.user_attrs.get("origin", ""),
            math.nan if trial.duration is None else trial.duration.total_seconds(),
            *(trial.params.get(name, math.nan) for name in parameters),
            *(trial.user_attrs.get("block_scores", {}).get(block, math.nan) for block in blocks),
        ]
        for search in result.searches
        for trial in search.trials
    ]
    # Rows, not a mapping of columns: a step may be called "similarity", and then two columns share a name.
    return pd.DataFrame(rows, columns=[*_TRIAL_COLUMNS, *parameters, *(f"similarity.{block}" for block in blocks)])


def write_trials(result: FitResult, path: Path | str) -> None:
    """Write `trials_table(result)` to `path`, or leave what is there: CSV, UTF-8, LF, floats in full precision.

    A text that a spreadsheet would take for a formula, as a step's name `=1+1`, has an apostrophe in front.
    Raises InputError if the folder is missing or not writable, or the disk is full.
    """
    table = trials_table(result)
    table.columns = pd.Index([_no_formula(name) for name in table.columns])
    for place, kind in enumerate(table.dtypes):
        if not pd.api.types.is_numeric_dtype(kind):
            table.isetitem(place, [_no_formula(cell) for cell in table.iloc[:, place]])
    replace_text(Path(path), table.to_csv(index=False, lineterminator="\n"))


def _no_formula(cell: object) -> object:
    # What spreadsheets calculate, or worse, when they open a file; control characters are in no name.
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@")) else cell

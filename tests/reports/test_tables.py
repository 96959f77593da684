"""Tables of a fit: the stored trials, and similarities in the article's format."""

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from databases import sqlite_url
from optuna.storages import RDBStorage
from rich.console import Console
from rich.table import Table

from optimizer.errors import InputError
from optimizer.reports import block_table, steps_table
from optimizer.reports.tables import percent
from optimizer.reports.trials import trials_table, write_trials
from optimizer.search import FitResult, Trial, TrialState
from optimizer.studies import DATABASE


@pytest.fixture
def stored_trials(finished_fit: FitResult) -> Iterator[list[tuple[str, optuna.trial.FrozenTrial]]]:
    """(search, trial) in study.db, in the order in which the searches ran."""
    storage = RDBStorage(sqlite_url(finished_fit.study.folder / DATABASE))
    names = [search.name for search in finished_fit.searches]
    yield [
        (name, trial) for name in names for trial in optuna.load_study(study_name=name, storage=storage).get_trials()
    ]
    storage.remove_session()
    storage.engine.dispose()


def printed(table: Table, *, width: int = 200, encoding: str = "utf-8") -> str:
    """Return the output of a console of this width and encoding."""
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, newline="")
    Console(file=file, width=width, color_system=None).print(table)
    file.flush()
    return buffer.getvalue().decode(encoding)


def test_csv_holds_exactly_the_stored_trials(
    finished_fit: FitResult, stored_trials: list[tuple[str, optuna.trial.FrozenTrial]], tmp_path: Path
) -> None:
    """trials.csv contains one row per trial of study.db, with every number to the last bit."""
    write_trials(finished_fit, tmp_path / "trials.csv")

    assert b"\r" not in (tmp_path / "trials.csv").read_bytes()
    with (tmp_path / "trials.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert len(rows) == len(stored_trials) == 5 + 5 + 4
    for cells, (search, trial) in zip(rows, stored_trials, strict=True):
        row = dict(zip(header, cells, strict=True))
        assert (row["search"], row["trial"], row["state"]) == (search, str(trial.number), trial.state.name)
        assert row["origin"] == trial.user_attrs["origin"]
        assert trial.duration is not None
        assert float(row["similarity"]) == trial.value
        assert float(row["seconds"]) == trial.duration.total_seconds()
        assert {name: float(row[name]) for name in header[8:12] if row[name]} == trial.params
        scores = {name.removeprefix("similarity."): float(row[name]) for name in header[12:]}
        assert scores == trial.user_attrs["block_scores"]


def test_columns_come_in_the_documented_order(finished_fit: FitResult) -> None:
    """The columns are the fixed ones, then each free alpha once, then the blocks in layout order."""
    awkward = finished_fit.recipe.steps[1].name
    assert list(trials_table(finished_fit).columns) == [
        *("search", "stage", "step", "trial", "state", "similarity", "origin", "seconds"),
        *("first.OUT03", "first.OUT04", "first.OUT05", f"{awkward}.alpha"),
        *("similarity.OUT03", "similarity.OUT04", "similarity.OUT05"),
    ]


def test_failed_trial_has_a_row_without_a_similarity(finished_fit: FitResult) -> None:
    """A failed trial has a row with its alphas and state, without similarities."""
    search = finished_fit.searches[-1]
    failed = Trial(4, TrialState.FAILED, search.trials[0].alphas, error="ArithmeticError: no number")
    table = trials_table(replace(finished_fit, searches=(replace(search, trials=(*search.trials, failed)),)))

    last = table.iloc[-1]
    assert (len(table), last["state"]) == (5, "FAIL")
    assert last["first.OUT03"] == search.trials[0].alphas["first.OUT03"]
    assert last[["similarity", "similarity.OUT03"]].isna().all()


def test_csv_needs_its_folder(finished_fit: FitResult, tmp_path: Path) -> None:
    """A missing folder is reported by name."""
    with pytest.raises(InputError, match="missing"):
        write_trials(finished_fit, tmp_path / "missing" / "trials.csv")


@pytest.mark.parametrize(
    ("similarity", "text"),
    [(0.974805, "97.4805%"), (1.0, "100.0000%"), (-0.5, "-50.0000%"), (0.0, "0.0000%"), (math.nan, "-")],
)
def test_similarities_are_printed_in_per_cent(similarity: float, text: str) -> None:
    """Similarities are printed in per cent with four decimals, non-finite ones as a dash."""
    assert percent(similarity) == text


def test_blocks_are_columns_on_a_wide_console() -> None:
    """A wide console shows a line per row, a narrow one a line per block, with the same numbers and totals."""
    rows = {"TEMP1": {"OUT03": 0.974806, "OUT04": 0.5}, "[b]TEMP2[/b]": {"OUT03": 0.25}}
    wide = printed(block_table("attention", rows, width=80), width=80).splitlines()
    narrow = printed(block_table("attention", rows, width=40), width=40).splitlines()

    assert wide[0].strip() == narrow[0].strip() == "attention"
    assert [line.strip("│ ").split() for line in wide if "TEMP1" in line] == [
        ["TEMP1", "│", "97.4806%", "│", "50.0000%", "│", "73.7403%"]
    ]
    assert any("[b]TEMP2[/b]" in line and line.split()[-4:-1] == ["-", "│", "25.0000%"] for line in wide)
    assert any(line.strip("│ ").split() == ["OUT04", "│", "50.0000%", "│", "-"] for line in narrow)
    assert sum("├" in line for line in wide) == 1
    assert "├" in narrow[-3]
    assert narrow[-2].strip("│ ").split() == ["total", "│", "73.7403%", "│", "25.0000%"]


def test_totals_may_be_given() -> None:
    """A given total is printed instead of the mean."""
    assert "12.5000%" in printed(block_table("weights", {"a": {"IN00": 0.5}}, {"a": 0.125}))


@pytest.mark.parametrize("width", [30, 80, 200])
def test_ascii_tables_print_on_any_console(finished_fit: FitResult, width: int) -> None:
    """With ascii_only, awkward names and narrow columns can be printed in ASCII."""
    scores = {entry.step: entry.after for entry in finished_fit.scores}
    for table in (
        block_table("similarité", scores, width=width, ascii_only=True),
        steps_table(finished_fit, ascii_only=True),
    ):
        assert "+-" in printed(table, width=width, encoding="ascii")


def test_steps_table_contains_before_after_and_trials(finished_fit: FitResult) -> None:
    """Every stage, step and metric has a line; the best trial is in the line of the searched metric."""
    lines = printed(steps_table(finished_fit)).splitlines()
    search = finished_fit.searches[0]
    scores = finished_fit.scores[0]
    assert search.best is not None

    assert sum("%" in line and "│" in line for line in lines) == len(finished_fit.scores)
    found = [line for line in lines if "one $ each" in line and "first" in line and "attention" in line]
    assert [part.strip() for part in found[0].strip("│").split("│")] == [
        *("one $ each", "first", "attention"),
        *(percent(sum(values.values()) / 3) for values in (scores.before, scores.after)),
        *(str(search.best.number), "5"),
    ]
    assert any(line.split("│")[-3:-1] == ["          - ", "      - "] for line in lines if "weights" in line)

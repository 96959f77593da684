"""Following a long study: the command `status`, the log in JSON lines and the live table."""

import json
import os
import pickle
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from datetime import datetime
from pathlib import Path

import optuna
import pytest
from databases import sqlite_url
from optuna.trial import TrialState, create_trial
from waiting import PATIENCE

from optimizer.search import fit
from optimizer.studies import load_study

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "studies" / "demo"
STUDY = """\
recipe: recipe.yaml
target: {{file: target.safetensors}}
base: base
stages:
  - {{name: first, steps: [TEMP1], metric: delta, trials: 4, sampler: {sampler}}}
  - {{name: both, metric: delta, trials: 5, sampler: {sampler}}}
"""


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a study of two searches of the demo's models."""

    def write(sampler="random"):
        path = tmp_path / "study"
        shutil.copytree(DEMO / "models", path / "models")
        shutil.copy(DEMO / "target.safetensors", path)
        recipe = (DEMO / "recipe.yaml").read_text(encoding="utf-8").replace("[0, 1]", "[0, 1], blocks: OUT03-OUT05")
        (path / "recipe.yaml").write_text(recipe, encoding="utf-8")
        (path / "study.yaml").write_text(STUDY.format(sampler=sampler), encoding="utf-8")
        return path

    return write


def test_status_has_counts_and_times(folder, blockfit):
    """`status` shows each search's trials by state, its best trial and the seconds per trial, and the workers."""
    made = folder()
    loaded = load_study(made)
    fit(loaded.with_trials(3))
    with closing(sqlite3.connect(made / "study.db")) as database:
        last = "where trial_id in (select max(trial_id) from trials)"
        database.execute(f"delete from trial_values {last}")  # noqa: S608  no text from outside
        database.execute(f"update trials set state = 'FAIL' {last}")  # noqa: S608
        database.commit()

    status = json.loads(blockfit("status", made, "--json").stdout)

    first, both = status["searches"]
    trials = optuna.load_study(study_name="first", storage=sqlite_url(made / "study.db")).trials
    spent = [(trial.datetime_complete - trial.datetime_start).total_seconds() for trial in trials]
    assert (first["search"], first["step"], first["completed"], first["failed"], first["budget"]) == (
        "first", "TEMP1", 3, 0, 4,
    )  # fmt: skip
    assert first["best"] == max(trial.value for trial in trials)
    assert first["seconds_per_trial"] == pytest.approx(sum(spent) / 3)
    ends = [trial.datetime_complete for trial in trials]
    assert first["seconds_left"] == pytest.approx((ends[2] - ends[0]).total_seconds() / 2, rel=0.9)
    assert (both["completed"], both["failed"], both["lost"], both["running"]) == (2, 1, 0, 0)
    assert (status["workers"], status["seconds_left"], status["ends"]) == ([], None, None)
    shown = blockfit("status", made).stdout
    assert re.search(r"first\s+│ delta\s+│\s+3/4", shown)
    assert "in all: 5 of 9 trials" in shown
    assert "workers: none; `blockfit fit` continues" in shown


def test_log_file_has_json_lines(folder, tmp_path, blockfit):
    """Every line of --log-file is JSON with a time, and has all figures of a trial; a resumed fit appends."""
    made, log = folder(), tmp_path / "fit.jsonl"
    done = blockfit("fit", made, "--log-file", log)
    assert done.returncode == 0, done.stderr
    blockfit("fit", made, "--log-file", log, "--trials", 6)

    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]

    assert [line["event"] for line in lines] == [
        *("opened", *["trial"] * 4, "opened", *["trial"] * 5, "end"),
        *("opened", *["trial"] * 2, "opened", "trial", "end"),
    ]
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    trial = lines[1]
    assert (trial["search"], trial["trial"], trial["state"], trial["origin"]) == (
        "first",
        0,
        "COMPLETE",
        "exact explained",
    )
    assert trial["similarity"] == trial["best"] == pytest.approx(sum(trial["block_scores"].values()) / 3)
    assert (trial["done"], trial["budget"], trial["workers"]) == (1, 4, 1)
    assert set(trial["params"]) == {f"TEMP1.{block}" for block in trial["block_scores"]}
    assert lines[-1]["searches"]["first"]["trials"] == 6
    refused = blockfit("fit", made, "--log-file", tmp_path / "nowhere" / "fit.jsonl")
    assert refused.returncode == 2
    assert "--log-file: " in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


class _Gadget:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_untrusted_database_runs_no_code(folder, tmp_path, blockfit):
    """A study.db whose CMA-ES state would run code when unpickled is refused in one line, and runs no code."""
    made = folder("cmaes")
    fit(load_study(made).with_trials(2))
    harm = tmp_path / "harm"
    state = pickle.dumps(_Gadget(harm)).hex()
    study = optuna.load_study(study_name="first", storage=sqlite_url(made / "study.db"))
    last = study.trials[-1]
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=0.5,
            params=dict.fromkeys(last.params, 0.5),
            distributions=last.distributions,
            user_attrs={"origin": "cmaes", "block_scores": last.user_attrs["block_scores"]},
            system_attrs={"cma:optimizer:0": state, "cma:generation": 0},
        )
    )

    done = blockfit("fit", made, "--trials", 6)

    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "study.db" in done.stderr
    assert "trial 2" in done.stderr
    assert not harm.exists()


def test_live_table_fits_the_terminal(folder, tmp_path):
    """On a terminal a table shows completed trials, the best and seconds per trial, and fits a narrow terminal."""
    if shutil.which("script") is None:
        pytest.skip("needs util-linux's script for a terminal")
    made = folder()
    code = """
        import contextlib, os, sys
        from optimizer.cli import main
        for columns in ("60", "140"):
            os.environ["COLUMNS"] = columns
            print("columns", columns)
            with contextlib.suppress(SystemExit):
                main(["fit", sys.argv[1], "--fresh"])
    """
    (tmp_path / "twice.py").write_text(textwrap.dedent(code), encoding="utf-8")
    command = f"{sys.executable} {tmp_path / 'twice.py'} {made}"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"], capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE,
        check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done.stdout).split("columns ")[1:]
    assert [text.split()[0] for text in shown] == ["60", "140"]
    for columns, text in zip((60, 140), shown, strict=True):
        lines = re.split(r"[\r\n]+", text)
        rows = [line for line in lines if re.match(r"│ both +│", line)]
        assert rows
        assert all(len(line) <= columns for line in rows), rows
    done_row = re.compile(r"│ both +│ TEMP2 +│ delta +│ +5/5 │ 9\d\.\d{4}% │ +\d+\.\d{3} │ +done │")
    assert any(done_row.match(row) for row in rows), rows
    assert any(re.match(r"OUT03 [▉-▏█]+", line) for line in lines)

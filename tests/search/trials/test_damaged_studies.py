"""Damaged databases of trials: every fault is reported in one line, and nothing is destroyed."""

import json
import pickle
import re
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import datetime
from io import BytesIO

import psycopg
import pytest
from damaged_studies import DAMAGES, JOURNAL_DAMAGES, LEFT_OUT, NOTHING, REFUSED
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState
from optuna_dashboard import wsgi

from optimizer.cli import main
from optimizer.errors import InputError
from optimizer.recipes import load_recipe
from optimizer.reports.dashboard import _PlotStore, _ReadingOnly, _ShownStorage
from optimizer.reports.trials import write_trials
from optimizer.search import CheckedTrials, FitEvents, fit, open_trials, study_status
from optimizer.studies import load_study

# The damages that always run, one of each kind; all others are marked slow because they are many.
ALWAYS = {
    "status": (
        "state unknown", "state pruned", "completed without values", "failed with values",
        "running with values", "value made better",
        "block scores not finite", "block scores huge", "block scores deep",
        "no parameters", "parameter out of range", "range wider",
        "numbers doubled", "id huge", "time no time", "times far apart", "origin no text",
        "user attribute no JSON", "two objectives", "bound to nothing", "budgets huge",
        "without trial_values", "trials a view", "a trigger", "a table without a key",
        "tables of another program", "version unknown", "cut at 50 %", "empty", "page overwritten",
        "a change that waits to be taken in",
    ),
    "report": ("completed without values", "origin that acts on terminals"),
    "fit": ("failed with values", "numbers doubled", "bound to a number", "a rule that refuses", "empty"),
    "dashboard": ("running with values", "study attribute of an artifact", "names of values", "a trigger", "empty"),
    "journal": (
        "state unknown", "state pruned", "value a text", "attributes a list", "name a number", "operation missing",
        "a line that is deep", "a torn last line",
    ),
}  # fmt: skip


def kinds(command, damages=DAMAGES):
    """Return the damages for a command as parameters; most are marked slow."""
    assert set(ALWAYS[command]) <= {damage.name for damage in damages}
    return [
        pytest.param(damage, id=damage.name, marks=() if damage.name in ALWAYS[command] else pytest.mark.slow)
        for damage in damages
    ]


def result_and_problems(call):
    """Return the result of a call and no problems, or None and the problems of its InputError."""
    try:
        return call(), ()
    except InputError as error:
        return None, error.problems


def has_words(words, problems):
    """Return whether any problem matches the pattern `words`."""
    return any(re.search(words, problem) for problem in problems)


@pytest.fixture
def damaged(finished_study, tmp_path):
    """A function that copies the study's folder and damages its database."""

    def make(damage):
        folder = tmp_path / "study"
        shutil.copytree(finished_study, folder)
        damage.do(folder / "study.db")
        return folder

    return make


def command(capsys, *arguments):
    """Run a command; return its exit code, its stdout, and the lines on stderr."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "internal" not in err
    return left.value.code, out, err.splitlines()


def rows_of(path):
    """Return all readable rows of the tables of trials, without the states of unfinished ones."""
    found = set()
    with closing(sqlite3.connect(path)) as database:
        for table in ("trials", "trial_params", "trial_values", "trial_user_attributes"):
            try:
                rows = database.execute(f"select * from {table}").fetchall()  # noqa: S608
            except sqlite3.Error:
                continue
            found |= {(table, *(column for column in row if column not in ("RUNNING", "FAIL"))) for row in rows}
    return found


def check_report(damage, code, lines):
    """Check that the lines of a command report the damage, and nothing else."""
    if damage.becomes == REFUSED:
        assert code == 2, lines
        assert any(re.search(damage.words, line) for line in lines), lines
    else:
        assert code == 0, lines
        left_out = [line for line in lines if "left out" in line]
        assert bool(left_out) == (damage.becomes == LEFT_OUT), lines
        assert all("trial" in line for line in left_out)
        assert damage.becomes == NOTHING or any(damage.words in line for line in left_out), left_out
    assert all(line.startswith("blockfit: ") and line.isprintable() for line in lines)


@pytest.mark.parametrize("damage", kinds("status"))
def test_status_reports_damage(damaged, capsys, damage):
    """`status` counts the valid trials or refuses the file, and leaves the file unchanged."""
    folder = damaged(damage)
    before = (folder / "study.db").read_bytes()

    code, out, lines = command(capsys, "status", folder, "--json")

    check_report(damage, code, lines)
    assert code == 2 or len(json.loads(out)["searches"]) == 2
    if damage.name not in ("a change that waits to be taken in", "rubbish that waits to be undone"):
        assert (folder / "study.db").read_bytes() == before


@pytest.mark.parametrize("damage", kinds("report"))
def test_a_report_uses_valid_trials_only(damaged, capsys, damage):
    """`report` shows valid trials only, and remarks on the others."""
    folder = damaged(damage)

    code, out, lines = command(capsys, "report", folder, "--json")

    check_report(damage, code, lines)
    if code == 0:
        report = json.loads(out)
        assert report["study"] == "study"
        assert ("Trials are ignored" in report["remarks"]) == (damage.becomes == LEFT_OUT)
    assert (folder / "report.html").exists() == (code == 0)


# Damages that only a continued fit reports.
FIT = {
    "bound to a number": "were scored with another",
    "bound to something deep": "were scored with another",
    "under no alphas": "lack the other alphas under which",
    "state of a sampler": "not a state of CMA-ES",
    "a rule that refuses": "cannot store trials",
    "a column more that must be filled": "cannot store trials: NOT NULL",
    "range logarithmic": "cannot store trials",
    "range of whole numbers": "cannot store trials",
    "range of choices": "cannot store trials",
}


@pytest.mark.parametrize("damage", kinds("fit"))
def test_a_fit_uses_valid_trials_only(damaged, damage):
    """`fit` continues with the valid trials up to its budget, or refuses the file; stored rows stay.

    A trial that no process runs is marked as lost.
    """
    folder = damaged(damage)
    path = folder / "study.db"
    before = rows_of(path) if damage.becomes != REFUSED else path.read_bytes()
    best = (folder / "best.yaml").read_bytes()
    warnings = []

    result, problems = result_and_problems(
        lambda: fit(load_study(folder).with_trials(5), events=FitEvents(warn=warnings.append), patience=1)
    )

    if problems:
        assert damage.becomes == REFUSED or damage.name in FIT, problems
        assert has_words(FIT.get(damage.name, damage.words), problems), problems
        assert (folder / "best.yaml").read_bytes() == best
        assert damage.becomes != REFUSED or path.read_bytes() == before
        return
    assert damage.becomes != REFUSED, warnings
    assert damage.name not in FIT, warnings
    assert [len(search.completed) for search in result.searches] == [5, 5]
    left_out = damage.becomes == LEFT_OUT or damage.name == "running with values"
    assert any("left out" in text for text in warnings) == left_out, warnings
    if damage.name in ("running with values", "running, and ended"):
        (lost,) = {row for row in before if row[0] == "trials"} - rows_of(path)
        assert lost[1] == 1  # the damaged trial, which now has another end
        before.remove(lost)
    assert rows_of(path) >= before
    write_trials(result, folder / "trials.csv")
    again = fit(load_study(folder).with_trials(5))
    assert [search.best.alphas for search in again.searches] == [search.best.alphas for search in result.searches]


@pytest.mark.parametrize("damage", kinds("dashboard"))
def test_the_dashboard_shows_valid_trials_only(damaged, damage):
    """`dashboard` shows valid trials only, or does not start."""
    folder = damaged(damage)

    def show():
        with open_trials(load_study(folder, with_files=False)) as trials:
            shown = _ShownStorage(trials, _PlotStore(folder))
            application = _ReadingOnly(wsgi(shown, artifact_store=_PlotStore(folder)))
            (listed,) = fetched(application, "/api/studies").values()
            return {entry["study_name"]: fetched(application, f"/api/studies/{entry['study_id']}") for entry in listed}

    found, problems = result_and_problems(show)

    if problems:
        assert has_words(damage.words if damage.becomes == REFUSED else "contains no trials", problems), problems
        return
    assert damage.becomes != REFUSED
    for name in {"s/A", "s/B"} & set(found):
        running = {"Running"} if damage.name.startswith("running") else set()
        assert {trial["state"] for trial in found[name]["trials"]} <= {"Complete", *running}


def test_a_false_best_trial_is_left_out(finished_study, tmp_path, capsys):
    """A trial with a false high score is left out with a warning, now and later, and is not the best."""
    folder = shutil.copytree(finished_study, tmp_path / "study")
    before = load_recipe(folder / "best.yaml")
    with closing(sqlite3.connect(folder / "study.db", isolation_level=None)) as database:
        labels = dict(database.execute("select study_name, study_id from studies"))
        for study_id in labels.values():
            (last,) = database.execute("select max(trial_id) from trials where study_id = ?", [study_id]).fetchone()
            (scores,) = database.execute(
                "select value_json from trial_user_attributes where trial_id = ? and key = 'block_scores'", [last]
            ).fetchone()
            perfect = json.dumps(dict.fromkeys(json.loads(scores), 1.0))
            database.execute("update trial_values set value = 1 where trial_id = ?", [last])
            for key, text in (("block_scores", perfect), ("distance", "0.0")):
                database.execute(
                    "update trial_user_attributes set value_json = ? where trial_id = ? and key = ?", [text, last, key]
                )
    warnings = []

    result = fit(load_study(folder), events=FitEvents(warn=warnings.append))

    assert all(trial.number != 3 for search in result.searches for trial in search.trials)
    assert len(warnings) == len(labels)
    reason = "left out: trial 3: its point was scored again, and its stored similarity is wrong"
    assert all(line.endswith(reason) for line in warnings)
    assert [len(search.completed) for search in result.searches] == [4] * len(labels)
    assert [step.alpha for step in load_recipe(folder / "best.yaml").steps] == [step.alpha for step in before.steps]
    code, out, lines = command(capsys, "status", folder, "--json")
    assert code == 0
    assert all(search["best"] < 1 for search in json.loads(out)["searches"])
    assert sum("left out: trial 3" in line for line in lines) == len(labels)


def test_a_trial_that_finishes_during_the_reading():
    """A trial with a value and its old state counts as running until its new state is read."""
    range_ = FloatDistribution(0, 1)
    torn = FrozenTrial(
        0, TrialState.RUNNING, 0.5, datetime.now(), datetime.now(), {"x": 0.3}, {"x": range_}, {}, {}, {}, 1
    )
    checked = CheckedTrials({"x": range_}, ["OUT03"], {})

    (counting,) = checked.of([torn])

    assert (counting.state, counting.params, counting.values) == (TrialState.RUNNING, {"x": 0.3}, None)
    assert checked.left_out == ()
    torn.state = TrialState.COMPLETE
    torn.set_user_attr("block_scores", {"OUT03": 0.5})
    (counting,) = checked.of([torn])
    assert counting.values == [0.5]


@pytest.mark.parametrize(
    "lost", [pytest.param("_mean"), *(pytest.param(lost, marks=pytest.mark.slow) for lost in ("_C", "_n_dim"))]
)
def test_an_incomplete_sampler_state_is_reported(finished_study, tmp_path, lost):
    """A state of CMA-ES that lacks an attribute ends the fit with one line, and the trials stay unchanged."""
    folder = shutil.copytree(finished_study, tmp_path / "study", ignore=shutil.ignore_patterns("study.db"))
    text = (folder / "study.yaml").read_text(encoding="utf-8").replace("sampler: blockwise", "sampler: cmaes")
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    fit(load_study(folder).with_trials(10))
    path = folder / "study.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        rows = database.execute("select * from trial_system_attributes where key like 'cma:optimizer:%'").fetchall()
        state = "".join(json.loads(value) for _, trial, _, value in rows if trial == rows[0][1])
        optimizer = pickle.loads(bytes.fromhex(state))
        delattr(optimizer, lost)
        changed = json.dumps(pickle.dumps(optimizer).hex())
        database.execute("delete from trial_system_attributes where key like 'cma:optimizer:%'")
        database.execute(
            "insert into trial_system_attributes values (999, ?, 'cma:optimizer:0', ?)", (rows[0][1], changed)
        )
        before = database.execute("select count(*) from trials").fetchone()

    with pytest.raises(InputError, match=r"'s/[AB]': no trial can be proposed from the stored trials \("):
        fit(load_study(folder).with_trials(12))

    with closing(sqlite3.connect(path)) as database:
        assert database.execute("select count(*) from trials").fetchone() == before


@pytest.fixture(scope="module")
def journal(finished_study, tmp_path_factory):
    """A folder with the same study whose trials are in a journal."""
    folder = tmp_path_factory.mktemp("journal") / "study"
    shutil.copytree(finished_study, folder, ignore=shutil.ignore_patterns("study.db*", "best.yaml"))
    fit(load_study(folder), storage=f"journal:{folder / 'trials.log'}")
    return folder


@pytest.mark.parametrize("damage", kinds("journal", JOURNAL_DAMAGES))
def test_damage_in_a_journal_is_reported(journal, tmp_path, capsys, damage):
    """`status` reports damage in a journal and leaves it unchanged; `fit` reports it too, and only appends."""
    folder = shutil.copytree(journal, tmp_path / "study")
    path = folder / "trials.log"
    damage.do(path)
    before, warnings = path.read_bytes(), []

    code, _, lines = command(capsys, "status", folder, "--storage", f"journal:{path}", "--json")

    check_report(damage, code, lines)
    assert path.read_bytes() == before
    study = load_study(folder).with_trials(5)
    result, problems = result_and_problems(
        lambda: fit(study, storage=f"journal:{path}", events=FitEvents(warn=warnings.append))
    )
    if problems:
        assert damage.becomes == REFUSED
        assert has_words(damage.words, problems), problems
        assert path.read_bytes() == before
        return
    assert damage.becomes != REFUSED
    assert [len(search.completed) for search in result.searches] == [5, 5]
    whole = before[: before.rfind(b"\n") + 1]
    assert path.read_bytes().startswith(whole)
    assert any("left out" in text for text in warnings) == (damage.becomes == LEFT_OUT), warnings


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("update trials set number = 3 where trial_id = 1", "are not numbered from 0 to 1"),
                ("update study_directions set direction = 'MINIMIZE'", "another program made it"),
                # Opening the database creates the missing table again.
                ("drop table trial_values cascade", "cannot be read|its value is not one similarity"),
            )
        ),
        (
            "update trial_params set distribution_json = 'nonsense' where trial_id = 1",
            "trial 0 of 'study:s/A' cannot be",
        ),
        ("delete from trial_values where trial_id = 1", "left out: trial 0: its value is not one similarity"),
    ],
)
def test_damage_in_postgresql_is_reported(finished_study, tmp_path, postgresql, monkeypatch, statement, words):
    """Damage in a PostgreSQL database is reported as in a file, without waiting."""
    url, folder = postgresql.database(), shutil.copytree(finished_study, tmp_path / "study")
    fit(load_study(folder).with_trials(2), storage=url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)
    warnings, waits = [], []
    monkeypatch.setattr(time, "sleep", waits.append)

    status, problems = result_and_problems(lambda: study_status(load_study(folder, with_files=False), url))
    warnings += problems or status.notes
    study = load_study(folder).with_trials(3)
    _, problems = result_and_problems(lambda: fit(study, storage=url, events=FitEvents(warn=warnings.append)))
    warnings += problems

    assert waits == []
    assert warnings
    assert all(re.search(words, line) for line in warnings), warnings
    assert "se/cret" not in str(warnings)
    assert "fresh=True" not in str(warnings)


def fetched(application, path):
    """Return the JSON at a path of the dashboard."""
    statuses = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": "", "SERVER_NAME": "x", "SERVER_PORT": "80",
        "wsgi.input": BytesIO(), "wsgi.errors": BytesIO(), "wsgi.url_scheme": "http",
    }  # fmt: skip
    body = b"".join(application(environ, lambda status, headers: statuses.append(status)))
    assert statuses == ["200 OK"], body
    return json.loads(body)

"""The budgets of a study's searches, as other workers and commands see them."""

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from optimizer.reports.page import write_report
from optimizer.search import FitEvents, fit, found_result, open_storage, storage_address, study_status
from optimizer.search.trials.budgets import Budgets, budget_of
from optimizer.search.trials.identity import name_prefix, open_search
from optimizer.search.trials.workers import workers_at
from optimizer.studies import load_study


@pytest.fixture
def folder(finished_study, tmp_path):
    """The folder of a study with a budget of four trials for each of two searches, and no trials yet."""
    return shutil.copytree(finished_study, tmp_path / "study", ignore=shutil.ignore_patterns("study.db", "best.yaml"))


def budgets(folder, storage=None):
    """Return the budget of each search by `status`."""
    return [search.budget for search in study_status(load_study(folder, with_files=False), storage).searches]


def test_status_shows_the_budget_of_a_running_fit(folder):
    """During a fit with a larger budget `status` shows that budget, also for a search that has not started."""
    seen = []

    def finished(progress, trial):
        if (progress.search, progress.done) == ("s/A", 6):
            seen.append(study_status(load_study(folder, with_files=False)))

    fit(load_study(folder).with_trials(9), events=FitEvents(finished=finished))

    (during,) = seen
    assert [search.budget for search in during.searches] == [9, 9]
    assert [search.completed for search in during.searches] == [6, 0]
    first = during.searches[0]
    assert first.seconds_left > 0
    assert len(during.workers) == 1


def test_the_last_budget_counts_after_a_fit(folder):
    """After a fit with a larger budget than study.yaml's, that budget counts until a fit without one."""
    assert budgets(folder) == [4, 4]
    fit(load_study(folder).with_trials(2))
    assert budgets(folder) == [4, 4]
    fit(load_study(folder).with_trials(5))
    assert budgets(folder) == [5, 5]

    fit(load_study(folder))

    assert budgets(folder) == [4, 4]
    text = (folder / "study.yaml").read_text(encoding="utf-8")
    (folder / "study.yaml").write_text(text.replace("trials: 4", "trials: 6"), encoding="utf-8")
    assert budgets(folder) == [6, 6]


def test_the_report_counts_the_trials_left(folder, tmp_path):
    """The report shows the trials left of the requested budget."""
    fit(load_study(folder).with_trials(5))
    fit(load_study(folder).with_trials(7), events=FitEvents(finished=interrupt))
    found = found_result(load_study(folder, with_files=False))

    page = write_report(found, (), (), tmp_path / "report.html", named="study", date="2026-11-27")

    (left,) = [remark.text for remark in page.remarks if remark.heading == "Trials are left"]
    assert left == "Fewer trials were run than requested: s/A 6 of 7, s/B 5 of 7."
    assert "6 of 7 trials" in (tmp_path / "report.html").read_text(encoding="utf-8")


def interrupt(progress, trial):
    """Raise KeyboardInterrupt after a trial."""
    raise KeyboardInterrupt


def test_a_database_without_budgets_uses_study_yaml(folder):
    """For a database of a version without budgets the budget of study.yaml counts."""
    fit(load_study(folder).with_trials(2))
    with closing(sqlite3.connect(folder / "study.db", isolation_level=None)) as database:
        assert database.execute("delete from study_user_attributes where key = 'blockfit:budgets'").rowcount == 2

    assert budgets(folder) == [4, 4]


@pytest.mark.parametrize(
    "storage", ["sqlite:///{}/trials.db", pytest.param("postgresql", marks=pytest.mark.slow), "journal:{}/trials.log"]
)
def test_the_largest_budget_of_living_workers_counts(folder, storage, request):
    """The largest budget of the living workers counts; without workers, that of a plain fit."""
    url = request.getfixturevalue("postgresql").database() if storage == "postgresql" else storage.format(folder)
    address, study = storage_address(url, folder), load_study(folder)
    fit(study.with_trials(1), storage=url)
    crowd = {}
    with open_storage(address) as opened:
        label = f"{name_prefix(study, address)}s/A"
        stored = opened.get_study_id_from_name(label)
        for trials in (60, 200, 30):
            crowd[trials] = workers_at(address, study.name)
            crowd[trials].join(alone=False)
            budgeted = study.with_trials(trials) if trials != 30 else replace(study.with_trials(30), asked_trials=None)
            attributes = opened.get_study_user_attrs(stored)
            again = open_search(
                opened, label, attributes["blockfit:bound_to"], {"A.alpha": {}}, address, {},
                Budgets.of(budgeted, crowd[trials]),
            )  # fmt: skip
            assert again._study_id == stored

    assert budgets(folder, url) == [200, 200]
    for trials, after in ((200, 60), (60, 30)):
        crowd.pop(trials).close()
        assert budgets(folder, url) == [after, after]
    crowd[30].close()
    # The last worker used the budget of study.yaml.
    assert budgets(folder, url) == [4, 4]


def test_workers_report_the_larger_budget(folder):
    """A worker reports the larger budget of another worker, and runs only up to its own."""
    address, study = storage_address(None, folder), load_study(folder)
    fit(study.with_trials(1), workers=1)
    second = workers_at(address, study.name)
    second.join(alone=False)
    with open_storage(address) as opened:
        stored = opened.get_study_id_from_name("s/A")
        attributes = opened.get_study_user_attrs(stored)
        bound = attributes["blockfit:bound_to"]
        open_search(opened, "s/A", bound, {"A.alpha": {}}, address, {}, Budgets.of(study.with_trials(50), second))
    reported = []

    result = fit(
        study.with_trials(3), workers=1, events=FitEvents(finished=lambda p, t: reported.append((p.search, p.budget)))
    )

    second.close()
    assert ("s/A", 50) in reported
    assert {budget for search, budget in reported if search == "s/B"} == {3}
    assert [len(search.completed) for search in result.searches] == [3, 3]


def test_a_search_may_need_fewer_trials(folder):
    """The budget of a search is at most the number of trials that it can use."""
    address, study = storage_address(None, folder), load_study(folder)
    fit(study.with_trials(1))
    with open_storage(address) as opened:
        bound = opened.get_study_user_attrs(opened.get_study_id_from_name("s/A"))["blockfit:bound_to"]
        limited = Budgets.of(study, workers_at(address, study.name), most=1)
        open_search(opened, "s/A", bound, {"A.alpha": {}}, address, {}, limited)

    assert budgets(folder) == [1, 4]


@pytest.mark.parametrize(
    "noted",
    [None, 3, [], {"last": 3}, {"last": {"s": "9"}}, {"last": {"s": True}}, {"last": {"s": -9}}, {"workers": {"a": 9}}],
)
def test_invalid_budgets_are_ignored(folder, noted):
    """An invalid record of budgets counts as missing."""
    (stage,) = load_study(folder, with_files=False).stages

    assert budget_of(stage, [{"blockfit:budgets": noted}], ["a"]) == 4

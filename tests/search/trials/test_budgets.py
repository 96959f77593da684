"""How many trials a study's searches are to have, as others are told: what running fits were asked for."""

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
    """The folder of a study whose study.yaml asks for four trials of each of its two searches; none were run."""
    return shutil.copytree(finished_study, tmp_path / "study", ignore=shutil.ignore_patterns("study.db", "best.yaml"))


def budgets(folder, storage=None):
    """What `status` tells of each search."""
    return [search.budget for search in study_status(load_study(folder, with_files=False), storage).searches]


def test_running_fit(folder):
    """While a fit runs that was asked for more, `status` counts to that, also in the search that has not begun."""
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


def test_after_the_fit(folder):
    """After it, a larger budget than study.yaml's still counts, until a fit was asked for nothing else."""
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


def test_report(folder, tmp_path):
    """The report says how many of the trials that were asked for are left."""
    fit(load_study(folder).with_trials(5))
    fit(load_study(folder).with_trials(7), events=FitEvents(finished=interrupt))
    found = found_result(load_study(folder, with_files=False))

    page = write_report(found, (), (), tmp_path / "report.html", named="study", date="2026-11-27")

    (left,) = [remark.text for remark in page.remarks if remark.heading == "Trials are left"]
    assert left == "More were asked for than were run: s/A 6 of 7, s/B 5 of 7."
    assert "6 of 7 trials" in (tmp_path / "report.html").read_text(encoding="utf-8")


def interrupt(progress, trial):
    """Ctrl-C after a trial."""
    raise KeyboardInterrupt


def test_older_database(folder):
    """Trials of a version that noted no budgets are counted to what study.yaml says."""
    fit(load_study(folder).with_trials(2))
    with closing(sqlite3.connect(folder / "study.db", isolation_level=None)) as database:
        assert database.execute("delete from study_user_attributes where key = 'blockfit:budgets'").rowcount == 2

    assert budgets(folder) == [4, 4]


@pytest.mark.parametrize(
    "storage", ["sqlite:///{}/trials.db", pytest.param("postgresql", marks=pytest.mark.slow), "journal:{}/trials.log"]
)
def test_several_workers(folder, storage, request):
    """Of workers with different budgets the largest of those that live counts, then what a plain fit would run."""
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
            own = study.with_trials(trials) if trials != 30 else replace(study.with_trials(30), asked_trials=None)
            attributes = opened.get_study_user_attrs(stored)
            again = open_search(
                opened, label, attributes["blockfit:bound_to"], {"A.alpha": {}}, address, {},
                Budgets.of(own, crowd[trials]),
            )  # fmt: skip
            assert again._study_id == stored

    assert budgets(folder, url) == [200, 200]
    for trials, after in ((200, 60), (60, 30)):
        crowd.pop(trials).close()
        assert budgets(folder, url) == [after, after]
    crowd[30].close()
    # The last that was asked for nothing goes by study.yaml.
    assert budgets(folder, url) == [4, 4]


def test_told_to_other_workers(folder):
    """A worker that shares the search tells the larger budget of another one, and runs its own trials only."""
    address, study = storage_address(None, folder), load_study(folder)
    fit(study.with_trials(1), workers=1)
    other = workers_at(address, study.name)
    other.join(alone=False)
    with open_storage(address) as opened:
        stored = opened.get_study_id_from_name("s/A")
        attributes = opened.get_study_user_attrs(stored)
        bound = attributes["blockfit:bound_to"]
        open_search(opened, "s/A", bound, {"A.alpha": {}}, address, {}, Budgets.of(study.with_trials(50), other))
    told = []

    result = fit(
        study.with_trials(3), workers=1, events=FitEvents(finished=lambda p, t: told.append((p.search, p.budget)))
    )

    other.close()
    assert ("s/A", 50) in told
    assert {budget for search, budget in told if search == "s/B"} == {3}
    assert [len(search.completed) for search in result.searches] == [3, 3]


def test_search_that_needs_less(folder):
    """A search that can use fewer trials than it is given is done when it has had them."""
    address, study = storage_address(None, folder), load_study(folder)
    fit(study.with_trials(1))
    with open_storage(address) as opened:
        bound = opened.get_study_user_attrs(opened.get_study_id_from_name("s/A"))["blockfit:bound_to"]
        own = Budgets.of(study, workers_at(address, study.name), most=1)
        open_search(opened, "s/A", bound, {"A.alpha": {}}, address, {}, own)

    assert budgets(folder) == [1, 4]


@pytest.mark.parametrize(
    "noted",
    [None, 3, [], {"last": 3}, {"last": {"s": "9"}}, {"last": {"s": True}}, {"last": {"s": -9}}, {"workers": {"a": 9}}],
)
def test_nonsense(folder, noted):
    """What is noted and cannot be a budget counts as not noted."""
    (stage,) = load_study(folder, with_files=False).stages

    assert budget_of(stage, [{"blockfit:budgets": noted}], ["a"]) == 4

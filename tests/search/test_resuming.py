"""Studies whose fit is killed at any moment continue as if it had not been."""

import random
import re
import signal
import sqlite3
import subprocess
import time

import optuna
import pytest
from comparing_trials import essence
from optuna.trial import TrialState
from processes import start_code
from waiting import PATIENCE

from optimizer.errors import StudyError
from optimizer.search import fit, open_storage, storage_address, study_status
from optimizer.studies import load_study

STEPS = """\
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: "OUT03,OUT06,M00"}}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], blocks: "OUT03,OUT06,M00"}}
"""
STAGES = """\
  - {{name: s, metric: attention, strategy: stepwise, trials: {budget}, sampler: {sampler}}}
  - {{name: j, metric: delta, trials: {budget}, sampler: {sampler}}}
"""
SEARCHES = ("s/T1", "s/T2", "j")
BUDGET = 10


@pytest.fixture(scope="session")
def target(pool):
    """A target made of x and y, with noise."""
    alphas = dict.fromkeys(("M00", "OUT03", "OUT06"), 0.4)
    return pool.plant("resuming", pool.two_steps(alphas, alphas), noise=0.05)[0]


@pytest.fixture
def folder(write_study, target):
    """A function that writes a study of three searches and returns its folder."""

    def write(name, budget=6, sampler="tpe", **fields):
        return write_study(STEPS, STAGES.format(budget=budget, sampler=sampler), target, name, **fields)

    return write


def fit_for(folder, options, seconds=PATIENCE):
    """Fit in a process, and kill it after these seconds; return whether it was killed, and its seconds."""
    start = time.monotonic()
    process = start_code(f"""
        from pathlib import Path
        import optuna
        from optimizer.search import fit
        from optimizer.studies import load_study
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        fit(load_study(Path({str(folder)!r})), **{options!r})
    """)
    try:
        process.communicate(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), process.err
    return process.returncode != 0, time.monotonic() - start


def trials_in(folder, storage=None):
    """Return all trials by search, lost ones included."""
    address = storage_address(storage, folder)
    if address.path is not None and not address.path.exists():
        return {}
    with open_storage(address) as opened:
        return {
            name: opened.get_all_trials(opened.get_study_id_from_name(name))
            for name in optuna.get_all_study_names(opened)
        }


def without_lost(trials):
    """Return the trials that are not lost."""
    return [trial for trial in trials if not trial.user_attrs.get("lost")]


@pytest.mark.parametrize(
    ("sampler", "options", "moments"),
    [
        ("tpe", {}, 3),
        ("cmaes", {"workers": 1}, 3),
        pytest.param("tpe", {}, 20, marks=pytest.mark.slow),
        pytest.param("blockwise", {"workers": 1}, 10, marks=pytest.mark.slow),
        pytest.param("cmaes", {"workers": 1}, 10, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_killed_search_equals_an_unbroken_one(folder, sampler, options, moments):
    """Kills at random moments lose, repeat or change no finished trial; the result is that of an unbroken run."""
    _, start = fit_for(folder("start", 1, sampler), options)
    _, end = fit_for(folder("whole", BUDGET, sampler), options)
    whole = fit(load_study(folder("whole", BUDGET, sampler)))
    draw = random.Random(f"{sampler} {options}")  # noqa: S311  moments, not secrets
    kills, amid, left_running, studies = 0, 0, 0, []
    # At least a quarter of the kills must come during trials, on machines of any speed. Shared searches store a trial
    # when it starts; at least one kill must leave a running trial.
    while kills < moments or amid <= moments / 4 or (options and left_running == 0):
        broken = folder(f"broken {len(studies)}", BUDGET, sampler)
        finished = {name: [] for name in SEARCHES}
        # Moments from before the first trial to some trial of the first or a later search.
        for _ in range(moments):
            if not fit_for(broken, options, draw.uniform(0.5 * start, start + (end - start) / 6))[0]:
                break
            kills += 1
            for name, trials in trials_in(broken).items():
                done = essence(trial for trial in trials if trial.state == TrialState.COMPLETE)
                assert done[: len(finished[name])] == finished[name]
                finished[name] = done
                left_running += sum(trial.state == TrialState.RUNNING for trial in trials)
            amid += 0 < sum(map(len, finished.values())) < 3 * BUDGET
        assert not fit_for(broken, options)[0]
        studies.append(broken)

    assert options or left_running == 0
    for broken in studies:
        for search in whole.searches:
            trials = trials_in(broken)[search.name]
            assert sum(trial.state == TrialState.COMPLETE for trial in trials) == BUDGET
            assert essence(without_lost(trials)) == essence(search.trials)
        # Lost trials change the numbers of later ones.
        written, expected = (
            re.sub(r"best_trial: \d+", "", (path / "best.yaml").read_text(encoding="utf-8"))
            for path in (broken, whole.study.folder)
        )
        assert written == expected


def test_lost_trials_are_tried_again(folder):
    """A trial left running by a dead worker is marked as lost, and its point is tried again once."""
    made = folder("lost", budget=6, sampler="cmaes")
    whole = fit(load_study(folder("whole", budget=6, sampler="cmaes")))
    fit(load_study(made).with_trials(4), workers=1)
    with sqlite3.connect(made / "study.db") as database:
        database.execute("update trials set state = 'RUNNING', datetime_complete = null where number = 3")
        database.execute("delete from trial_values where trial_id in (select trial_id from trials where number = 3)")
        database.execute(
            "delete from trial_user_attributes where key = 'block_scores' "
            "and trial_id in (select trial_id from trials where number = 3)"
        )

    fit(load_study(made))

    for search in whole.searches:
        trials = trials_in(made)[search.name]
        assert trials[3].state == TrialState.FAIL
        assert trials[3].user_attrs["lost"] is True
        assert trials[4].params == trials[3].params
        assert essence(without_lost(trials)) == essence(search.trials)


def test_a_point_that_kills_workers_fails(folder):
    """A point during which three workers died counts as failed, and the search continues without it."""
    made = folder("deadly", budget=6)
    fit(load_study(made).with_trials(3), workers=1)
    for _ in range(3):
        with sqlite3.connect(made / "study.db") as database:
            database.execute(
                "update trials set state = 'RUNNING' where trial_id = (select max(trial_id) from trials join studies "
                "using (study_id) where study_name = 'j')"
            )
            database.execute("delete from trial_values where trial_id = (select max(trial_id) from trials)")
        with open_storage(storage_address(None, made)) as storage:
            last = storage.get_all_trials(storage.get_study_id_from_name("j"))[-1]
            storage.set_trial_user_attr(last._trial_id, "worker", "00000000")
        count = len(trials_in(made)["j"])
        fit(load_study(made).with_trials(3), workers=1)
        if trials_in(made)["j"][-1].params != last.params:
            break
        assert len(trials_in(made)["j"]) == count + 1

    given_up = [trial for trial in trials_in(made)["j"] if "error" in trial.user_attrs]
    assert len(given_up) == 1
    assert given_up[0].user_attrs["error"] == "its worker ended during the scoring, 3 times"
    assert not given_up[0].user_attrs.get("lost")


def test_a_trial_scored_while_marked_lost_counts(folder):
    """A trial that completes while it is marked as lost counts, and its point is not tried again."""
    made = folder("late", budget=4)
    fit(load_study(made).with_trials(3))
    with open_storage(storage_address(None, made)) as storage, sqlite3.connect(made / "study.db") as database:
        third = storage.get_all_trials(storage.get_study_id_from_name("j"))[2]
        row = (third._trial_id, "lost", "true")
        database.execute("insert into trial_user_attributes (trial_id, key, value_json) values (?, ?, ?)", row)
    whole = fit(load_study(folder("unbroken", budget=4)))

    result = fit(load_study(made))

    assert [trial.state for trial in trials_in(made)["j"]] == [TrialState.COMPLETE] * 4
    assert [essence(search.trials) for search in result.searches] == [
        essence(search.trials) for search in whole.searches
    ]
    assert study_status(load_study(made)).searches[2].lost == 0


@pytest.mark.parametrize("options", [{}, {"workers": 1}])
def test_foreign_trials_do_not_count(folder, options):
    """Trials that another program adds to an Optuna study stay unchanged and do not count."""
    made = folder("guests", budget=5)
    fit(load_study(made).with_trials(3), **options)
    with open_storage(storage_address(None, made)) as storage:
        opened = optuna.load_study(study_name="j", storage=storage)
        known = opened.trials[0]
        opened.enqueue_trial(known.params)
        opened.add_trial(optuna.trial.create_trial(value=2.0))
        opened.add_trial(optuna.trial.create_trial(value=2.0, params=known.params, distributions=known.distributions))
    whole = fit(load_study(folder("alone", budget=5)))

    result = fit(load_study(made), **options)

    status = study_status(load_study(made)).searches[2]
    states = [trial.state for trial in trials_in(made)["j"]]
    assert states == [TrialState.COMPLETE] * 3 + [TrialState.WAITING] + [TrialState.COMPLETE] * 4
    assert (status.completed, status.running, status.failed) == (5, 0, 0)
    assert [essence(search.trials) for search in result.searches] == [
        essence(search.trials) for search in whole.searches
    ]


def test_a_half_created_search_is_used(folder):
    """An Optuna study whose creator was killed before it stored the binding is used, not refused."""
    made = folder("half", budget=3)
    with open_storage(storage_address(None, made)) as storage:
        optuna.create_study(study_name="s/T1", storage=storage, direction="maximize")

    result = fit(load_study(made))

    assert [search.name for search in result.searches] == list(SEARCHES)


def test_every_search_is_checked_first(folder, target):
    """Changed inputs of a later stage are refused before the first trial of an earlier one, one line for each."""
    made = folder("bound", budget=3)
    fit(load_study(made))
    text = (made / "study.yaml").read_text(encoding="utf-8")
    changed = text.replace("name: j, metric: delta", "name: j, metric: weights").replace("trials: 3", "trials: 5")
    (made / "study.yaml").write_text(changed, encoding="utf-8")
    before = {name: len(trials) for name, trials in trials_in(made).items()}

    with pytest.raises(StudyError) as caught:
        fit(load_study(made))

    (line,) = caught.value.problems
    assert "the trials of 'j' were scored with another metric: " in line
    assert line.endswith("`fresh=True` starts anew, another folder keeps both")
    assert {name: len(trials) for name, trials in trials_in(made).items()} == before


def test_fixed_alphas_are_inputs(write_study, target):
    """A fixed alpha beside the free alphas of the searched step is part of the binding."""
    step = "  - {{name: T, mode: weight_sum, a: base, b: x, alpha: {{OUT03: {}, OUT06: {{search: [0, 1]}}}}}}\n"
    stage = "  - {name: s, metric: delta, blocks: 'OUT03,OUT06', trials: 3}\n"
    fit(load_study(write_study(step.format(0.25), stage, target)))

    with pytest.raises(StudyError, match=r"scored with another recipe: .*0.25.* then, .*0.5.* now"):
        fit(load_study(write_study(step.format(0.5), stage, target)))


def test_locks_are_removed_after_a_fit(folder, monkeypatch):
    """A fit leaves no lock files, and does not wait for those of a killed worker."""
    made = folder("tidy", budget=2)
    (made / "study.db.workers").mkdir()
    (made / "study.db.workers" / "alone.host.1234.0000abcd.lock").write_text("", encoding="utf-8")
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)

    fit(load_study(made))

    assert waits == []
    assert not (made / "study.db.workers").exists()

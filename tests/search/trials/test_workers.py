"""Several workers of one study: living workers, turns, and the shared budget."""

import multiprocessing
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import optuna
import psycopg
import pytest
from databases import sqlite_url
from optuna.trial import TrialState
from processes import start_code, start_command
from waiting import PATIENCE, wait_for

from optimizer.errors import StudyError
from optimizer.recipes import load_recipe
from optimizer.search import FitEvents, fit, open_storage, storage_address, study_status
from optimizer.search.trials.claims import SharedStorage, Trials
from optimizer.search.trials.worker_processes import WorkerProcesses
from optimizer.search.trials.workers import workers_at
from optimizer.studies import load_study

STEPS = """\
  - {name: T1, mode: add_difference, a: base, b: x, c: base, alpha: {search: [0, 1], blocks: "OUT03,OUT06,M00"}}
  - {name: T2, mode: weight_sum, a: T1, b: y, alpha: {search: [0, 1], blocks: "OUT03,OUT06,M00"}}
"""
STAGES = "  - {{name: s, metric: {metric}, strategy: stepwise, trials: {budget}, sampler: {sampler}}}\n"
STORAGES = ["sqlite", "journal", "postgresql"]
# Workers of a journal use the same file locks as those of a SQLite file.
BY_LOCKS = pytest.mark.parametrize(
    "storage", ["sqlite", "postgresql", pytest.param("journal", marks=pytest.mark.slow)], indirect=True
)


@pytest.fixture(scope="session")
def target(pool):
    """A target made of x and y, with noise."""
    alphas = dict.fromkeys(("M00", "OUT03", "OUT06"), 0.4)
    return pool.plant("workers", pool.two_steps(alphas, alphas), noise=0.05)[0]


@pytest.fixture
def folder(write_study, target):
    """A function that writes a study of two searches and returns its folder."""

    def write(place="study", budget=12, metric="attention", sampler="blockwise", **fields):
        text = STAGES.format(budget=budget, metric=metric, sampler=sampler)
        return write_study(STEPS, text, target, place, **fields)

    return write


@pytest.fixture
def endless(folder):
    """A function that writes a study with an endless search and returns its folder."""

    def write(metric):
        made = folder(budget=100000, metric=metric, sampler="random")
        text = (made / "study.yaml").read_text(encoding="utf-8").replace("stepwise", "joint")
        (made / "study.yaml").write_text(text, encoding="utf-8")
        return made

    return write


@pytest.fixture(params=STORAGES)
def storage(request, tmp_path):
    """The address of an empty storage of each kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "trials.db")
    if request.param == "journal":
        return f"journal:{tmp_path / 'trials.journal'}"
    return request.getfixturevalue("postgresql").database()


def trials_in(storage, folder):
    """Return all trials by search, lost ones included."""
    address = storage_address(storage, folder)
    with open_storage(address) as opened:
        return {
            name.partition(":")[2] or name: opened.get_all_trials(opened.get_study_id_from_name(name))
            for name in optuna.get_all_study_names(opened)
        }


def fitting(folder, *options):
    """Start the command `fit` in a process and return the process."""
    return start_command("fit", folder, *options)


class TestPresence:
    """Living workers of a storage, and their turns."""

    def test_a_worker_is_seen_until_it_leaves(self, storage, tmp_path):
        """Other workers see a worker, with its process and machine, from joining to leaving."""
        address = storage_address(storage, tmp_path)
        first, second = workers_at(address, "a"), workers_at(address, "a")
        assert second.living() == ()

        first.join(alone=False)
        (seen,) = second.living()
        second.join(alone=False)

        assert (seen.process, seen.alone) == (os.getpid(), False)
        assert seen.name == first.mine.name
        assert re.fullmatch(r"process \d+ on \S+", str(seen))
        assert {worker.name for worker in first.living()} == {first.mine.name, second.mine.name}
        first.close()
        assert [worker.name for worker in second.living()] == [second.mine.name]
        second.close()
        second.close()

    @BY_LOCKS
    def test_a_killed_worker_is_gone(self, storage, tmp_path):
        """A killed worker is no longer alive at once."""
        code = f"""
            import time
            from pathlib import Path
            from optimizer.search import storage_address
            from optimizer.search.trials.workers import workers_at
            workers = workers_at(storage_address({storage!r}, Path()), "a")
            workers.join(alone=False)
            with workers.turn():
                print("here", flush=True)
                time.sleep(10_000)
        """
        process = start_code(code)
        process.wait_for("here\n")
        workers = workers_at(storage_address(storage, tmp_path), "a")

        process.kill()
        process.communicate()

        # The system releases file locks of a dead process at once, a server when it notices the lost connection.
        if storage.startswith("postgresql") or os.name == "nt":
            wait_for(lambda: workers.living() == ())
        assert workers.living() == ()
        workers.close()

    def test_a_lone_worker_excludes_others(self, storage, tmp_path):
        """A worker that works alone excludes others; the message names the other worker and a remedy."""
        address = storage_address(storage, tmp_path)
        first, second = workers_at(address, "a"), workers_at(address, "a")
        first.join(alone=True)
        with pytest.raises(StudyError, match=rf"another fit is running \(process {os.getpid()} on .*; wait"):
            second.join(alone=False)
        first.close()
        first.join(alone=False)

        with pytest.raises(StudyError, match="`workers=1` joins in"):
            second.join(alone=True)

        first.close()
        second.close()

    @BY_LOCKS
    def test_only_one_worker_has_its_turn(self, storage, tmp_path):
        """Only one worker of all processes has its turn at a time; turns are reentrant."""
        counter, count = tmp_path / "counter", 100
        code = f"""
            from pathlib import Path
            from optimizer.search import storage_address
            from optimizer.search.trials.workers import workers_at
            workers = workers_at(storage_address({storage!r}, Path()), "a")
            counter = Path({str(counter)!r})
            print("here", flush=True)
            for _ in range({count}):
                with workers.turn(), workers.turn():
                    counter.write_text(str(int(counter.read_text()) + 1))
            workers.close()
        """
        counter.write_text("0", encoding="utf-8")
        process = start_code(code)
        workers = workers_at(storage_address(storage, tmp_path), "a")
        process.wait_for("here\n")
        for _ in range(count):
            with workers.turn(), workers.turn():
                counter.write_text(str(int(counter.read_text(encoding="utf-8")) + 1), encoding="utf-8")
        workers.close()

        assert process.communicate() == ("here\n", "")
        assert counter.read_text(encoding="utf-8") == str(2 * count)


class TestBudget:
    """Workers that share a budget."""

    def test_processes_meet_the_budget_exactly(self, folder, storage):
        """Processes meet every budget exactly, try no point twice, and return the best trial of all."""
        # Three processes with a SQLite file, two with other storages.
        workers = 3 if storage.startswith("sqlite") else 2
        made = folder(budget=15)
        seen = []

        def finished(progress, trial):
            seen.append(trial)
            # The first process waits for a trial of another one, so that it cannot do all the work alone.
            wait_for(lambda: len(done_by(storage, made)) > 1)

        result = fit(load_study(made), workers=workers, storage=storage, events=FitEvents(finished=finished))

        found = trials_in(storage, made)
        assert set(found) == {"s/T1", "s/T2"}
        for search in result.searches:
            trials = found[search.name]
            assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 15
            assert len({tuple(trial.params.values()) for trial in trials}) == 15
            # Of trials that are equal to 1e-9 the one nearest to the target is the best.
            assert search.best.similarity == pytest.approx(max(trial.value for trial in trials), abs=1e-9)
        # The first process reports no trials of a search that other processes finished before it started.
        assert sum("T1.OUT03" in trial.alphas for trial in seen) == 15
        names = {trial.user_attrs["worker"] for trials in found.values() for trial in trials}
        assert 2 <= len(names) <= workers

    @pytest.mark.parametrize("storage", ["journal", pytest.param("postgresql", marks=pytest.mark.slow)], indirect=True)
    def test_a_second_machine_needs_no_checkpoint(self, endless, storage, tmp_path, pool, target):
        """On another machine the two YAML files and the statistics are enough to join a search."""
        made = endless("delta")
        for name in ("recipe.yaml", "study.yaml"):
            text = (made / name).read_text(encoding="utf-8").replace(f"{pool.folder}{os.sep}", "")
            (made / name).write_text(text, encoding="utf-8")
        for path in (*pool.paths.values(), target):
            shutil.copy(path, made)
        fit(load_study(made).with_trials(1))
        copy = tmp_path / "elsewhere" / "study"
        copy.mkdir(parents=True)
        for name in ("recipe.yaml", "study.yaml", "statistics.safetensors"):
            shutil.copy(made / name, copy)

        processes = [fitting(place, "--storage", storage) for place in (made, copy)]
        wait_for(lambda: sum(count > 2 for count in done_by(storage, made).values()) == 2)
        interrupt(processes)

        budget = len(trials_in(storage, made)["s"]) + 3
        ours, theirs = (fit(load_study(place).with_trials(budget), storage=storage) for place in (copy, made))
        assert ours.searches[0].trials == theirs.searches[0].trials
        assert [trial.state for trial in trials_in(storage, made)["s"]] == [TrialState.COMPLETE] * budget
        assert not list(copy.glob("*base*"))
        for step in ("T1", "T2"):
            first, second = (load_recipe(place / "best.yaml").step(step) for place in (made, copy))
            assert first.alpha == second.alpha

    @pytest.mark.slow
    @pytest.mark.parametrize("storage", ["postgresql"], indirect=True)
    def test_two_commands_share_the_budget(self, endless, storage):
        """Two commands with the same storage share the budget; `status` shows both while they run."""
        made = endless("attention")
        processes = [fitting(made, "--storage", storage) for _ in range(2)]

        wait_for(lambda: sum(count > 2 for count in done_by(storage, made).values()) == 2)
        during = study_status(load_study(made, with_files=False), storage)
        interrupt(processes)

        assert {worker.process for worker in during.workers} == {process.pid for process in processes}
        assert during.searches[0].seconds_left > 0
        assert during.ends is not None
        after = study_status(load_study(made, with_files=False), storage)
        assert after.workers == ()
        assert after.searches[0].running == 0
        points = [tuple(trial.params.values()) for trial in trials_in(storage, made)["s"]]
        assert len(set(points)) == len(points)

    @pytest.mark.parametrize(
        "storage",
        ["sqlite", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("journal", "postgresql"))],
        indirect=True,
    )
    def test_trials_of_killed_workers_are_tried_again(self, endless, storage):
        """Trials of two killed processes are marked as lost and tried again, and the budget is met."""
        made = endless("attention")
        process = fitting(made, "--workers", 3, "--storage", storage)
        draw = random.Random(str(storage)[:8])  # noqa: S311  moments, not secrets
        wait_for(lambda: len(done_by(storage, made)) == 3)
        for worker in living_processes(made, storage) - {process.pid}:
            time.sleep(draw.uniform(0.0, 0.5))
            os.kill(worker, signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
            wait_for(lambda worker=worker: worker not in living_processes(made, storage))
        enough = len(trials_in(storage, made)["s"]) + 5
        wait_for(lambda: len(trials_in(storage, made)["s"]) > enough)
        (err,) = interrupt([process])

        assert err.count("ended with exit code") == 2
        trials = trials_in(storage, made)["s"]
        counting = [trial for trial in trials if not trial.user_attrs.get("lost")]
        assert {trial.state for trial in counting} == {TrialState.COMPLETE}
        points = [trial.params for trial in counting]
        assert all(trial.params in points for trial in trials if trial.user_attrs.get("lost"))
        fit(load_study(made).with_trials(len(counting) + 2), workers=2, storage=storage)
        completed = [trial for trial in trials_in(storage, made)["s"] if trial.state == TrialState.COMPLETE]
        assert len(completed) == len(counting) + 2

    @pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
    def test_workers_end_with_the_first_process(self, endless, storage):
        """If the first process is killed, the others end too, and the same command continues."""
        made = endless("attention")
        process = fitting(made, "--workers", 2, "--storage", storage)
        wait_for(lambda: len(done_by(storage, made)) == 2)
        others = living_processes(made, storage) - {process.pid}
        process.kill()
        process.communicate()

        wait_for(lambda: not living_processes(made, storage) & others)
        done = sum(trial.state == TrialState.COMPLETE for trial in trials_in(storage, made)["s"])
        fit(load_study(made).with_trials(done + 2), workers=1, storage=storage)

        trials = trials_in(storage, made)["s"]
        assert sum(trial.state == TrialState.COMPLETE for trial in trials) == done + 2
        assert all(trial.state != TrialState.RUNNING for trial in trials)


def done_by(storage, folder):
    """Return the number of completed trials by worker."""
    trials = [trial for search in trials_in(storage, folder).values() for trial in search]
    return Counter(trial.user_attrs.get("worker") for trial in trials if trial.state == TrialState.COMPLETE)


def interrupt(processes):
    """Interrupt commands as Ctrl-C does, wait for their end, and return their stderr."""
    for process in processes:
        process.send_signal(signal.SIGINT)
    errs = [process.communicate(timeout=PATIENCE)[1] for process in processes]
    assert [process.returncode for process in processes] == [130] * len(processes), errs
    return errs


def living_processes(folder, storage):
    """Return the process ids of a study's living workers."""
    return {worker.process for worker in study_status(load_study(folder, with_files=False), storage).workers}


def test_a_second_fit_in_a_folder_is_refused(folder):
    """A second `fit` in a folder is refused with one line while a fit that works alone is running."""
    made = folder(budget=2000, sampler="random")
    first = fitting(made)
    wait_for(lambda: len(living_processes(made, None)) == 1)

    second = fitting(made)
    _, err = second.communicate(timeout=PATIENCE)
    with pytest.raises(StudyError) as caught:
        fit(load_study(made), workers=2)
    interrupt([first])

    expected = rf".*study\.db: another fit is running \(process {first.pid} on .*\); wait for it, or stop it"
    assert second.returncode == 2
    assert re.fullmatch(f"blockfit: {expected}\n", err)
    assert re.fullmatch(expected, str(caught.value))


def test_fresh_is_refused_beside_other_workers(folder):
    """`--fresh` is refused while other workers use the trials."""
    made = folder(budget=3)
    second = workers_at(storage_address(None, made), "study")
    second.join(alone=False)

    with pytest.raises(StudyError, match=rf"^fresh: .* in use by other workers \(process {os.getpid()} on "):
        fit(load_study(made), workers=1, fresh=True)

    second.close()
    assert len(fit(load_study(made), workers=1, fresh=True).searches) == 2


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
@pytest.mark.parametrize(
    ("number", "workers"),
    [(signal.SIGINT, None), pytest.param(signal.SIGTERM, None, marks=pytest.mark.slow), (signal.SIGTERM, 2)],
)
def test_an_interrupt_finishes_running_trials(folder, number, workers):
    """Ctrl-C or SIGTERM finishes the running trials, writes the best recipe so far, and leaves no process."""
    made = folder(budget=5000, sampler="random")
    process = fitting(made, *([] if workers is None else ["--workers", workers]))
    wait_for(lambda: (made / "study.db").exists() and len(living_processes(made, None)) == (workers or 1))
    wait_for(lambda: any(search.completed > 5 for search in study_status(load_study(made, with_files=False)).searches))
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE)

    assert process.returncode == 130
    assert err.endswith("interrupted; the best so far is in best.yaml, and the same command continues\n")
    assert "complete: false" in (made / "best.yaml").read_text(encoding="utf-8")
    assert {trial.state for trial in trials_in(None, made)["s/T1"]} == {TrialState.COMPLETE}
    assert living_processes(made, None) == set()


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_a_second_interrupt_does_not_wait(folder):
    """A second Ctrl-C does not wait for a long trial, and the best recipe so far is still written."""
    made = folder(budget=50, sampler="random")
    code = f"""
        import os, signal, time
        from pathlib import Path
        from optimizer.search import FitEvents, fit
        from optimizer.studies import load_study
        from optimizer.search.searching import Search
        scores = Search._scores_at
        def slowly(self, point):
            found = scores(self, point)
            if len(self.result.trials) == 3:
                handle = signal.getsignal(signal.SIGINT)
                signal.signal(signal.SIGINT, lambda *given: (handle(*given), print("noted", flush=True)))
                print("amid", flush=True)
                time.sleep(10_000)
            return found
        Search._scores_at = slowly
        result = fit(load_study(Path({str(made)!r})))
        print(result.interrupted, len(result.searches[0].completed))
    """
    process = start_code(code)
    process.wait_for("amid\n")
    process.send_signal(signal.SIGINT)
    process.wait_for("noted\n")
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE)

    assert out == "amid\nnoted\nTrue 3\n", err
    assert len(trials_in(None, made)["s/T1"]) == 3


def sleep_on(stop):
    """Sleep like a worker process during a long trial."""
    time.sleep(10_000)


def test_processes_can_be_stopped_at_once(monkeypatch):
    """`stop(at_once=True)` ends processes during a trial without waiting."""
    # A wait for the trial would exceed the timeout of the test.
    monkeypatch.setattr("optimizer.search.trials.worker_processes._GRACE", 10_000.0)
    processes = WorkerProcesses(1, sleep_on)

    processes.stop(at_once=True)
    processes.stop()

    assert multiprocessing.active_children() == []


def test_an_interrupt_while_hashing_loses_only_hashes(folder):
    """Ctrl-C while the checkpoints are hashed, after the search, loses only the hashes."""
    made = folder(budget=3)

    pressed = []

    def progress(activity, done, total):
        if activity == "hashing the checkpoints" and done and not pressed:
            pressed.append(done)
            raise KeyboardInterrupt

    result = fit(load_study(made), events=FitEvents(progress=progress))

    assert result.interrupted
    assert load_recipe(made / "best.yaml").fitted.complete is True


class TestDatabaseServer:
    """A PostgreSQL server that becomes unavailable."""

    def test_a_restart_is_waited_for(self, folder, postgresql):
        """A fit waits for a restarting server with a warning, and meets its budget exactly."""
        made, storage = folder(budget=20, sampler="random"), postgresql.database()
        warnings = []

        def finished(progress, trial):
            if progress.done == 7 and progress.search == "s/T1":
                postgresql.stop()
                postgresql.start()

        result = fit(load_study(made), storage=storage, events=FitEvents(finished=finished, warn=warnings.append))

        assert warnings
        assert all("trying again for" in text for text in warnings)
        assert [len(search.completed) for search in result.searches] == [20, 20]
        for trials in trials_in(storage, made).values():
            assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 20

    def test_a_server_that_stays_away_ends_the_fit(self, folder, postgresql):
        """A stopped server ends the fit with StorageLost and the best recipe so far; a later fit continues."""
        made, storage = folder(budget=12, sampler="random"), postgresql.database()
        code = f"""
            from pathlib import Path
            from optimizer.search import FitEvents, fit
            from optimizer.search.trials.storage import StorageLost
            from optimizer.studies import load_study
            asked = []
            def finished(progress, trial):
                if not asked:
                    asked.append(input("stop it\\n"))
            events, study = FitEvents(finished=finished), load_study(Path({str(made)!r}))
            try:
                fit(study, storage={storage!r}, patience=1, workers=2, events=events)
            except StorageLost as error:
                print(error)
        """
        # Not forked, so that the worker's standard error is that of this process.
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], text=True, **pipes)
        assert process.stdout.readline() == "stop it\n", process.communicate()

        postgresql.stop()
        try:
            out, err = process.communicate("\n", timeout=PATIENCE)
        finally:
            postgresql.start()

        assert re.match("postgresql://fitter:.*: unavailable for", out), err
        # The words depend on what the worker was doing, such as joining.
        assert re.search(r"^worker 2: .*postgresql://fitter:\*\*\*@.*: \S", err, re.MULTILINE), err
        assert "Traceback" not in err
        assert not re.search("se/cret|se%2Fcret", out + err)
        assert (made / "best.yaml").exists()
        result = fit(load_study(made), storage=storage)
        assert [len(search.completed) for search in result.searches] == [12, 12]

    def test_a_turn_cut_off_claims_no_trial_twice(self, tmp_path, postgresql):
        """If two workers claim the last trial because a turn was cut off, one of them withdraws."""
        url = postgresql.database()
        address = storage_address(url, tmp_path)
        claims = []
        with open_storage(address) as storage, open_storage(address) as same:
            cut_off, other_worker = workers_at(address, "s"), workers_at(address, "s")
            cut_off.join(alone=False)
            other_worker.join(alone=False)
            stored = optuna.create_study(storage=storage, direction="maximize")
            space = {"x": optuna.distributions.FloatDistribution(0, 1)}
            first = Trials(stored, SharedStorage(storage, address, cut_off), space, ["OUT03"])
            second = Trials(stored, SharedStorage(same, address, other_worker), space, ["OUT03"])

            def propose(memory):
                memory.ask(space)
                return memory.get_trials(deepcopy=False)[-1]

            def propose_and_be_cut_off(memory):
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity where pid = %s",
                        (cut_off._connection.info.backend_pid,),
                    )
                claims.append(second.claim(1, propose))
                return propose(memory)

            claims.append(first.claim(1, propose_and_be_cut_off))

            assert claims[0] is not None
            assert claims[1] is None
            states = [trial.state for trial in storage.get_all_trials(stored._study_id)]
            assert sorted(states) == [TrialState.RUNNING, TrialState.FAIL]
            assert len(other_worker.living()) == 2
            cut_off.close()
            other_worker.close()

    def test_a_worker_does_not_go_on_without_its_lock(self, tmp_path, postgresql, monkeypatch):
        """A worker that cannot take its lock again after a lost connection raises an error."""
        monkeypatch.setattr("optimizer.search.trials.workers._TURN", 1.0)
        url = postgresql.database()
        address = storage_address(url, tmp_path)
        worker = workers_at(address, "s")
        worker.join(alone=False)
        with psycopg.connect(url, autocommit=True) as thief:
            held = thief.execute(
                "select classid::bigint::bit(32)::int, objid::bigint::bit(32)::int from pg_locks "
                "where locktype = 'advisory' and pid = %s",
                (worker._connection.info.backend_pid,),
            ).fetchone()
            thief.execute("select pg_terminate_backend(%s)", (worker._connection.info.backend_pid,))
            thief.execute("select pg_advisory_lock(%s::int, %s::int)", held)

            for _ in range(3):
                with pytest.raises(psycopg.OperationalError):
                    worker.living()

        assert [living.name for living in worker.living()] == [worker.mine.name]
        worker.close()

    def test_an_unreachable_server_is_one_line(self, folder):
        """An unreachable server is one line without the password, and exit code 2."""
        made = folder()
        process = fitting(made, "--storage", "postgresql://me:secret@127.0.0.1:1/none")
        _, err = process.communicate(timeout=PATIENCE)

        assert process.returncode == 2
        assert len(err.splitlines()) == 1
        assert "secret" not in err

    def test_studies_share_a_database(self, folder, postgresql):
        """Studies share a database without mixing, told apart by `name` in their YAML files."""
        storage = postgresql.database()
        first, second = folder("one", budget=3), folder("other", budget=4, sampler="random", name="two")
        fit(load_study(first), storage=storage)
        fit(load_study(second), storage=storage)

        with open_storage(storage_address(storage, first)) as opened:
            assert sorted(optuna.get_all_study_names(opened)) == ["one:s/T1", "one:s/T2", "two:s/T1", "two:s/T2"]
        assert [search.completed for search in study_status(load_study(first), storage).searches] == [3, 3]

    def test_changed_inputs_are_refused(self, folder, postgresql):
        """Changed inputs are refused with the remedies for a database, and so is `--fresh`."""
        storage = postgresql.database()
        made = folder(budget=3)
        fit(load_study(made), storage=storage)
        changed = folder(budget=3, metric="delta")

        with pytest.raises(StudyError) as caught:
            fit(load_study(changed), storage=storage)

        ways = "another `name` in the study's YAML file, or another folder, keeps both"
        assert all(ways in line for line in caught.value.problems)
        with pytest.raises(StudyError, match=r"^fresh: .* others may be using; give the study another `name`"):
            fit(load_study(changed), storage=storage, fresh=True)


def test_workers_wait_for_locks_of_other_programs(folder, monkeypatch):
    """Workers that share a SQLite file wait for each other's writes and for a third program's."""
    monkeypatch.setattr("optimizer.search.trials.storage._SQLITE_TIMEOUT", 0.2)
    made = folder(budget=30, sampler="random")
    blocked, warnings = [], []

    def finished(progress, trial):
        if not blocked:
            blocked.append(sqlite3.connect(made / "study.db", check_same_thread=False))
            blocked[0].execute("begin exclusive")

    def warn(text):
        warnings.append(text)
        for connection in blocked:
            connection.rollback()

    result = fit(load_study(made), workers=2, events=FitEvents(finished=finished, warn=warn))
    blocked[0].close()

    assert warnings
    # While the other worker waits for the database, it has its turn.
    assert all("database is locked" in text or "turn.lock" in text for text in warnings)
    assert [len(search.completed) for search in result.searches] == [30, 30]


def test_workers_try_different_points(folder):
    """A worker proposes no point that another worker is trying."""
    made = folder(budget=40, sampler="tpe")
    result = fit(load_study(made), workers=3)

    for search in result.searches:
        points = [tuple(trial.alphas.values()) for trial in search.completed]
        assert len(set(points)) == 40


@pytest.mark.parametrize("workers", [0, -1])
def test_at_least_one_worker_is_required(folder, workers):
    """Fewer than one worker is refused."""
    with pytest.raises(StudyError, match=f"^workers: received {workers}; must be at least 1"):
        fit(load_study(folder()), workers=workers)


def test_status_before_the_first_fit(folder):
    """A study that was never fitted has no workers, and `status` creates no file."""
    made = folder()
    before = sorted(Path(made).iterdir())

    status = study_status(load_study(made, with_files=False))

    assert (status.workers, status.seconds_left) == ((), None)
    assert sorted(Path(made).iterdir()) == before

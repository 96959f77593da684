"""Storages of trials: their addresses, what is wrong with them, and what happens while they are away."""

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing, nullcontext
from pathlib import Path

import optuna
import pytest
from waiting import PATIENCE

from optimizer.errors import StudyError
from optimizer.recipes import load_recipe
from optimizer.search import FitEvents, fit, open_storage, storage_address, study_status
from optimizer.search.trials.storage import FileWatch, StorageLost, persist, set_aside
from optimizer.studies import load_study

ALPHAS = "  - {name: T, mode: weight_sum, a: base, b: x, alpha: {search: [0, 1], blocks: 'OUT03,OUT06'}}\n"
STAGE = "  - {{name: s, metric: delta, trials: {}, sampler: random}}\n"


@pytest.fixture(scope="session")
def planted(pool):
    """A target with half of x's difference."""
    step = {"name": "T", "mode": "weight_sum", "a": "base", "b": "x", "c": None, "alpha": {"OUT03": 0.5, "OUT06": 0.5}}
    return pool.plant("storage_target", [step], noise=0.02)[0]


@pytest.fixture
def study(write_study, planted):
    """A study of so many trials in a folder of its own, loaded."""
    return lambda trials=4, **fields: load_study(write_study(ALPHAS, STAGE.format(trials), planted, **fields))


def insides(folder):
    """The database of a study's folder."""
    return sqlite3.connect(folder / "study.db")


class TestAddress:
    """What `--storage` may name."""

    @pytest.mark.parametrize(
        ("given", "option"),
        [
            ("journal:jr/t.log", "journal:jr/t.log"),
            ("journal://t.log", "journal:t.log"),
            ("sqlite:///some/trials.db", "sqlite:///some/trials.db"),
            (f"journal:{Path('t.log').absolute()}", "journal:t.log"),
            (f"sqlite:///{Path('t.db').absolute().as_posix()}", "sqlite:///t.db"),
            ("postgresql://me:secret@host:5433/trials", "postgresql://me@host:5433/trials"),
            ("postgresql+psycopg://host/db?password=s&sslmode=require", "postgresql://host/db?sslmode=require"),
        ],
    )
    def test_told_to_others(self, tmp_path, given, option):
        """It can be told in the form that --storage takes, without passwords and without where a file lies here."""
        address = storage_address(given, tmp_path)

        assert address.option == option
        assert storage_address(option, tmp_path).kind == address.kind

    @pytest.mark.parametrize(
        ("given", "kind", "path"),
        [
            (None, "sqlite", "here/study.db"),
            ("sqlite:///some/trials.db", "sqlite", "some/trials.db"),
            ("journal:some/trials.journal", "journal", "some/trials.journal"),
            ("journal://trials.journal", "journal", "trials.journal"),
            ("postgresql://me@host/trials", "postgresql", None),
            ("postgresql+psycopg2://me@host/trials", "postgresql", None),
        ],
    )
    def test_kinds(self, tmp_path, given, kind, path):
        """The forms that the help names are understood, and PostgreSQL is always reached by psycopg 3."""
        address = storage_address(given, Path("here"))

        assert (address.kind, address.path) == (kind, None if path is None else Path(path))
        assert kind != "postgresql" or address.url.startswith("postgresql+psycopg://")

    @pytest.mark.parametrize(
        "given", ["study.db", "mysql://me@host/trials", "journal:", "sqlite://", "sqlite:///:memory:", "", "redis://x"]
    )
    def test_others(self, tmp_path, given):
        """Anything else is refused in a line that says what can be given."""
        with pytest.raises(StudyError, match=r"^storage: received .*; (must be sqlite:///FILE|a file's name must)"):
            storage_address(given, tmp_path)

    def test_password(self, tmp_path):
        """A password is never shown."""
        address = storage_address("postgresql://me:secret@host/trials", tmp_path)

        assert "secret" in address.url
        assert "secret" not in str(address)
        assert "secret" not in str(storage_address("postgresql://host/trials?user=me&password=secret", tmp_path))
        for given in ("oracle://me:secret@host/trials", "postgresql://me:secret@host:port/trials", "me:secret@host"):
            with pytest.raises(StudyError) as caught:
                storage_address(given, tmp_path)
            assert "secret" not in str(caught.value)


class TestJournal:
    """Journal files."""

    def test_torn_last_line(self, study, tmp_path):
        """What a crash left of a line is cut off, which is said; the trials before it stand, and the study goes on."""
        file = tmp_path / "trials.journal"
        made = study(4)
        fit(made, storage=f"journal:{file}")
        whole = file.read_bytes()
        lines = whole.splitlines(keepends=True)
        file.write_bytes(whole[: -len(lines[-1]) // 2])
        said = []
        result = fit(made, storage=f"journal:{file}", events=FitEvents(warn=said.append))

        (torn,) = [text for text in said if "its last line was not finished" in text]
        assert f"{file}: " in torn
        assert len(result.searches[0].completed) == 4
        assert len([json.loads(line) for line in file.read_bytes().splitlines()]) >= len(lines)

    @pytest.mark.parametrize("rest", [b'{"op_code": 4', b"\x00" * 70000, b"x"])
    def test_what_is_cut(self, tmp_path, rest):
        """Exactly what follows the last line feed goes, however long it is."""
        file = tmp_path / "trials.journal"
        address = storage_address(f"journal:{file}", tmp_path)
        with open_storage(address) as storage:
            optuna.create_study(study_name="one", storage=storage)
        whole = file.read_bytes()
        file.write_bytes(whole + rest)
        said = []

        with open_storage(address, warn=said.append) as storage:
            assert optuna.get_all_study_names(storage) == ["one"]

        assert file.read_bytes() == whole
        assert said == [
            f"{file}: its last line was unfinished, after a crash or on a full disk; {len(rest)} bytes removed"
        ]

    def test_nothing_but_a_torn_line(self, tmp_path):
        """A file without any whole line becomes an empty journal."""
        file = tmp_path / "trials.journal"
        file.write_bytes(b'{"op_code"')

        with open_storage(storage_address(f"journal:{file}", tmp_path)) as storage:
            assert optuna.get_all_study_names(storage) == []

    def test_lock_of_a_dead_process(self, tmp_path, monkeypatch):
        """A process that dies while it holds the journal's lock holds nobody up: nothing is waited for."""
        file = tmp_path / "trials.journal"
        code = f"""
            import os
            from pathlib import Path
            from optimizer.search.trials.storage import _JournalLock
            lock = _JournalLock(Path({str(file)!r}), print)
            lock.acquire()
            os._exit(9)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=PATIENCE)
        assert done.returncode == 9
        waits = []
        monkeypatch.setattr(time, "sleep", waits.append)

        with open_storage(storage_address(f"journal:{file}", tmp_path)) as storage:
            optuna.create_study(study_name="one", storage=storage)

        assert waits == []

    @pytest.mark.parametrize(
        "content", [b"something\nelse\n", b"a note\nwhose end has no line feed", b"one line", b"{", b'{"op": 1}\n{']
    )
    def test_no_journal(self, tmp_path, content):
        """A file of something else is refused, stays as it is to the last byte, and nothing is put beside it."""
        file = tmp_path / "trials.journal"
        file.write_bytes(content)
        begun = content == b"{"  # what Optuna was writing when it was killed begins so, too

        for options in ({}, {"read_only": True}):
            with (
                nullcontext() if begun else pytest.raises(StudyError, match="is not a journal of trials") as caught,
                open_storage(storage_address(f"journal:{file}", tmp_path), **options),
            ):
                pass
            if not begun:
                assert len(caught.value.problems) == 1
                assert file.read_bytes() == content
                assert list(tmp_path.iterdir()) == [file]


class TestVersions:
    """Storages that another Optuna wrote."""

    def test_older(self, study):
        """The message names the command that upgrades it, which does, and the study goes on."""
        made = study(4)
        fit(made)
        with insides(made.folder) as database:
            # As Optuna 3.0 left it; what its tables lack the upgrade does not miss.
            database.execute("update alembic_version set version_num = 'v3.0.0.d'")
        with pytest.raises(StudyError) as caught:
            fit(made)

        (line,) = caught.value.problems
        url = f"sqlite:///{(made.folder / 'study.db').as_posix()}"
        assert line.endswith(f"make a copy, then upgrade it: optuna storage upgrade --storage {url}")
        command = [Path(sys.executable).with_name("optuna"), "storage", "upgrade", "--storage", url]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert len(fit(made.with_trials(6)).searches[0].completed) == 6

    def test_newer(self, study):
        """The message says that Optuna is too old, and how to get another."""
        made = study(4)
        fit(made)
        with insides(made.folder) as database:
            database.execute("update alembic_version set version_num = 'v99.0.0.a'")

        with pytest.raises(StudyError, match=r"written by a newer Optuna than .*: pip install -U optuna$") as caught:
            fit(made)

        assert len(caught.value.problems) == 1

    def test_no_database(self, study):
        """A file that is no database is refused in a line that says how to start anew, which works."""
        made = study(4)
        (made.folder / "study.db").write_bytes(b"not a database, but a text of some length" * 30)

        with pytest.raises(StudyError, match=r"study.db: cannot be opened as a database of trials: .*`fresh=True`"):
            fit(made)

        assert len(fit(made, fresh=True).searches[0].completed) == 4
        assert (made.folder / "study.old.db").read_bytes().startswith(b"not a database")


class TestAway:
    """Storages that are locked, gone or replaced in the middle of a run."""

    def test_locked_for_a_while(self, study, monkeypatch):
        """A database that another program has locked is waited for, which is said; nothing is lost or doubled."""
        monkeypatch.setattr("optimizer.search.trials.storage._SQLITE_TIMEOUT", 0.2)
        made = study(12)
        said, blocker = [], []

        def finished(progress, trial):
            if progress.done == 4 and not blocker:
                blocker.append(sqlite3.connect(made.folder / "study.db", check_same_thread=False))
                blocker[0].execute("begin exclusive")

        def warned(text):
            said.append(text)
            blocker[0].rollback()

        result = fit(made, events=FitEvents(finished=finished, warn=warned))

        assert [trial.number for trial in result.searches[0].trials] == list(range(12))
        assert said
        assert all("database is locked" in text and "trying again for" in text for text in said)
        with insides(made.folder) as database:
            assert database.execute("select count(*) from trials").fetchone() == (12,)
        blocker[0].close()

    def test_locked_for_good(self, study, monkeypatch):
        """After the patience a clear error says what to do; the best so far is written, and the rest follows later."""
        # SQLite's own patience, of which Optuna takes several in a row.
        monkeypatch.setattr("optimizer.search.trials.storage._SQLITE_TIMEOUT", 0.2)
        made = study(8)
        blocker = []

        def finished(progress, trial):
            if progress.done == 4 and not blocker:
                blocker.append(sqlite3.connect(made.folder / "study.db"))
                blocker[0].execute("begin exclusive")

        with pytest.raises(StorageLost, match=r"study.db: unavailable for \d+ s: database is locked; .* continues$"):
            fit(made, patience=1, events=FitEvents(finished=finished))
        blocker[0].close()

        assert load_recipe(made.folder / "best.yaml").fitted.complete is False
        assert [trial.number for trial in fit(made).searches[0].trials] == list(range(8))

    def test_locked_at_the_start(self, study, monkeypatch):
        """A database that is locked when a fit begins is waited for, and is nothing to start anew for."""
        monkeypatch.setattr("optimizer.search.trials.storage._SQLITE_TIMEOUT", 0.2)
        made = study(4)
        fit(made.with_trials(2))
        said = []
        blocker = sqlite3.connect(made.folder / "study.db", check_same_thread=False)
        blocker.execute("begin exclusive")

        with pytest.raises(StudyError) as caught:
            fit(made, patience=0.5)

        def warned(text):
            said.append(text)
            blocker.rollback()

        result = fit(made, events=FitEvents(warn=warned))
        blocker.close()

        path = made.folder / "study.db"
        assert str(caught.value) == f"{path}: another program has locked it; close that program"
        assert said == [f"{path}: locked by another program; trying again for 60 s"]
        assert len(result.searches[0].completed) == 4

    def test_locked_while_it_is_looked_at(self, study, monkeypatch):
        """`status` waits for a database that another program has locked, and says after a while who is in the way."""
        made = study(4)
        fit(made)
        blocker = sqlite3.connect(made.folder / "study.db", check_same_thread=False)
        blocker.execute("begin exclusive")
        releasing = threading.Timer(0.3, blocker.rollback)
        releasing.start()

        assert [search.completed for search in study_status(made).searches] == [4]

        releasing.join()
        monkeypatch.setattr("optimizer.search.trials.storage._SQLITE_TIMEOUT", 0.1)
        monkeypatch.setattr("optimizer.search.trials.reading._READING", 0.1)
        blocker.execute("begin exclusive")
        with pytest.raises(StudyError, match=r"study\.db: another program has locked it; close that program"):
            study_status(made)
        blocker.close()

    def test_broken_meanwhile(self, study):
        """A database that takes no more trials in the midst of a fit ends it with the best so far, not as bad input."""
        made = study(8)

        def finished(progress, trial):
            if progress.done == 4:
                with closing(sqlite3.connect(made.folder / "study.db", isolation_level=None)) as database:
                    database.execute("drop table trial_values")

        with pytest.raises(StorageLost, match=r"study\.db: takes no trials: no such table: trial_values.* began$"):
            fit(made, events=FitEvents(finished=finished))

        assert load_recipe(made.folder / "best.yaml").fitted.complete is False

    @pytest.mark.skipif(os.name == "nt", reason="Windows keeps open files")
    @pytest.mark.parametrize("what", ["deleted", "replaced"])
    def test_gone(self, study, what):
        """A database file that is deleted or replaced ends the fit at once: what is written to it would be lost."""
        made = study(8)

        def finished(progress, trial):
            if progress.done == 4:
                path = made.folder / "study.db"
                if what == "deleted":
                    path.unlink()
                else:
                    (made.folder / "other.db").write_bytes(path.read_bytes())
                    (made.folder / "other.db").replace(path)

        with pytest.raises(StorageLost, match=r"study.db: was deleted or replaced while trials were being stored"):
            fit(made, events=FitEvents(finished=finished))

        assert (made.folder / "best.yaml").exists()
        assert len(fit(made).searches[0].completed) == 8

    def test_patience(self, tmp_path, monkeypatch):
        """What fails for a time is tried again, less and less often, and told of once; other errors pass at once."""
        calls, said, waits = [], [], []
        monkeypatch.setattr(time, "sleep", waits.append)
        address = storage_address(None, tmp_path)

        def works_the_third_time():
            calls.append(None)
            if len(calls) < 3:
                raise OSError("the network is down")
            return "done"

        def broken():
            raise ValueError("no storage's fault")

        assert persist(works_the_third_time, address, warn=said.append) == "done"
        assert said == [f"{tmp_path / 'study.db'}: the network is down; trying again for 60 s"]
        assert len(waits) == 2
        assert waits[1] > waits[0] > 0.05
        with pytest.raises(ValueError, match="no storage's fault"):
            persist(broken, address)

    def test_watch(self, tmp_path):
        """A file that is there as before is no loss, whatever is written into it."""
        address = storage_address(f"journal:{tmp_path / 'a'}", tmp_path)
        (tmp_path / "a").write_text("one", encoding="utf-8")
        watch = FileWatch(address)
        (tmp_path / "a").write_text("another", encoding="utf-8")

        watch.check()

        (tmp_path / "a").unlink()
        with pytest.raises(StorageLost):
            watch.check()


class TestSetAside:
    """`--fresh`."""

    @pytest.mark.parametrize(
        ("url", "suffix", "begins"),
        [("journal:{}", ".journal", '{"op_code":0}'), ("sqlite:///{}", ".db", "SQLite format 3\0")],
    )
    def test_numbered(self, tmp_path, url, suffix, begins):
        """A file is renamed to a name that is not taken, however often, and no earlier one is replaced."""
        file = tmp_path / f"a{suffix}"
        for number in range(1, 5):
            file.write_text(f"{begins} and the trials {number}", encoding="utf-8")
            set_aside(storage_address(url.format(file.as_posix()), tmp_path))

        found = {path.name: path.read_text(encoding="utf-8")[-1] for path in tmp_path.iterdir()}
        assert found == {
            f"a.old{suffix}": "1",
            f"a.old-2{suffix}": "2",
            f"a.old-3{suffix}": "3",
            f"a.old-4{suffix}": "4",
        }

    @pytest.mark.parametrize("url", ["journal:{}", "sqlite:///{}"])
    @pytest.mark.parametrize("what", ["folder", "checkpoint", "other"])
    def test_no_trials(self, study, tmp_path, url, what):
        """What was never a storage of trials is not renamed, the command that fails on it does not advise that."""
        made, path = study(2), tmp_path / "mine"
        if what == "folder":
            path.mkdir()
        elif what == "checkpoint":
            path.write_bytes(b"\x10\0\0\0\0\0\0\0{}              ")
        else:
            with closing(sqlite3.connect(path)) as database:
                database.execute("create table bookmarks (a)")
                database.execute("create trigger one after insert on bookmarks begin select 1; end")
        before = None if what == "folder" else path.read_bytes()

        with pytest.raises(StudyError, match=r"^fresh: .*mine: is no .*name another file$"):
            fit(made, storage=url.format(path.as_posix()), fresh=True)
        with pytest.raises(StudyError) as caught:
            fit(made, storage=url.format(path.as_posix()))

        assert [line for line in caught.value.problems if "fresh=True" in line or "name another file" not in line] == []
        assert path.is_dir() if before is None else path.read_bytes() == before
        assert not list(tmp_path.glob("mine.old*"))

    def test_told(self, study):
        """What was renamed, and to what, is said."""
        made, said = study(2), []
        fit(made)
        fit(made, fresh=True, events=FitEvents(warn=said.append))

        assert said == [f"{made.folder / 'study.db'}: renamed to study.old.db"]

    def test_nothing_to_set_aside(self, tmp_path):
        """Where there is no file yet, nothing is made."""
        assert set_aside(storage_address(None, tmp_path)) is None
        assert list(tmp_path.iterdir()) == []

    def test_fresh_twice(self, study):
        """`--fresh` after `--fresh` keeps the trials of both fits before it."""
        made = study(3)
        for trials in (3, 2, 1):
            fit(made.with_trials(trials), fresh=True)

        kept = {}
        for name in ("study.old.db", "study.old-2.db", "study.db"):
            with closing(sqlite3.connect(made.folder / name)) as database:
                (kept[name],) = database.execute("select count(*) from trials").fetchone()
        assert kept == {"study.old.db": 3, "study.old-2.db": 2, "study.db": 1}

    def test_waiting_pages(self, tmp_path):
        """What a database in another journal mode had yet to take in goes along, and does not spoil the next one."""
        code = """
            import os, sqlite3, sys
            database = sqlite3.connect(sys.argv[1], isolation_level=None)
            database.execute("pragma journal_mode = wal")
            database.execute("create table one (a)")
            database.execute("insert into one values ('kept')")
            os._exit(0)
        """
        file = tmp_path / "study.db"
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), file], check=True)
        assert (tmp_path / "study.db-wal").stat().st_size > 0

        aside = set_aside(storage_address(None, tmp_path))

        with closing(sqlite3.connect(aside)) as database:
            assert database.execute("select a from one").fetchall() == [("kept",)]
        assert not list(tmp_path.glob("study.db*"))

    def test_unfinished_transaction(self, study):
        """What SQLite had yet to undo goes along: it is undone in the old file, and not in the new one."""
        made = study(3)
        fit(made)
        code = """
            import os, sqlite3, sys
            database = sqlite3.connect(sys.argv[1], isolation_level=None)
            database.execute("pragma cache_size = 1")
            database.execute("begin")
            database.execute("update trial_user_attributes set value_json = hex(zeroblob(9000))")
            os._exit(0)
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), made.folder / "study.db"], check=True)
        assert (made.folder / "study.db-journal").exists()

        assert len(fit(made, fresh=True).searches[0].completed) == 3

        with sqlite3.connect(made.folder / "study.old.db") as database:
            assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
            kept = database.execute("select value_json from trial_user_attributes where key = 'origin'").fetchall()
        assert len(kept) == 3
        assert all(json.loads(text) for (text,) in kept)

    def test_database(self, tmp_path):
        """What others may be using is left alone."""
        with pytest.raises(StudyError, match=r"^fresh: postgresql://me@host/trials is a database that others may be"):
            set_aside(storage_address("postgresql://me@host/trials", tmp_path))

"""Storages of trials: addresses, damage, unavailability, and `--fresh`."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, nullcontext
from pathlib import Path

import optuna
import pytest
from processes import start_code
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
    """A target halfway between base and x, with noise."""
    step = {"name": "T", "mode": "weight_sum", "a": "base", "b": "x", "c": None, "alpha": {"OUT03": 0.5, "OUT06": 0.5}}
    return pool.plant("storage_target", [step], noise=0.02)[0]


@pytest.fixture
def study(write_study, planted):
    """A function that writes and loads a study with this budget."""
    return lambda trials=4, **fields: load_study(write_study(ALPHAS, STAGE.format(trials), planted, **fields))


def database_of(folder):
    """Return a connection to the database in a study's folder."""
    return sqlite3.connect(folder / "study.db")


class TestAddress:
    """Addresses for `--storage`."""

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
    def test_the_shown_option_hides_passwords_and_paths(self, tmp_path, given, option):
        """The option for others is valid for --storage, without passwords and without absolute paths."""
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
    def test_every_form_is_understood(self, tmp_path, given, kind, path):
        """All documented forms are understood, and PostgreSQL always uses psycopg 3."""
        address = storage_address(given, Path("here"))

        assert (address.kind, address.path) == (kind, None if path is None else Path(path))
        assert kind != "postgresql" or address.url.startswith("postgresql+psycopg://")

    @pytest.mark.parametrize(
        "given", ["study.db", "mysql://me@host/trials", "journal:", "sqlite://", "sqlite:///:memory:", "", "redis://x"]
    )
    def test_other_forms_are_refused(self, tmp_path, given):
        """Any other form is refused with one line that lists the valid forms."""
        with pytest.raises(StudyError, match=r"^storage: received .*; (must be sqlite:///FILE|a file's name must)"):
            storage_address(given, tmp_path)

    def test_a_password_is_never_shown(self, tmp_path):
        """No address and no message contains a password."""
        address = storage_address("postgresql://me:secret@host/trials", tmp_path)

        assert "secret" in address.url
        assert "secret" not in str(address)
        assert "secret" not in str(storage_address("postgresql://host/trials?user=me&password=secret", tmp_path))
        for given in ("oracle://me:secret@host/trials", "postgresql://me:secret@host:port/trials", "me:secret@host"):
            with pytest.raises(StudyError) as caught:
                storage_address(given, tmp_path)
            assert "secret" not in str(caught.value)


class TestJournal:
    """Journal files of trials."""

    def test_an_unfinished_last_line_is_removed(self, study, tmp_path):
        """An unfinished line after a crash is removed with a warning; earlier trials stay, and the study continues."""
        file = tmp_path / "trials.journal"
        made = study(4)
        fit(made, storage=f"journal:{file}")
        whole = file.read_bytes()
        lines = whole.splitlines(keepends=True)
        file.write_bytes(whole[: -len(lines[-1]) // 2])
        warnings = []
        result = fit(made, storage=f"journal:{file}", events=FitEvents(warn=warnings.append))

        (torn,) = [text for text in warnings if "its last line was unfinished" in text]
        assert f"{file}: " in torn
        assert len(result.searches[0].completed) == 4
        assert len([json.loads(line) for line in file.read_bytes().splitlines()]) >= len(lines)

    @pytest.mark.parametrize("rest", [b'{"op_code": 4', b"\x00" * 70000, b"x"])
    def test_only_the_rest_after_the_last_line_feed_is_removed(self, tmp_path, rest):
        """Exactly the bytes after the last line feed are removed, for any length."""
        file = tmp_path / "trials.journal"
        address = storage_address(f"journal:{file}", tmp_path)
        with open_storage(address) as storage:
            optuna.create_study(study_name="one", storage=storage)
        whole = file.read_bytes()
        file.write_bytes(whole + rest)
        warnings = []

        with open_storage(address, warn=warnings.append) as storage:
            assert optuna.get_all_study_names(storage) == ["one"]

        assert file.read_bytes() == whole
        assert warnings == [
            f"{file}: its last line was unfinished, after a crash or on a full disk; {len(rest)} bytes removed"
        ]

    def test_an_unfinished_only_line_leaves_an_empty_journal(self, tmp_path):
        """A file without a finished line becomes an empty journal."""
        file = tmp_path / "trials.journal"
        file.write_bytes(b'{"op_code"')

        with open_storage(storage_address(f"journal:{file}", tmp_path)) as storage:
            assert optuna.get_all_study_names(storage) == []

    def test_the_lock_of_a_dead_process_does_not_block(self, tmp_path, monkeypatch):
        """The journal's lock of a dead process causes no wait."""
        file = tmp_path / "trials.journal"
        code = f"""
            import os
            from pathlib import Path
            from optimizer.search.trials.storage import _JournalLock
            lock = _JournalLock(Path({str(file)!r}), print)
            lock.acquire()
            os._exit(9)
        """
        done = start_code(code)
        done.communicate()
        assert done.returncode == 9, done.err
        waits = []
        monkeypatch.setattr(time, "sleep", waits.append)

        with open_storage(storage_address(f"journal:{file}", tmp_path)) as storage:
            optuna.create_study(study_name="one", storage=storage)

        assert waits == []

    @pytest.mark.parametrize(
        "content", [b"something\nelse\n", b"a note\nwhose end has no line feed", b"one line", b"{", b'{"op": 1}\n{']
    )
    def test_another_file_is_refused_unchanged(self, tmp_path, content):
        """A file that is not a journal is refused and unchanged, and nothing is created beside it."""
        file = tmp_path / "trials.journal"
        file.write_bytes(content)
        may_be_journal = content == b"{"  # a killed Optuna may leave these bytes

        for options in ({}, {"read_only": True}):
            with (
                nullcontext()
                if may_be_journal
                else pytest.raises(StudyError, match="is not a journal of trials") as caught,
                open_storage(storage_address(f"journal:{file}", tmp_path), **options),
            ):
                pass
            if not may_be_journal:
                assert len(caught.value.problems) == 1
                assert file.read_bytes() == content
                assert list(tmp_path.iterdir()) == [file]


class TestVersions:
    """Storages of other versions of Optuna."""

    def test_an_older_storage_can_be_upgraded(self, study):
        """The message for an older storage names the command that upgrades it; afterwards the study continues."""
        made = study(4)
        fit(made)
        with database_of(made.folder) as database:
            # The version of Optuna 3.0; the upgrade accepts the newer tables.
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

    def test_a_newer_storage_is_refused(self, study):
        """The message for a newer storage names the command that upgrades Optuna."""
        made = study(4)
        fit(made)
        with database_of(made.folder) as database:
            database.execute("update alembic_version set version_num = 'v99.0.0.a'")

        with pytest.raises(StudyError, match=r"written by a newer Optuna than .*: pip install -U optuna$") as caught:
            fit(made)

        assert len(caught.value.problems) == 1

    def test_a_file_that_is_not_a_database_is_refused(self, study):
        """A file that is not a database is refused with one line that proposes `fresh=True`, which works."""
        made = study(4)
        (made.folder / "study.db").write_bytes(b"not a database, but a text of some length" * 30)

        with pytest.raises(StudyError, match=r"study.db: cannot be opened as a database of trials: .*`fresh=True`"):
            fit(made)

        assert len(fit(made, fresh=True).searches[0].completed) == 4
        assert (made.folder / "study.old.db").read_bytes().startswith(b"not a database")


class TestUnavailable:
    """Storages that are locked, deleted or replaced during a run."""

    def test_a_temporary_lock_is_waited_for(self, study, monkeypatch):
        """A fit waits for a locked database with a warning, and no trial is lost or repeated."""
        monkeypatch.setattr("optimizer.search.trials.storage._SQLITE_TIMEOUT", 0.2)
        made = study(12)
        warnings, blocker = [], []

        def finished(progress, trial):
            if progress.done == 4 and not blocker:
                blocker.append(sqlite3.connect(made.folder / "study.db", check_same_thread=False))
                blocker[0].execute("begin exclusive")

        def warn(text):
            warnings.append(text)
            blocker[0].rollback()

        result = fit(made, events=FitEvents(finished=finished, warn=warn))

        assert [trial.number for trial in result.searches[0].trials] == list(range(12))
        assert warnings
        assert all("database is locked" in text and "trying again for" in text for text in warnings)
        with database_of(made.folder) as database:
            assert database.execute("select count(*) from trials").fetchone() == (12,)
        blocker[0].close()

    def test_a_lasting_lock_ends_the_fit(self, study, monkeypatch):
        """After the patience the fit ends with StorageLost and the best recipe so far; a later fit continues."""
        # SQLite's own timeout, which Optuna uses several times in a row.
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

    def test_a_lock_at_the_start_is_waited_for(self, study, monkeypatch):
        """A fit waits for a database that is locked at its start; the message does not propose to start anew."""
        monkeypatch.setattr("optimizer.search.trials.storage._SQLITE_TIMEOUT", 0.2)
        made = study(4)
        fit(made.with_trials(2))
        warnings = []
        blocker = sqlite3.connect(made.folder / "study.db", check_same_thread=False)
        blocker.execute("begin exclusive")

        with pytest.raises(StudyError) as caught:
            fit(made, patience=0.5)

        def warn(text):
            warnings.append(text)
            blocker.rollback()

        result = fit(made, events=FitEvents(warn=warn))
        blocker.close()

        path = made.folder / "study.db"
        assert str(caught.value) == f"{path}: another program has locked it; close that program"
        assert warnings == [f"{path}: locked by another program; trying again for 60 s"]
        assert len(result.searches[0].completed) == 4

    def test_status_waits_for_a_lock(self, study, monkeypatch):
        """`status` waits for a locked database, and reports the lock after its timeout."""
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

    def test_a_database_that_breaks_during_a_fit(self, study):
        """A database that breaks during a fit ends it with StorageLost, and the best recipe so far is written."""
        made = study(8)

        def finished(progress, trial):
            if progress.done == 4:
                with closing(sqlite3.connect(made.folder / "study.db", isolation_level=None)) as database:
                    database.execute("drop table trial_values")

        with pytest.raises(
            StorageLost, match=r"study\.db: cannot store trials: no such table: trial_values.* started$"
        ):
            fit(made, events=FitEvents(finished=finished))

        assert load_recipe(made.folder / "best.yaml").fitted.complete is False

    @pytest.mark.skipif(os.name == "nt", reason="Windows keeps open files")
    @pytest.mark.parametrize("change", ["deleted", "replaced"])
    def test_a_deleted_or_replaced_file_ends_the_fit(self, study, change):
        """A deleted or replaced database ends the fit at once, because further trials would be lost."""
        made = study(8)

        def finished(progress, trial):
            if progress.done == 4:
                path = made.folder / "study.db"
                if change == "deleted":
                    path.unlink()
                else:
                    (made.folder / "other.db").write_bytes(path.read_bytes())
                    (made.folder / "other.db").replace(path)

        with pytest.raises(StorageLost, match=r"study.db: was deleted or replaced while trials were being stored"):
            fit(made, events=FitEvents(finished=finished))

        assert (made.folder / "best.yaml").exists()
        assert len(fit(made).searches[0].completed) == 8

    def test_temporary_errors_are_retried(self, tmp_path, monkeypatch):
        """A temporary error is retried at growing intervals with one warning; other errors pass at once."""
        calls, warnings, waits = [], [], []
        monkeypatch.setattr(time, "sleep", waits.append)
        address = storage_address(None, tmp_path)

        def works_the_third_time():
            calls.append(None)
            if len(calls) < 3:
                raise OSError("the network is down")
            return "done"

        def broken():
            raise ValueError("not a storage error")

        assert persist(works_the_third_time, address, warn=warnings.append) == "done"
        assert warnings == [f"{tmp_path / 'study.db'}: the network is down; trying again for 60 s"]
        assert len(waits) == 2
        assert waits[1] > waits[0] > 0.05
        with pytest.raises(ValueError, match="not a storage error"):
            persist(broken, address)

    def test_the_watch_accepts_a_changed_file(self, tmp_path):
        """The watch accepts new contents of the same file, and refuses a deleted file."""
        address = storage_address(f"journal:{tmp_path / 'a'}", tmp_path)
        (tmp_path / "a").write_text("one", encoding="utf-8")
        watch = FileWatch(address)
        (tmp_path / "a").write_text("another", encoding="utf-8")

        watch.check()

        (tmp_path / "a").unlink()
        with pytest.raises(StorageLost):
            watch.check()


class TestSetAside:
    """Setting a storage aside, for `--fresh`."""

    @pytest.mark.parametrize(
        ("url", "suffix", "first_bytes"),
        [("journal:{}", ".journal", '{"op_code":0}'), ("sqlite:///{}", ".db", "SQLite format 3\0")],
    )
    def test_earlier_files_are_kept(self, tmp_path, url, suffix, first_bytes):
        """Every renaming uses a free name, and replaces no earlier file."""
        file = tmp_path / f"a{suffix}"
        for number in range(1, 5):
            file.write_text(f"{first_bytes} and the trials {number}", encoding="utf-8")
            set_aside(storage_address(url.format(file.as_posix()), tmp_path))

        found = {path.name: path.read_text(encoding="utf-8")[-1] for path in tmp_path.iterdir()}
        assert found == {
            f"a.old{suffix}": "1",
            f"a.old-2{suffix}": "2",
            f"a.old-3{suffix}": "3",
            f"a.old-4{suffix}": "4",
        }

    @pytest.mark.parametrize("url", ["journal:{}", "sqlite:///{}"])
    @pytest.mark.parametrize("content", ["folder", "checkpoint", "database"])
    def test_another_file_is_not_renamed(self, study, tmp_path, url, content):
        """A file that was never a storage of trials is not renamed, and no message proposes `fresh=True`."""
        made, path = study(2), tmp_path / "mine"
        if content == "folder":
            path.mkdir()
        elif content == "checkpoint":
            path.write_bytes(b"\x10\0\0\0\0\0\0\0{}              ")
        else:
            with closing(sqlite3.connect(path)) as database:
                database.execute("create table bookmarks (a)")
                database.execute("create trigger one after insert on bookmarks begin select 1; end")
        before = None if content == "folder" else path.read_bytes()

        with pytest.raises(StudyError, match=r"^fresh: .*mine: is not .*name another file$"):
            fit(made, storage=url.format(path.as_posix()), fresh=True)
        with pytest.raises(StudyError) as caught:
            fit(made, storage=url.format(path.as_posix()))

        assert [line for line in caught.value.problems if "fresh=True" in line or "name another file" not in line] == []
        assert path.is_dir() if before is None else path.read_bytes() == before
        assert not list(tmp_path.glob("mine.old*"))

    def test_the_new_name_is_reported(self, study):
        """A warning contains the old and the new name."""
        made, warnings = study(2), []
        fit(made)
        fit(made, fresh=True, events=FitEvents(warn=warnings.append))

        assert warnings == [f"{made.folder / 'study.db'}: renamed to study.old.db"]

    def test_a_missing_file_stays_missing(self, tmp_path):
        """Setting a missing file aside creates nothing."""
        assert set_aside(storage_address(None, tmp_path)) is None
        assert list(tmp_path.iterdir()) == []

    def test_fresh_twice_keeps_all_trials(self, study):
        """Two fits with `--fresh` keep the trials of both earlier fits."""
        made = study(3)
        for trials in (3, 2, 1):
            fit(made.with_trials(trials), fresh=True)

        kept = {}
        for name in ("study.old.db", "study.old-2.db", "study.db"):
            with closing(sqlite3.connect(made.folder / name)) as database:
                (kept[name],) = database.execute("select count(*) from trials").fetchone()
        assert kept == {"study.old.db": 3, "study.old-2.db": 2, "study.db": 1}

    def test_a_write_ahead_log_is_taken_in(self, tmp_path):
        """The write-ahead log is taken into the renamed database, and does not corrupt the next one."""
        code = """
            import os, sqlite3, sys
            database = sqlite3.connect(sys.argv[1], isolation_level=None)
            database.execute("pragma journal_mode = wal")
            database.execute("create table one (a)")
            database.execute("insert into one values ('kept')")
            os._exit(0)
        """
        file = tmp_path / "study.db"
        start_code(code, file).communicate()
        assert (tmp_path / "study.db-wal").stat().st_size > 0

        aside = set_aside(storage_address(None, tmp_path))

        with closing(sqlite3.connect(aside)) as database:
            assert database.execute("select a from one").fetchall() == [("kept",)]
        assert not list(tmp_path.glob("study.db*"))

    def test_an_unfinished_transaction_is_undone(self, study):
        """An unfinished transaction is undone in the renamed database, and does not corrupt the new one."""
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
        start_code(code, made.folder / "study.db").communicate()
        assert (made.folder / "study.db-journal").exists()

        assert len(fit(made, fresh=True).searches[0].completed) == 3

        with sqlite3.connect(made.folder / "study.old.db") as database:
            assert database.execute("pragma integrity_check").fetchall() == [("ok",)]
            kept = database.execute("select value_json from trial_user_attributes where key = 'origin'").fetchall()
        assert len(kept) == 3
        assert all(json.loads(text) for (text,) in kept)

    def test_a_server_database_is_not_renamed(self, tmp_path):
        """A PostgreSQL database, which others may be using, is refused."""
        with pytest.raises(StudyError, match=r"^fresh: postgresql://me@host/trials is a database that others may be"):
            set_aside(storage_address("postgresql://me@host/trials", tmp_path))

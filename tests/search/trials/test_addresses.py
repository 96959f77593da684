"""Trials are stored in the named file, with any characters in its path, and in no other file."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import psycopg
import pytest
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url

from optimizer.cli import main
from optimizer.errors import StudyError
from optimizer.search import fit, open_storage, storage_address, study_status
from optimizer.search.trials.storage import may_hold_trials
from optimizer.search.trials.workers import workers_at
from optimizer.studies import load_study

# Names with special characters of URLs, Optuna's URL templates, SQLite's URIs, or shells.
FOLDERS = [
    "what?", "mode=memory?", "a%20b", "a%2Fb", "a%3Fb", "100%", "a#b", "a{b}", "{SCHEMA_VERSION}", "a}b{", "a&b;c",
    "a+b", "a b", "a'b", 'a"b', "a\\b", "@a", "a@b:c", "ä漢", "$HOME", "~", ":memory:", "file:a?mode=ro", "[a]", "-a",
]  # fmt: skip
FOLDERS = [name for name in FOLDERS if os.name != "nt" or not set(name) & set('?":\\*<>|')]


def make_study(address, name="one"):
    """Create a storage with one Optuna study at an address."""
    with open_storage(address) as storage:
        optuna.create_study(study_name=name, storage=storage)


def files_in(folder):
    """Return the relative paths of all files below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", FOLDERS)
def test_trials_are_in_the_study_s_folder(tmp_path, name):
    """The default storage is one file in the study's folder, and nothing is created beside the folder."""
    folder = tmp_path / name
    folder.mkdir()
    address = storage_address(None, folder)
    assert not may_hold_trials(address)

    make_study(address)

    assert may_hold_trials(address)
    assert files_in(tmp_path) == [f"{name}/study.db"]
    with closing(sqlite3.connect(folder / "study.db")) as database:
        assert database.execute("select study_name from studies").fetchall() == [("one",)]


@pytest.mark.parametrize("name", FOLDERS)
def test_the_shown_option_names_the_same_file(tmp_path, monkeypatch, name):
    """The option shown to others names the same file for blockfit and for Optuna's commands."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    option = storage_address(None, Path(name)).option

    assert option.startswith("sqlite:///")
    assert storage_address(option, tmp_path).path == Path(name) / "study.db"
    assert Path(make_url(option).database) == Path(name) / "study.db"
    journal = storage_address(f"journal:{name}/study.log", tmp_path)
    assert storage_address(journal.option, tmp_path).path == Path(name) / "study.log"


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("sqlite:///a%20b.db", "a b.db"),
        ("sqlite:///a b.db", "a b.db"),
        ("sqlite:///what%3F.db", "what?.db"),
        ("sqlite:///100%25.db", "100%.db"),
        ("sqlite:///a%2520b.db", "a%20b.db"),
        ("sqlite:///a#b{c}.db", "a#b{c}.db"),
        ("sqlite+pysqlite:///a.db", "a.db"),
        ("sqlite:////srv/a.db", "/srv/a.db"),
        ("sqlite:///C:/studies/a.db", "C:/studies/a.db"),
        (r"sqlite:///C:\studies\a.db", r"C:\studies\a.db"),
        ("sqlite://///server/share/a.db", "//server/share/a.db"),
        (r"sqlite:///\\server\share\a.db", r"\\server\share\a.db"),
        ("journal:a%20b?.log", "a%20b?.log"),
        (r"journal:\\server\share\a.log", r"\\server\share\a.log"),
    ],
)
def test_urls_are_unescaped(tmp_path, given, path):
    """In a URL %20 is a space, %3F a question mark and %25 a percent sign; a journal's name is literal."""
    assert storage_address(given, tmp_path).path == Path(path)


def test_options_in_a_url_are_refused(tmp_path):
    """A question mark starts options, which are refused; the message shows the URL of a file name with one."""
    with pytest.raises(StudyError, match=r"a '\?' starts options.*: sqlite:///a b%3Fmode=ro\.db$"):
        storage_address("sqlite:///a%20b?mode=ro.db", tmp_path)


def test_a_literal_file_name_is_recognised(tmp_path, monkeypatch):
    """If only the file with the literal name exists, the message gives its URL."""
    monkeypatch.chdir(tmp_path)
    Path("a%20b.db").touch()

    with pytest.raises(StudyError, match=r"names the file 'a b\.db'.* must be sqlite:///a%2520b\.db$"):
        storage_address("sqlite:///a%20b.db", tmp_path)

    Path("a b.db").touch()
    assert storage_address("sqlite:///a%20b.db", tmp_path).path == Path("a b.db")


def test_special_characters_in_a_database_s_name(postgresql):
    """A PostgreSQL database with braces, a percent sign and a question mark in its name is opened."""
    name = "tri{al}s 100% ?"
    plain = make_url(postgresql.database())
    with psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f'create database "{name}"')
    address = storage_address(plain.set(database=name).render_as_string(hide_password=False), Path())

    assert not may_hold_trials(address)
    make_study(address)

    assert may_hold_trials(address)
    workers = workers_at(address, "one")
    workers.join(alone=False)
    assert len(workers.living()) == 1
    workers.close()
    server = {"user": plain.username, "password": plain.password, "host": plain.host, "port": plain.port}
    with psycopg.connect(**server, dbname=name) as connection:
        assert connection.execute("select study_name from studies").fetchall() == [("one",)]


@pytest.mark.skipif(os.name == "nt", reason="no folder of Windows has a question mark")
def test_studies_in_similar_folders_do_not_mix(finished_study, tmp_path, capsys):
    """Studies in folders whose names differ only after a question mark have their own trials, also in commands."""
    folders = [tmp_path / "which?" / name for name in ("one#1", "other%202")]
    for folder in folders:
        shutil.copytree(finished_study, folder, ignore=shutil.ignore_patterns("study.db", "best.yaml"))
    for folder, trials in zip(folders, (2, 3), strict=True):
        fit(load_study(folder).with_trials(trials))

    for folder, trials in zip(folders, (2, 3), strict=True):
        with pytest.raises(SystemExit) as left:
            main(["status", str(folder)])
        assert left.value.code == 0
        assert f"{2 * trials} of 8 trials" in capsys.readouterr().out
        assert (folder / "study.db").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["which?"]


@pytest.mark.skipif(os.name == "nt", reason="no folder of Windows has a question mark")
class TestEarlierVersion:
    """Trials that an earlier version stored beside the folder, because it did not escape the path in the URL."""

    @pytest.fixture
    def folder(self, finished_study, tmp_path):
        """A study's folder whose trials are at the path that the unescaped URL names."""
        folder = tmp_path / "which?" / "study"
        shutil.copytree(finished_study, folder)
        storage = RDBStorage(f"sqlite:///{(folder / 'study.db').as_posix()}", skip_compatibility_check=True)
        storage.engine.dispose()
        assert (tmp_path / "which").is_file()
        (folder / "study.db").replace(tmp_path / "which")
        return folder

    def test_a_fit_reports_the_earlier_place(self, folder, tmp_path):
        """A fit does not start anew; it reports the path of the earlier trials, and continues with a copy of them."""
        with pytest.raises(StudyError) as caught:
            fit(load_study(folder))

        (line,) = caught.value.problems
        assert line.startswith(
            f"{folder / 'study.db'}: does not exist, but {tmp_path / 'which'} contains trials of this"
        )
        assert f"copy the file to {folder / 'study.db'}" in line
        assert not (folder / "study.db").exists()
        shutil.copy(tmp_path / "which", folder / "study.db")
        assert [len(search.completed) for search in fit(load_study(folder)).searches] == [4, 4]

    def test_fresh_keeps_the_earlier_trials(self, folder, tmp_path):
        """`--fresh` starts anew and leaves the earlier trials unchanged."""
        before = (tmp_path / "which").read_bytes()

        fit(load_study(folder).with_trials(1), fresh=True)

        assert (tmp_path / "which").read_bytes() == before
        assert [search.completed for search in study_status(load_study(folder, with_files=False)).searches] == [1, 1]

    def test_trials_of_another_study_are_ignored(self, folder, tmp_path):
        """Trials of another study, or another file, at the earlier path do not stop a fit."""
        text = (folder / "study.yaml").read_text(encoding="utf-8")
        (folder / "study.yaml").write_text(text.replace("delta", "weights"), encoding="utf-8")

        fit(load_study(folder).with_trials(1))

        (folder / "study.db").unlink()
        (tmp_path / "which").write_text("no database", encoding="utf-8")
        fit(load_study(folder).with_trials(1))
        assert (tmp_path / "which").read_text(encoding="utf-8") == "no database"

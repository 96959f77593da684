"""Where trials are kept: a SQLite file in the study's folder, a journal file, or a PostgreSQL database.

A storage may be away for a while, locked or restarting. What is done with it is tried again, less and less often, for
as long as the caller's patience lasts.
"""

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy import create_engine, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from optimizer.choices import StorageKind
from optimizer.errors import StudyError
from optimizer.extras import missing_extra, require
from optimizer.printable import quoted
from optimizer.search.trials.checked_storage import CheckedStorage
from optimizer.search.trials.database_errors import AWAY, is_away, reason_of, sqlite_code_of
from optimizer.search.trials.sqlite_files import connect_to, finish_writing, holds_tables, is_database
from optimizer.studies import DATABASE

__all__ = [
    "PATIENCE",
    "FileWatch",
    "StorageAddress",
    "StorageLost",
    "addresses_before",
    "is_begun",
    "open_storage",
    "persist",
    "set_aside",
    "storage_address",
    "without_psycopg",
]

# Seconds that a storage may be away before a fit gives up.
PATIENCE = 60.0
# How the lines of a journal begin.
_JOURNAL_BEGINS = b'{"op_code":'
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
# Seconds that SQLite itself waits for another process to finish writing.
_SQLITE_TIMEOUT = 2.0
# Seconds that a journal's lock is waited for at a time: a line is written in far less.
_JOURNAL_TIMEOUT = 10.0
# Parts of an address that are nobody's business.
_SECRETS = frozenset({"password", "sslpassword"})
_FORMS = "sqlite:///FILE, journal:FILE or postgresql://USER@HOST/DATABASE"
_SQLITE_URL = re.compile(r"sqlite(?:\+pysqlite)?:///(?P<file>[^?]*)(?P<options>\?.*)?", re.DOTALL)
# What SQLite keeps beside a file under its name: what was not finished writing, or waits to be taken in.
_COMPANIONS = ("-journal", "-wal", "-shm")
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_POSTGRESQL = {"connect_timeout": 10}
_Given = TypeVar("_Given")
_Said = Callable[[str], None]


class StorageLost(RuntimeError):
    """A storage stayed away for longer than a fit waits for it, or its file is another one now."""


@dataclass(frozen=True)
class StorageAddress:
    """Where trials are kept. `path` is the file of a `sqlite` or `journal` storage, None for `postgresql`.

    `own` is whether it is the file in a study's folder that is called as blockfit calls it.
    """

    kind: StorageKind
    url: str
    path: Path | None
    shown: str
    own: bool = False

    def __str__(self) -> str:
        """For messages: without the password."""
        return self.shown

    @property
    def option(self) -> str:
        """As `storage` takes it and others may read it: without passwords, of an absolute path only the name."""
        if self.path is not None:
            file = self.path.name if self.path.is_absolute() else self.path.as_posix()
            return f"journal:{file}" if self.kind == "journal" else _sqlite_url(file)
        url = make_url(self.url).difference_update_query(_SECRETS)
        # Without the driver, which is ours; a password that is not told is asked for elsewhere.
        return URL.create(
            self.kind, url.username, host=url.host, port=url.port, database=url.database, query=url.query
        ).render_as_string()


def storage_address(given: str | None, folder: Path) -> StorageAddress:
    """Return the storage that `given` names; None is the SQLite file in a study's folder.

    In sqlite:///FILE a `%20` is a space and a `%3F` a question mark, as in all URLs; in journal:FILE the name stands as
    it is. Raises StudyError for what is neither sqlite:///FILE, journal:FILE nor postgresql://USER@HOST/DATABASE, and
    InputError for a PostgreSQL database unless psycopg is installed.
    """
    if given is None:
        return _sqlite(folder / DATABASE, own=True)
    if given.startswith("journal:"):
        name = given.removeprefix("journal:").removeprefix("//")
        if not name:
            raise StudyError(
                f"received {given!r}; a file's name must follow, as in journal:study.journal", field="storage"
            )
        return StorageAddress("journal", given, Path(name), name)
    if (parts := _SQLITE_URL.fullmatch(given)) is not None:
        return _sqlite(_sqlite_file(given, parts["file"], parts["options"]))
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # It may hold a password.
        shown = repr(given) if "@" not in given else f"{given.partition(':')[0]}:..., which is no address"
        raise StudyError(f"received {shown}; must be {_FORMS}", field="storage") from None
    kind = url.get_backend_name()
    hidden = {key: "***" for key in url.query if key in _SECRETS}
    shown = url.update_query_dict(hidden).render_as_string(hide_password=True)
    if kind == "sqlite":
        raise StudyError(f"received {shown!r}; a file's name must follow, as in sqlite:///study.db", field="storage")
    if kind not in ("postgresql", "postgres"):
        raise StudyError(f"received {shown!r}; must be {_FORMS}", field="storage")
    require("postgresql", "a PostgreSQL database", field="storage")
    with_driver = url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    return StorageAddress("postgresql", with_driver, None, shown)


def _sqlite(path: Path, *, own: bool = False) -> StorageAddress:
    return StorageAddress("sqlite", _sqlite_url(path.as_posix()), path, str(path), own)


def _sqlite_file(given: str, file: str, options: str | None) -> Path:
    """Return the file that the URL `given` names. Raises StudyError if it names none, or asks for more than a file."""
    if not file or file == ":memory:":
        raise StudyError(f"received {given!r}; a file's name must follow, as in sqlite:///study.db", field="storage")
    if options is not None:
        raise StudyError(
            f"received {given!r}; a '?' begins options, and there are none; in a file's name it is written "
            f"%3F: {_sqlite_url(unquote(file) + options)}",
            field="storage",
        )
    if "\0" in unquote(file):
        raise StudyError(f"received {given!r}; %00 can be in no file's name", field="storage")
    path = Path(unquote(file))
    if str(path) != str(Path(file)) and Path(file).exists() and not path.exists():
        raise StudyError(
            f"received {given!r}, which names the file {str(path)!r}, and that is not there; {file!r} is, "
            f"and is named by {_sqlite_url(file)}",
            field="storage",
        )
    return path


def _sqlite_url(file: str) -> str:
    """Return the URL of a SQLite file: what means something else in a URL is escaped."""
    return "sqlite:///" + file.replace("%", "%25").replace("?", "%3F")


def addresses_before(address: StorageAddress) -> tuple[StorageAddress, ...]:
    """Return the other SQLite files that an earlier version of blockfit opened at `address`, as far as they are there.

    It wrote a path into a URL as it is, where `?` ends a path and `%20` is a space. Files that SQLite would change on
    being opened, as something waits beside them, are left out.
    """
    if address.kind != "sqlite" or address.path is None:
        return ()
    cut = address.path.as_posix().partition("?")[0]
    paths = [Path(text) for text in dict.fromkeys((unquote(cut), cut)) if "\0" not in text]
    return tuple(
        _sqlite(path)
        for path in paths
        if path != address.path
        and path.is_file()
        and not any(path.with_name(path.name + ending).exists() for ending in _COMPANIONS)
    )


def set_aside(address: StorageAddress) -> Path | None:
    """Rename the file of a storage to NAME.old.SUFFIX, or NAME.old-2.SUFFIX and so on, whichever is not there yet.

    Returns its new path, None if there was no file. Raises StudyError if it cannot be renamed, if it is no storage of
    trials and not called `study.db` in a study's folder, or if the storage is a database that others may be using.
    """
    if address.path is None:
        raise StudyError(
            f"{address} is a database that others may be using; give the study another `name` in its YAML file",
            field="fresh",
        )
    if not address.path.exists():
        return None
    try:
        problem = _unlike_trials(address)
    except OSError as error:
        raise StudyError(f"{address}: cannot be read: {error.strerror}", field="fresh") from error
    if problem is not None:
        raise StudyError(f"{address}: {problem}, and stays what it is; name another file", field="fresh")
    if address.kind == "sqlite":
        finish_writing(address.path, timeout=_SQLITE_TIMEOUT)
    aside = next(path for path in _names_aside(address.path) if not _is_taken(path))
    try:
        # What is left of them goes first: beside a new file of this name they would spoil it.
        for ending in _COMPANIONS if address.kind == "sqlite" else ():
            companion = address.path.with_name(address.path.name + ending)
            if companion.exists():
                companion.replace(aside.with_name(aside.name + ending))
        address.path.replace(aside)
    except OSError as error:
        raise StudyError(f"{address}: cannot be renamed to {aside.name}: {error.strerror}") from error
    return aside


def _unlike_trials(address: StorageAddress) -> str | None:
    """Return why the file at an address is none that trials were kept in, so that it must not be renamed.

    None if it may be one, broken or not; what has the name that blockfit gives its own is taken for one.
    """
    assert address.path is not None
    if not address.path.is_file():
        return "is no file"
    if address.own:
        return None
    if address.kind == "journal":
        return None if _is_journal(address.path) else "is no journal of trials"
    return None if is_database(address.path) else "is no database of trials"


def _names_aside(path: Path) -> Iterator[Path]:
    yield path.with_name(f"{path.stem}.old{path.suffix}")
    for number in count(2):
        yield path.with_name(f"{path.stem}.old-{number}{path.suffix}")


def _is_taken(path: Path) -> bool:
    return any(os.path.lexists(path.with_name(path.name + ending)) for ending in ("", *_COMPANIONS))


def is_begun(address: StorageAddress) -> bool:
    """Return whether there is a storage at an address that may hold trials; False before a first fit has made it.

    Raises StudyError for a SQLite file that is no database of trials, or a database that cannot be reached.
    """
    try:
        if address.path is None:
            engine = create_engine(address.url, connect_args=_POSTGRESQL)
            try:
                return inspect(engine).has_table("trials")
            finally:
                engine.dispose()
        if address.kind == "sqlite" and address.path.exists():
            return holds_tables(address.path, timeout=_SQLITE_TIMEOUT)
        return address.path.exists()
    except StudyError:
        raise
    except ImportError as error:
        raise without_psycopg() from error
    except Exception as error:
        if sqlite_code_of(error) in _LOCKED:
            return True  # what opens it waits for that
        raise _unopened(address, error) from error


def without_psycopg() -> StudyError:
    """Return the error for a PostgreSQL database where psycopg lacks the library that it is built upon."""
    return StudyError(missing_extra("postgresql", "a PostgreSQL database"), field="storage")


@contextmanager
def open_storage(
    address: StorageAddress,
    *,
    patience: float = 0.0,
    said: _Said = lambda text: None,
    read_only: bool = False,
) -> Iterator[CheckedStorage]:
    """Give the storage at an address, created if there is none; several processes must not do this at once.

    `said` is told of what was repaired, and of a file that another program has locked, which is waited for `patience`
    seconds. With `read_only` it must be there, see `is_begun`, and refuses every change.

    Raises StudyError, in one line, for what is no storage of trials, cannot be reached, stays locked, or was written by
    an Optuna that this one does not go with.
    """
    storage = _opened(address, patience, said, read_only)
    try:
        yield CheckedStorage(storage, address.shown, fresh=address.path is not None, read_only=read_only)
    finally:
        # Windows cannot replace or delete a file that is open.
        with suppress(*AWAY):
            storage.remove_session()
        engine = getattr(getattr(storage, "_backend", storage), "engine", None)
        if engine is not None:
            engine.dispose()


def _opened(address: StorageAddress, patience: float, said: _Said, read_only: bool) -> BaseStorage:
    gives_up: float | None = None
    while True:
        try:
            return _created(address, said, read_only)
        except StudyError as error:
            if sqlite_code_of(error.__cause__) not in _LOCKED:
                raise
            if gives_up is None:
                gives_up = time.monotonic() + patience
                if patience > 0:
                    said(f"{address}: locked by another program; trying again for {patience:g} s")
            if time.monotonic() >= gives_up:
                raise StudyError(f"{address}: another program has locked it; close that program") from error
            time.sleep(_FIRST_DELAY)


def _created(address: StorageAddress, said: _Said, read_only: bool) -> BaseStorage:
    try:
        if address.kind == "journal":
            # Before its lock is made: that and what is done under it are changes.
            if Path(address.shown).exists() and (problem := _unlike_trials(address)) is not None:
                raise StudyError(f"{address}: {problem}; name another file")
            lock = _JournalLock(Path(address.shown), said)
            # Who only reads passes over a last line that is not finished.
            with nullcontext() if read_only else lock.held():
                backend = JournalFileBackend(address.shown, lock_obj=lock)
            return JournalStorage(backend)
        if address.path is not None:
            if address.path.exists():
                holds_tables(address.path, timeout=_SQLITE_TIMEOUT)
            # The URL names the kind of database alone: it could not hold every path.
            url = "sqlite:///study.db"
            options: dict[str, object] = {
                "creator": partial(connect_to, address.path, timeout=_SQLITE_TIMEOUT, read_only=read_only)
            }
        else:
            # Optuna fills in what stands in braces.
            url = address.url.replace("{", "{{").replace("}", "}}")
            options = {"pool_pre_ping": True, "connect_args": _POSTGRESQL}
        return optuna.storages.get_storage(RDBStorage(url, engine_kwargs=options, skip_table_creation=read_only))
    except StudyError:
        raise
    except RuntimeError as error:
        # Optuna tells by words alone which way round the versions differ.
        if "storage upgrade" in str(error):
            url = (
                address.url if address.path is not None else make_url(address.url).render_as_string(hide_password=True)
            )
            raise StudyError(
                f"{address}: written by an older Optuna than {optuna.__version__}; make a copy, then upgrade it: "
                f"optuna storage upgrade --storage {quoted(url)}"
            ) from error
        if "no longer compatible" in str(error):
            raise StudyError(
                f"{address}: written by a newer Optuna than {optuna.__version__}; upgrade that: pip install -U optuna"
            ) from error
        raise _unopened(address, error) from error
    except Exception as error:
        raise _unopened(address, error) from error


def _unopened(address: StorageAddress, error: Exception) -> StudyError:
    # What cannot be read for now may be a good storage.
    again = "" if address.path is None or is_away(error) else "; `fresh=True` starts anew"
    if again and address.path is not None and address.path.exists() and _unlike_trials(address) is not None:
        again = "; name another file"
    return StudyError(f"{address}: cannot be opened as a database of trials: {reason_of(error)}{again}")


def persist(
    action: Callable[[], _Given],
    address: StorageAddress,
    *,
    patience: float = PATIENCE,
    said: _Said = lambda text: None,
) -> _Given:
    """What `action` gives, which is tried again for `patience` seconds while the storage is away.

    It must be such that doing it twice is doing it once. `said` is told once that the storage is away. Raises
    StorageLost in the end.
    """
    begun, delay, gives_up = time.monotonic(), _FIRST_DELAY, None
    while True:
        try:
            return action()
        except AWAY as error:
            if not is_away(error):
                raise
            now = time.monotonic()
            if gives_up is None:
                gives_up = now + patience
                if patience > 0:
                    said(f"{address}: {reason_of(error)}; trying again for {patience:g} s")
            if now >= gives_up:
                raise StorageLost(
                    f"{address}: not to be used for {now - begun:.0f} s: {reason_of(error)}; "
                    "what was stored is safe, and the same command continues"
                ) from error
            time.sleep(min(delay, max(gives_up - now, 0.0)))
            delay = min(2 * delay, _LONGEST_DELAY)


class FileWatch:
    """Notices that the file of a storage is not the one any more that was opened: what is written there is lost."""

    def __init__(self, address: StorageAddress) -> None:
        self._address = address
        self._opened = self._now()

    def check(self) -> None:
        """Raise StorageLost if the file was deleted or replaced."""
        try:
            same = self._now() == self._opened
        except OSError:
            return  # a folder elsewhere may be away for a while, too
        if same:
            return
        raise StorageLost(
            f"{self._address}: was deleted or replaced while trials were being stored in it; put it back, and the "
            "same command continues from what it holds"
        )

    def _now(self) -> tuple[int, int] | None:
        if self._address.path is None:
            return None
        try:
            status = os.stat(self._address.path)  # noqa: PTH116  the inode as well
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino


def _is_journal(path: Path) -> bool:
    """Return whether the file at `path` is empty or begins as the journals do that Optuna writes, broken off or not.

    Raises OSError if it cannot be read.
    """
    with path.open("rb") as file:
        begins = file.read(len(_JOURNAL_BEGINS))
    return _JOURNAL_BEGINS.startswith(begins)


class _JournalLock(JournalFileOpenLock):
    """A journal's lock that ends with its process, and cuts off what a writer that died has left unfinished."""

    def __init__(self, path: Path, said: _Said) -> None:
        super().__init__(str(path))
        self._path = path
        self._said = said
        self._lock = FileLock(f"{path}.lock", timeout=_JOURNAL_TIMEOUT, poll_interval=0.002)

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            self._cut_back()
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()

    @contextmanager
    def held(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def _cut_back(self) -> None:
        """Every line ends with a line feed; what follows the last one would spoil the line that is written next."""
        if not self._path.exists():
            return
        with self._path.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return
            file.seek(size - 1)
            if file.read(1) == b"\n":
                return
            end = size
            while end > 0:
                start = max(end - 65536, 0)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            file.truncate(end)
        self._said(
            f"{self._path}: its last line was not finished, as after a crash or on a full disk; {size - end} bytes cut"
        )

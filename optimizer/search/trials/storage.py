"""The storage of trials: a SQLite file in the study's folder, a journal file, or a PostgreSQL database.

A storage may be unavailable for a while, locked or restarting. Actions on it are then retried at growing intervals, for
as many seconds as the caller's patience.
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
from optimizer.events import LOGGED
from optimizer.extras import missing_extra, require
from optimizer.printable import quoted
from optimizer.search.trials.checked_storage import CheckedStorage
from optimizer.search.trials.database_errors import is_unavailable, reason_of, sqlite_code_of, storage_errors
from optimizer.search.trials.optuna_privates import engine_of
from optimizer.search.trials.sqlite_files import connect_to, finish_writing, holds_tables, is_database
from optimizer.studies import DATABASE

__all__ = [
    "PATIENCE",
    "FileWatch",
    "StorageAddress",
    "StorageLost",
    "earlier_addresses",
    "may_hold_trials",
    "open_storage",
    "persist",
    "psycopg_missing",
    "set_aside",
    "storage_address",
]

PATIENCE = 60.0
"""Seconds that a fit waits for an unavailable storage."""

# The first bytes of a journal's lines.
_JOURNAL_BEGINS = b'{"op_code":'
# Seconds between retries.
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
# Seconds that SQLite itself waits while another process writes.
_SQLITE_TIMEOUT = 2.0
# Seconds to wait for a journal's lock in one attempt; writing a line takes far less.
_JOURNAL_TIMEOUT = 10.0
# Parts of an address that must stay hidden.
_SECRETS = frozenset({"password", "sslpassword"})
_FORMS = "sqlite:///FILE, journal:FILE or postgresql://USER@HOST/DATABASE"
_SQLITE_URL = re.compile(r"sqlite(?:\+pysqlite)?:///(?P<file>[^?]*)(?P<options>\?.*)?", re.DOTALL)
# Suffixes of SQLite's companion files, with unfinished or waiting writes.
_COMPANIONS = ("-journal", "-wal", "-shm")
_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
# The newest version of tables, by version of Optuna: it takes longer to find than to open a storage.
_NEWEST: dict[str, str] = {}
_POSTGRESQL = {"connect_timeout": 10}
_Given = TypeVar("_Given")
_Warn = Callable[[str], None]


class StorageLost(RuntimeError):
    """A storage stayed unavailable for longer than the patience of a fit, or its file was replaced."""


@dataclass(frozen=True)
class StorageAddress:
    """The address of a storage of trials.

    Attributes:
        kind: The kind of storage.
        url: The address as its library takes it, with the password.
        path: The file of a `sqlite` or `journal` storage; None for `postgresql`.
        shown: The address in messages, without the password.
        is_default: Whether it is the default file in a study's folder.

    """

    kind: StorageKind
    url: str
    path: Path | None
    shown: str
    is_default: bool = False

    def __str__(self) -> str:
        """Return the address for messages, without the password."""
        return self.shown

    @property
    def option(self) -> str:
        """Value for `storage` that others may read: without passwords; only the file name of an absolute path."""
        if self.path is not None:
            file = self.path.name if self.path.is_absolute() else self.path.as_posix()
            return f"journal:{file}" if self.kind == "journal" else _sqlite_url(file)
        url = make_url(self.url).difference_update_query(_SECRETS)
        # The driver is an internal choice; a missing password comes from the user's own configuration.
        return URL.create(
            self.kind, url.username, host=url.host, port=url.port, database=url.database, query=url.query
        ).render_as_string()


def storage_address(given: str | None, folder: Path) -> StorageAddress:
    """Return the address of a storage.

    InputError passes through for a PostgreSQL database unless psycopg is installed.

    Args:
        given: sqlite:///FILE, journal:FILE or postgresql://USER@HOST/DATABASE; None for the SQLite file in the study's
            folder. In sqlite:///FILE a `%20` is a space and a `%3F` a question mark, as in all URLs; in journal:FILE
            the name is taken literally.
        folder: The study's folder.

    Returns:
        The address.

    Raises:
        StudyError: `given` has none of these forms.

    """
    if given is None:
        return _sqlite(folder / DATABASE, is_default=True)
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
        # The text may contain a password.
        shown = repr(given) if "@" not in given else f"{given.partition(':')[0]}:..., which is not an address"
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


def _sqlite(path: Path, *, is_default: bool = False) -> StorageAddress:
    return StorageAddress("sqlite", _sqlite_url(path.as_posix()), path, str(path), is_default)


def _sqlite_file(given: str, file: str, options: str | None) -> Path:
    """Return the file of the URL `given`; raise StudyError if the URL names no file, or has options."""
    if not file or file == ":memory:":
        raise StudyError(f"received {given!r}; a file's name must follow, as in sqlite:///study.db", field="storage")
    if options is not None:
        raise StudyError(
            f"received {given!r}; a '?' starts options, and none are supported; in a file's name it is written "
            f"%3F: {_sqlite_url(unquote(file) + options)}",
            field="storage",
        )
    if "\0" in unquote(file):
        raise StudyError(f"received {given!r}; a file's name must not contain %00", field="storage")
    path = Path(unquote(file))
    if str(path) != str(Path(file)) and Path(file).exists() and not path.exists():
        raise StudyError(
            f"received {given!r}, which names the file {str(path)!r}; that file does not exist, but {file!r} does; "
            f"must be {_sqlite_url(file)}",
            field="storage",
        )
    return path


def _sqlite_url(file: str) -> str:
    """Return the URL of a SQLite file, with special characters escaped."""
    return "sqlite:///" + file.replace("%", "%25").replace("?", "%3F")


def earlier_addresses(address: StorageAddress) -> tuple[StorageAddress, ...]:
    """Return the other SQLite files that an earlier version of blockfit may have opened for an address.

    That version did not escape the path in the URL, in which `?` ends the path and `%20` is a space.

    Args:
        address: The address.

    Returns:
        The addresses of existing files, without files that SQLite would change on opening because companion files
        wait beside them.

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
    """Rename the file of a storage to the first free name of NAME.old.SUFFIX, NAME.old-2.SUFFIX and so on.

    Args:
        address: The address of the storage.

    Returns:
        The new path; None if the file did not exist.

    Raises:
        StudyError: The file cannot be renamed; the file is not a storage of trials, nor `study.db` in a study's folder;
            or the storage is a PostgreSQL database, which others may be using.

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
        raise StudyError(f"{address}: {problem}, and is left unchanged; name another file", field="fresh")
    if address.kind == "sqlite":
        finish_writing(address.path, timeout=_SQLITE_TIMEOUT)
    aside = next(path for path in _names_aside(address.path) if not _is_taken(path))
    try:
        # The companions move first: they would corrupt a new file of this name.
        for ending in _COMPANIONS if address.kind == "sqlite" else ():
            companion = address.path.with_name(address.path.name + ending)
            if companion.exists():
                companion.replace(aside.with_name(aside.name + ending))
        address.path.replace(aside)
    except OSError as error:
        raise StudyError(f"{address}: cannot be renamed to {aside.name}: {error.strerror}") from error
    return aside


def _unlike_trials(address: StorageAddress) -> str | None:
    """Return the reason why the file at an address is not a storage of trials and must not be renamed.

    Args:
        address: The address of an existing file.

    Returns:
        The reason; None if the file may be a storage, broken or not. The default file in a study's folder always may.

    """
    assert address.path is not None
    if not address.path.is_file():
        return "is not a file"
    if address.is_default:
        return None
    if address.kind == "journal":
        return None if _is_journal(address.path) else "is not a journal of trials"
    return None if is_database(address.path) else "is not a database of trials"


def _names_aside(path: Path) -> Iterator[Path]:
    yield path.with_name(f"{path.stem}.old{path.suffix}")
    for number in count(2):
        yield path.with_name(f"{path.stem}.old-{number}{path.suffix}")


def _is_taken(path: Path) -> bool:
    return any(os.path.lexists(path.with_name(path.name + ending)) for ending in ("", *_COMPANIONS))


def may_hold_trials(address: StorageAddress) -> bool:
    """Return whether a storage at an address may hold trials.

    Args:
        address: The address.

    Returns:
        False before the first fit has created the storage.

    Raises:
        StudyError: The SQLite file is not a database of trials, or the database cannot be reached.

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
        problem = psycopg_missing()
        raise problem from error
    except Exception as error:
        if sqlite_code_of(error) in _LOCKED:
            return True  # `open_storage` waits for the lock
        problem = _unopened(address, error)
        raise problem from error


def psycopg_missing() -> StudyError:
    """Return the error for a PostgreSQL database if psycopg, or the library below it, is missing."""
    return StudyError(missing_extra("postgresql", "a PostgreSQL database"), field="storage")


@contextmanager
def open_storage(
    address: StorageAddress,
    *,
    patience: float = 0.0,
    warn: _Warn = LOGGED.warn,
    read_only: bool = False,
) -> Iterator[CheckedStorage]:
    """Open the storage at an address, created if it is missing; close it on exit.

    Only one process at a time may enter this context. StudyError passes through, with one line, if the file is not a
    storage of trials, cannot be reached, stays locked, or was written by an incompatible version of Optuna.

    Args:
        address: The address.
        patience: Seconds to wait for a file that another program has locked.
        warn: Called with one line for a repair and for a locked file.
        read_only: Whether to refuse changes; the storage must then exist, see `may_hold_trials`.

    Yields:
        The storage.

    """
    storage = _opened(address, patience, warn, read_only)
    try:
        yield CheckedStorage(storage, address.shown, fresh=address.path is not None, read_only=read_only)
    finally:
        # Windows cannot replace or delete a file that is open.
        with suppress(*storage_errors()):
            storage.remove_session()
        if (engine := engine_of(storage)) is not None:
            engine.dispose()


def _opened(address: StorageAddress, patience: float, warn: _Warn, read_only: bool) -> BaseStorage:
    deadline: float | None = None
    while True:
        try:
            return _created(address, warn, read_only)
        except StudyError as error:
            if sqlite_code_of(error.__cause__) not in _LOCKED:
                raise
            if deadline is None:
                deadline = time.monotonic() + patience
                if patience > 0:
                    warn(f"{address}: locked by another program; trying again for {patience:g} s")
            if time.monotonic() >= deadline:
                raise StudyError(f"{address}: another program has locked it; close that program") from error
            time.sleep(_FIRST_DELAY)


def _created(address: StorageAddress, warn: _Warn, read_only: bool) -> BaseStorage:
    try:
        if address.kind == "journal":
            # This check precedes the lock, since the lock and the repair under it change files.
            if Path(address.shown).exists() and (problem := _unlike_trials(address)) is not None:
                raise StudyError(f"{address}: {problem}; name another file")
            lock = _JournalLock(Path(address.shown), warn)
            # A reader ignores an unfinished last line; only a writer repairs it.
            with nullcontext() if read_only else lock.held():
                backend = JournalFileBackend(address.shown, lock_obj=lock)
            return JournalStorage(backend)
        if address.path is not None:
            if address.path.exists():
                holds_tables(address.path, timeout=_SQLITE_TIMEOUT)
            # This URL selects only the kind of database, because a URL cannot express every path.
            url = "sqlite:///study.db"
            options: dict[str, object] = {
                "creator": partial(connect_to, address.path, timeout=_SQLITE_TIMEOUT, read_only=read_only)
            }
        else:
            # Optuna treats the URL as a template with braces.
            url = address.url.replace("{", "{{").replace("}", "}}")
            options = {"pool_pre_ping": True, "connect_args": _POSTGRESQL}
        opened = partial(RDBStorage, url, engine_kwargs=options, skip_table_creation=read_only)
        # Optuna's own check loads all its migrations, a third of the time that opening takes.
        storage = opened(skip_compatibility_check=True)
        if storage.get_current_version() != _newest_version(storage):
            storage = opened()
        return optuna.storages.get_storage(storage)
    except StudyError:
        raise
    except RuntimeError as error:
        # Only the text of Optuna's error shows which version is older.
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


def _newest_version(storage: RDBStorage) -> str:
    """Return the newest version of tables that this Optuna knows, which is the same for all storages."""
    if optuna.__version__ not in _NEWEST:
        _NEWEST[optuna.__version__] = storage.get_head_version()
    return _NEWEST[optuna.__version__]


def _unopened(address: StorageAddress, error: Exception) -> StudyError:
    # A storage that is unavailable for now may be sound.
    again = "" if address.path is None or is_unavailable(error) else "; `fresh=True` starts anew"
    if again and address.path is not None and address.path.exists() and _unlike_trials(address) is not None:
        again = "; name another file"
    return StudyError(f"{address}: cannot be opened as a database of trials: {reason_of(error)}{again}")


def persist(
    action: Callable[[], _Given],
    address: StorageAddress,
    *,
    patience: float = PATIENCE,
    warn: _Warn = LOGGED.warn,
) -> _Given:
    """Run an action, again at growing intervals while the storage is unavailable.

    Other errors of the storage, which a retry would not mend, pass through.

    Args:
        action: The action; it must be idempotent.
        address: The address of the storage, for messages.
        patience: Seconds to retry.
        warn: Called once, with one line, if the storage is unavailable.

    Returns:
        The result of the action.

    Raises:
        StorageLost: The storage stays unavailable.

    """
    start, delay, deadline = time.monotonic(), _FIRST_DELAY, None
    while True:
        try:
            return action()
        except storage_errors() as error:
            if not is_unavailable(error):
                raise
            now = time.monotonic()
            if deadline is None:
                deadline = now + patience
                if patience > 0:
                    warn(f"{address}: {reason_of(error)}; trying again for {patience:g} s")
            if now >= deadline:
                raise StorageLost(
                    f"{address}: unavailable for {now - start:.0f} s: {reason_of(error)}; "
                    "stored trials are safe, and the same command continues"
                ) from error
            time.sleep(min(delay, max(deadline - now, 0.0)))
            delay = min(2 * delay, _LONGEST_DELAY)


class FileWatch:
    """Watch on the file of a storage: trials written into a deleted or replaced file would be lost."""

    def __init__(self, address: StorageAddress) -> None:
        self._address = address
        self._opened = self._now()

    def check(self) -> None:
        """Raise StorageLost if the file was deleted or replaced."""
        try:
            same = self._now() == self._opened
        except OSError:
            return  # a folder on another machine may be unavailable for a while
        if same:
            return
        raise StorageLost(
            f"{self._address}: was deleted or replaced while trials were being stored in it; restore it, and the "
            "same command continues from its trials"
        )

    def _now(self) -> tuple[int, int] | None:
        if self._address.path is None:
            return None
        try:
            status = os.stat(self._address.path)  # noqa: PTH116  the inode is needed
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino


def _is_journal(path: Path) -> bool:
    """Return whether a file may be a journal of Optuna: it is empty, or begins like one, even if cut off.

    OSError passes through if the file cannot be read.

    Args:
        path: The file.

    Returns:
        Whether the file may be a journal.

    """
    with path.open("rb") as file:
        begins = file.read(len(_JOURNAL_BEGINS))
    return _JOURNAL_BEGINS.startswith(begins)


class _JournalLock(JournalFileOpenLock):
    """Lock of a journal that ends with its process and removes the unfinished line of a dead writer."""

    def __init__(self, path: Path, warn: _Warn) -> None:
        super().__init__(str(path))
        self._path = path
        self._warn = warn
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
        """Remove an unfinished last line, one without a line feed, which would corrupt the next line."""
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
        self._warn(
            f"{self._path}: its last line was unfinished, after a crash or on a full disk; {size - end} bytes removed"
        )

"""Where trials are kept: a SQLite file in the study's folder, a journal file, or a PostgreSQL database.

A storage may be away for a while, locked or restarting. What is done with it is tried again, less and less often, for
as long as the caller's patience lasts.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from optimizer.errors import StudyError

__all__ = [
    "DATABASE",
    "PATIENCE",
    "FileWatch",
    "StorageAddress",
    "StorageLost",
    "open_storage",
    "persist",
    "set_aside",
    "storage_address",
]

DATABASE = "study.db"
# Seconds that a storage may be away before a fit gives up.
PATIENCE = 60.0
_FIRST_DELAY = 0.1
_LONGEST_DELAY = 5.0
# Seconds that SQLite itself waits for another process to finish writing.
_SQLITE_TIMEOUT = 2.0
# Seconds that a journal's lock is waited for at a time: a line is written in far less.
_JOURNAL_TIMEOUT = 10.0
# What SQLite calls a file that it can read but that is no storage of trials.
_NO_STORAGE = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# Parts of an address that are nobody's business.
_SECRETS = frozenset({"password", "sslpassword"})
_FORMS = "sqlite:///FILE, journal:FILE, postgresql://USER@HOST/DATABASE"
_Given = TypeVar("_Given")
_Said = Callable[[str], None]


class StorageLost(RuntimeError):
    """A storage stayed away for longer than a fit waits for it, or its file is another one now."""


@dataclass(frozen=True)
class StorageAddress:
    """Where trials are kept. `path` is the file of a `sqlite` or `journal` storage, None for `postgresql`."""

    kind: str
    url: str
    path: Path | None
    shown: str

    def __str__(self) -> str:
        """For messages: without the password."""
        return self.shown

    @property
    def option(self) -> str:
        """As `--storage` takes it and others may read it: without passwords, of an absolute path only the name."""
        if self.path is not None:
            file = self.path.name if self.path.is_absolute() else self.path.as_posix()
            return f"{'journal:' if self.kind == 'journal' else 'sqlite:///'}{file}"
        url = make_url(self.url).difference_update_query(_SECRETS)
        # Without the driver, which is ours; a password that is not told is asked for elsewhere.
        return URL.create(
            self.kind, url.username, host=url.host, port=url.port, database=url.database, query=url.query
        ).render_as_string()


def storage_address(given: str | None, folder: Path) -> StorageAddress:
    """What `--storage` names; None is the SQLite file in a study's folder.

    Raises StudyError for what is neither sqlite:///FILE, journal:FILE nor postgresql://USER@HOST/DATABASE.
    """
    if given is None:
        return _sqlite(folder / DATABASE)
    if given.startswith("journal:"):
        name = given.removeprefix("journal:").removeprefix("//")
        if not name:
            raise StudyError(f"--storage: received {given!r}; a file's name must follow, as in journal:study.journal")
        return StorageAddress("journal", given, Path(name), name)
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # It may hold a password.
        shown = repr(given) if "@" not in given else f"{given.partition(':')[0]}:..., which is no address"
        raise StudyError(f"--storage: received {shown}; there are {_FORMS}") from None
    kind = url.get_backend_name()
    hidden = {key: "***" for key in url.query if key in _SECRETS}
    shown = url.update_query_dict(hidden).render_as_string(hide_password=True)
    if kind == "sqlite":
        if not url.database or url.database == ":memory:":
            raise StudyError(f"--storage: received {shown!r}; a file's name must follow, as in sqlite:///study.db")
        return _sqlite(Path(url.database))
    if kind not in ("postgresql", "postgres"):
        raise StudyError(f"--storage: received {shown!r}; there are {_FORMS}")
    with_driver = url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    return StorageAddress("postgresql", with_driver, None, shown)


def _sqlite(path: Path) -> StorageAddress:
    return StorageAddress("sqlite", f"sqlite:///{path.as_posix()}", path, str(path))


def set_aside(address: StorageAddress) -> None:
    """Rename the file of a storage, if there is one, to NAME.old.SUFFIX, in place of an earlier one.

    Raises StudyError if it cannot be, or if the storage is a database that others may be using.
    """
    if address.path is None:
        raise StudyError(
            f"--fresh: {address} is a database that others may be using; give the study another `name` in its YAML file"
        )
    if address.path.exists():
        aside = address.path.with_name(f"{address.path.stem}.old{address.path.suffix}")
        # What a process that was killed had not yet written, SQLite keeps beside the file and under its name.
        journal, journal_aside = (path.with_name(f"{path.name}-journal") for path in (address.path, aside))
        try:
            journal_aside.unlink(missing_ok=True)
            address.path.replace(aside)
            if journal.exists():
                journal.replace(journal_aside)
        except OSError as error:
            raise StudyError(f"{address}: cannot be renamed to {aside.name}: {error.strerror}") from error


@contextmanager
def open_storage(
    address: StorageAddress, *, patience: float = 0.0, said: _Said = lambda text: None
) -> Iterator[BaseStorage]:
    """Give the storage at an address, created if there is none; several processes must not do this at once.

    `said` is told of what was repaired, and of a file that another program has locked, which is waited for `patience`
    seconds. Raises StudyError, in one line, for what is no storage of trials, cannot be reached, stays locked, or was
    written by an Optuna that this one does not go with.
    """
    storage = _opened(address, patience, said)
    try:
        yield storage
    finally:
        # Windows cannot replace or delete a file that is open.
        with suppress(*_AWAY):
            storage.remove_session()
        engine = getattr(getattr(storage, "_backend", storage), "engine", None)
        if engine is not None:
            engine.dispose()


def _opened(address: StorageAddress, patience: float, said: _Said) -> BaseStorage:
    gives_up: float | None = None
    while True:
        try:
            return _created(address, said)
        except StudyError as error:
            if _sqlite_code(error.__cause__) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise
            if gives_up is None:
                gives_up = time.monotonic() + patience
                if patience > 0:
                    said(f"{address}: locked by another program; trying again for {patience:g} s")
            if time.monotonic() >= gives_up:
                raise StudyError(f"{address}: another program has locked it; close that program") from error
            time.sleep(_FIRST_DELAY)


def _created(address: StorageAddress, said: _Said) -> BaseStorage:
    try:
        if address.kind == "journal":
            lock = _JournalLock(Path(address.shown), said)
            with lock.held():
                backend = JournalFileBackend(address.shown, lock_obj=lock)
            return JournalStorage(backend)
        options: dict[str, object] = (
            {"connect_args": {"timeout": _SQLITE_TIMEOUT}}
            if address.kind == "sqlite"
            else {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}}
        )
        return optuna.storages.get_storage(RDBStorage(address.url, engine_kwargs=options))
    except RuntimeError as error:
        # Optuna tells by words alone which way round the versions differ.
        if "storage upgrade" in str(error):
            raise StudyError(
                f"{address}: written by an older Optuna than {optuna.__version__}; make a copy, then upgrade it: "
                f"optuna storage upgrade --storage {make_url(address.url).render_as_string(hide_password=True)}"
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
    code = _sqlite_code(error)
    for_now = isinstance(error, OSError | Timeout) or (code is not None and code not in _NO_STORAGE)
    again = "" if address.path is None or for_now else "; `--fresh` starts anew"
    return StudyError(f"{address}: cannot be opened as a database of trials: {_reason(error)}{again}")


def _sqlite_code(error: BaseException | None) -> int | None:
    """The kind of an error that SQLite raised, one of its primary result codes; None for any other error."""
    found = None if error is None else _origin(error)
    code = found.sqlite_errorcode if isinstance(found, sqlite3.Error) and hasattr(found, "sqlite_errorcode") else None
    return None if code is None else code & 0xFF


def _away() -> tuple[type[Exception], ...]:
    """What is raised where a storage does not answer for now."""
    try:
        import psycopg  # noqa: PLC0415  only where PostgreSQL is used
    except ImportError:
        return (DBAPIError, StorageInternalError, OSError, Timeout)
    return (DBAPIError, StorageInternalError, OSError, Timeout, psycopg.OperationalError)


_AWAY = _away()


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
        except _AWAY as error:
            now = time.monotonic()
            if gives_up is None:
                gives_up = now + patience
                if patience > 0:
                    said(f"{address}: {_reason(error)}; trying again for {patience:g} s")
            if now >= gives_up:
                raise StorageLost(
                    f"{address}: not to be used for {now - begun:.0f} s: {_reason(error)}; "
                    "what was stored is safe, and the same command continues"
                ) from error
            time.sleep(min(delay, max(gives_up - now, 0.0)))
            delay = min(2 * delay, _LONGEST_DELAY)


def _reason(error: BaseException) -> str:
    """The first line of what went wrong, as the database itself says it."""
    origin = _origin(error)
    lines = str(origin).strip().splitlines()
    return lines[0] if lines else type(origin).__name__


def _origin(error: BaseException) -> BaseException:
    """The database's own error in what SQLAlchemy and Optuna make of it."""
    while isinstance(error, DBAPIError | StorageInternalError):
        inner = error.orig if isinstance(error, DBAPIError) else error.__cause__
        if inner is None:
            break
        error = inner
    return error


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

"""The workers of a study: processes on one or more machines that take turns at proposing trials.

A worker holds a lock while it is alive: a file lock beside a file of trials, an advisory lock in a PostgreSQL database.
To test whether a worker is alive, try to take its lock. This needs no synchronised clocks, and the
lock is released however the process ends.
"""

import os
import re
import secrets
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout
from sqlalchemy.engine import make_url

from optimizer.errors import StudyError
from optimizer.files import host_name
from optimizer.search.trials.database_errors import storage_errors
from optimizer.search.trials.storage import StorageAddress, psycopg_missing

if TYPE_CHECKING:
    import psycopg

__all__ = ["Worker", "Workers", "workers_at"]

# Seconds to wait for a turn; a proposal takes less than 1 s.
_TURN = 60.0
_FILE = re.compile(r"(worker|alone)\.([A-Za-z0-9_-]+)\.(\d+)\.([0-9a-f]{8})\.lock")
# The server notices a vanished machine after 20 + 3 x 5 s; by default it would take two hours.
_KEEPALIVE = "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"


@dataclass(frozen=True)
class Worker:
    """A process that searches.

    Attributes:
        name: The name that its trials record.
        host: The name of its machine.
        process: Its process id.
        alone: Whether it shares the search with no other worker.

    """

    name: str
    host: str
    process: int
    alone: bool

    def __str__(self) -> str:
        """Return the text for messages."""
        return f"process {self.process} on {self.host}"


class Workers(ABC):
    """Workers of a storage of trials; this process, `mine`, is one of them between `join` and `close`."""

    mine: Worker | None = None

    @abstractmethod
    def turn(self) -> AbstractContextManager[None]:
        """Return a reentrant context in which no other worker has its turn."""

    @abstractmethod
    def living(self) -> tuple[Worker, ...]:
        """Return all workers that are alive, this process included if it has joined."""

    @abstractmethod
    def _hold(self, worker: Worker) -> None:
        """Take the lock that shows that this worker is alive."""

    def join(self, *, alone: bool) -> None:
        """Become a worker.

        Args:
            alone: Whether to share the search with no other worker.

        Raises:
            StudyError: Another worker works alone, or any worker is alive and `alone` is asked for.

        """
        with self.turn():
            others = self.living()
            if busy := [worker for worker in others if alone or worker.alone]:
                listed = ", ".join(map(str, busy))
                way = (
                    "wait for it, or stop it"
                    if any(worker.alone for worker in busy)
                    else "`workers=1` joins in, or wait until it has finished"
                )
                raise StudyError(f"{self.where}: another fit is running ({listed}); {way}")
            self.mine = Worker(f"{1 + secrets.randbelow(0xFFFFFFFF):08x}", host_name(), os.getpid(), alone)
            self._hold(self.mine)

    @property
    @abstractmethod
    def where(self) -> str:
        """Name of the storage in messages."""

    @abstractmethod
    def close(self) -> None:
        """Leave the workers and release all locks."""


def workers_at(address: StorageAddress, scope: str) -> Workers:
    """Return the workers registered at this address; in a shared database, only those of the study `scope`."""
    return _PostgresWorkers(address, scope) if address.path is None else _FileWorkers(address.path)


class _FileWorkers(Workers):
    """Workers that share a file of trials; their lock files are in the folder NAME.workers beside it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._folder = path.with_name(f"{path.name}.workers")
        self._turn = FileLock(self._folder / "turn.lock", timeout=_TURN, poll_interval=0.002)
        self._held: FileLock | None = None

    @property
    def where(self) -> str:
        return str(self._path)

    @contextmanager
    def turn(self) -> Iterator[None]:
        if not self._path.parent.is_dir():
            raise StudyError(f"{self._path}: the folder {self._path.parent} does not exist; create it first")
        while True:
            self._folder.mkdir(exist_ok=True)
            try:
                self._turn.acquire()
            except FileNotFoundError:
                continue  # the last worker has just removed the folder
            break
        try:
            yield
        finally:
            self._turn.release()

    def living(self) -> tuple[Worker, ...]:
        found: list[Worker] = []
        for file in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if (named := _FILE.fullmatch(file.name)) is None:
                continue
            kind, host, process, name = named.groups()
            if (self.mine is not None and name == self.mine.name) or self._is_held(file):
                found.append(Worker(name, host, int(process), kind == "alone"))
        return tuple(found)

    def _is_held(self, file: Path) -> bool:
        lock = FileLock(file, timeout=0, is_singleton=False)
        try:
            with lock:
                pass
        except Timeout:
            return True
        # Safe to delete during a turn: only one process uses this name, and takes the lock in its first turn.
        if self._turn.is_locked:
            with suppress(OSError):
                file.unlink()
        return False

    def _hold(self, worker: Worker) -> None:
        kind = "alone" if worker.alone else "worker"
        name = f"{kind}.{worker.host}.{worker.process}.{worker.name}.lock"
        # The timeout covers other workers, which take the lock for a moment to test it.
        self._held = FileLock(self._folder / name, timeout=_TURN, is_singleton=False)
        self._held.acquire()

    def close(self) -> None:
        self.mine = None
        if not self._folder.is_dir():
            return
        with suppress(OSError, Timeout), self.turn():
            if self._held is not None:
                self._held.release()
                with suppress(OSError):
                    Path(self._held.lock_file).unlink(missing_ok=True)
                self._held = None
            # A worker that waits for a deleted lock file creates a new one.
            if [path.name for path in self._folder.iterdir()] == ["turn.lock"]:
                (self._folder / "turn.lock").unlink()
        with suppress(OSError):
            self._folder.rmdir()


class _PostgresWorkers(Workers):
    """Workers that share a database; each holds an advisory lock, which its connection releases when it ends."""

    def __init__(self, address: StorageAddress, scope: str) -> None:
        self._address = address
        # A lock has two 32-bit numbers: that of the study, then 0 for the turn or the number of a worker.
        self._scope = _signed(zlib.crc32(f"blockfit {scope}".encode()))
        self._connection: psycopg.Connection[tuple[object, ...]] | None = None
        self._depth = 0

    @property
    def where(self) -> str:
        return str(self._address)

    @contextmanager
    def turn(self) -> Iterator[None]:
        if self._depth == 0:
            self._connected().execute("select pg_advisory_lock(%s::int, 0)", (self._scope,))
        self._depth += 1
        try:
            yield
        except BaseException:
            with suppress(*storage_errors()):  # the first error is the one to report
                self._end_turn()
            raise
        self._end_turn()

    def _end_turn(self) -> None:
        """End the turn; raise psycopg.Error if the connection was lost, so that it may have ended before."""
        self._depth -= 1
        if self._depth == 0 and self._connection is not None:
            self._connection.execute("select pg_advisory_unlock(%s::int, 0)", (self._scope,))

    def living(self) -> tuple[Worker, ...]:
        rows = self._connected().execute(
            "select l.objid::bigint, a.application_name from pg_locks l left join pg_stat_activity a using (pid) "
            "where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.objid <> 0 "
            "and l.classid::bigint = %s "
            "and l.database = (select oid from pg_database where datname = current_database())",
            (self._scope & 0xFFFFFFFF,),
        )
        return tuple(_described(int(str(key)), str(label or "")) for key, label in rows.fetchall())

    def _hold(self, worker: Worker) -> None:
        connection = self._connected()
        label = f"blockfit {worker.process} {worker.host}{' alone' if worker.alone else ''}"
        connection.execute("select set_config('application_name', %s, false)", (label,))
        connection.execute("select pg_advisory_lock(%s::int, %s::int)", (self._scope, _signed(int(worker.name, 16))))

    def _connected(self) -> "psycopg.Connection[tuple[object, ...]]":
        """Return the connection; after a loss, connect again and take the worker's lock again."""
        try:
            import psycopg  # noqa: PLC0415  an optional dependency
        except ImportError as error:
            raise psycopg_missing() from error
        if self._connection is not None and (self._connection.broken or self._connection.closed):
            self._connection = None
        if self._connection is None:
            url = make_url(self._address.url)
            # As for the trials: SQLAlchemy's parsing allows any character in the database's name.
            _, given = url.get_dialect()().create_connect_args(url)
            options = {"connect_timeout": 10, "options": f"{_KEEPALIVE} -c lock_timeout={int(_TURN * 1000)}"}
            try:
                self._connection = psycopg.connect(autocommit=True, **{**given, **options})
            except psycopg.Error as error:
                if self.mine is not None:
                    raise  # it was available before, and may be again
                reason = str(error).strip().partition("\n")[0]
                raise StudyError(f"{self._address}: cannot be reached: {reason}", field="storage") from error
            if self.mine is not None:
                try:
                    self._hold(self.mine)
                except BaseException:
                    # Other workers would take a worker without its lock for dead.
                    self._connection.close()
                    self._connection = None
                    raise
        return self._connection

    def close(self) -> None:
        self.mine = None
        if self._connection is not None:
            with suppress(*storage_errors()):  # the connection may be lost already
                # The server notices a closed connection only some time later.
                self._connection.execute("select pg_advisory_unlock_all()")
            self._connection.close()
            self._connection = None


def _described(key: int, label: str) -> Worker:
    named = re.fullmatch(r"blockfit (\d+) (\S+)( alone)?", label)
    host, process, alone = (named[2], int(named[1]), named[3] is not None) if named else ("unknown", 0, False)
    return Worker(f"{key:08x}", host, process, alone)


def _signed(number: int) -> int:
    """Return the signed 32-bit number with the bits of an unsigned one, as PostgreSQL stores it."""
    return number - (1 << 32) if number >= 1 << 31 else number

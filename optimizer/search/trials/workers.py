"""Which workers search a study at the moment: processes that take turns at proposing trials, on one machine or many.

A worker holds a lock for as long as it lives, of the operating system beside a file of trials, of the server in a
PostgreSQL database. Whoever wants to know whether it lives tries the lock: that needs no clocks that agree and no
waiting, and however a process ends, killed or cut off, its lock ends with it.
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
from optimizer.search.trials.storage import StorageAddress, without_psycopg

if TYPE_CHECKING:
    import psycopg

__all__ = ["Worker", "Workers", "workers_at"]

# Seconds that a turn is waited for: proposing takes less than one.
_TURN = 60.0
_FILE = re.compile(r"(worker|alone)\.([A-Za-z0-9_-]+)\.(\d+)\.([0-9a-f]{8})\.lock")
# A machine that vanished is noticed after 20 + 3 x 5 s; the servers' own setting is two hours.
_KEEPALIVE = "-c tcp_keepalives_idle=20 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3"


@dataclass(frozen=True)
class Worker:
    """A process that searches: the name that its trials note, its machine, and whether it shares the search."""

    name: str
    host: str
    process: int
    alone: bool

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.process} on {self.host}"


class Workers(ABC):
    """Those who work with the trials of a storage; this process is one of them between `join` and `close`."""

    own: Worker | None = None

    @abstractmethod
    def turn(self) -> AbstractContextManager[None]:
        """Context in which no other worker has its turn. May be entered again by who is in it."""

    @abstractmethod
    def living(self) -> tuple[Worker, ...]:
        """All workers that are alive, this process included if it has joined."""

    @abstractmethod
    def _hold(self, worker: Worker) -> None:
        """Take the lock that shows that this worker lives."""

    def join(self, *, alone: bool) -> None:
        """Become a worker, one that works `alone` or with others that do not.

        Raises StudyError if somebody works alone, or anybody where this process wants to be alone.
        """
        with self.turn():
            others = self.living()
            if busy := [worker for worker in others if alone or worker.alone]:
                which = ", ".join(map(str, busy))
                way = (
                    "wait for it, or stop it"
                    if any(worker.alone for worker in busy)
                    else "`workers=1` joins in, or wait until it has finished"
                )
                raise StudyError(f"{self.where}: another fit is under way there ({which}); {way}")
            self.own = Worker(f"{1 + secrets.randbelow(0xFFFFFFFF):08x}", host_name(), os.getpid(), alone)
            self._hold(self.own)

    @property
    @abstractmethod
    def where(self) -> str:
        """The storage, for messages."""

    @abstractmethod
    def close(self) -> None:
        """Stop being a worker, and let go of everything."""


def workers_at(address: StorageAddress, scope: str) -> Workers:
    """Those who work with the trials at this address, in a database with those of the study called `scope`."""
    return _PostgresWorkers(address, scope) if address.path is None else _FileWorkers(address.path)


class _FileWorkers(Workers):
    """Workers that share a file of trials; their locks lie in a folder beside it, NAME.workers."""

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
            if (self.own is not None and name == self.own.name) or self._is_held(file):
                found.append(Worker(name, host, int(process), kind == "alone"))
        return tuple(found)

    def _is_held(self, file: Path) -> bool:
        lock = FileLock(file, timeout=0, is_singleton=False)
        try:
            with lock:
                pass
        except Timeout:
            return True
        # Nobody comes to hold it: its name is of one process only, which takes it in its first turn.
        if self._turn.is_locked:
            with suppress(OSError):
                file.unlink()
        return False

    def _hold(self, worker: Worker) -> None:
        kind = "alone" if worker.alone else "worker"
        name = f"{kind}.{worker.host}.{worker.process}.{worker.name}.lock"
        # Who looks whether it is held, holds it himself for a moment.
        self._held = FileLock(self._folder / name, timeout=_TURN, is_singleton=False)
        self._held.acquire()

    def close(self) -> None:
        self.own = None
        if not self._folder.is_dir():
            return
        with suppress(OSError, Timeout), self.turn():
            if self._held is not None:
                self._held.release()
                with suppress(OSError):
                    Path(self._held.lock_file).unlink(missing_ok=True)
                self._held = None
            # Whoever waits for a lock whose file is gone makes a new file.
            if [path.name for path in self._folder.iterdir()] == ["turn.lock"]:
                (self._folder / "turn.lock").unlink()
        with suppress(OSError):
            self._folder.rmdir()


class _PostgresWorkers(Workers):
    """Workers that share a database; each holds an advisory lock, which ends with its connection."""

    def __init__(self, address: StorageAddress, scope: str) -> None:
        self._address = address
        # Locks have two numbers of 32 bits: the study's, and 0 for the turn or a worker's own.
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
            with suppress(Exception):  # what went wrong first is what matters
                self._end_turn()
            raise
        self._end_turn()

    def _end_turn(self) -> None:
        """Let others have theirs. Raises psycopg.Error if they may have had it before: the connection was lost."""
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
        """The connection; made anew, the worker's lock taken again, after it was lost."""
        try:
            import psycopg  # noqa: PLC0415  only where PostgreSQL is used
        except ImportError as error:
            raise without_psycopg() from error
        if self._connection is not None and (self._connection.broken or self._connection.closed):
            self._connection = None
        if self._connection is None:
            url = make_url(self._address.url)
            # As for the trials themselves: a name is handed over as it is, whatever characters it has.
            _, given = url.get_dialect()().create_connect_args(url)
            options = {"connect_timeout": 10, "options": f"{_KEEPALIVE} -c lock_timeout={int(_TURN * 1000)}"}
            try:
                self._connection = psycopg.connect(autocommit=True, **{**given, **options})
            except psycopg.Error as error:
                if self.own is not None:
                    raise  # it was there before, and may come again
                reason = str(error).strip().partition("\n")[0]
                raise StudyError(f"{self._address}: cannot be reached: {reason}", field="storage") from error
            if self.own is not None:
                try:
                    self._hold(self.own)
                except BaseException:
                    # Without its lock a worker is dead to all others.
                    self._connection.close()
                    self._connection = None
                    raise
        return self._connection

    def close(self) -> None:
        self.own = None
        if self._connection is not None:
            with suppress(Exception):  # it may be lost already
                # The server notices some time later that a connection was closed.
                self._connection.execute("select pg_advisory_unlock_all()")
            self._connection.close()
            self._connection = None


def _described(key: int, label: str) -> Worker:
    named = re.fullmatch(r"blockfit (\d+) (\S+)( alone)?", label)
    host, process, alone = (named[2], int(named[1]), named[3] is not None) if named else ("unknown", 0, False)
    return Worker(f"{key:08x}", host, process, alone)


def _signed(number: int) -> int:
    """The signed number of 32 bits that PostgreSQL has for an unsigned one."""
    return number - (1 << 32) if number >= 1 << 31 else number

"""What the errors of a database mean: it is away for now, or holds what cannot be used."""

import sqlite3

from filelock import Timeout
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, StatementError

__all__ = ["AWAY", "is_away", "reason_of", "sqlite_code_of"]

# SQLite's primary result codes for a file that it can read but that is no sound database of trials.
_UNSOUND = frozenset(
    {
        sqlite3.SQLITE_ERROR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_RANGE,
    }
)
# The first two characters of PostgreSQL's error codes for what passes: connections, transactions that met, resources,
# locks, shutdowns, the system.
_PASSING = ("08", "40", "53", "55", "57", "58")


def _away() -> tuple[type[Exception], ...]:
    """Return the classes of the errors that a storage raises which does not answer; see `is_away`."""
    try:
        import psycopg  # noqa: PLC0415  only where PostgreSQL is used
    except ImportError:
        return (DBAPIError, StorageInternalError, OSError, Timeout)
    return (DBAPIError, StorageInternalError, OSError, Timeout, psycopg.Error)


AWAY = _away()


def is_away(error: BaseException) -> bool:
    """Return whether a storage did not answer for now, as when it is locked, restarting or on a drive that is gone.

    False for a storage that answers, and whose contents are the problem; trying again would not help.
    """
    if not isinstance(error, AWAY):
        return False
    found = _origin(error)
    if isinstance(found, sqlite3.Error):
        code = sqlite_code_of(found)
        return code is not None and code not in _UNSOUND
    if hasattr(found, "sqlstate"):  # of psycopg; a lost connection has none
        return found.sqlstate is None or str(found.sqlstate).startswith(_PASSING)
    return isinstance(found, OSError | Timeout)


def sqlite_code_of(error: BaseException | None) -> int | None:
    """Return SQLite's primary result code for an error that it raised; None for any other error."""
    found = None if error is None else _origin(error)
    code = found.sqlite_errorcode if isinstance(found, sqlite3.Error) and hasattr(found, "sqlite_errorcode") else None
    return None if code is None else code & 0xFF


def reason_of(error: BaseException) -> str:
    """Return the first line of what went wrong, as the database itself says it."""
    origin = _origin(error)
    lines = str(origin).strip().splitlines()
    return lines[0] if lines else type(origin).__name__


def _origin(error: BaseException) -> BaseException:
    """Return the database's own error in what SQLAlchemy and Optuna make of it."""
    while isinstance(error, StatementError | StorageInternalError):
        inner = error.orig if isinstance(error, StatementError) else error.__cause__
        if inner is None:
            break
        error = inner
    return error

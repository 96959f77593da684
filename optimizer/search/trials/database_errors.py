"""The meaning of database errors: the database is unavailable, or its contents are unusable."""

import sqlite3
import sys

from filelock import Timeout
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, StatementError

__all__ = ["is_unavailable", "reason_of", "sqlite_code_of", "storage_errors"]

# SQLite's primary result codes for a readable file that is not a sound database of trials.
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
# The first two characters of PostgreSQL's error codes for temporary problems: connections, conflicting transactions,
# resources, locks, shutdowns, the operating system.
_TEMPORARY = ("08", "40", "53", "55", "57", "58")


def storage_errors() -> tuple[type[Exception], ...]:
    """Return the classes of errors that a storage raises; `is_unavailable` decides whether a retry can help."""
    # psycopg takes 0.1 s to import, and only PostgreSQL needs it. Its errors cannot be raised before it is imported.
    psycopg = sys.modules.get("psycopg")
    further = () if psycopg is None else (psycopg.Error,)
    return (DBAPIError, StorageInternalError, OSError, Timeout, *further)


def is_unavailable(error: BaseException) -> bool:
    """Return whether a storage is unavailable for now.

    Args:
        error: Any error of an action on the storage.

    Returns:
        True if the storage is locked, restarting, or on a missing drive. False if it answers and its contents are the
        problem, so that a retry would not help.

    """
    if not isinstance(error, storage_errors()):
        return False
    found = _origin(error)
    if isinstance(found, sqlite3.Error):
        code = sqlite_code_of(found)
        return code is not None and code not in _UNSOUND
    if hasattr(found, "sqlstate"):  # an error of psycopg; None for a lost connection
        return found.sqlstate is None or str(found.sqlstate).startswith(_TEMPORARY)
    return isinstance(found, OSError | Timeout)


def sqlite_code_of(error: BaseException | None) -> int | None:
    """Return the primary result code of an error of SQLite; None for any other error."""
    found = None if error is None else _origin(error)
    code = found.sqlite_errorcode if isinstance(found, sqlite3.Error) and hasattr(found, "sqlite_errorcode") else None
    return None if code is None else code & 0xFF


def reason_of(error: BaseException) -> str:
    """Return the first line of the database's own error message."""
    origin = _origin(error)
    lines = str(origin).strip().splitlines()
    return lines[0] if lines else type(origin).__name__


def _origin(error: BaseException) -> BaseException:
    """Return the database's own error inside an error of SQLAlchemy or Optuna."""
    while isinstance(error, StatementError | StorageInternalError):
        inner = error.orig if isinstance(error, StatementError) else error.__cause__
        if inner is None:
            break
        error = inner
    return error

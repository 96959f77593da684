"""SQLite files of trials: connections by path, and a check before Optuna reads them.

A file from elsewhere can contain code: triggers, views, computed columns. Optuna needs none of these; the check refuses
them.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from optimizer.errors import StudyError
from optimizer.search.trials.optuna_privates import models

__all__ = ["connect_to", "finish_writing", "holds_tables", "is_database"]

_TABLES = {
    name: tuple(column.name for column in table.columns) for name, table in models.BaseModel.metadata.tables.items()
}
_AGAIN = "; `fresh=True` starts anew"
_VERSION = "alembic_version"
_BEGINS = b"SQLite format 3\0"


def connect_to(path: Path, *, timeout: float, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to a SQLite file, created if it is missing.

    Args:
        path: The file; any character is allowed in its path.
        timeout: Seconds to wait while another process writes.
        read_only: Whether to refuse changes. SQLite still undoes the unfinished write of a killed process first.

    Returns:
        The connection.

    """
    # An absolute path is never taken for a URI, in which some characters have a meaning.
    connection = sqlite3.connect(path.absolute(), timeout=timeout, check_same_thread=False)
    # The schema of the file may then not call functions with side effects.
    connection.execute("pragma trusted_schema = off")
    if read_only:
        connection.execute("pragma query_only = on")
    return connection


def holds_tables(path: Path, *, timeout: float) -> bool:
    """Return whether a SQLite file has all of Optuna's tables.

    sqlite3.Error passes through for a file that is not a SQLite file or cannot be read.

    Args:
        path: The file.
        timeout: Seconds to wait while another process writes.

    Returns:
        True for a complete database; False if its creation was not finished.

    Raises:
        StudyError: The file has tables of another program, contains code, or has trials without one of Optuna's tables.

    """
    with closing(connect_to(path, timeout=timeout, read_only=True)) as connection:
        entries = connection.execute("select type, name, sql from sqlite_master").fetchall()
        tables = _tables(entries)
        if tables and not tables & {*_TABLES, _VERSION}:
            listed = ", ".join(sorted(tables)[:5])[:200]
            raise StudyError(f"{path}: contains tables of another program ({listed}); name another file")
        for kind, name, sql in entries:
            if kind not in ("table", "index"):
                raise StudyError(
                    f"{path}: contains a {kind}, {str(name)[:80]!r}, which acts whenever trials are read or written; "
                    f"a database of trials has none, so the file was not used{_AGAIN}"
                )
            if kind == "table" and str(sql).lstrip()[:14].upper() == "CREATE VIRTUAL":
                raise StudyError(
                    f"{path}: its table {str(name)[:80]!r} is computed, not stored; a database of trials has no "
                    f"such table, so the file was not used{_AGAIN}"
                )
        if not tables:
            return False
        missing = sorted({*_TABLES, _VERSION} - tables)
        if (missing or any(_check_columns(connection, tables))) and _is_of_another_version(connection, tables):
            return True  # Optuna's error then names the version
        has_rows = any(_has_rows(connection, name) for name in tables & set(_TABLES) - {"version_info"})
        if missing and has_rows:
            raise StudyError(f"{path}: lacks the table {missing[0]!r}, which a database of trials has{_AGAIN}")
        for problem in _check_columns(connection, tables):
            raise StudyError(f"{path}: {problem}{_AGAIN}")
        if missing or not all(_has_rows(connection, name) for name in (_VERSION, "version_info")):
            if has_rows:
                raise StudyError(f"{path}: lacks the version of Optuna that wrote it{_AGAIN}")
            return False
    return True


def is_database(path: Path) -> bool:
    """Return whether a file may be a database of trials.

    OSError passes through if the file cannot be read.

    Args:
        path: The file.

    Returns:
        True for an empty file, a broken SQLite file, and a SQLite file without tables of another program.

    """
    with path.open("rb") as file:
        begins = file.read(len(_BEGINS))
    if not begins or not _BEGINS.startswith(begins):
        return not begins
    try:
        with closing(connect_to(path, timeout=0, read_only=True)) as connection:
            tables = _tables(connection.execute("select type, name, sql from sqlite_master").fetchall())
    except sqlite3.Error:
        return True
    return not tables or bool(tables & {*_TABLES, _VERSION})


def _tables(entries: Iterable[tuple[Any, Any, Any]]) -> set[str]:
    return {str(name) for kind, name, _ in entries if kind == "table" and not str(name).startswith("sqlite_")}


def finish_writing(path: Path, *, timeout: float) -> None:
    """Make a SQLite file complete by itself: undo unfinished writes and take in waiting ones.

    SQLite keeps both in companion files beside the database. Without them the database would be broken, and they would
    corrupt a new database of the same name. A file that is locked, or is not a SQLite file, stays as it is.

    Args:
        path: The file.
        timeout: Seconds to wait while another process writes.

    """
    try:
        with closing(sqlite3.connect(path.absolute(), timeout=timeout)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchone()
            connection.execute("pragma wal_checkpoint(truncate)").fetchone()
    except sqlite3.Error:
        return


def _check_columns(connection: sqlite3.Connection, tables: Iterable[str]) -> Iterable[str]:
    for name in sorted(set(tables) & set(_TABLES)):
        rows = connection.execute(f"pragma table_xinfo({name})").fetchall()
        # 0 marks a stored column; other numbers mark computed or hidden columns.
        columns = {column: hidden for _, column, _, _, _, _, hidden in rows}
        for column in _TABLES[name]:
            if column not in columns:
                yield f"its table {name!r} lacks the column {column!r}"
            elif columns[column] != 0:
                yield f"in its table {name!r} the column {column!r} is computed, not stored"
        # Without this key new rows would get no number.
        if [column for _, column, _, _, _, key, _ in rows if key] != [_TABLES[name][0]]:
            yield f"its table {name!r} does not number its rows by the column {_TABLES[name][0]!r}"


def _is_of_another_version(connection: sqlite3.Connection, tables: Iterable[str]) -> bool:
    if _VERSION not in tables:
        return False
    from alembic.script import ScriptDirectory  # noqa: PLC0415  takes 0.2 s to import, and a new file needs none of it

    versions = [str(version) for (version,) in connection.execute(f"select version_num from {_VERSION}")]  # noqa: S608
    scripts = ScriptDirectory(str(Path(models.__file__).with_name("alembic")))
    return versions != [scripts.get_current_head()]


def _has_rows(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute(f"select 1 from {table} limit 1").fetchone() is not None  # noqa: S608

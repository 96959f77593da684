"""SQLite files of trials: opened by their path, and looked through before Optuna reads them.

Such a file may be a stranger's, and it can hold programs: triggers, views, computed columns. Optuna needs none.
"""

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from alembic.script import ScriptDirectory
from optuna.storages._rdb import models

from optimizer.errors import StudyError

__all__ = ["connect_to", "finish_writing", "holds_tables", "is_database"]

_TABLES = {
    name: tuple(column.name for column in table.columns) for name, table in models.BaseModel.metadata.tables.items()
}
_AGAIN = "; `fresh=True` starts anew"
_VERSION = "alembic_version"
_BEGINS = b"SQLite format 3\0"


def connect_to(path: Path, *, timeout: float, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection to the file at `path`, whatever characters the path has, made if there is none.

    A write is waited for `timeout` seconds while another process writes. With `read_only` nothing can be changed by the
    connection, but for what a process that was killed had not finished writing: SQLite undoes that before it reads.
    """
    # No URL and no URI, in which some characters mean something; an absolute path is never taken for one.
    connection = sqlite3.connect(path.absolute(), timeout=timeout, check_same_thread=False)
    # Functions with side effects act in nothing that the file itself defines.
    connection.execute("pragma trusted_schema = off")
    if read_only:
        connection.execute("pragma query_only = on")
    return connection


def holds_tables(path: Path, *, timeout: float) -> bool:
    """Return whether the SQLite file at `path` holds all of Optuna's tables; False if it was never finished making.

    Raises StudyError for a file that holds anything else, or trials without one of the other tables; sqlite3.Error for
    one that is no SQLite file or cannot be read.
    """
    with closing(connect_to(path, timeout=timeout, read_only=True)) as connection:
        entries = connection.execute("select type, name, sql from sqlite_master").fetchall()
        tables = _tables(entries)
        if tables and not tables & {*_TABLES, _VERSION}:
            listed = ", ".join(sorted(tables)[:5])[:200]
            raise StudyError(f"{path}: holds the tables of another program ({listed}); name another file")
        for kind, name, sql in entries:
            if kind not in ("table", "index"):
                raise StudyError(
                    f"{path}: holds a {kind}, {str(name)[:80]!r}, which acts whenever trials are read or written; "
                    f"a database of trials has none, so nothing of it was used{_AGAIN}"
                )
            if kind == "table" and str(sql).lstrip()[:14].upper() == "CREATE VIRTUAL":
                raise StudyError(
                    f"{path}: its table {str(name)[:80]!r} is computed, not stored; a database of trials has none "
                    f"such, so nothing of it was used{_AGAIN}"
                )
        if not tables:
            return False
        missing = sorted({*_TABLES, _VERSION} - tables)
        if (missing or any(_check_columns(connection, tables))) and _is_of_another_version(connection, tables):
            return True  # Optuna tells which
        begun = any(_has_rows(connection, name) for name in tables & set(_TABLES) - {"version_info"})
        if missing and begun:
            raise StudyError(f"{path}: lacks the table {missing[0]!r}, which a database of trials has{_AGAIN}")
        for problem in _check_columns(connection, tables):
            raise StudyError(f"{path}: {problem}{_AGAIN}")
        if missing or not all(_has_rows(connection, name) for name in (_VERSION, "version_info")):
            if begun:
                raise StudyError(f"{path}: does not say which version of Optuna wrote it{_AGAIN}")
            return False
    return True


def is_database(path: Path) -> bool:
    """Return whether the file at `path` is empty, or a SQLite file that holds no tables of another program.

    One that is broken is taken for one of trials. Raises OSError if it cannot be read.
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
    """Make the file at `path` complete by itself: undo what a killed process left half written, take in what waits.

    SQLite keeps both in files beside it, under its name: without them it would be broken, and they would spoil another
    file of that name. Does nothing for what is no SQLite file, or is locked.
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
        # 0 is a stored column; others are computed, or hidden.
        columns = {column: hidden for _, column, _, _, _, _, hidden in rows}
        for column in _TABLES[name]:
            if column not in columns:
                yield f"its table {name!r} lacks the column {column!r}"
            elif columns[column] != 0:
                yield f"in its table {name!r} the column {column!r} is computed, not stored"
        # Otherwise new rows would have no number, and belong to nothing.
        if [column for _, column, _, _, _, key, _ in rows if key] != [_TABLES[name][0]]:
            yield f"its table {name!r} does not number its rows by the column {_TABLES[name][0]!r}"


def _is_of_another_version(connection: sqlite3.Connection, tables: Iterable[str]) -> bool:
    if _VERSION not in tables:
        return False
    versions = [str(version) for (version,) in connection.execute(f"select version_num from {_VERSION}")]  # noqa: S608
    scripts = ScriptDirectory(str(Path(models.__file__).with_name("alembic")))
    return versions != [scripts.get_current_head()]


def _has_rows(connection: sqlite3.Connection, table: str) -> bool:
    return connection.execute(f"select 1 from {table} limit 1").fetchone() is not None  # noqa: S608

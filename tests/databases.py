"""Addresses of databases for Optuna, with any characters in the path of the tests' folder."""

from pathlib import Path

from sqlalchemy.engine import URL


def sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file; braces are doubled, since Optuna formats the URL."""
    url = URL.create("sqlite", database=path.as_posix()).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")

"""Addresses of databases as Optuna takes them, whatever characters the folder of the tests has in its path."""

from pathlib import Path

from sqlalchemy.engine import URL


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file; braces are doubled, for Optuna fills in what stands between them."""
    url = URL.create("sqlite", database=path.as_posix()).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")

"""A temporary PostgreSQL server on loopback: Debian's, or the one on the path."""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg

USER = "fitter"
# It needs quoting in a URL, and must never appear in a message.
PASSWORD = "se/cret@word"  # noqa: S105  of a temporary server
_QUOTED = "se%2Fcret%40word"


class Server:
    """A server with one user, which creates new databases, and which tests can stop and start."""

    def __init__(self) -> None:
        self._programs = programs()
        self._folder = Path(tempfile.mkdtemp(prefix="blockfit-postgresql-"))
        # The server refuses to run as root.
        self._account = {"user": "postgres", "group": "postgres"} if os.name == "posix" and os.getuid() == 0 else {}
        if self._account:
            shutil.chown(self._folder, **self._account)
        password = self._folder / "password"
        password.write_text(PASSWORD, encoding="utf-8")
        if self._account:
            shutil.chown(password, **self._account)
        self._run(
            "initdb", "--pgdata", self._data, "--username", USER, "--pwfile", password, "--auth", "scram-sha-256",
            "--encoding", "UTF8", "--no-sync",
        )  # fmt: skip
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: object) -> None:
        subprocess.run(
            [str(self._programs / program), *map(str, arguments)],
            check=True,
            capture_output=True,
            timeout=120,
            cwd=self._folder,
            **self._account,
        )

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = f"-h 127.0.0.1 -p {self.port} -k {self._folder} -c fsync=off"
        self._run(
            "pg_ctl", "--pgdata", self._data, "--wait", "--options", options, "--log", self._folder / "log", "start"
        )

    def stop(self) -> None:
        """Stop the server as in a restart of its machine: connections are cut."""
        self._run("pg_ctl", "--pgdata", self._data, "--wait", "--mode", "fast", "stop")

    def remove(self) -> None:
        """Stop the server and remove its files."""
        self.stop()
        shutil.rmtree(self._folder)

    def database(self) -> str:
        """Create a database and return its URL."""
        name = f"trials_{secrets.token_hex(4)}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"create database {name}")
        return self.url(name)

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://{USER}:{_QUOTED}@127.0.0.1:{self.port}/{database}"


def programs() -> Path | None:
    """Return the folder of the server's programs; None if PostgreSQL is not installed."""
    if (found := shutil.which("pg_ctl")) is not None:
        return Path(os.path.realpath(found)).parent
    return max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)

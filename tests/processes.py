"""Further processes with the libraries imported: forked on Linux from a server that imports them once."""

import atexit
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from waiting import PATIENCE, wait_for

from optimizer.search.trials.worker_processes import _METHOD, _USED_LATER

_CONTEXT: Any = multiprocessing.get_context(_METHOD)
# The libraries take three seconds of a processor.
_PRELOADED = ["optimizer.search.running", "optimizer.cli", *_USED_LATER]
_OUTPUTS = Path(tempfile.mkdtemp(prefix="blockfit-processes-"))
atexit.register(shutil.rmtree, _OUTPUTS, ignore_errors=True)
_numbers = count(1)


class Running:
    """A process that runs the command or some code, whose outputs are files; otherwise like subprocess.Popen.

    Tests whose subject is the start of the command use subprocess.
    """

    def __init__(self, function: Callable[[list[str]], None], argument: list[str]) -> None:
        name = f"{os.getpid()}-{next(_numbers)}"
        self._out, self._err = (_OUTPUTS / f"{name}.{stream}" for stream in ("out", "err"))
        for path in (self._out, self._err):
            path.touch()
        _CONTEXT.set_forkserver_preload(_PRELOADED)
        arguments = (self._out, self._err, dict(os.environ), function, argument)
        self._process = _CONTEXT.Process(target=_run, args=arguments)
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code; None while the process runs."""
        code: int | None = self._process.exitcode
        return code

    @property
    def out(self) -> str:
        """The standard output so far."""
        return self._out.read_text(encoding="utf-8")

    @property
    def err(self) -> str:
        """The standard error so far."""
        return self._err.read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Wait until the standard output contains a text."""
        wait_for(lambda: text in self.out or self.returncode is not None)
        assert text in self.out, self.err

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def communicate(self, timeout: float = PATIENCE) -> tuple[str, str]:
        """Wait for the end, and return both outputs; raise subprocess.TimeoutExpired after `timeout` seconds."""
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout, self.out, self.err)
        return self.out, self.err


def start_command(*arguments: object) -> Running:
    """Start `blockfit` with arguments."""
    return Running(_run_command, [str(argument) for argument in arguments])


def start_code(code: str, *arguments: object) -> Running:
    """Start a process that runs Python code with arguments."""
    return Running(_run_code, [textwrap.dedent(code), *map(str, arguments)])


def run_command(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run `blockfit` with arguments, and return its exit code and output."""
    process = start_command(*arguments)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def _run(
    out: Path, err: Path, environment: dict[str, str], function: Callable[[list[str]], None], argument: list[str]
) -> None:
    """Run a function as a process that was started alone would."""
    for path, number in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(file, number)
        os.close(file)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  for the whole process
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.default_int_handler)
    function(argument)


def _run_command(arguments: list[str]) -> None:
    from optimizer.cli import main

    sys.argv = ["blockfit", *arguments]
    main()


def _run_code(arguments: list[str]) -> None:
    code, *rest = arguments
    sys.argv = ["-c", *rest]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})  # noqa: S102  a test's own code

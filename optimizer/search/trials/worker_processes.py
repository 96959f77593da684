"""Further processes of a fit on this machine, started, watched and stopped by the first process."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from ctypes import c_bool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from optimizer.families import register_layout, registered_layouts

__all__ = ["WorkerProcesses", "ignore_interrupts", "should_go_on"]

# Neither method passes on a thread or a GPU context. On Linux a server imports the libraries once and forks each
# process. Elsewhere each process imports them: Windows cannot fork, and libraries of macOS do not survive a fork.
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
# Modules that every search imports only when it needs them.
_USED_LATER = ("scipy.optimize", "scipy.sparse.csgraph", "alembic.command", "sqlalchemy.dialects.sqlite")
# Seconds for a process to finish its trial after a stop; a trial of full-size checkpoints takes about 1 s.
_GRACE = 60.0


class WorkerProcesses:
    """Further processes that call one function each.

    They also end if the process that started them ends without stopping them; see `should_go_on`. Layouts registered
    in this process are registered in them too, and they have its environment variables.

    Args:
        count: The number of processes.
        work: The function; called with `stop` and `arguments`, it must return soon after `stop` is set.
        arguments: Further arguments of the function.

    """

    def __init__(self, count: int, work: Callable[..., None], *arguments: Any) -> None:
        context: Any = multiprocessing.get_context(_METHOD)
        context.set_forkserver_preload([work.__module__, *_USED_LATER])
        # Not an Event: a killed process could hold the lock inside it forever.
        self._stop = context.RawValue(c_bool, False)
        self._processes: list[BaseProcess] = [
            context.Process(
                target=_work,
                # The server keeps the environment of its start.
                args=(dict(os.environ), registered_layouts(), work, self._stop, *arguments),
                name=f"worker {number}",
                daemon=True,
            )
            for number in range(2, count + 2)
        ]
        with _interrupts_blocked():
            for process in self._processes:
                process.start()

    def ended(self) -> list[str]:
        """Return a line for each process that has failed since the last call."""
        failed = [process for process in self._processes if process.exitcode not in (None, 0)]
        self._processes = [process for process in self._processes if process not in failed]
        return [f"{process.name} ended with exit code {process.exitcode}; the others go on" for process in failed]

    def stop(self, *, at_once: bool = False) -> None:
        """Wait up to 60 s for all processes to finish their trials, then kill them; kill them now if `at_once`."""
        self._stop.value = True
        deadline = time.monotonic() + (0.0 if at_once else _GRACE)
        try:
            for process in self._processes:
                process.join(max(deadline - time.monotonic(), 0.0))
        finally:
            for process in self._processes:
                if process.is_alive():
                    process.kill()
                    process.join()
            self._processes = []


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in processes started meanwhile, which it would end with a traceback during their imports."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    environment: Mapping[str, str],
    layouts: tuple[Path, ...],
    work: Callable[..., None],
    stop: c_bool,
    *arguments: Any,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for path in layouts:
        register_layout(path)
    work(stop, *arguments)


def should_go_on(stop: c_bool) -> bool:
    """Return whether a process of `WorkerProcesses` should go on: not stopped, and its parent is alive."""
    parent = multiprocessing.parent_process()
    return not stop.value and (parent is None or parent.is_alive())


def ignore_interrupts() -> None:
    """Ignore Ctrl-C in this process; the terminal also sends it to the parent, which stops this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        signal.signal(signal.SIGBREAK, signal.SIG_IGN)

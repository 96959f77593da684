"""Further processes on this machine that work at the same study: started, watched, and stopped by the first."""

import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from ctypes import c_bool
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from optimizer.families import register_layout, registered_layouts

__all__ = ["WorkerProcesses", "leave_interrupts", "still_wanted"]

# Seconds that a process has to finish its trial when it is asked to stop: a full-size one takes about one.
_GRACE = 60.0


class WorkerProcesses:
    """`count` processes that each call `work(stop, *arguments)`, which is to return soon after `stop` is set.

    They end with the process that started them, whether it stops them or not: see `still_wanted`. Layouts that were
    registered in this process are registered in them, too.
    """

    def __init__(self, count: int, work: Callable[..., None], *arguments: Any) -> None:
        # The same on every system: nothing is inherited that must not be, threads and cards least of all.
        context = multiprocessing.get_context("spawn")
        # Not an Event: a process that is killed could take the lock in it along.
        self._stop = context.RawValue(c_bool, False)
        self._processes: list[BaseProcess] = [
            context.Process(
                target=_work,
                args=(registered_layouts(), work, self._stop, *arguments),
                name=f"worker {number}",
                daemon=True,
            )
            for number in range(2, count + 2)
        ]
        for process in self._processes:
            process.start()

    def ended(self) -> list[str]:
        """Return a line for each process that has failed since the last call."""
        failed = [process for process in self._processes if process.exitcode not in (None, 0)]
        self._processes = [process for process in self._processes if process not in failed]
        return [f"{process.name} ended with exit code {process.exitcode}; the others go on" for process in failed]

    def stop(self, *, at_once: bool = False) -> None:
        """Let every process finish its trial and end, or `at_once`. A second Ctrl-C does not wait for that."""
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


def _work(layouts: tuple[Path, ...], work: Callable[..., None], stop: c_bool, *arguments: Any) -> None:
    for path in layouts:
        register_layout(path)
    work(stop, *arguments)


def still_wanted(stop: c_bool) -> bool:
    """Return whether a process that `WorkerProcesses` started should go on."""
    parent = multiprocessing.parent_process()
    return not stop.value and (parent is None or parent.is_alive())


def leave_interrupts() -> None:
    """Leave Ctrl-C, which a terminal sends to all processes, to the one that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "win32":
        signal.signal(signal.SIGBREAK, signal.SIG_IGN)

"""Further processes of a fit on this machine, started, watched and stopped by the first process."""

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

__all__ = ["WorkerProcesses", "ignore_interrupts", "should_go_on"]

# Seconds for a process to finish its trial after a stop; a trial of full-size checkpoints takes about 1 s.
_GRACE = 60.0


class WorkerProcesses:
    """Further processes that call one function each.

    They also end if the process that started them ends without stopping them; see `should_go_on`. Layouts registered
    in this process are registered in them too.

    Args:
        count: The number of processes.
        work: The function; called with `stop` and `arguments`, it must return soon after `stop` is set.
        arguments: Further arguments of the function.

    """

    def __init__(self, count: int, work: Callable[..., None], *arguments: Any) -> None:
        # Spawned on every system, so that no thread and no GPU context is inherited.
        context = multiprocessing.get_context("spawn")
        # Not an Event: a killed process could hold the lock inside it forever.
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


def _work(layouts: tuple[Path, ...], work: Callable[..., None], stop: c_bool, *arguments: Any) -> None:
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

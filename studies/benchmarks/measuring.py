"""Shared parts of the benchmarks: memory of this process, warming up the page cache, disk reads, reports."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recording import record

from optimizer.errors import InputError


class AnonymousMemory:
    """A context that measures the peak of this process's anonymous memory, in bytes; NaN on systems without /proc."""

    def __enter__(self) -> AnonymousMemory:
        self.before = self.peak = _anonymous()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.peak = max(self.peak, _anonymous())


def _anonymous() -> float:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("nan")
    return next((float(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), float("nan"))


def warm_up(paths: Sequence[Path]) -> float:
    """Read the files in full so that the page cache holds them; return the seconds that it took."""
    start, buffer = time.perf_counter(), bytearray(1 << 22)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def disk_reads_of_children() -> float:
    """Return the bytes that ended child processes read from the disk, mapped files included; NaN if not counted."""
    try:
        import resource  # noqa: PLC0415 - Windows has none
    except ImportError:
        return float("nan")
    return 512.0 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_inblock


def report(
    name: str,
    measure: Callable[[], Mapping[str, Any]],
    describe: Callable[[Mapping[str, Any]], str],
    file: Path | None,
    *,
    peers: Sequence[str] = (),
) -> int:
    """Measure, print the figures, and record them.

    Args:
        name: The script's name, without .py.
        measure: Returns the figures.
        describe: Returns the text to print for the figures.
        file: The JSON file to write; None writes none.
        peers: Further distributions whose versions are recorded.

    Returns:
        The exit code: 0, or 2 with a line on stderr if the family cannot be used.

    """
    try:
        figures = measure()
    except (InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(describe(figures))
    record(name, figures, file, peers=peers)
    return 0

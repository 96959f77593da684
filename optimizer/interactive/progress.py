"""The progress of long work: a display in a notebook or on a terminal, updated in place."""

import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from optimizer.bars import bar_updates, describe_amount, describe_seconds, progress_bars
from optimizer.html import html_bar, html_paragraphs, html_table
from optimizer.printable import printable
from optimizer.reports import LiveFit, percent
from optimizer.search import FitEvents, SearchEvents, SearchProgress, Trial

__all__ = ["PROGRESS_OUTPUT", "shown_progress"]

PROGRESS_OUTPUT = "blockfit_progress"
"""The key in the metadata of a notebook's output that holds a display of progress."""

# Work that is done sooner shows nothing.
_PATIENCE = 0.5
_INTERVAL = 0.2
# Rows of a notebook's table; the last searches have them.
_ROWS = 8


class Display(SearchEvents, Protocol):
    """A display of progress, which also writes Python's log."""

    def end(self, text: str, /) -> None:
        """Leave a line in place of the display."""
        ...


@contextmanager
def shown_progress(*, wanted: bool = True) -> Iterator[Display | None]:
    """Show progress in a notebook or, if stderr is one, on a terminal.

    Args:
        wanted: Whether to show it at all.

    Yields:
        The display; None where nothing is shown.

    Raises:
        KeyboardInterrupt: The work was interrupted, which the display says.
    """
    if not wanted:
        yield None
        return
    if _in_notebook():
        notebook = _NotebookDisplay()
        try:
            yield notebook
        except KeyboardInterrupt:
            notebook.end("Interrupted before there was a result.")
            raise
        except Exception:
            notebook.close("Stopped by an error after")
            raise
        notebook.close()
        return
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield None
        return
    terminal = _TerminalDisplay(console)
    with terminal.drawn():
        yield terminal
    terminal.say_last()


def _in_notebook() -> bool:
    """Return whether this is a cell of a notebook, of Jupyter, VS Code, Colab and others with a kernel."""
    # Without an import: where IPython runs, it is loaded.
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


@dataclass
class _Task:
    """Work on files: what is done of it, and since when."""

    done: int
    total: int
    began: float

    @property
    def amount(self) -> str:
        return describe_amount(self.done, self.total, time.monotonic() - self.began)

    @property
    def share(self) -> float:
        return self.done / self.total if self.total else 1.0

    @property
    def left(self) -> str:
        seconds = time.monotonic() - self.began
        if not self.done or seconds < _PATIENCE:
            return ""
        return f"{describe_seconds(seconds / self.done * (self.total - self.done))} left"


class _NotebookDisplay:
    """A display in the cell's output: the searches, the files that are read, and warnings."""

    def __init__(self) -> None:
        self._log = FitEvents()
        self._began = time.monotonic()
        self._drawn = self._began + _PATIENCE - _INTERVAL
        self._name: str | None = None
        self._tasks: dict[str, _Task] = {}
        self._searches: dict[str, SearchProgress] = {}
        self._new_trials = 0
        self._warnings: list[str] = []
        self._last: str | None = None
        self._lock = threading.RLock()

    def progress(self, what: str, done: int, total: int, /) -> None:
        """Show the progress of the task `what`."""
        self._log.progress(what, done, total)
        task = self._tasks.setdefault(what, _Task(0, total, time.monotonic()))
        task.done, task.total = done, total
        self._draw()

    def opened(self, progress: SearchProgress, /) -> None:
        """Show a search that starts or resumes."""
        self._log.opened(progress)
        self._show(progress)

    def finished(self, progress: SearchProgress, trial: Trial, /) -> None:
        """Show the state of a search after a trial."""
        self._log.finished(progress, trial)
        self._new_trials += 1
        self._show(progress)

    def warn(self, text: str, /) -> None:
        """Show a warning, which stays."""
        self._log.warn(text)
        self._warnings.append(text)
        self._draw(at_once=True)

    def end(self, text: str, /) -> None:
        """Leave a line in place of the display."""
        self._last = text
        self._draw(at_once=True)

    def close(self, stopped: str | None = None) -> None:
        """Replace the display by its warnings and a line that says what took how long; show nothing if it was quick."""
        if self._last is None and self._name is not None:
            seconds = describe_seconds(time.monotonic() - self._began)
            self.end(f"{stopped or f'Done: {self._summary()},'} {seconds}.")

    def _show(self, progress: SearchProgress) -> None:
        # The latest search is the last row.
        self._searches.pop(progress.search, None)
        self._searches[progress.search] = progress
        self._draw()

    def _draw(self, *, at_once: bool = False) -> None:
        with self._lock:
            now = time.monotonic()
            if not at_once and now < self._drawn + _INTERVAL:
                return
            self._drawn = now
            if self._last is None:
                lines, html = self._running()
            else:
                lines = [*self._warnings, self._last]
                html = html_paragraphs(self._warnings) + html_paragraphs([self._last], muted=True)
            self._publish({"text/plain": "\n".join(map(printable, lines)), "text/html": html})

    def _publish(self, data: dict[str, str]) -> None:
        first = self._name is None
        self._name = self._name or uuid.uuid4().hex
        transient = {"display_id": self._name}
        # IPython is loaded in every notebook; elsewhere it may be absent.
        sys.modules["IPython"].display.publish_display_data(
            data, {PROGRESS_OUTPUT: True}, transient=transient, update=not first
        )

    def _running(self) -> tuple[list[str], str]:
        """Return what runs as lines of text and as HTML."""
        tasks = {what: task for what, task in self._tasks.items() if task.done < task.total}
        lines = [f"{what}: {task.amount} {task.left}" for what, task in tasks.items()]
        lines += [_search_line(search) for search in self._searches.values()]
        html = html_paragraphs(self._warnings)
        if tasks:
            files = [(what, html_bar(task.share), task.amount, task.left) for what, task in tasks.items()]
            html += html_table(("", "", "done", "time"), files)
        if self._searches:
            shown = list(self._searches.values())[-_ROWS:]
            if earlier := len(self._searches) - len(shown):
                html += html_paragraphs([f"{earlier} earlier searches are done"])
            rows = [
                (
                    search.search,
                    search.step,
                    search.metric,
                    html_bar(search.done / search.budget if search.budget else 1.0),
                    f"{search.done} of {search.budget}",
                    "-" if search.best is None else percent(search.best),
                    _time_left(search),
                )
                for search in shown
            ]
            html += html_table(("search", "step", "metric", "", "trials", "best so far", "time"), rows)
        seconds = f"running for {describe_seconds(time.monotonic() - self._began)}"
        return [*self._warnings, *lines, seconds], html + html_paragraphs([seconds], muted=True)

    def _summary(self) -> str:
        if self._searches and not self._new_trials:
            return "nothing was left to do, every search has all its trials"
        if self._searches:
            trials = sum(search.done for search in self._searches.values())
            count = len(self._searches)
            searches = f"{count} searches" if count > 1 else "1 search"
            return f"{searches}, {trials} trials"
        if not self._tasks:
            return "nothing was left to do"
        what, task = next(reversed(self._tasks.items()))
        return f"{what}, {describe_amount(task.done, task.total)}"


def _search_line(search: SearchProgress) -> str:
    best = "-" if search.best is None else percent(search.best)
    return f"{search.search}: {search.done} of {search.budget} trials, best {best} {_time_left(search)}"


def _time_left(search: SearchProgress) -> str:
    if search.done >= search.budget:
        return "done"
    return "" if search.seconds_left is None else f"{describe_seconds(search.seconds_left)} left"


class _TerminalDisplay:
    """A display on stderr: bars and the live table of the command `fit`; both disappear at the end."""

    def __init__(self, console: Console) -> None:
        self._log = FitEvents()
        self._console = console
        self._bars, self._table = progress_bars(console, shown=True), LiveFit()
        self._update = bar_updates(self._bars)
        self._last: str | None = None

    def progress(self, what: str, done: int, total: int, /) -> None:
        """Show the progress of the task `what` as a bar."""
        self._log.progress(what, done, total)
        self._update(what, done, total)

    def opened(self, progress: SearchProgress, /) -> None:
        """Show a search that starts or resumes."""
        self._log.opened(progress)
        self._table.show(progress)

    def finished(self, progress: SearchProgress, trial: Trial, /) -> None:
        """Show the state of a search after a trial."""
        self._log.finished(progress, trial)
        self._table.show(progress)

    def warn(self, text: str, /) -> None:
        """Print a warning above the display."""
        self._log.warn(text)
        self._print(f"warning: {text}")

    def end(self, text: str, /) -> None:
        """Leave a line in place of the display."""
        self._last = text

    def say_last(self) -> None:
        """Print the line that was left."""
        if self._last is not None:
            self._print(self._last)

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Draw the display during the with block."""
        group = Group(self._bars, self._table)
        with Live(group, console=self._console, transient=True, refresh_per_second=8):
            yield

    def _print(self, text: str) -> None:
        self._console.print(Text(printable(text)), soft_wrap=True)

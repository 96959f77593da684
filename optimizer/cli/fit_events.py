"""The display of `blockfit fit` while it runs."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live

from optimizer.bars import bar_updates, progress_bars
from optimizer.cli.application import State
from optimizer.cli.flags import in_options
from optimizer.cli.printing import make_console, shows_progress
from optimizer.printable import printable

if TYPE_CHECKING:
    from optimizer.reports import FitLog
    from optimizer.search import SearchProgress, Trial

__all__ = ["TerminalEvents"]

# ruff: noqa: PLC0415  only the command that needs pandas and torch imports them


class TerminalEvents:
    """Handler of a fit's events: logs them, prints warnings to stderr and, on a terminal, draws a live table there.

    Attributes:
        new_trials: Number of trials that were finished.
    """

    def __init__(self, log: "FitLog") -> None:
        from optimizer.reports import LiveFit

        self._log = log
        self.new_trials = 0
        self._console = make_console(stderr=True)
        self._bars, self._table = progress_bars(self._console, shown=shows_progress(self._console)), LiveFit()
        self._update = bar_updates(self._bars)

    def progress(self, what: str, done: int, total: int, /) -> None:
        """Show the progress of the task `what` as a bar."""
        self._update(what, done, total)

    def opened(self, progress: "SearchProgress", /) -> None:
        """Show a search that starts or resumes."""
        self._log.opened(progress)
        self._table.show(progress)

    def finished(self, progress: "SearchProgress", trial: "Trial", /) -> None:
        """Show the state of a search after a finished trial."""
        self.new_trials += 1
        self._log.finished(progress, trial)
        self._table.show(progress)

    def warn(self, text: str, /) -> None:
        """Print a warning as a line that starts with the command's name."""
        text = in_options(text)
        self._log.warn(text)
        _print_line(self._console, f"blockfit: warning: {text}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the table inside the with block; with --debug also print the tracebacks of failed trials."""
        with ExitStack() as stack:
            if State.debug:
                logger, handler = logging.getLogger("blockfit"), _Tracebacks(self._console)
                logger.addHandler(handler)
                stack.callback(logger.removeHandler, handler)
            if shows_progress(self._console):
                # Redrawn 8 times a second, not after every trial: a trial may take a millisecond.
                group = Group(self._bars, self._table)
                stack.enter_context(Live(group, console=self._console, transient=True, refresh_per_second=8))
            yield


class _Tracebacks(logging.Handler):
    """A logging handler that prints the errors that do not stop a fit."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.ERROR)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            _print_line(self._console, line)


def _print_line(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)

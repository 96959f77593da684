"""What commands print: texts and JSON on stdout, problems on stderr, progress where there is a terminal."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from optimizer.cli.application import State
from optimizer.cli.flags import in_options
from optimizer.errors import BlockfitWarning
from optimizer.printable import printable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from optimizer.search import FitEvents, SearchProgress

__all__ = [
    "counted",
    "fitting",
    "make_console",
    "message",
    "print_json",
    "reading",
    "say",
    "say_problem",
    "say_warning",
    "shows_progress",
    "use_utf8",
    "warnings_as_lines",
]

# ruff: noqa: PLC0415


def counted(number: int, noun: str) -> str:
    """A number of things: "1 step", "2 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def say_problem(text: str) -> None:
    """One line on stderr, after the command's name."""
    sys.stderr.write(f"blockfit: {printable(text)}\n")


def say_warning(text: object) -> None:
    """One line on stderr of what the user should know, arguments in it told as the command's options."""
    say_problem(f"warning: {in_options(str(text))}")


def say(text: str) -> None:
    """One line on stdout, as it is, however long, and whatever it holds; none under --quiet and --json."""
    make_console().print(printable(text), markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    # JSON escapes only half of what a terminal may act upon. The rest is inside texts, where escapes mean the same.
    lines = (
        line if line.isprintable() else "".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in line)
        for line in text.split("\n")
    )
    sys.stdout.write("\n".join(lines) + "\n")


def make_console(*, stderr: bool = False) -> Console:
    """A console on stdout, or on stderr; the one on stdout shows nothing where no texts are wanted there."""
    return Console(stderr=stderr, highlight=False, quiet=not stderr and (State.quiet or State.json))


def use_utf8() -> None:
    """UTF-8 for files and pipes; a console keeps what it can show, and rich draws in ASCII where that is too little."""
    for stream in (sys.stdout, sys.stderr):
        if "PYTHONIOENCODING" not in os.environ and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        else:
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Show blockfit's own warnings as the command's lines on stderr, the same one once; others as Python does."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", BlockfitWarning)
        otherwise = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **named: Any) -> None:
            if issubclass(category, BlockfitWarning):
                say_warning(message)
            else:
                otherwise(message, category, *where, **named)

        warnings.showwarning = show
        yield


@contextmanager
def reading() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for work that reads or writes files; nothing where stderr is no terminal."""
    console = make_console(stderr=True)
    with _bars(console) as bars:
        yield _updates(bars)


@contextmanager
def fitting() -> Iterator["FitEvents"]:
    """A table on stderr of what a fit is doing, where that is a terminal, and a log line for every trial."""
    from optimizer.reports import LiveFit, log_opened, log_trial, log_warning
    from optimizer.search import FitEvents

    console = make_console(stderr=True)
    bars, table = _bars(console), LiveFit()

    def opened(progress: "SearchProgress") -> None:
        log_opened(progress)
        table.show(progress)

    def finished(progress: "SearchProgress", trial: "FrozenTrial") -> None:
        log_trial(progress, trial)
        table.show(progress)

    def warned(text: str) -> None:
        text = in_options(text)
        log_warning(text)
        console.print(f"blockfit: warning: {printable(text)}", markup=False, highlight=False, soft_wrap=True)

    events = FitEvents(_updates(bars), opened, finished, warned)
    if not shows_progress(console):
        yield events
        return
    # Drawn by the clock, not after every trial: those may take a millisecond.
    with Live(Group(bars, table), console=console, transient=True, refresh_per_second=8):
        yield events


def _updates(bars: Progress) -> Callable[[str, int, int], None]:
    """Takes what is done of each thing by its name: a bar comes when it is first told of, and goes when it is full."""
    tasks: dict[str, TaskID] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(printable(what), total=None)
        bars.update(tasks[what], completed=done, total=total, visible=done < total)

    return update


def shows_progress(console: Console) -> bool:
    """Whether progress is to be seen there: only on a terminal, and not under --quiet."""
    return console.is_terminal and not State.quiet


def _bars(console: Console) -> Progress:
    columns = (
        # Where a window is narrow, it gives way.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(table_column=Column(min_width=7)),
        TimeRemainingColumn(table_column=Column(min_width=7)),
    )
    return Progress(*columns, console=console, transient=True, disable=not shows_progress(console))


@contextmanager
def message(text: str) -> Iterator[None]:
    """Show a text on stderr meanwhile; nothing where stderr is no terminal."""
    console = make_console(stderr=True)
    if not shows_progress(console):
        yield
        return
    with console.status(text, spinner="line"):
        yield

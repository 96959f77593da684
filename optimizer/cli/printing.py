"""What commands print: texts and JSON on stdout, problems on stderr, progress where there is a terminal."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from optimizer.cli.application import State
from optimizer.errors import BlockfitWarning
from optimizer.printable import printable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from optimizer.search import FitEvents, SearchProgress

__all__ = [
    "fitting",
    "make_console",
    "message",
    "print_json",
    "reading",
    "say",
    "say_problem",
    "shows_progress",
    "use_utf8",
    "warnings_as_lines",
]

# ruff: noqa: PLC0415


def say_problem(text: str) -> None:
    """One line on stderr, after the command's name."""
    sys.stderr.write(f"blockfit: {printable(text)}\n")


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
                say_problem(f"warning: {message}")
            else:
                otherwise(message, category, *where, **named)

        warnings.showwarning = show
        yield


@contextmanager
def reading() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for work that reads or writes files; nothing where stderr is no terminal."""
    with _bars() as bars:
        task = _tasks(bars)
        yield lambda what, done, total: bars.update(task(what), completed=done, total=total)


@contextmanager
def fitting() -> Iterator["FitEvents"]:
    """Progress bars for a fit, and a log line for every trial."""
    from optimizer.reports import log_opened, log_trial, log_warning, progress_line
    from optimizer.search import FitEvents

    with _bars() as bars:
        task = _tasks(bars)

        def show(progress: "SearchProgress") -> None:
            bars.update(
                task(progress.search),
                completed=progress.done,
                total=progress.budget,
                figures=printable(progress_line(progress)),
            )

        def opened(progress: "SearchProgress") -> None:
            log_opened(progress)
            show(progress)

        def finished(progress: "SearchProgress", trial: "FrozenTrial") -> None:
            log_trial(progress, trial)
            show(progress)

        def reading(what: str, done: int, total: int) -> None:
            bars.update(task(what), completed=done, total=total, description=printable(what))

        def warned(text: str) -> None:
            log_warning(text)
            bars.console.print(f"blockfit: warning: {printable(text)}", markup=False, highlight=False, soft_wrap=True)

        yield FitEvents(reading, opened, finished, warned)


def _tasks(bars: Progress) -> Callable[[str], TaskID]:
    """A bar for each name, made when first asked for."""
    tasks: dict[str, TaskID] = {}

    def task(name: str) -> TaskID:
        if name not in tasks:
            tasks[name] = bars.add_task(printable(name), total=None, figures="")
        return tasks[name]

    return task


def shows_progress(console: Console) -> bool:
    """Whether progress is to be seen there: only on a terminal, and not under --quiet."""
    return console.is_terminal and not State.quiet


@contextmanager
def _bars() -> Iterator[Progress]:
    console = make_console(stderr=True)
    columns = (
        # Where a window is narrow, these give way.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(table_column=Column(min_width=7)),
        TimeRemainingColumn(table_column=Column(min_width=7)),
        TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=console, transient=True, disable=not shows_progress(console)) as bars:
        yield bars


@contextmanager
def message(text: str) -> Iterator[None]:
    """Show a text on stderr meanwhile; nothing where stderr is no terminal."""
    console = make_console(stderr=True)
    if not shows_progress(console):
        yield
        return
    with console.status(text, spinner="line"):
        yield

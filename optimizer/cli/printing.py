"""Output of the commands: texts and JSON on stdout; problems and, on a terminal, progress on stderr."""

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
from rich.text import Text

from optimizer.cli.application import State
from optimizer.cli.flags import in_options
from optimizer.errors import BlockfitWarning
from optimizer.printable import printable

if TYPE_CHECKING:
    from optimizer.analysis import Verdict

__all__ = [
    "bar_updates",
    "counted",
    "make_console",
    "message",
    "print_json",
    "progress_bars",
    "reading",
    "say",
    "say_problem",
    "say_verdict",
    "say_warning",
    "shows_progress",
    "use_utf8",
    "warnings_as_lines",
]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 step", "2 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def say_problem(text: str) -> None:
    """Print a line to stderr, after the command's name."""
    sys.stderr.write(f"blockfit: {printable(text)}\n")


def say_warning(text: object) -> None:
    """Print a warning to stderr, with arguments replaced by the command's options."""
    say_problem(f"warning: {in_options(str(text))}")


def say(text: str) -> None:
    """Print a line to stdout, unwrapped, with control characters escaped; print nothing with --quiet or --json."""
    make_console().print(printable(text), markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print one JSON value to stdout."""
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
    # JSON leaves some control characters unescaped. They occur only inside strings, where an escape is equivalent.
    lines = (
        line if line.isprintable() else "".join(c if printable(c) == c else json.dumps(c)[1:-1] for c in line)
        for line in text.split("\n")
    )
    sys.stdout.write("\n".join(lines) + "\n")


def make_console(*, stderr: bool = False) -> Console:
    """Return a console on stdout, silent with --quiet or --json, or one on stderr."""
    return Console(stderr=stderr, highlight=False, quiet=not stderr and (State.quiet or State.json))


def use_utf8() -> None:
    """Write UTF-8 to files and pipes; a terminal keeps its encoding, and rich falls back to ASCII if needed."""
    for stream in (sys.stdout, sys.stderr):
        if "PYTHONIOENCODING" not in os.environ and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
        else:
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each of blockfit's warnings once, as a line of the command on stderr; leave other warnings to Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", BlockfitWarning)
        show_default = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **named: Any) -> None:
            if issubclass(category, BlockfitWarning):
                say_warning(message)
            else:
                show_default(message, category, *where, **named)

        warnings.showwarning = show
        yield


@contextmanager
def reading() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a callback that shows the progress of file work on stderr, if that is a terminal."""
    console = make_console(stderr=True)
    with progress_bars(console) as bars:
        yield bar_updates(bars)


def bar_updates(bars: Progress) -> Callable[[str, int, int], None]:
    """Return a progress callback that adds a bar for each new task and hides it when it is full."""
    tasks: dict[str, TaskID] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(printable(what), total=None)
        bars.update(tasks[what], completed=done, total=total, visible=done < total)

    return update


def shows_progress(console: Console) -> bool:
    """Return whether to show progress: only on a terminal, and not with --quiet."""
    return console.is_terminal and not State.quiet


def progress_bars(console: Console) -> Progress:
    """Return progress bars for a console, disabled if that shows no progress."""
    columns = (
        # In a narrow window the description is shortened first.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=12),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(table_column=Column(min_width=7)),
        TimeRemainingColumn(table_column=Column(min_width=7)),
    )
    return Progress(*columns, console=console, transient=True, disable=not shows_progress(console))


def say_verdict(verdict: "Verdict") -> None:
    """Print a verdict to stdout: each warning as a paragraph of its own, then the sentences as another one."""
    console = make_console()
    for warning in verdict.warnings:
        console.print(Text(printable(f"ATTENTION: {warning}"), "bold"))
    if verdict.sentences:
        console.print(Text(printable(" ".join(verdict.sentences))))


@contextmanager
def message(text: str) -> Iterator[None]:
    """Show a text on stderr during the with block, if stderr is a terminal."""
    console = make_console(stderr=True)
    if not shows_progress(console):
        yield
        return
    with console.status(text, spinner="line"):
        yield

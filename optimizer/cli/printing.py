"""Output of the commands: texts and JSON on stdout; problems and, on a terminal, progress on stderr."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from optimizer.bars import bar_updates, progress_bars
from optimizer.cli.application import State
from optimizer.cli.flags import in_options
from optimizer.errors import BlockfitWarning
from optimizer.printable import printable

if TYPE_CHECKING:
    from optimizer.analysis import Verdict

__all__ = [
    "counted",
    "make_console",
    "message",
    "print_json",
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
    with progress_bars(console, shown=shows_progress(console)) as bars:
        yield bar_updates(bars)


def shows_progress(console: Console) -> bool:
    """Return whether to show progress: only on a terminal, and not with --quiet."""
    return console.is_terminal and not State.quiet


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

"""How much of long work is done: in words, and as bars on a terminal."""

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from optimizer.printable import printable

__all__ = ["bar_updates", "describe_amount", "describe_seconds", "progress_bars"]

# Files, tensors, pictures and steps are fewer; files with fewer bytes are done before anybody reads their number.
_MOST_COUNTED = 100_000
_UNITS = ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_BAR = 12  # letters
# Letters of "100% 123.4 of 123.4 GB, 123 MB/s 0:12:34" with the spaces between.
_FIGURES = 42
_WIDE, _SHORTEST_TITLE = 72, 12
# A rate over less time than this says nothing yet.
_SHORTEST = 0.5


def describe_amount(done: int, total: int, seconds: float | None = None) -> str:
    """Return how much is done: "3 of 8", or of bytes "1.2 of 15.0 GB, 410 MB/s".

    Args:
        done: The number of finished units.
        total: The number of all units; from 100,000 on they are bytes.
        seconds: The time that `done` took, for the rate of bytes.

    Returns:
        The text.
    """
    if total < _MOST_COUNTED:
        return f"{done} of {total}"
    size, unit = _unit(total)
    of_all = f"{total / size:.1f} {unit}"
    amount = of_all if done >= total else f"{done / size:.1f} of {of_all}"
    if seconds is None or seconds < _SHORTEST or not done:
        return amount
    size, unit = _unit(round(done / seconds))
    return f"{amount}, {done / seconds / size:.0f} {unit}/s"


def describe_seconds(seconds: float) -> str:
    """Return a duration: "3.2 s", "1 min 12 s", "2 h 5 min"."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _unit(size: int) -> tuple[int, str]:
    return next((entry for entry in _UNITS if size >= entry[0]), _UNITS[-1])


class _Amount(ProgressColumn):
    """The amount and the rate of a task."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        return Text(describe_amount(int(task.completed), int(task.total), task.elapsed))


def progress_bars(console: Console, *, shown: bool) -> Progress:
    """Return progress bars for a console; without `shown` they stay invisible."""
    bar = _BAR if console.width >= _WIDE else 0
    # In a narrow window the description is shortened.
    room = max(console.width - bar - _FIGURES, _SHORTEST_TITLE)
    title = Column(no_wrap=True, overflow="ellipsis", max_width=room)
    columns = (
        TextColumn("{task.description}", markup=False, table_column=title),
        *([BarColumn(bar_width=bar)] if bar else []),
        TextColumn("{task.percentage:>3.0f}%"),
        _Amount(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    )
    return Progress(*columns, console=console, transient=True, disable=not shown)


def bar_updates(bars: Progress) -> Callable[[str, int, int], None]:
    """Return a progress callback that adds a bar for each new task and hides it when it is full."""
    tasks: dict[str, TaskID] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(printable(what), total=None)
        bars.update(tasks[what], completed=done, total=total, visible=done < total)

    return update

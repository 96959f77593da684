"""The live table of a running fit."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from rich import box
from rich.console import Console, ConsoleOptions, OverflowMethod, RenderResult
from rich.table import Table
from rich.text import Text

from optimizer.printable import printable
from optimizer.reports.tables import percent
from optimizer.search import SearchProgress

__all__ = ["LiveFit"]

_BAR = 12
# Letters of "OUT03 ############ 97.4805%" and the space to the next column.
_BLOCK_WIDTH = 6 + _BAR + 11
# Bars end in eighths of a letter, to show differences of a hundredth of their length.
_EIGHTHS = " ▏▎▍▌▋▊▉█"
# (width in letters, columns left out of windows that have at least this width but less than the previous one).
_DROPPED = ((96, ()), (76, ("metric",)), (60, ("metric", "step")), (0, ("metric", "step", "s/trial", "until")))
# Letters of a time of day in the column `until`; a time on another day is longer.
_TIME = 5
# Lines that borders, heading and spacing take: of the table, and of the bars below it.
_AROUND_ROWS, _AROUND_BARS = 5, 2


class LiveFit:
    """A table of a fit's searches (step, trials, best similarity), and a bar per block of the running search.

    A renderable for `rich.live.Live`: `show` stores the state of a search, and the next refresh draws it. A window with
    too few lines shows no bars, then only the last searches.
    """

    def __init__(self) -> None:
        self._searches: dict[str, SearchProgress] = {}
        self._running: str | None = None

    def show(self, progress: SearchProgress) -> None:
        """Store the state of the running search."""
        self._running = progress.search
        self._searches[progress.search] = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table and, below it, the bars."""
        if self._running is None:
            return
        running = self._searches[self._running]
        height = (options.height or console.size.height) - _AROUND_ROWS
        lines = list(_block_bars(running.best_blocks, options.max_width, ascii_only=options.ascii_only))
        if len(lines) + _AROUND_BARS + 1 > height:
            lines = []
        rows = list(self._searches.values())
        left = max(height - (len(lines) + _AROUND_BARS if lines else 0), 1)
        if len(rows) > left:
            kept = max(left - 1, 1)
            yield Text(f"{len(rows) - kept} earlier searches are done", no_wrap=True, overflow="crop")
            rows = rows[-kept:]
        yield _table(rows, running, options.max_width, ascii_only=options.ascii_only)
        yield from lines


def _table(rows: list[SearchProgress], running: SearchProgress, width: int, *, ascii_only: bool) -> Table:
    table = Table(box=box.ROUNDED)
    cells: dict[str, Sequence[Text | str]] = {
        "search": [Text(printable(search.search)) for search in rows],
        "step": [Text(printable(search.step)) for search in rows],
        "metric": [search.metric for search in rows],
        "trials": [f"{search.done}/{search.budget}" for search in rows],
        "best": ["-" if search.best is None else percent(search.best) for search in rows],
        "s/trial": ["-" if search.seconds_per_trial is None else f"{search.seconds_per_trial:.3f}" for search in rows],
        "until": [_until(search) for search in rows],
        "workers": [str(search.workers) for search in rows],
    }
    # A date beside the time takes width; the column of the trials has priority.
    room = width - max(max(map(len, cells["until"])) - _TIME, 0)
    dropped = next(names for least, names in _DROPPED if room >= least)
    if max(search.workers for search in rows) == 1:
        dropped = (*dropped, "workers")
    shown = [heading for heading in cells if heading not in dropped]
    # The ellipsis is not an ASCII character.
    overflow: OverflowMethod = "crop" if ascii_only else "ellipsis"
    for heading in shown:
        if heading in ("search", "step"):
            table.add_column(heading, no_wrap=True, overflow=overflow, max_width=max(width // 4, 6))
        else:
            table.add_column(heading, no_wrap=True, justify="left" if heading == "metric" else "right")
    for position, search in enumerate(rows):
        now = search is running and search.done < search.budget
        table.add_row(*(cells[heading][position] for heading in shown), style="bold" if now else "")
    return table


def _until(progress: SearchProgress) -> str:
    """Return the expected end of a search, to the minute, with the date unless it is today."""
    if progress.done >= progress.budget:
        return "done"
    if progress.seconds_left is None:
        return "-"
    now = datetime.now()
    ends = now + timedelta(seconds=progress.seconds_left)
    return ends.strftime("%H:%M" if ends.date() == now.date() else "%m-%d %H:%M")


def _block_bars(similarities: Mapping[str, float], width: int, *, ascii_only: bool) -> Iterator[Text]:
    """Yield lines with a bar per block, in as many columns as fit `width` letters, filled column by column."""
    finite = [value for value in similarities.values() if math.isfinite(value)]
    if not finite:
        return
    # The lowest similarity fills a fifth of a bar, so that the bars show the differences.
    low = 1 - 1.25 * (1 - min(finite))
    columns = max(width // _BLOCK_WIDTH, 1)
    count = math.ceil(len(similarities) / columns)
    cells = [
        Text.assemble(
            f"{block:<5} ",
            (_bar((value - low) / (1 - low) if low < 1 else 1.0, ascii_only), "cyan"),
            f" {percent(value):>9}",
            no_wrap=True,
            overflow="crop",
        )
        for block, value in similarities.items()
    ]
    yield Text(f"Similarity by block, bars from {100 * low:.4g} % to 100 %:", no_wrap=True, overflow="crop")
    for line in range(count):
        yield Text("  ", no_wrap=True, overflow="crop").join(cells[line::count])
    yield Text()


def _bar(share: float, ascii_only: bool) -> str:
    share = min(max(share, 0.0), 1.0) if math.isfinite(share) else 0.0
    if ascii_only:
        return ("#" * round(share * _BAR)).ljust(_BAR, ".")
    whole, eighths = divmod(round(share * _BAR * 8), 8)
    return ("█" * whole + (_EIGHTHS[eighths] if eighths else "")).ljust(_BAR)

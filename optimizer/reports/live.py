"""What a fit is doing, as a table that a terminal draws anew while it runs."""

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
# "OUT03 ############ 97.4805%", and the space to the next one.
_BLOCK_WIDTH = 6 + _BAR + 11
# Eighths of a letter, so that bars show differences of a hundredth of their length.
_EIGHTHS = " ▏▎▍▌▋▊▉█"
# Columns that windows narrower than so many letters do without.
_DROPPED = ((96, ()), (76, ("metric",)), (60, ("metric", "step")), (0, ("metric", "step", "s/trial", "until")))
# Letters of a time of the day, in the column that tells when a search ends: of another day there are more.
_TIME = 5
# Lines around the rows of the table, and around the bars below it.
_AROUND_ROWS, _AROUND_BARS = 5, 2


class LiveFit:
    """A table of the searches of a fit (step, trials, best similarity), and a bar for each block of the one that runs.

    For `rich.live.Live`: `show` takes in how a search stands, and the next drawing shows it. A window that is too low
    shows fewer bars and the last of the searches only.
    """

    def __init__(self) -> None:
        self._searches: dict[str, SearchProgress] = {}
        self._running: str | None = None

    def show(self, progress: SearchProgress) -> None:
        """Take in how a search stands: it is the one that runs now."""
        self._running = progress.search
        self._searches[progress.search] = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, and below it the bars."""
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
        "search": [Text(printable(one.search)) for one in rows],
        "step": [Text(printable(one.step)) for one in rows],
        "metric": [one.metric for one in rows],
        "trials": [f"{one.done}/{one.budget}" for one in rows],
        "best": ["-" if one.best is None else percent(one.best) for one in rows],
        "s/trial": ["-" if one.seconds_per_trial is None else f"{one.seconds_per_trial:.3f}" for one in rows],
        "until": [_until(one) for one in rows],
        "workers": [str(one.workers) for one in rows],
    }
    # A day beside the time takes room that the trials need more.
    room = width - max(max(map(len, cells["until"])) - _TIME, 0)
    dropped = next(names for least, names in _DROPPED if room >= least)
    if max(one.workers for one in rows) == 1:
        dropped = (*dropped, "workers")
    shown = [heading for heading in cells if heading not in dropped]
    # The sign for text left out is no ASCII character.
    overflow: OverflowMethod = "crop" if ascii_only else "ellipsis"
    for heading in shown:
        if heading in ("search", "step"):
            table.add_column(heading, no_wrap=True, overflow=overflow, max_width=max(width // 4, 6))
        else:
            table.add_column(heading, no_wrap=True, justify="left" if heading == "metric" else "right")
    for position, one in enumerate(rows):
        now = one is running and one.done < one.budget
        table.add_row(*(cells[heading][position] for heading in shown), style="bold" if now else "")
    return table


def _until(progress: SearchProgress) -> str:
    """When the search will be done, to the minute, and on which day unless today."""
    if progress.done >= progress.budget:
        return "done"
    if progress.seconds_left is None:
        return "-"
    now = datetime.now()
    ends = now + timedelta(seconds=progress.seconds_left)
    return ends.strftime("%H:%M" if ends.date() == now.date() else "%m-%d %H:%M")


def _block_bars(similarities: Mapping[str, float], width: int, *, ascii_only: bool) -> Iterator[Text]:
    """A bar for each block, as many beside each other as `width` letters hold, downwards first."""
    finite = [value for value in similarities.values() if math.isfinite(value)]
    if not finite:
        return
    # The lowest is a fifth of a bar: what differs is shown, not the 97 % that all have.
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

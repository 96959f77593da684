"""Terminal listings of a checkpoint's contents, a study's progress and a contact sheet's distances."""

from collections.abc import Iterator
from datetime import datetime
from statistics import fmean
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from optimizer.library import Inspection, Provenance
from optimizer.printable import printable
from optimizer.reports.tables import percent
from optimizer.search import StudyStatus

if TYPE_CHECKING:
    from optimizer.pictures import Preview

__all__ = ["inspection_table", "preview_table", "status_table"]


def inspection_table(inspection: Inspection) -> Group:
    """Return the facts about a checkpoint and, below them, its tensors and parameters per block."""
    facts = Table.grid(padding=(0, 2))
    rows = {
        "file": str(inspection.file),
        "kind": "not known" if inspection.kind is None else str(inspection.kind),
        "layout": inspection.layout or "not known",
        "format": inspection.format,
        "size": f"{inspection.size / 1e6:,.1f} MB",
        "contents": f"{inspection.tensors:,} tensors, {inspection.parameters / 1e6:,.1f} M parameters",
        "dtypes": ", ".join(f"{name}: {count}" for name, count in inspection.dtypes.items()),
        "sha256": inspection.sha256 or "not computed",
        "short hash": inspection.short_hash or "not computed",
        "fingerprint": inspection.fingerprint,
    }
    for name, value in rows.items():
        facts.add_row(name, Text(printable(value), overflow="fold"))
    shown_fields = inspection.merge.fields if inspection.merge else ()
    if inspection.merge:
        for name, value in _merge_rows(inspection.merge):
            facts.add_row(name, Text(printable(value), overflow="fold"))
    for name, metadata in inspection.metadata.items():
        if name in shown_fields:
            continue
        facts.add_row(Text(f"metadata {_short(name)}"), Text(_short(metadata), overflow="fold"))
    for position, sentence in enumerate(inspection.unusual):
        facts.add_row("unusual" if position == 0 else "", Text(printable(sentence), overflow="fold"))
    if not inspection.blocks:
        return Group(facts, Text())
    table = Table(title="merged tensors per block", title_justify="left")
    for heading in ("block", "tensors", "parameters"):
        table.add_column(heading, justify="left" if heading == "block" else "right")
    for block, counts in inspection.blocks.items():
        table.add_row(block, f"{counts['tensors']:,}", f"{counts['parameters']:,}")
    return Group(facts, table, Text())


def status_table(found: StudyStatus) -> Group:
    """Return one row per search (trials done and left, best similarity, time in seconds) and, below, the workers."""
    # Counts that are 0 in all searches, as in most studies, have no column.
    counted = [name for name in ("running", "failed", "lost") if any(getattr(entry, name) for entry in found.searches)]
    table = Table(title="searches", title_justify="left")
    for heading in ("search", "metric", "trials", *counted, "best", "in trial", "s/trial", "left"):
        table.add_column(heading, justify="left" if heading in ("search", "metric") else "right")
    for entry in found.searches:
        table.add_row(
            Text(printable(entry.search)),
            entry.metric,
            f"{entry.completed}/{entry.budget}",
            *(str(getattr(entry, name)) for name in counted),
            "-" if entry.best is None else percent(entry.best),
            "-" if entry.best_trial is None else str(entry.best_trial),
            "-" if entry.seconds_per_trial is None else f"{entry.seconds_per_trial:.3f}",
            "-" if entry.seconds_left is None else _duration(entry.seconds_left),
        )
    verdict = [] if found.verdict is None else [Text(printable(found.verdict))]
    return Group(table, *(Text(line) for line in _summary_lines(found)), *verdict)


def preview_table(found: "Preview") -> Group:
    """Return the mean distances to the target of every other column of a contact sheet."""
    pictures = len(found.target.drawn)
    counted = "1 picture" if pictures == 1 else f"mean of {pictures} pictures"
    title = Text(printable(f"root mean square distance to {found.target.name}, {counted}"))
    table = Table()
    for heading in ("", "", "latent", "pixel"):
        table.add_column(heading, justify="right" if heading else "left")
    for column in found.others:
        latent, pixel = fmean(found.latent_distances(column)), fmean(found.pixel_distances(column))
        table.add_row(column.role, Text(printable(column.name), overflow="fold"), f"{latent:#.3g}", f"{pixel:#.3g}")
    return Group(title, table)


def _summary_lines(found: StudyStatus) -> Iterator[str]:
    """Yield the lines below the table: trials in total, workers and expected end."""
    completed = sum(min(entry.completed, entry.budget) for entry in found.searches)
    budget = sum(entry.budget for entry in found.searches)
    yield f"in all: {completed} of {budget} trials"
    if not found.workers:
        done = completed >= budget
        yield "workers: none" + ("" if done else "; `blockfit fit` continues")
        return
    yield f"workers: {len(found.workers)} alive ({', '.join(map(str, found.workers))})"
    if found.seconds_left is not None and found.ends is not None:
        today = found.ends.date() == datetime.now().date()
        when = found.ends.strftime("%H:%M" if today else "%Y-%m-%d %H:%M")
        yield f"expected end: {when}, in {_duration(found.seconds_left)}"


def _duration(seconds: float) -> str:
    """Return a time span in at most two units: "1 h 05 min"."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24:02} h"


def _merge_rows(merge: Provenance) -> Iterator[tuple[str, str]]:
    """Yield the rows on how a file was merged; continuation rows have an empty label."""
    alphas = {True: ", alphas per block", False: ", one alpha for all blocks", None: ""}[merge.per_block]
    yield "merged by", merge.tool + alphas
    for label, lines in (("method", merge.method), ("from", map(str, merge.models))):
        for position, line in enumerate(lines):
            yield "" if position else label, line


def _short(value: object) -> str:
    text = str(value)
    text = text if len(text) <= 300 else f"{text[:297]}..."
    # Metadata is untrusted: escape sequences could manipulate the terminal.
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)

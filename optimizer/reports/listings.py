"""Terminal listings of what is in files: a checkpoint, and the state of a study."""

from collections.abc import Iterator, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from optimizer.checkpoints import Inspection, Provenance
from optimizer.printable import printable
from optimizer.search import SearchStatus

__all__ = ["inspection_table", "status_table"]


def inspection_table(inspection: Inspection) -> Group:
    """What a checkpoint holds, and below it tensors and parameters per block."""
    facts = Table.grid(padding=(0, 2))
    rows = {
        "file": str(inspection.file),
        "layout": inspection.layout or "not known",
        "format": inspection.format,
        "size": f"{inspection.size / 1e6:,.1f} MB",
        "holds": f"{inspection.tensors:,} tensors, {inspection.parameters / 1e6:,.1f} M parameters",
        "dtypes": ", ".join(f"{name}: {count}" for name, count in inspection.dtypes.items()),
        "sha256": inspection.sha256 or "not computed",
        "short hash": inspection.short_hash or "not computed",
        "fingerprint": inspection.fingerprint,
    }
    for name, value in rows.items():
        facts.add_row(name, Text(printable(value), overflow="fold"))
    told = inspection.merge.fields if inspection.merge else ()
    if inspection.merge:
        for name, value in _merge_rows(inspection.merge):
            facts.add_row(name, Text(printable(value), overflow="fold"))
    for name, metadata in inspection.metadata.items():
        if name in told:
            continue
        facts.add_row(Text(f"metadata {_short(name)}"), Text(_short(metadata), overflow="fold"))
    for position, sentence in enumerate(inspection.unusual):
        facts.add_row("unusual" if position == 0 else "", Text(printable(sentence), overflow="fold"))
    if not inspection.blocks:
        return Group(facts, Text())
    table = Table(title="what merges, per block", title_justify="left")
    for heading in ("block", "tensors", "parameters"):
        table.add_column(heading, justify="left" if heading == "block" else "right")
    for block, counts in inspection.blocks.items():
        table.add_row(block, f"{counts['tensors']:,}", f"{counts['parameters']:,}")
    return Group(facts, table, Text())


def status_table(found: Sequence[SearchStatus]) -> Table:
    """One row for each Optuna study: trials done and to do, and the best similarity."""
    table = Table(title="searches", title_justify="left")
    for heading in ("search", "metric", "trials", "failed", "best", "in trial", "s/trial"):
        table.add_column(heading, justify="left" if heading in ("search", "metric") else "right")
    for entry in found:
        table.add_row(
            Text(printable(entry.search)),
            entry.metric,
            f"{entry.completed}/{entry.budget}",
            str(entry.failed),
            "-" if entry.best is None else f"{100 * entry.best:.4f}%",
            "-" if entry.best_trial is None else str(entry.best_trial),
            "-" if entry.seconds_per_trial is None else f"{entry.seconds_per_trial:.3f}",
        )
    return table


def _merge_rows(merge: Provenance) -> Iterator[tuple[str, str]]:
    """How a file was merged, in a few rows; continued ones have no name."""
    told = {True: ", alphas per block", False: ", one alpha for all blocks", None: ""}[merge.per_block]
    yield "merged by", merge.tool + told
    for label, lines in (("method", merge.method), ("from", map(str, merge.models))):
        for position, line in enumerate(lines):
            yield "" if position else label, line


def _short(value: object) -> str:
    text = str(value)
    text = text if len(text) <= 300 else f"{text[:297]}..."
    # A stranger's escape sequences could do anything to a terminal.
    return "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in text)

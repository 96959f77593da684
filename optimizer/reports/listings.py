"""Terminal listings of what is in files: a checkpoint, and the state of a study."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from optimizer.checkpoints import Inspection
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
        facts.add_row(name, Text(value, overflow="fold"))
    for name, metadata in inspection.metadata.items():
        facts.add_row(f"metadata {name}", Text(_short(metadata), overflow="fold"))
    for position, sentence in enumerate(inspection.unusual):
        facts.add_row("unusual" if position == 0 else "", Text(sentence, overflow="fold"))
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
            Text(entry.search),
            entry.metric,
            f"{entry.completed}/{entry.budget}",
            str(entry.failed),
            "-" if entry.best is None else f"{100 * entry.best:.4f}%",
            "-" if entry.best_trial is None else str(entry.best_trial),
            "-" if entry.seconds_per_trial is None else f"{entry.seconds_per_trial:.3f}",
        )
    return table


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 300 else f"{text[:297]}..."

"""What a fit found, for people. This front shows what a terminal prints; the modules frames, trials, plots and page,
which load pandas or matplotlib, and dashboard, which needs an extra, are imported by their names."""

from optimizer.reports.ceilings import ceiling_tables
from optimizer.reports.listings import inspection_table, preview_table, status_table
from optimizer.reports.live import LiveFit
from optimizer.reports.logs import fit_logs, log_end, log_opened, log_trial, log_warning
from optimizer.reports.simple import simple_recipe
from optimizer.reports.tables import (
    block_table,
    candidates_table,
    simplified_table,
    spread_table,
    steps_table,
    verified_table,
)

__all__ = [
    "LiveFit",
    "block_table",
    "candidates_table",
    "ceiling_tables",
    "fit_logs",
    "inspection_table",
    "log_end",
    "log_opened",
    "log_trial",
    "log_warning",
    "preview_table",
    "simple_recipe",
    "simplified_table",
    "spread_table",
    "status_table",
    "steps_table",
    "verified_table",
]

"""The results of a fit for people: terminal tables, logs, data frames, plots, the HTML report and the dashboard.

Only tables and logs are exported here: frames, trials, plots, page and dashboard load heavy libraries; import them.
"""

from optimizer.reports.ceilings import ceiling_summary, ceiling_tables
from optimizer.reports.listings import inspection_table, preview_table, status_table
from optimizer.reports.live import LiveFit
from optimizer.reports.logs import FitLog, open_fit_log
from optimizer.reports.simple import simple_recipe
from optimizer.reports.tables import (
    block_table,
    candidates_table,
    percent,
    simplified_table,
    spread_table,
    steps_table,
    verified_table,
)

__all__ = [
    "FitLog",
    "LiveFit",
    "block_table",
    "candidates_table",
    "ceiling_summary",
    "ceiling_tables",
    "inspection_table",
    "open_fit_log",
    "percent",
    "preview_table",
    "simple_recipe",
    "simplified_table",
    "spread_table",
    "status_table",
    "steps_table",
    "verified_table",
]

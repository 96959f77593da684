"""What a fit found, for people: tables (pandas, rich), plots (matplotlib, without a display) and the report page."""

from optimizer.reports.ceilings import ceiling_tables
from optimizer.reports.dashboard import serve_dashboard
from optimizer.reports.frames import alphas_frame, ceiling_frame, coefficients_frame, similarity_frame, sources_frame
from optimizer.reports.listings import inspection_table, preview_table, status_table
from optimizer.reports.live import LiveFit
from optimizer.reports.logs import FitLog, open_fit_log
from optimizer.reports.page import check_report_name, report_figures, write_report
from optimizer.reports.plots import figures, write_plots
from optimizer.reports.simple import simple_recipe
from optimizer.reports.tables import (
    block_table,
    candidates_table,
    simplified_table,
    spread_table,
    steps_table,
    trials_table,
    verified_table,
    write_trials,
)

__all__ = [
    "FitLog",
    "LiveFit",
    "alphas_frame",
    "block_table",
    "candidates_table",
    "ceiling_frame",
    "ceiling_tables",
    "check_report_name",
    "coefficients_frame",
    "figures",
    "inspection_table",
    "open_fit_log",
    "preview_table",
    "report_figures",
    "serve_dashboard",
    "similarity_frame",
    "simple_recipe",
    "simplified_table",
    "sources_frame",
    "spread_table",
    "status_table",
    "steps_table",
    "trials_table",
    "verified_table",
    "write_plots",
    "write_report",
    "write_trials",
]

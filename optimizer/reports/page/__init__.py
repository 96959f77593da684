"""The report page: one HTML file that holds all it needs, drawn up from what a study has found."""

from optimizer.reports.page.writing import check_report_name, report_figures, write_report

__all__ = ["check_report_name", "report_figures", "write_report"]

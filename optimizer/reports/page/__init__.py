"""The report page: a study's results as a single HTML file that loads nothing else."""

from optimizer.reports.page.contents import Page
from optimizer.reports.page.writing import check_report_name, report_figures, write_report

__all__ = ["Page", "check_report_name", "report_figures", "write_report"]

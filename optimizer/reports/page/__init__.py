"""The report page: one HTML file that holds all it needs, drawn up from what a study has found."""

from optimizer.reports.page.licenses import License, Standing, license_of
from optimizer.reports.page.writing import check_report_name, report_figures, report_page, write_report

__all__ = ["License", "Standing", "check_report_name", "license_of", "report_figures", "report_page", "write_report"]

"""One self-contained HTML page that shows what a run made, from what, and how well."""

from ojak.report.page import render, write_report

__all__ = ["render", "write_report"]

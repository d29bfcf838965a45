"""A page for a run: `report.html`, self-contained, readable on a phone, written from what the run folder holds.

The page is built as text from typed artifacts (`markup` escapes everything); its charts are data (`charts`), drawn in
the browser by uPlot, which travels inside the page.
"""

from edgetune.report.page import write_plan_page as write_plan_page
from edgetune.report.page import write_report as write_report

__all__ = ["write_plan_page", "write_report"]

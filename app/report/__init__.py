"""A pipeline of stages as a table and as one page.

`runs` reads, `predictions` runs models, `page` writes.

All it needs to know of a stage is in the stage's folder.
"""

from __future__ import annotations

from app.report.page import write_report
from app.report.runs import PipelineRun, Row, format_table, table

__all__ = ['PipelineRun', 'Row', 'format_table', 'table', 'write_report']

"""The runs of a pipeline as a table and as one page.

`runs` and `events` read folders, `predictions` runs models, `figures` draws, `page` writes.

Everything that is reported about a run is read from its folder.
"""

from __future__ import annotations

from app.report.page import write_report
from app.report.runs import Row, format_table, table

__all__ = ['Row', 'format_table', 'table', 'write_report']

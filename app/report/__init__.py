"""A run, or the runs of a pipeline, as one page; those of a pipeline also as a table.

`runs` and `events` read folders, `predictions` runs models, `figures` and `embedding_map` draw,
`summary`, `settings`, `data_part`, `training_part`, `images_part` and `next_steps` are the parts
of the page, and `page` writes it.

Everything that is reported about a run is read from its folder.
"""

from __future__ import annotations

from app.report.page import report_on, write_report
from app.report.runs import Row, format_table, table

__all__ = ['Row', 'format_table', 'report_on', 'table', 'write_report']

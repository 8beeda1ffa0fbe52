"""Exports an encoder as a TensorFlow Hub module, checks it by loading it, and renames it."""

from __future__ import annotations

from hub_export.module import plain_copy
from hub_export.publish import ExportError, check_place, export_module
from hub_export.record import ModuleRecord, read_record

__all__ = [
    'ExportError',
    'ModuleRecord',
    'check_place',
    'export_module',
    'plain_copy',
    'read_record',
]

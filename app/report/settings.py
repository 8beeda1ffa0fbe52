"""The settings of a run that differ from the defaults, as a table."""

from __future__ import annotations

from typing import Any

from app.config.schema import DEFAULTS, OPTIONS, SECTIONS, is_read
from app.presets import PRESETS
from app.report import markup
from app.report.runs import Run

# They say nothing about what was trained.
_LEFT_OUT = ('mode', 'preset', 'model_dir', 'verbosity', 'report', 'allow_changes')


def settings(run: Run) -> str:
    """The table, as HTML."""
    lines = [
        markup.row(f'--{name}', [_shown(value), _shown(default), origin])
        for name, value, default, origin in differing(run)
    ]
    if not lines:
        return '<p>All settings have their defaults.</p>'
    columns = ('Setting', 'Value', 'Default', 'Chosen by')
    return f'<div class="left settings">{markup.table("Settings", columns, lines)}</div>'


def differing(run: Run) -> list[tuple[str, Any, Any, str]]:
    """Name, value, default, and who chose the value, of each setting that differs."""
    values = {**DEFAULTS, **run.values}
    defaults = {**DEFAULTS, **run.config.learning.entry.defaults}
    inference = {field for field in vars(SECTIONS['inference']()) if field in OPTIONS}
    names = [name for name in OPTIONS if name not in _LEFT_OUT and name not in inference]
    return [
        (name, values[name], defaults[name], _origin(run, name))
        for name in names
        if values[name] != defaults[name] and is_read(name, values)
    ]


def _origin(run: Run, name: str) -> str:
    """Who chose the value of a setting."""
    preset, value = run.values.get('preset'), run.values.get(name)
    if run.planned.given.get(name) == value:
        return 'flag'
    if preset in PRESETS and PRESETS[preset].flags.get(name) == value:
        return f'preset {preset}'
    return 'the program'


def _shown(value: Any) -> str:
    return 'unset' if value is None else str(value)

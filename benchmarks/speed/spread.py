"""Formats the figures of several runs."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], unit: str = '') -> str:
    """'MEDIAN (LOWEST to HIGHEST)', to three digits."""
    middle = _three_digits(statistics.median(values))
    low, high = (_three_digits(value) for value in (min(values), max(values)))
    return f'{middle}{unit} ({low} to {high})'


def _three_digits(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f'{value:,.{digits}f}'

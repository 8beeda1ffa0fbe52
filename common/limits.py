"""Limits that several rooms keep to."""

from __future__ import annotations

SMALL_IMAGE = 32  # pixels; up to here the stem keeps the resolution and evaluation sees all

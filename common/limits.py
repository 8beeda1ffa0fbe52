"""Limits that several packages share."""

from __future__ import annotations

SMALL_IMAGE = 32  # pixels; up to this size, the stem keeps the resolution and nothing is cropped

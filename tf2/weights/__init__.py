"""Weights for `--checkpoint`, of any format, loaded with a report of every variable."""

from __future__ import annotations

from tf2.weights.load_report import Report
from tf2.weights.weights import Weights, check_compatible, config_for, open_weights

__all__ = ['Report', 'Weights', 'check_compatible', 'config_for', 'open_weights']

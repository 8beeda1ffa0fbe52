"""Effective rank of the representation (Roy & Vetterli 2007, EUSIPCO)."""

from __future__ import annotations

import math

import numpy as np

from tf2.evaluators.base import RowStatistic, finite


def effective_rank(embeddings: np.ndarray) -> float:
    """Exponential of the entropy of the singular values, divided by their sum.

    Args:
        embeddings: [n, d] float, neither centered nor normalized.

    Returns:
        A value from 1, if all rows are multiples of one row, to min(n, d), if all singular values
        are equal; 0 if all rows are zero, NaN if a value is not finite.
    """
    if not finite(embeddings):
        return math.nan
    values = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    shares = values[values > 0] / max(values.sum(), np.finfo(np.float64).tiny)
    # Without nonzero singular values the formula would give exp(0).
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0


class EffectiveRank(RowStatistic):
    """Effective rank of the representation: from 1 to its width."""

    name = 'eval/effective_rank'
    compute = staticmethod(effective_rank)

"""Effective rank of the representation (Roy & Vetterli 2007, EUSIPCO)."""

from __future__ import annotations

import math

import numpy as np

from tf2.evaluators.base import Inputs, Result, finite, some_rows


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
    # Without a nonzero singular value the formula would give exp(0).
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0


class EffectiveRank:
    """Effective rank of the features of the evaluation split, `base.MOST_ROWS` of them at most.

    Args:
        inputs: `samples` is used.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._samples = inputs.samples

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there are features."""
        return inputs.embed is not None

    def run(self) -> list[Result]:
        """('eval/effective_rank', from 1 to the width of the representation)."""
        rows = some_rows(self._samples.evaluation().embeddings)
        return [('eval/effective_rank', effective_rank(rows))]

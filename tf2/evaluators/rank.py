"""Effective rank of the representation (Roy & Vetterli 2007, EUSIPCO)."""

from __future__ import annotations

import math

import numpy as np

from tf2.evaluators.base import Inputs, Result, finite, some_rows


def effective_rank(embeddings: np.ndarray) -> float:
    """Exponential of the entropy of the singular values, divided by their sum.

    Args:
        embeddings: [n, d] float, as they are: neither centred nor scaled.

    Returns:
        From 1, where all rows are multiples of one, to min(n, d), where all singular values are
        equal. 0 without any row that is not zero, NaN of NaN.
    """
    if not finite(embeddings):
        return math.nan
    values = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    shares = values[values > 0] / max(values.sum(), np.finfo(np.float64).tiny)
    # Without any the entropy is that of nothing, and exp(0) would say 1.
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

"""Uniformity on the unit sphere (Wang & Isola 2020, arXiv:2005.10242, section 4.1.2)."""

from __future__ import annotations

import numpy as np

from tf2.evaluators.base import RowStatistic, TooFewError, unit_rows

_ROWS_AT_A_TIME = 512


def uniformity(embeddings: np.ndarray) -> float:
    """Log of the mean of exp(-2 ||x - y||²) over pairs of different rows: l_uniform, t = 2.

    Args:
        embeddings: [n, d] float, not yet L2-normalized.

    Returns:
        A value in [-8, 0]: 0 if all rows agree, about -4 if they are uniform on a sphere of many
        dimensions.

    Raises:
        TooFewError: if n < 2.
    """
    if len(embeddings) < 2:
        raise TooFewError(
            f'--evaluators=uniformity needs two images to evaluate; found {len(embeddings)}. Leave '
            'it out, or choose another --eval_split.'
        )
    rows = unit_rows(embeddings)
    squares, total = np.sum(rows**2, axis=1), 0.0  # [n]
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        distances = squares[part, None] + squares - 2 * rows[part] @ rows.T  # [part, n]
        total += np.exp(-2 * np.maximum(distances, 0)).sum()
    # Leaves out the n comparisons of a row with itself, whose distance is 0.
    n = len(rows)
    return float(np.log((total - n) / (n * (n - 1))))


class Uniformity(RowStatistic):
    """Uniformity of the representation, a value in [-8, 0]."""

    name = 'eval/uniformity'
    compute = staticmethod(uniformity)

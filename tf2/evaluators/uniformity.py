"""How evenly images spread over the unit sphere (Wang & Isola 2020, arXiv:2005.10242)."""

from __future__ import annotations

import numpy as np

from tf2.evaluators.base import Inputs, Result, TooFewError, some_rows, unit_rows

_ROWS_AT_A_TIME = 512


def uniformity(embeddings: np.ndarray) -> float:
    """Logarithm of the mean of exp(-2 d²) over all pairs: section 4.1.2's loss, t = 2.

    Args:
        embeddings: [n, d] float, n >= 2, scaled to length 1 here; d² is the squared distance of
            two different rows.

    Returns:
        0 where all rows agree, about -4 where they spread evenly over a sphere of many dimensions;
        at least -8.
    """
    rows = unit_rows(embeddings)
    squares, total = np.sum(rows**2, axis=1), 0.0  # [n]
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        distances = squares[part, None] + squares - 2 * rows[part] @ rows.T  # [part, n]
        total += np.exp(-2 * np.maximum(distances, 0)).sum()
    # Every row was compared with itself too, at distance 0, and every pair came twice.
    n = len(rows)
    return float(np.log((total - n) / (n * (n - 1))))


class Uniformity:
    """Uniformity of the features of the evaluation split, `base.MOST_ROWS` of them at most.

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
        """('eval/uniformity', at most 0).

        Raises:
            TooFewError: when there are no two images.
        """
        rows = some_rows(self._samples.evaluation().embeddings)
        if len(rows) < 2:
            raise TooFewError(
                f'--evaluators=uniformity needs two images to evaluate; found {len(rows)}. Leave '
                'it out, or choose another --eval_split.'
            )
        return [('eval/uniformity', uniformity(rows))]

"""Alignment of positive pairs (Wang & Isola 2020, arXiv:2005.10242, section 4.1.1)."""

from __future__ import annotations

import numpy as np

from tf2.evaluators.base import MOST_ROWS, Inputs, Result, TooFewError, unit_rows
from tf2.features import EMBEDDING


def alignment(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared distance between L2-normalized embeddings of two views: l_align, alpha = 2.

    Args:
        first: [n, d] float, not yet normalized.
        second: [n, d] float, of the same images.

    Returns:
        A value in [0, 4]: 0 if the views of each image agree, 2 if they are orthogonal.
    """
    return float(np.mean(np.sum((unit_rows(first) - unit_rows(second)) ** 2, axis=1)))


class Alignment:
    """Alignment of augmented views in the evaluation split, of `MOST_ROWS` images at most.

    Args:
        inputs: `samples` and `pairs` are used.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._pairs, self._pass = inputs.pairs, inputs.samples.feature_pass
        inputs.samples.expect(EMBEDDING)

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there are features, and pairs of views."""
        return bool(inputs.embed and inputs.pairs)

    def run(self) -> list[Result]:
        """('eval/alignment', mean squared distance).

        Raises:
            TooFewError: if there is no image.
        """
        parts, count = [], 0
        for batch in self._pairs():
            views = batch['views'][:2]
            parts.append([self._pass.of_batch({**batch, 'views': (view,)}) for view in views])
            count += len(parts[-1][0])
            if count >= MOST_ROWS:
                break
        if not count:
            raise TooFewError(
                '--evaluators=alignment needs an image to evaluate; found none. Leave it out, or '
                'choose another --eval_split.'
            )
        first, second = (np.concatenate([f.embeddings for f in side]) for side in zip(*parts))
        return [('eval/alignment', alignment(first[:MOST_ROWS], second[:MOST_ROWS]))]

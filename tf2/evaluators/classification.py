"""Top-k accuracy of the classifier."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf2.evaluators.base import Inputs, Result, TooFewError
from tf2.features import RANK, label_rank


def topk_correct(logits: tf.Tensor, labels: tf.Tensor, k: int) -> tf.Tensor:
    """Whether each label is among the k highest logits.

    Equal logits rank by class number, see `label_rank`.

    Args:
        logits: [b, c], any float type.
        labels: [b] integers; outside [0, c) they are never correct.
        k: number of guesses; k >= c accepts every valid label.

    Returns:
        [b] float32, 1 or 0. A row with a NaN is 0.
    """
    return tf.cast(label_rank(logits, labels) < k, tf.float32)


class Classification:
    """Top-1 and top-5 accuracy over the labeled examples of the evaluation split.

    With c < 5 classes, the second is top-c and named accordingly.

    Args:
        inputs: `samples` and `num_classes` are used.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._samples = inputs.samples
        self._samples.expect(RANK)
        self._ks = sorted({1, min(5, inputs.num_classes)})

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there is a classifier, and there are labels."""
        return bool(inputs.predict and inputs.num_classes)

    def run(self) -> list[Result]:
        """Accuracies as ('eval/label_top_{k}_accuracy', share in [0, 1]) pairs.

        Raises:
            TooFewError: when no example has a label.
        """
        rank = self._samples.evaluation(labeled=True).rank  # [n]
        if not len(rank):
            raise TooFewError(
                'Evaluation needs labeled examples; found none in the evaluation split. '
                'Choose another --eval_split or data set.'
            )
        return [(f'eval/label_top_{k}_accuracy', float(np.mean(rank < k))) for k in self._ks]

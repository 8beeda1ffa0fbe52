"""Confusion matrix of the classifier."""

from __future__ import annotations

import numpy as np

from tf2.evaluators.base import Inputs, Result, TooFewError
from tf2.features import LOGITS, Features


def confusion_counts(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts examples by true class (rows) and predicted class (columns).

    Args:
        logits: [n, c] float; the first of the highest ones is the prediction.
        labels: [n] int in [0, c).

    Returns:
        [c, c] int64.
    """
    classes = logits.shape[1]
    cells = labels.astype(np.int64) * classes + logits.argmax(axis=1)  # [n]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def counts_of(features: Features) -> np.ndarray:
    """`confusion_counts` of labeled rows, [c, c].

    Raises:
        TooFewError: when there is no row.
    """
    if not len(features):
        raise TooFewError(
            '--evaluators=per_class and confusion need labeled examples; found none in the '
            'evaluation split. Leave them out, or choose another --eval_split.'
        )
    return confusion_counts(features.logits, features.labels)


class ConfusionMatrix:
    """The confusion matrix of the classifier over the evaluation split.

    Args:
        inputs: `samples` is used.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._samples = inputs.samples
        self._samples.expect(LOGITS)

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there are a classifier, features, and labels."""
        return bool(inputs.predict and inputs.embed and inputs.num_classes)

    def run(self) -> list[Result]:
        """('eval/confusion_matrix', rows: true class, columns: predicted class).

        Raises:
            TooFewError: when no example has a label.
        """
        counts = counts_of(self._samples.evaluation(labeled=True))
        return [('eval/confusion_matrix', counts.tolist())]

"""Linear probe: accuracy of a linear classifier fitted to features of the training split."""

from __future__ import annotations

import math
import warnings

import numpy as np

from tf2.evaluators.base import Inputs, Result, TooFewError, finite
from tf2.features import EMBEDDING

MOST_EXAMPLES = 5000  # of the training split, so that fitting takes seconds
MOST_ITERATIONS = 100


def probe_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
) -> float:
    """Share of test examples that a multinomial logistic regression predicts correctly.

    Features are standardized over the training examples. The regression has scikit-learn's
    defaults, which include an L2 penalty with C=1.

    Args:
        train_features: [n, d] float.
        train_labels: [n] int.
        test_features: [m, d] float.
        test_labels: [m] int.

    Returns:
        Accuracy in [0, 1].

    Raises:
        TooFewError: if the training examples have fewer than two classes, or there is nothing to
            test.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = len(np.unique(train_labels))
    if classes < 2 or not len(test_features):
        raise TooFewError(
            '--evaluators=probe needs labeled training examples of two classes and a labeled '
            f'example to evaluate; found {classes} classes and {len(test_features)} examples. '
            'Leave probe out, or choose other splits.'
        )
    fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MOST_ITERATIONS))
    with warnings.catch_warnings():
        # The number of iterations is limited on purpose: by then the accuracy hardly changes.
        warnings.simplefilter('ignore', ConvergenceWarning)
        fitted.fit(train_features, train_labels)
    return float(np.mean(fitted.predict(test_features) == test_labels))


class LinearProbe:
    """Accuracy of a linear classifier on the features, over the evaluation split.

    Args:
        inputs: `samples` is used.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        inputs.samples.expect(EMBEDDING, train=MOST_EXAMPLES)

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether there are features, and labels of both splits."""
        return bool(inputs.embed and inputs.train_batches and inputs.num_classes)

    def run(self) -> list[Result]:
        """The accuracy as one ('eval/probe_accuracy', share) pair; NaN if a feature is not finite.

        Raises:
            TooFewError: see `probe_accuracy`.
        """
        train = self._inputs.samples.train(MOST_EXAMPLES)
        test = self._inputs.samples.evaluation(labeled=True)
        if not finite(train.embeddings, test.embeddings):
            return [('eval/probe_accuracy', math.nan)]
        rows = (train.embeddings, train.labels, test.embeddings, test.labels)
        return [('eval/probe_accuracy', probe_accuracy(*rows))]

"""Weighted k-nearest-neighbor accuracy of the features."""

from __future__ import annotations

import math
import warnings

import numpy as np

from tf2.evaluators.base import Inputs, Result, TooFewError, finite
from tf2.features import EMBEDDING

# Wu et al. 2018, arXiv:1805.01978, section 3.4.
TEMPERATURE = 0.07


def knn_accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    neighbors: int,
    temperature: float = TEMPERATURE,
) -> float:
    """Share of test examples whose nearest training examples vote for their label.

    Each of the `neighbors` most similar training examples votes for its class with weight
    exp(cosine similarity / temperature) (Wu et al. 2018, arXiv:1805.01978, section 3.4). Ties go
    to the lowest class.

    Args:
        train_features: [n, d] float.
        train_labels: [n] int.
        test_features: [m, d] float.
        test_labels: [m] int.
        neighbors: how many vote.
        temperature: of the weights.

    Returns:
        Accuracy in [0, 1].

    Raises:
        TooFewError: when there are fewer training examples than neighbors, or nothing to test.
    """
    from sklearn.neighbors import KNeighborsClassifier

    if neighbors > len(train_features):
        raise TooFewError(
            f'--knn_neighbors must be at most the number of labeled training examples, '
            f'{len(train_features)}; found {neighbors}. Lower it or raise --knn_examples.'
        )
    if not len(test_features):
        raise TooFewError(
            'Nearest neighbors need labeled examples; found none in the evaluation split. '
            'Choose another --eval_split or set --knn_neighbors=0.'
        )

    def weights(distances: np.ndarray) -> np.ndarray:
        # Relative to the nearest, which scales all votes of a row alike and avoids an overflow.
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)

    classifier = KNeighborsClassifier(
        neighbors, weights=weights, metric='cosine', algorithm='brute'
    )
    with warnings.catch_warnings():
        # With few examples of many classes, scikit-learn suspects a regression.
        warnings.filterwarnings('ignore', 'The number of unique classes', UserWarning)
        classifier.fit(train_features, train_labels)
    return float(np.mean(classifier.predict(test_features) == test_labels))


class NearestNeighbors:
    """Weighted k-nearest-neighbor accuracy of the features on the evaluation split.

    Args:
        inputs: `samples`, `neighbors` and `neighbor_examples` are used.
    """

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        inputs.samples.expect(EMBEDDING, train=inputs.neighbor_examples)

    @staticmethod
    def applies(inputs: Inputs) -> bool:
        """Whether neighbors are asked for, and there are features, and labels of both splits."""
        return bool(
            inputs.neighbors and inputs.embed and inputs.train_batches and inputs.num_classes
        )

    def run(self) -> list[Result]:
        """The accuracy as one ('eval/knn_accuracy', share) pair; NaN if a feature is not finite.

        Raises:
            TooFewError: when there are too few labeled examples.
        """
        inputs = self._inputs
        train = inputs.samples.train(inputs.neighbor_examples)
        test = inputs.samples.evaluation(labeled=True)
        if not finite(train.embeddings, test.embeddings):
            return [('eval/knn_accuracy', math.nan)]
        rows = (train.embeddings, train.labels, test.embeddings, test.labels)
        return [('eval/knn_accuracy', knn_accuracy(*rows, inputs.neighbors))]

"""The confusion matrix and the accuracies by class, against counting one by one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from tests.support import mirrored
from tf2.evaluators.base import Inputs
from tf2.evaluators.classification import Classification
from tf2.evaluators.confusion import ConfusionMatrix, confusion_counts
from tf2.evaluators.per_class import PerClass

CLASSES = 4


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Logits with many ties, and labels: some are missing, class 2 never occurs."""
    random = np.random.default_rng(0)
    logits = random.integers(0, 3, [48, CLASSES]).astype(np.float32)
    return logits, random.choice([-1, 0, 1, 3], 48).astype(np.int32)


def slow_counts(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    counts = np.zeros([CLASSES, CLASSES], int)
    for row, label in zip(logits.tolist(), labels):
        if label >= 0:
            counts[label, row.index(max(row))] += 1
    return counts


def given(strategy: tf.distribute.Strategy) -> Inputs:
    """'Images' are logits."""
    logits, labels = rows()
    dataset = tf.data.Dataset.from_tensor_slices({'views': (logits,), 'label': labels}).batch(8)
    batches = strategy.experimental_distribute_dataset(dataset)
    return Inputs(lambda: batches, CLASSES, predict=tf.identity, embed=lambda x: x[:, :2])


def test_counts_by_true_and_predicted_class() -> None:
    logits, labels = rows()
    known = labels >= 0
    found = confusion_counts(logits[known], labels[known])
    np.testing.assert_array_equal(found, slow_counts(logits, labels))


@pytest.mark.parametrize('replicas', [1, 2])
def test_evaluators_agree_with_counting_and_with_top_1(replicas: int) -> None:
    strategy = mirrored(replicas)
    inputs = given(strategy)
    with strategy.scope():
        built = [kind(inputs) for kind in (ConfusionMatrix, PerClass, Classification)]
        found = dict(pair for evaluator in built for pair in evaluator.run())
    counts = slow_counts(*rows())
    assert found['eval/confusion_matrix'] == counts.tolist()
    shares = {str(c): counts[c, c] / counts[c].sum() for c in (0, 1, 3)}
    assert found['eval/per_class_accuracy'] == pytest.approx(shares)
    mean = sum(shares.values()) / 3
    assert found['eval/mean_per_class_accuracy'] == pytest.approx(mean)
    top_1 = np.trace(counts) / counts.sum()
    assert found['eval/label_top_1_accuracy'] == pytest.approx(top_1)


def test_classes_go_by_their_names() -> None:
    named = dataclasses.replace(given(mirrored(1)), class_names=('ant', 'bee', 'cat', 'dog'))
    assert list(dict(PerClass(named).run())['eval/per_class_accuracy']) == ['ant', 'bee', 'dog']


def test_without_a_label_there_is_nothing_to_count() -> None:
    batch = {'views': (tf.zeros([2, 3]),), 'label': tf.constant([-1, -1])}
    inputs = Inputs(lambda: [batch], 3, predict=tf.identity, embed=tf.identity)
    with pytest.raises(UserError, match='found none'):
        ConfusionMatrix(inputs).run()

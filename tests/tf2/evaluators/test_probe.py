"""The linear probe against scikit-learn, step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from common.errors import UserError
from tests.support import mirrored
from tf2.evaluators import probe
from tf2.evaluators.base import Inputs
from tf2.evaluators.probe import LinearProbe, probe_accuracy


def data(seed: int, n: int, m: int) -> tuple[np.ndarray, ...]:
    """Features of 4 classes that overlap, of very different scales."""
    random = np.random.default_rng(seed)
    centers, scales = random.normal(size=[4, 6]), 10.0 ** np.arange(-3, 3)
    rows = []
    for count in (n, m):
        labels = random.integers(0, 4, count)
        features = scales * (3 + centers[labels] + random.normal(size=[count, 6]))
        rows += [features.astype(np.float32), labels.astype(np.int32)]
    return tuple(rows)


def expected_accuracy(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> float:
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    fitted = LogisticRegression(C=1.0, max_iter=1000)
    fitted.fit((train - mean) / deviation, train_labels)
    return fitted.score((test - mean) / deviation, test_labels)


@pytest.mark.parametrize('seed', range(3))
def test_is_that_of_scikit_learn(seed: int) -> None:
    rows = data(seed, 120, 90)
    found = probe_accuracy(*rows)
    assert found == pytest.approx(expected_accuracy(*rows))
    assert 0.4 < found < 1


def test_one_class_or_nothing_to_test_is_an_error() -> None:
    train, labels, test, test_labels = data(0, 20, 5)
    with pytest.raises(UserError, match='found 1 classes'):
        probe_accuracy(train, 0 * labels, test, test_labels)
    with pytest.raises(UserError, match='and 0 examples'):
        probe_accuracy(train, labels, test[:0], test_labels[:0])


@pytest.mark.parametrize('replicas', [1, 2])
def test_the_evaluator_fits_the_first_labeled_examples(
    replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, 'MOST_EXAMPLES', 60)
    train, train_labels, test, test_labels = data(0, 96, 48)
    train_labels[::5] = -1
    test_labels[::7] = -1
    strategy = mirrored(replicas)

    def batches(rows: np.ndarray, labels: np.ndarray) -> tf.data.Dataset:
        parts = {'views': (rows,), 'label': labels}
        dataset = tf.data.Dataset.from_tensor_slices(parts).batch(16)
        return strategy.experimental_distribute_dataset(dataset)

    with strategy.scope():
        inputs = Inputs(
            lambda: batches(test, test_labels),
            4,
            embed=tf.identity,
            train_batches=lambda: batches(train, train_labels),
        )
        ((name, found),) = LinearProbe(inputs).run()
    assert name == 'eval/probe_accuracy'
    fitted, known = np.flatnonzero(train_labels >= 0)[:60], test_labels >= 0
    rows = train[fitted], train_labels[fitted], test[known], test_labels[known]
    assert found == pytest.approx(expected_accuracy(*rows))


def test_features_that_are_not_finite_have_no_accuracy() -> None:
    batch = {'views': (tf.constant([[1.0], [math.nan]]),), 'label': tf.constant([0, 1])}
    inputs = Inputs(lambda: [batch], 2, embed=tf.identity, train_batches=lambda: [batch])
    ((_, found),) = LinearProbe(inputs).run()
    assert math.isnan(found)

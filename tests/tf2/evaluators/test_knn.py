"""Nearest neighbors against a slow reference that follows the paper's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from sklearn.neighbors import KNeighborsClassifier

from common.errors import UserError
from tests.support import mirrored
from tf2.evaluators.base import Inputs
from tf2.evaluators.knn import NearestNeighbors, knn_accuracy


def _slow_knn(train: np.ndarray, labels: np.ndarray, query: np.ndarray, k: int, tau: float) -> int:
    similarity = [float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for row in train]
    votes: dict[int, float] = {}
    for index in sorted(range(len(train)), key=lambda i: -similarity[i])[:k]:
        label = int(labels[index])
        votes[label] = votes.get(label, 0.0) + math.exp(similarity[index] / tau)
    return max(sorted(votes), key=votes.get)


def _data(seed: int, n: int, m: int) -> tuple[np.ndarray, ...]:
    random = np.random.RandomState(seed)
    centers = random.standard_normal([4, 6])
    train_labels, test_labels = random.randint(0, 4, n), random.randint(0, 4, m)
    train = centers[train_labels] + 1.5 * random.standard_normal([n, 6])
    test = centers[test_labels] + 1.5 * random.standard_normal([m, 6])
    return tuple(map(np.float32, (train, train_labels, test, test_labels)))


@pytest.mark.parametrize(('k', 'tau'), [(1, 0.07), (5, 0.07), (20, 1.0), (60, 0.5)])
def test_agrees_with_the_slow_reference(k: int, tau: float) -> None:
    train, train_labels, test, test_labels = _data(k, 60, 40)
    guesses = [_slow_knn(train, train_labels, query, k, tau) for query in test]
    expected = np.mean(np.array(guesses) == test_labels)
    found = knn_accuracy(train, train_labels, test, test_labels, k, tau)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize('k', [1, 7, 30])
def test_is_that_of_scikit_learn(k: int) -> None:
    """With distances of unit vectors, whose squares are 2 - 2 cos, and weights from the paper."""
    train, train_labels, test, test_labels = _data(k, 80, 50)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test)]
    voters = KNeighborsClassifier(k, weights=lambda d: np.exp((1 - d**2 / 2) / 0.07))
    expected = voters.fit(unit[0], train_labels).score(unit[1], test_labels)
    assert knn_accuracy(train, train_labels, test, test_labels, k) == pytest.approx(expected)


def test_tiny_temperature_does_not_overflow() -> None:
    data = _data(0, 60, 40)
    assert knn_accuracy(*data, 20, 1e-6) == knn_accuracy(*data, 1)


def test_more_neighbors_than_examples() -> None:
    with pytest.raises(UserError, match=r'at most .* 60; found 61'):
        knn_accuracy(*_data(0, 60, 40), 61)


def test_nothing_to_test() -> None:
    with pytest.raises(UserError, match='found none'):
        knn_accuracy(*_data(0, 60, 0), 5)


def _batches(features: np.ndarray, labels: np.ndarray, size: int) -> tf.data.Dataset:
    """Batches; those of 4 or more rows have an unlabeled and a masked row."""
    random = np.random.RandomState(1)
    labels = labels.astype(np.int32)
    mask = np.ones(len(labels), np.int32)
    mask[1::4] = 0
    labels[2::4] = -1
    features = features.copy()
    features[1::4] = random.standard_normal(features[1::4].shape)
    dataset = tf.data.Dataset.from_tensor_slices((features, labels, mask)).batch(size)
    return dataset.map(lambda x, y, m: {'views': (x,), 'label': y, 'mask': m})


def _kept(array: np.ndarray) -> np.ndarray:
    return array[np.arange(len(array)) % 4 % 3 == 0]


@pytest.mark.parametrize('replicas', [1, 2])
def test_evaluator_skips_rows_that_do_not_count(replicas: int) -> None:
    train, train_labels, test, test_labels = _data(0, 64, 46)
    strategy = mirrored(replicas)
    distribute = strategy.experimental_distribute_dataset
    train_batches = distribute(_batches(train, train_labels, 12))
    test_batches = distribute(_batches(test, test_labels, 12))
    with strategy.scope():
        inputs = Inputs(
            lambda: test_batches,
            4,
            embed=lambda x: tf.cast(x, tf.float32),
            train_batches=lambda: train_batches,
            neighbors=7,
        )
        (name, value) = NearestNeighbors(inputs).run()[0]
    kept = map(_kept, (train, train_labels, test, test_labels))
    assert name == 'eval/knn_accuracy'
    assert value == pytest.approx(knn_accuracy(*kept, 7))


def test_evaluator_limits_the_training_examples() -> None:
    train, train_labels, test, test_labels = _data(0, 64, 46)
    inputs = Inputs(
        lambda: _batches(test, test_labels, 12),
        4,
        embed=tf.identity,
        train_batches=lambda: _batches(train, train_labels, 12),
        neighbors=7,
        neighbor_examples=20,
    )
    kept = [_kept(array) for array in (train, train_labels, test, test_labels)]
    expected = knn_accuracy(kept[0][:20], kept[1][:20], *kept[2:], 7)
    assert dict(NearestNeighbors(inputs).run())['eval/knn_accuracy'] == pytest.approx(expected)


def test_evaluator_without_training_examples() -> None:
    inputs = Inputs(lambda: [], 4, embed=tf.identity, train_batches=lambda: [], neighbors=1)
    with pytest.raises(UserError, match='--knn_neighbors'):
        NearestNeighbors(inputs).run()


@pytest.mark.parametrize('classes', [30, 40, 2], ids=['rare', 'one of each', 'few'])
def test_rare_classes_are_no_reason_for_a_warning(
    classes: int, recwarn: pytest.WarningsRecorder
) -> None:
    """If most labels are unique, scikit-learn suspects a regression."""
    features = np.random.default_rng(0).normal(size=[40, 4])
    labels = np.arange(40) % classes
    knn_accuracy(features, labels, features[:9], np.full([9], 99), 3)
    assert not recwarn.list

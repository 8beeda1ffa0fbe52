"""Top-k accuracy: ties, masks, few classes, replicas."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from tests.support import mirrored
from tf2 import evaluators
from tf2.evaluators.base import Inputs
from tf2.evaluators.classification import Classification, topk_correct

MODES = {
    'eager': lambda function: function,
    'graph': tf.function,
    'xla': lambda function: tf.function(function, jit_compile=True),
}


def _slow_topk(logits: np.ndarray, labels: np.ndarray, k: int) -> list[float]:
    best = np.argsort(-logits, axis=1, kind='stable')[:, :k]
    return [float(label in row) for label, row in zip(labels, best, strict=True)]


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('k', [1, 2, 5, 9])
def test_topk_agrees_with_sorting(mode: str, k: int) -> None:
    random = np.random.RandomState(k)
    logits = random.randint(0, 4, [200, 7]).astype(np.float32)  # many ties
    labels = random.randint(0, 7, 200).astype(np.int32)
    correct = MODES[mode](lambda x, y: topk_correct(x, y, k))(logits, labels)
    assert correct.dtype == tf.float32
    np.testing.assert_array_equal(correct, _slow_topk(logits, labels, k))


@pytest.mark.parametrize('dtype', [tf.bfloat16, tf.float16, tf.float64])
def test_topk_takes_any_float(dtype: tf.DType) -> None:
    logits = tf.constant([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]], dtype)
    labels = tf.constant([2, 2], tf.int64)
    np.testing.assert_array_equal(topk_correct(logits, labels, 1), [1, 0])


def test_constant_classifier_is_right_for_one_class_only() -> None:
    correct = topk_correct(tf.zeros([10, 10]), tf.range(10), 1)
    np.testing.assert_array_equal(correct, [1] + [0] * 9)


@pytest.mark.parametrize('mode', MODES)
def test_topk_of_bad_rows(mode: str) -> None:
    inf, nan = np.inf, np.nan
    logits = tf.constant([[1, nan, 0], [0, 1, 2], [0, 1, 2], [inf, 0, 0], [-inf, 0, inf]])
    labels = tf.constant([0, -1, 3, 0, 0])
    correct = MODES[mode](lambda x, y: topk_correct(x, y, 3))(logits, labels)
    np.testing.assert_array_equal(correct, [0, 0, 0, 1, 1])


def _data(num_classes: int, examples: int = 37) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    logits = random.standard_normal([examples, num_classes]).astype(np.float32)
    labels = random.randint(-1, num_classes, examples).astype(np.int32)
    return logits, labels, random.randint(0, 2, examples).astype(np.float32)


def _batches(data: tuple[np.ndarray, ...], size: int) -> Iterator[dict]:
    """The 'images' are the logits themselves; the last batch is smaller."""
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(size)
    for logits, labels, mask in dataset:
        yield {'views': (logits,), 'label': labels, 'mask': mask}


def _expected(data: tuple[np.ndarray, ...], k: int) -> float:
    logits, labels, mask = data
    rows = (labels >= 0) & (mask > 0)
    return float(np.mean(_slow_topk(logits[rows], labels[rows], k)))


@pytest.mark.smoke
@pytest.mark.parametrize(('num_classes', 'second'), [(10, 5), (5, 5), (3, 3)])
def test_classification(num_classes: int, second: int) -> None:
    data = _data(num_classes)
    inputs = Inputs(lambda: _batches(data, 8), num_classes, predict=tf.identity)
    results = Classification(inputs).run()
    assert [name for name, _ in results] == [
        'eval/label_top_1_accuracy',
        f'eval/label_top_{second}_accuracy',
    ]
    for (_, value), k in zip(results, (1, second), strict=True):
        assert value == pytest.approx(_expected(data, k))


def test_classification_without_mask() -> None:
    logits, labels, mask = _data(10)
    batch = {'views': (tf.constant(logits),), 'label': tf.constant(labels)}
    inputs = Inputs(lambda: [batch], 10, predict=tf.identity)
    expected = _expected((logits, labels, np.ones_like(mask)), 1)
    assert Classification(inputs).run()[0][1] == pytest.approx(expected)


def test_classification_on_replicas() -> None:
    data = _data(10, examples=40)
    strategy = mirrored(2)
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(16)
    dataset = dataset.map(lambda x, y, m: {'views': (x,), 'label': y, 'mask': m})
    distributed = strategy.experimental_distribute_dataset(dataset)
    with strategy.scope():
        scale = tf.Variable(2.0)
        inputs = Inputs(lambda: distributed, 10, predict=lambda x: x * scale)
        evaluator = Classification(inputs)
    for _ in range(2):
        results = dict(evaluator.run())
        assert results['eval/label_top_5_accuracy'] == pytest.approx(_expected(data, 5))


def test_no_labels() -> None:
    batch = {'views': (tf.zeros([2, 3]),), 'label': tf.constant([-1, -1])}
    inputs = Inputs(lambda: [batch], 3, predict=tf.identity)
    with pytest.raises(UserError, match='found none'):
        Classification(inputs).run()


def test_only_what_applies_is_built() -> None:
    assert evaluators.build(Inputs(lambda: [], 3)) == []
    inputs = Inputs(
        lambda: [],
        3,
        predict=tf.identity,
        teach=tf.identity,
        embed=tf.identity,
        train_batches=lambda: [],
        neighbors=1,
    )
    built = evaluators.build(inputs)
    assert [type(found).__name__ for found in built] == [
        'Classification',
        'NearestNeighbors',
        'TeacherAgreement',
    ]
    assert len(evaluators.build(inputs, 'rank, knn')) == 2

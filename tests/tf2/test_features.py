"""The features pass, on one and several replicas."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored
from tf2.features import EMBEDDING, LOGITS, FeaturePass, concatenated

LABELS = np.array([0, -1, 2, 1, -1, 0, 2, 1], np.int32)
MASK = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)


def model(images: tf.Tensor) -> dict[str, tf.Tensor]:
    means = tf.reduce_mean(images, [1, 2])  # [b, 3]
    return {EMBEDDING: means, LOGITS: -means, 'block': images}


def batches(replicas: int) -> list:
    images = np.random.default_rng(0).random([8, 2, 2, 3], np.float32)
    data = {'views': (images,), 'label': LABELS, 'mask': MASK, 'index': np.arange(10, 18)}
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(4)
    strategy = tf.distribute.get_strategy()
    return list(strategy.experimental_distribute_dataset(dataset)) if replicas > 1 else dataset


@pytest.mark.parametrize('replicas', [1, 2])
def test_rows_come_in_order_without_padding(replicas: int) -> None:
    images = np.random.default_rng(0).random([8, 2, 2, 3], np.float32)
    with mirrored(replicas).scope():
        found = FeaturePass(model).collect(batches(replicas))
    np.testing.assert_allclose(found.embeddings, images.mean((1, 2))[:6], rtol=1e-6)
    np.testing.assert_allclose(found.logits, -images.mean((1, 2))[:6], rtol=1e-6)
    assert found.labels.tolist() == LABELS[:6].tolist()
    assert found.index.tolist() == list(range(10, 16))


@pytest.mark.parametrize(
    ('limit', 'labeled', 'index'),
    [(5, False, [10, 11, 12, 13, 14]), (None, True, [10, 12, 13, 15]), (3, True, [10, 12, 13])],
)
def test_a_pass_ends_at_its_limit(limit: int | None, labeled: bool, index: list[int]) -> None:
    found = FeaturePass(model).collect(batches(1), limit=limit, labeled=labeled)
    assert found.index.tolist() == index and len(found) == len(index)


def test_without_classifier_mask_and_index() -> None:
    look = FeaturePass(lambda images: {EMBEDDING: model(images)[EMBEDDING]})
    found = look.of_batch({'views': (tf.zeros([2, 4, 4, 3]),), 'label': tf.constant([1, -1])})
    assert found.logits is None and found.index.tolist() == [-1, -1]
    assert len(concatenated([])) == 0

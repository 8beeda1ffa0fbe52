"""Batch normalization against a slow reference, on one replica and on several; padding."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored, run_on_replicas
from tf2.models.layers import EPSILON, BatchNorm, FixedPadding, Norm

RNG = np.random.default_rng(0)
IMAGES = (3 + 2 * RNG.normal(size=(8, 4, 5, 6))).astype(np.float32)


def reference(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalized images, mean, variance over all axes but the last, in float64."""
    images = images.astype(np.float64)
    axes = tuple(range(images.ndim - 1))
    mean, variance = images.mean(axes), images.var(axes)
    return (images - mean) / np.sqrt(variance + EPSILON), mean, variance


def built(norm: Norm, rank: int = 4, **kwargs: bool) -> BatchNorm:
    layer = BatchNorm(norm, **kwargs)
    layer.build(tf.TensorShape([None] * (rank - 1) + [6]))
    return layer


@pytest.mark.parametrize('images', [IMAGES, IMAGES[:, 0, 0]], ids=['images', 'vectors'])
def test_training_normalizes_by_the_batch_and_moves_the_statistics(images: np.ndarray) -> None:
    layer = built(Norm(momentum=0.9), images.ndim)
    outputs, mean, variance = reference(images)
    np.testing.assert_allclose(layer(images, training=True), outputs, atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * variance, rtol=1e-4)


def test_inference_and_frozen_layers_use_and_keep_the_statistics() -> None:
    layer = built(Norm())
    layer.moving_mean.assign([3.0] * 6)
    layer.moving_variance.assign([4.0] * 6)
    expected = (IMAGES - 3) / np.sqrt(4 + EPSILON)
    np.testing.assert_allclose(layer(IMAGES), expected, atol=1e-5)
    layer.trainable = False
    np.testing.assert_allclose(layer(IMAGES, training=True), expected, atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, [3.0] * 6)


@pytest.mark.parametrize('replicas', [2, 4])
def test_synchronized_replicas_act_as_one(replicas: int) -> None:
    weights = RNG.normal(size=IMAGES.shape).astype(np.float32)

    def step(layer: BatchNorm, images: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, ...]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images, training=True)
            loss = tf.reduce_sum(outputs**2 * weights)
        return outputs, tape.gradient(loss, images)

    alone = built(Norm())
    expected = step(alone, tf.constant(IMAGES), tf.constant(weights))
    strategy = mirrored(replicas)
    with strategy.scope():
        layer = built(Norm(synchronized=True))
    shares = (np.split(IMAGES, replicas), np.split(weights, replicas))
    found = run_on_replicas(strategy, lambda x, w: step(layer, x, w), *shares)
    for mine, theirs in zip(zip(*found, strict=True), expected, strict=True):
        np.testing.assert_allclose(np.concatenate(mine), theirs, atol=2e-4)
    np.testing.assert_allclose(layer.moving_mean.numpy(), alone.moving_mean, rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance.numpy(), alone.moving_variance, rtol=1e-4)


def test_unsynchronized_replicas_use_their_own_batch() -> None:
    strategy = mirrored(2)
    with strategy.scope():
        layer = built(Norm(synchronized=False))
    found = run_on_replicas(strategy, lambda x: layer(x, training=True), np.split(IMAGES, 2))
    for mine, images in zip(found, np.split(IMAGES, 2), strict=True):
        np.testing.assert_allclose(mine, reference(images)[0], atol=1e-4)
    mean_of_means = np.mean([reference(half)[1] for half in np.split(IMAGES, 2)], 0)
    np.testing.assert_allclose(layer.moving_mean.numpy(), 0.1 * mean_of_means, rtol=1e-4)


def test_options_of_gamma_and_beta() -> None:
    layer = built(Norm(), center=False, zero_gamma=True)
    assert layer.beta is None
    np.testing.assert_array_equal(layer(IMAGES, training=True), np.zeros_like(IMAGES))


@pytest.mark.parametrize('channels', [6, 16])
@pytest.mark.parametrize('training', [True, False])
def test_bfloat16_keeps_statistics_in_float32(channels: int, training: bool) -> None:
    """With both kernels, see `NORM_VECTOR`."""
    layer = BatchNorm(Norm(dtype='mixed_bfloat16'))
    images = np.resize(IMAGES, [8, 4, 5, channels])
    outputs = layer(tf.cast(images, tf.bfloat16), training=training)
    assert outputs.dtype == tf.bfloat16
    assert {variable.dtype for variable in layer.variables} == {tf.float32}
    expected, mean, _ = reference(images)
    expected = expected if training else images / np.sqrt(1 + EPSILON)
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, rtol=0.01, atol=0.05)
    moved = 0.1 * mean if training else np.zeros(channels)
    np.testing.assert_allclose(layer.moving_mean, moved, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize(('kernel', 'before', 'after'), [(2, 0, 1), (3, 1, 1), (7, 3, 3)])
def test_fixed_padding(kernel: int, before: int, after: int) -> None:
    padded = FixedPadding(kernel, Norm())(tf.ones([1, 4, 5, 1]))
    expected = np.pad(np.ones([1, 4, 5, 1]), [(0, 0), (before, after), (before, after), (0, 0)])
    np.testing.assert_array_equal(padded, expected)

"""Variables are chosen by the layer they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored
from tf2.optimizers import decay

layers = tf.keras.layers


class _OwnNorm(layers.Layer):
    """A batch normalisation that is none of Keras' classes."""

    def build(self, shape: tf.TensorShape) -> None:
        self.gamma = self.add_weight(name='kernel', shape=shape[-1:])
        self.moving_mean = self.add_weight(name='mean', shape=shape[-1:], trainable=False)
        self.moving_variance = self.add_weight(name='var', shape=shape[-1:], trainable=False)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs * self.gamma


class _Net(tf.keras.Model):
    """Names that would deceive a pattern: a dense layer called bias, a norm called kernel."""

    def __init__(self, dtype: str = 'float32') -> None:
        super().__init__()
        self.stem = layers.Conv2D(4, 3, name='batch_normalization', dtype=dtype)
        self.blocks = [
            layers.DepthwiseConv2D(3, use_bias=False, dtype=dtype),
            layers.BatchNormalization(name='kernel', dtype=dtype),
            _OwnNorm(),
        ]
        self.heads = {'a': layers.Dense(5, name='bias', dtype=dtype)}
        self.again = self.stem

    def call(self, images: tf.Tensor) -> tf.Tensor:
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden)
        return self.heads['a'](tf.reduce_mean(hidden, [1, 2]))


def _net(dtype: str = 'float32') -> _Net:
    net = _Net(dtype)
    net(tf.zeros([1, 8, 8, 3]))
    return net


def _same(found: list[tf.Variable], expected: list[tf.Variable]) -> bool:
    return [v.name for v in found] == [v.name for v in expected] and all(
        a is b for a, b in zip(found, expected, strict=True)
    )


def _by_shape(variables: list[tf.Variable]) -> list[list[int]]:
    return sorted(v.shape.as_list() for v in variables)


@pytest.mark.parametrize('dtype', ['float32', 'mixed_bfloat16'])
def test_decayed_kernels(dtype: str) -> None:
    net = _net(dtype)
    kernels = decay.decayed_kernels(net)
    assert _by_shape(kernels) == [[3, 3, 3, 4], [3, 3, 4, 1], [4, 5]]
    assert _same(kernels, decay.decayed_kernels(net))


def test_decayed_kernels_of_a_layer_and_of_a_plain_module() -> None:
    net = _net()
    dense = net.heads['a']
    assert _same(decay.decayed_kernels(dense), [dense.kernel])
    plain = tf.Module()
    plain.parts = [net, dense]
    assert len(decay.decayed_kernels(plain)) == 3


def test_unbuilt_layer() -> None:
    with pytest.raises(ValueError, match='no kernel'):
        decay.decayed_kernels(layers.Dense(3))


@pytest.mark.parametrize('dtype', ['float32', 'mixed_bfloat16'])
def test_not_batch_norm(dtype: str) -> None:
    net = _net(dtype)
    found = decay.not_batch_norm(net)
    assert _by_shape(found) == [[3, 3, 3, 4], [3, 3, 4, 1], [4], [4, 5], [5]]
    kept = {id(variable) for variable in found}
    assert _same(found, [v for v in net.trainable_variables if id(v) in kept])


def test_not_batch_norm_among_given_and_of_frozen() -> None:
    net = _net()
    dense = net.heads['a']
    assert _same(decay.not_batch_norm(net, dense.trainable_variables), [dense.kernel, dense.bias])
    net.stem.trainable = False
    assert _by_shape(decay.not_batch_norm(net)) == [[3, 3, 4, 1], [4, 5], [5]]


def test_l2_penalty() -> None:
    variables = [tf.Variable([1.0, 2.0]), tf.Variable([[3.0]], dtype=tf.float64)]
    penalty = decay.l2_penalty(variables)
    assert penalty.dtype == tf.float32
    np.testing.assert_allclose(penalty, 7.0)
    np.testing.assert_allclose(decay.l2_penalty([]), 0.0)


def test_a_distributed_variable_and_its_copies_are_one() -> None:
    strategy = mirrored(2)
    with strategy.scope():
        net = _net('mixed_bfloat16')
    for variable in net.trainable_variables:
        key = decay.variable_key(variable)
        copies = strategy.experimental_local_results(variable)
        assert {decay.variable_key(copy) for copy in copies} == {key}
    assert len({decay.variable_key(v) for v in net.variables}) == len(net.variables)

"""Variables are chosen by the layer they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tests.support import mirrored
from tf2.config import ModelConfig
from tf2.models.encoder import SimCLRModel, build_model
from tf2.models.resnet_sizes import BLOCKS_PER_GROUP
from tf2.optimizers import decay

layers = tf.keras.layers


class _OwnNorm(layers.Layer):
    """A batch normalization that is none of Keras' classes."""

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
    kernels = decay.decayed_kernels([net])
    assert _by_shape(kernels) == [[3, 3, 3, 4], [3, 3, 4, 1], [4, 5]]
    assert _same(kernels, decay.decayed_kernels([net]))


def test_decayed_kernels_of_several_modules() -> None:
    net, other = _net(), _net()
    dense = net.heads['a']
    assert _same(decay.decayed_kernels([dense]), [dense.kernel])
    plain = tf.Module()
    plain.parts = [net, dense]
    assert len(decay.decayed_kernels([plain])) == 3
    assert len(decay.decayed_kernels([plain, other, net])) == 6
    kept = decay.decayed_kernels([plain, other], besides=[dense])
    assert _by_shape(kept) == [[3, 3, 3, 4], [3, 3, 3, 4], [3, 3, 4, 1], [3, 3, 4, 1], [4, 5]]
    assert any(variable is other.heads['a'].kernel for variable in kept)


def test_frozen_layers_do_not_decay() -> None:
    net = _net()
    net.stem.trainable = False
    assert _by_shape(decay.decayed_kernels([net])) == [[3, 3, 4, 1], [4, 5]]
    assert _by_shape(decay.kernels_and_biases([net])) == [[3, 3, 4, 1], [4, 5], [5]]
    net.trainable = False
    assert decay.decayed_kernels([net]) == decay.kernels_and_biases([net]) == []


class _Transformer(layers.Layer):
    """Attention, normalization over channels and a position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 3)
        self.norm = layers.LayerNormalization()

    def build(self, shape: tf.TensorShape) -> None:
        self.position = self.add_weight(name='kernel', shape=shape[1:])

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        normed = self.norm(tokens + self.position)
        return self.attention(normed, normed)


def test_attention_decays_and_position_embeddings_do_not() -> None:
    layer = _Transformer()
    layer(tf.zeros([1, 5, 4]))
    kernels = [[2, 3, 4], [4, 2, 3], [4, 2, 3], [4, 2, 3]]
    assert _by_shape(decay.decayed_kernels([layer])) == kernels
    biases = [[2, 3], [2, 3], [2, 3], [4]]
    assert _by_shape(decay.kernels_and_biases([layer])) == sorted([*kernels, *biases])


def test_unbuilt_layer() -> None:
    with pytest.raises(ValueError, match='no kernel'):
        decay.decayed_kernels([layers.Dense(3)])


@pytest.mark.parametrize('dtype', ['float32', 'mixed_bfloat16'])
def test_kernels_and_biases(dtype: str) -> None:
    net = _net(dtype)
    found = decay.kernels_and_biases([net])
    assert _by_shape(found) == [[3, 3, 3, 4], [3, 3, 4, 1], [4], [4, 5], [5]]
    kept = {id(variable) for variable in found}
    assert _same(found, [v for v in net.trainable_variables if id(v) in kept])
    dense = net.heads['a']
    assert _same(decay.kernels_and_biases([dense, dense]), [dense.kernel, dense.bias])


@pytest.mark.parametrize(('sk', 'se'), [(0.0, 0.0), (0.0625, 0.25)])
def test_what_decays_in_the_model_by_name(
    sk: float, se: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published program goes by names, which our variables keep."""
    monkeypatch.setitem(BLOCKS_PER_GROUP, 50, (2, 1, 1, 1))
    config = ModelConfig(resnet_depth=50, width_multiplier=0.03125, sk_ratio=sk, se_ratio=se)
    with tf.Graph().as_default():
        model = build_model(SimCLRModel(config, 32, 10))
        word = {v.ref(): v.name.rsplit('/', 1)[-1].split(':')[0] for v in model.variables}
        classifier = {v.ref() for v in model.classifier.variables}
        kernels = {ref for ref in word if word[ref] == 'kernel'}
        biases = {v.ref() for v in model.trainable_variables if word[v.ref()] == 'bias'}
        found = decay.decayed_kernels([model], besides=[model.classifier])
        assert {v.ref() for v in found} == kernels - classifier
        everything = decay.kernels_and_biases([model])
        assert {v.ref() for v in everything} == kernels | biases
        norms = [v for v in model.trainable_variables if word[v.ref()] in ('gamma', 'beta')]
        assert len(everything) + len(norms) == len(model.trainable_variables)


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

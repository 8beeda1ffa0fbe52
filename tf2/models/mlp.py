"""Multi-layer perceptrons: projection heads and predictors of methods after SimCLR."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import tensorflow as tf

from tf2.config import ModelConfig
from tf2.models.head_sizes import layer_widths
from tf2.models.layers import BatchNorm, Layer, Norm

# Makes an initializer from the number of inputs.
Initializer: TypeAlias = Callable[[int], tf.keras.initializers.Initializer]


def by_fan_in(inputs: int) -> tf.keras.initializers.Initializer:
    """Truncated normal with standard deviation 1 / sqrt(inputs), Haiku's default."""
    return tf.keras.initializers.TruncatedNormal(stddev=inputs**-0.5)


def uniform_by_fan_in(inputs: int) -> tf.keras.initializers.Initializer:
    """Uniform within ±1 / sqrt(inputs), PyTorch's default for kernels and biases."""
    return tf.keras.initializers.RandomUniform(-(inputs**-0.5), inputs**-0.5)


@dataclasses.dataclass(frozen=True)
class Dense:
    """One layer of an `MLP`.

    Attributes:
        bias: whether the dense layer has a bias.
        normalized: whether batch normalization follows.
        affine: whether that has gamma and beta.
        relu: whether a ReLU follows.
    """

    bias: bool = False
    normalized: bool = True
    affine: bool = True
    relu: bool = True


class DenseBlock(Layer):
    """A dense layer and what follows it.

    Args:
        inputs: width of the input.
        units: width of the output.
        kind: what follows.
        norm: normalization and dtype policy.
        kernel: initializer of the kernel.
        bias: initializer of the bias; None starts at 0.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        kind: Dense,
        norm: Norm,
        kernel: Initializer,
        bias: Initializer | None,
    ) -> None:
        super().__init__(dtype=norm.dtype)
        self.dense = tf.keras.layers.Dense(
            units,
            use_bias=kind.bias,
            kernel_initializer=kernel(inputs),
            bias_initializer=bias(inputs) if bias else 'zeros',
            dtype=norm.dtype,
        )
        affine = {'center': kind.affine, 'scale': kind.affine}
        self.bn = BatchNorm(norm, **affine) if kind.normalized else None
        self.kind = kind

    def call(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [b, inputs] to [b, units]."""
        outputs = self.dense(features)
        if self.bn is not None:
            outputs = self.bn(outputs, training=training)
        return tf.nn.relu(outputs) if self.kind.relu else outputs


class MLP(Layer):
    """Dense blocks with the interface of `heads.ProjectionHead`.

    Args:
        inputs: width of the input.
        widths: of the layers.
        hidden: kind of all layers but the last.
        last: kind of the last layer.
        norm: normalization and dtype policy.
        kernel: initializer of the kernels.
        bias: initializer of the biases; None starts at 0.

    Attributes:
        width: of the output.
        blocks: layers from input to output.
    """

    def __init__(
        self,
        inputs: int,
        widths: Sequence[int],
        hidden: Dense,
        last: Dense,
        norm: Norm,
        *,
        kernel: Initializer = uniform_by_fan_in,
        bias: Initializer | None = None,
    ) -> None:
        super().__init__(dtype=norm.dtype)
        kinds = [hidden] * (len(widths) - 1) + [last]
        sizes = zip([inputs, *widths], widths, kinds)  # without the last one, nothing's input
        self.width = widths[-1]
        self.blocks = [DenseBlock(*size, norm, kernel, bias) for size in sizes]

    def call(self, features: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Returns the input [b, inputs] and the output of every layer, all float32."""
        outputs = [features]
        for block in self.blocks:
            outputs.append(block(outputs[-1], training=training))
        return [tf.cast(output, tf.float32) for output in outputs]


def plain_head(config: ModelConfig, width: int, norm: Norm) -> MLP:
    """A projection head with biases and without normalization, as MoCo and InstDisc have.

    Args:
        config: settings of the head, see `head_sizes.layer_widths`.
        width: of the representation.
        norm: dtype policy.
    """
    hidden = Dense(bias=True, normalized=False)
    last = dataclasses.replace(hidden, relu=False)
    return MLP(width, layer_widths(config, width), hidden, last, norm, bias=uniform_by_fan_in)


def built(network: MLP, inputs: int) -> MLP:
    """Creates all variables of `network`, without computing anything, and returns it."""
    network(tf.keras.Input([inputs]))
    return network

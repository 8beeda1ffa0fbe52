"""Projection head and linear classifier (SimCLRv2 section 2, arXiv:2006.10029)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import tensorflow as tf

from tf2.config import ModelConfig
from tf2.models.layers import BatchNorm, Layer, Norm

# Makes a projection head from the settings, the width of the representation, and the normalization.
# It has the interface of `ProjectionHead`: `__call__`, `width`, and `blocks`, each with variables,
# which together hold all variables.
MakeHead: TypeAlias = Callable[[ModelConfig, int, Norm], Layer]


class DenseBN(Layer):
    """Dense layer without bias, batch normalization, and a ReLU unless it is the last one.

    The last layer's normalization has no beta.
    """

    def __init__(self, units: int, last: bool, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        initializer = tf.keras.initializers.RandomNormal(stddev=0.01)
        self.dense = tf.keras.layers.Dense(
            units, use_bias=False, kernel_initializer=initializer, dtype=norm.dtype
        )
        self.bn = BatchNorm(norm, center=not last)
        self.last = last

    def call(self, features: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Maps [b, d] to [b, units]."""
        normalized = self.bn(self.dense(features), training=training)
        return normalized if self.last else tf.nn.relu(normalized)


class ProjectionHead(Layer):
    """Maps the representation to the space in which views are compared.

    Args:
        config: `proj_head_mode`: 'none' (z = h), 'linear' (one layer) or 'nonlinear' (an MLP of
            `num_proj_layers`); `proj_out_dim`.
        in_dim: width of the representation and of the hidden layers.
        norm: normalization and dtype policy.

    Attributes:
        width: of the projection.
        blocks: layers from input to output; `ft_proj_selector` counts them from 1.
    """

    def __init__(self, config: ModelConfig, in_dim: int, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        depth = config.head_layers
        self.width = config.proj_out_dim if depth else in_dim
        widths = [in_dim] * (depth - 1) + [self.width] * min(depth, 1)
        self.blocks = [DenseBN(w, i == depth - 1, norm) for i, w in enumerate(widths)]

    def call(self, features: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        """Returns [b, in_dim], the hidden layers after their ReLU, and the projection [b, width].

        All are float32. Entry k is what `ft_proj_selector=k` selects.
        """
        outputs = [features]
        for block in self.blocks:
            outputs.append(block(outputs[-1], training=training))
        return [tf.cast(output, tf.float32) for output in outputs]


def classifier(num_classes: int) -> tf.keras.layers.Dense:
    """The linear classifier: kernel drawn from N(0, 0.01), zero bias, float32 throughout."""
    initializer = tf.keras.initializers.RandomNormal(stddev=0.01)
    return tf.keras.layers.Dense(num_classes, kernel_initializer=initializer, dtype='float32')

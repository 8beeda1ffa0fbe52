"""Small implementations of what a registry holds, as someone outside of the project writes them."""

from __future__ import annotations

import tensorflow as tf

from tf2.config import ModelConfig
from tf2.models.layers import ConvBN, Layer, Norm


class ToyBackbone(Layer):
    """A backbone of a stem and two blocks, of two layers and of one."""

    def __init__(self, config: ModelConfig, norm: Norm, image_size: int) -> None:
        super().__init__(dtype=norm.dtype)
        self.width = 6
        sizes = [[4], [4, 6], [6]]
        self.blocks = [[ConvBN(size, 3, 2, norm) for size in block] for block in sizes]

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        features = images
        for layer in tf.nest.flatten(self.blocks):
            features = layer(features, training=training)
        pooled = tf.reduce_mean(tf.cast(features, tf.float32), [1, 2])
        return {'last_map': features, 'final_avg_pool': pooled}

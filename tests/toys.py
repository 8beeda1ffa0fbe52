"""Toy backbones and a toy method, as a user outside of the project would write them."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tf2.config import LearningConfig, ModelConfig
from tf2.methods.base import Batch, Method, Nest, Terms
from tf2.models.encoder import SimCLRModel
from tf2.models.heads import DenseBN
from tf2.models.layers import ConvBN, Layer, Norm
from tf2.models.resnet_sizes import GROUP_FILTERS


class ToyBackbone(Layer):
    """A backbone with a stem of one layer, and blocks of two layers and of one."""

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


class PlainNetwork(Layer):
    """ResNet's stem and groups with one convolution each, of the same widths; reads its settings.

    See `tests.support.plain_networks`.
    """

    def __init__(self, config: ModelConfig, norm: Norm, image_size: int) -> None:
        super().__init__(dtype=norm.dtype)
        widths = [int(filters * config.width_multiplier) for filters in (64, *GROUP_FILTERS)]
        self.width = widths[-1]
        self.blocks = [[ConvBN(width, 3, 1 + bool(i), norm)] for i, width in enumerate(widths)]

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        features, endpoints = images, {}
        for number, (layer,) in enumerate(self.blocks):
            features = layer(features, training=training)
            endpoints[f'block_group{number}' if number else 'initial_conv'] = features
        pooled = tf.reduce_mean(tf.cast(features, tf.float32), [1, 2])
        return {**endpoints, 'final_avg_pool': pooled}


def count_blocks(config: ModelConfig) -> int:
    """Blocks of `ToyBackbone` after its stem."""
    return 2


class ToyHead(Layer):
    """A head of two layers more than the settings ask for, of widths of its own.

    The first layer has a bias and nothing else.
    """

    def __init__(self, config: ModelConfig, in_dim: int, norm: Norm) -> None:
        super().__init__(dtype=norm.dtype)
        widths = [6 + layer for layer in range(count_layers(config))]
        self.width = widths[-1]
        self.blocks = [tf.keras.layers.Dense(widths[0], dtype=norm.dtype)]
        self.blocks += [DenseBN(width, width == self.width, norm) for width in widths[1:]]

    def call(self, features: tf.Tensor, training: bool = False) -> list[tf.Tensor]:
        outputs = [features, self.blocks[0](features)]
        for block in self.blocks[1:]:
            outputs.append(block(outputs[-1], training=training))
        return [tf.cast(output, tf.float32) for output in outputs]


def count_layers(config: ModelConfig) -> int:
    """Layers of `ToyHead`."""
    return config.num_proj_layers + 2


class ToyMethod(Method):
    """Pulls the prediction from a small view toward the projection of a large one."""

    metrics = ('pull_loss',)

    def __init__(self, model: SimCLRModel, config: LearningConfig) -> None:
        super().__init__(name='toy')
        self.model, self.temperature = model, config.temperature
        self.predictor = tf.keras.layers.Dense(model.projection_head.width)
        self.predictor.build([None, model.projection_head.width])

    @classmethod
    def projection_head(cls, config: ModelConfig, width: int, norm: Norm) -> ToyHead:
        return ToyHead(config, width, norm)

    def trained(self) -> Sequence[tf.Module]:
        return (self.model, self.predictor)

    def forward(self, views: Sequence[tf.Tensor], training: bool) -> tuple[tf.Tensor, ...]:
        large, small = (self.model(view, training=training)['proj_head_output'] for view in views)
        return large, self.predictor(small)

    def loss(self, outputs: Nest, targets: Nest, batch: Batch) -> Terms:
        large, small = outputs
        pull = tf.reduce_mean((tf.stop_gradient(large) - small) ** 2) / self.temperature
        return {'loss': pull, 'pull_loss': pull}


class DenseEncoder(Layer):
    """Dense layers with biases on "images" whose pixels are a row of numbers.

    Tests set `widths`, of the layers, and `last_relu`, whether a ReLU follows the last one too.
    """

    widths: tuple[int, ...] = (4,)
    last_relu = True

    def __init__(self, config: ModelConfig, norm: Norm, image_size: int) -> None:
        super().__init__(dtype=norm.dtype)
        self.width = self.widths[-1]
        self.blocks = [[tf.keras.layers.Dense(width)] for width in self.widths]

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        features = tf.reshape(images, [-1, 6])
        for number, (layer,) in enumerate(self.blocks, 1):
            features = layer(features)
            if self.last_relu or number < len(self.blocks):
                features = tf.nn.relu(features)
        return {'final_avg_pool': features}
